"""The story of keys: tasks, values and datasets, from the first submission to the last release."""

from __future__ import annotations

import pickle
from functools import partial
from typing import Any

from faults.scenario import TIMEOUT, Story, other
from redist.store import calls

__all__ = ["OfKeys"]


class OfKeys(Story):
    """Two clients submit, scatter, publish and release."""

    def outcome(self, name: str) -> Any:
        if name == "container":
            return {"inner": self.futures["a"]} if "a" in self.futures else {}
        return f"value of {name} " + "x" * (100 if name == "b" else 0)

    def lose_segment(self) -> None:
        """The worker finds that the file is gone; what depends on it cannot be computed."""
        self.worker.call(calls.remove_replicas([self.segment()]), TIMEOUT)
        self.files["w"] = 0

    def hand_over(self) -> None:
        packed = self.do(pickle.dumps, self.futures["a"])
        self.settle()

        def taken() -> Any:
            with self.c2.as_current():
                return pickle.loads(packed)

        self.futures["a of c2"] = self.do(taken)

    def read_dataset(self) -> None:
        self.futures["read"] = self.do(self.c2.get_dataset, "ds")
        self.seen.append(("dataset", [future.key for future in self.futures["read"]]))

    def publish(self, name: str, *futures: str, override: bool = False) -> None:
        values = [self.futures[future] for future in futures]
        self.do(self.c1.publish_dataset, values, name=name, override=override)

    def scatter(self) -> None:
        values = self.do(self.c1.scatter, [b"s" * 200, [self.futures["c"]]])
        self.futures.update(zip(("s", "t"), values))

    def taken(self) -> None:
        """The key is another function's."""
        future = self.do(self.c2.submit, other, 1, key="c")
        self.refused(future.result)

    def scattered_taken(self) -> None:
        future = self.do(self.c2.scatter, {"c": 1})["c"]
        self.refused(future.result)

    def scattered_again(self) -> None:
        (again,) = self.do(self.c2.scatter, [b"s" * 200])
        assert again.key == self.futures["s"].key
        self.seen.append(self.do(again.result))

    def refusals(self) -> None:
        self.step("submit what is taken", self.taken, needs=["submit c"])
        self.settle()
        self.step("scatter what is taken", self.scattered_taken, needs=["submit c"])
        for name, *what in (
            ("publish again", partial(self.c1.publish_dataset, 1, name="kept")),
            ("read nothing", self.c1.get_dataset, "nothing"),
            ("unpublish nothing", self.c1._driver.call, calls.unpublish("nothing")),
            ("place nowhere", self.c1._driver.call, calls.place(1, 5000, ["nowhere"])),
        ):
            self.step(name, self.refused, *what, needs=["publish kept"])
        self.settle()

    def tell(self) -> None:
        self.errs = {"bad", "flaky"}
        self.open()
        step, futures, do = self.step, self.futures, self.do
        self.submit("a")
        self.submit("b", "a")
        self.submit("c", "a", "b")
        self.submit("a", step="a again")
        self.submit("b", client=self.c2, step="b of c2")
        self.submit("z")
        self.submit("on z", "z")
        self.submit("y", client=self.c2)
        self.submit("y", step="y of c1")
        step("cancel z", lambda: do(self.c1.cancel, [futures["z"]]))
        self.settle()
        step("cancel y", lambda: do(self.c1.cancel, [futures["y of c1"]], force=True))
        self.settle()
        self.run()
        self.settle()
        for name in ("a", "b", "c", "a again", "b of c2"):
            step(f"value {name}", self.value, name)
        step("cancelled", self.done, "z", "on z", "y", "y of c1")
        step("release a", self.drop, "a again")
        self.settle()

        self.submit("container")
        self.submit("bad")
        self.submit("on bad", "bad")
        self.submit("flaky", retries=1)
        self.run()
        self.settle()
        for name in ("bad", "on bad", "flaky"):
            step(f"value {name} 1", self.value, name)
        step("open container", lambda: futures.update(do(futures["container"].result)))
        step("inner", self.value, "inner")
        step("release container", self.drop, "container")
        self.settle()
        step("retry", lambda: do(self.c1.retry, [futures["bad"]]))
        self.settle()
        self.run()
        self.settle()
        step("value bad 2", self.value, "bad")
        step("value on bad 2", self.value, "on bad")

        self.submit("q0")
        for i in range(1, 5):
            self.submit(f"q{i}", f"q{i - 1}")
        self.run(quick=True)
        self.settle()
        step("value of the chain", self.value, "q4")
        step("release the chain", self.drop, "q0", "q1", "q2", "q3", "q4")
        self.settle()

        step("scatter", self.scatter)
        self.settle()
        step("value s", self.value, "s")
        step("scatter again", self.scattered_again)
        self.settle()
        step("scatter segment", self.scatter_segment, "w")
        self.settle()
        self.submit("fire")
        self.submit("hold", "s")
        step("fire", lambda: do(self.c1._fire, [futures["fire"]]))
        step("drop fire", self.drop, "fire")
        self.settle()
        self.stop()

        self.run()
        self.settle()
        step("hand over", self.hand_over)
        self.settle()
        step("publish", self.publish, "ds", "a", "b")
        step("publish kept", self.publish, "kept", "c")
        step("read", self.read_dataset)
        self.settle()
        step("override", lambda: self.publish("ds", "s", override=True))
        step("read value", lambda: self.seen.append(do(self.c2.gather, futures["read"])))
        self.refusals()
        step("unpublish", lambda: do(self.c2.unpublish_dataset, "ds"))
        step("lose segment", self.lose_segment)
        self.settle()
        self.stop()

        step("release", self.drop, "a", "b", "read")
        self.settle()
        self.stop()

        do(self.c2.close)
        self.settle()
        self.stop()
