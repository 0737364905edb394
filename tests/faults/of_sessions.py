"""The story of sessions: one that is taken up, one that the server forgot, a full server, a restart."""

from __future__ import annotations

from typing import Any

from faults.handling import hurry
from faults.scenario import LEASE, Story, work
from redist import Future, Lock
from redist.errors import ServerFull
from redist.session.heart import PATIENCE
from redist.store import calls
from servers import full

__all__ = ["OfSessions"]

MANY = 300  # keys whose end takes more than one slice of work


class OfSessions(Story):
    """What a client holds, when it does not come to its end in good order."""

    #: What is brought again comes until it is taken, or counts do in its place; one task meets a full server in any case.
    unheard = (*Story.unheard, "c1.commit.1", "c1.submit.2", "c1.submit.3")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.locks: dict[str, Lock] = {}

    def clear(self) -> None:
        self.locks.clear()
        super().clear()

    def tell(self) -> None:
        self.open()
        self.named()
        self.forgotten()
        self.full()
        self.restart()

    def named(self) -> None:
        first = self.client("nightly", grace=LEASE)
        self.submit("n", client=first)
        lock = self.locks["l"] = self.do(Lock, "l", client=first)
        self.step("lock", lambda: self.do(lock.acquire))
        self.settle()
        self.handling.kill(first)
        self.futures.pop("n", None)
        again = self.client("nightly", grace=LEASE)
        self.settle()
        self.stop()
        self.step("take up", lambda: self.futures.update(n=self.do(Future, "n", again)), needs=["submit n"])
        self.run()
        self.settle()
        self.step("value n", self.value, "n")
        free = self.locks["free"] = self.do(Lock, "l", client=self.c1)
        self.step("lock it", lambda: self.seen.append(self.do(free.acquire, False)))
        self.locks.clear()
        self.futures.pop("n", None)
        self.do(again.close)
        self.settle()
        self.stop()

    def forgotten(self) -> None:
        """The server takes a client for dead, which registers anew and says what it holds."""
        self.submit("x")
        self.submit("on x", "x")
        self.step("scatter s", lambda: self.futures.update(s=self.do(self.c1.scatter, "s")))
        self.settle()
        session = self.c1.session
        self.command("HSET", f"caller:{session.ordinal}", "inc", "another")
        for _ in range(1 + PATIENCE):
            self.do(hurry, self.c1._driver)
            self.settle()
        self.stop()
        self.run()
        self.settle()
        for name in ("x", "on x", "s"):
            self.step(f"value {name}", self.value, name)

    def full(self) -> None:
        with full(self.wire.call):
            try:
                future = self.do(self.c1.submit, work, "full", key="full")
                self.settle()
                self.seen.append(self.do(future.exception))
            except ServerFull as error:
                self.seen.append(error)
            del future
            self.step("drop on a full server", self.drop, "on x")
            self.settle()
        self.stop()

    def restart(self) -> None:
        self.submit("running")
        tasks = self.turn([], [])
        self.submit("after it", "running")
        self.step("scatter many", lambda: self.futures.update(m=self.do(self.c1.scatter, list(range(MANY)))))
        self.step("publish", lambda: self.do(self.c1.publish_dataset, [self.futures["x"]], name="ds"))
        self.settle()
        self.step("restart", lambda: self.seen.append(self.call(self.c1, calls.restart())[2]))
        self.settle()
        self.stop()
        for name in ("running", "after it"):
            self.step(f"{name} is cancelled", lambda name=name: self.seen.append(self.futures[name].status))
        self.turn([self.result(task) for task in tasks], tasks)
        self.futures.clear()
        self.settle()
        self.submit("new")
        self.submit("new of c2", client=self.c2)
        self.run()
        self.settle()
        self.step("value new", self.value, "new")
        self.step("value new of c2", self.value, "new of c2")
        self.stop()
