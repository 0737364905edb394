"""The story of executors and workers: links of tasks, executors that die, functions, copies, messages."""

from __future__ import annotations

from typing import Any

from faults.handling import hurry
from faults.scenario import TIMEOUT, Story, other
from redist.errors import ClientClosed
from redist.session import submissions
from redist.store import calls

__all__ = ["OfProcesses"]


class OfProcesses(Story):
    """What happens to those who run tasks and have their payloads."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.sizes = submissions.LINKS, submissions.PART
        submissions.LINKS, submissions.PART = 3, 2  # so that a task of five dependencies is told of in parts

    def clear(self) -> None:
        submissions.LINKS, submissions.PART = self.sizes
        super().clear()

    def tell(self) -> None:
        self.open()
        self.links()
        self.executors()
        self.functions()
        self.copies()
        self.messages()

    def links(self) -> None:
        for i in range(5):
            self.submit(f"d{i}")
        self.submit("many", *(f"d{i}" for i in range(5)))
        self.step("what it needs", self.dependencies)
        self.stop()
        self.run()
        self.settle()
        self.step("value many", self.value, "many")
        self.step("drop many", self.drop, "many", *(f"d{i}" for i in range(5)))
        self.settle()

    def dependencies(self) -> None:
        cursor, *names = self.call(self.c1, calls.dependencies(self.futures["many"].name))[1:]
        self.seen.append((cursor, sorted(names)))

    def executors(self) -> None:
        self.submit("lost")
        running = self.turn([], [])
        self.executor._shut(ClientClosed("killed"))
        attempts = [task.attempt for task in running]
        dead = self.executor.session.ordinal
        self.step("die", lambda: self.worker.call(calls.lost_executor(dead, "killed", attempts), TIMEOUT))
        self.settle()
        self.executor = self.new_executor("e", 5)
        self.run()
        self.settle()
        self.step("value lost", self.value, "lost")

        self.submit("stuck")
        self.submit("not begun")
        running = self.turn([], [])
        results = [self.result(task) for task in running]
        me = self.executor.session.ordinal
        self.step("hand in for it", lambda: self.worker.call(calls.hand_in_for(me, results), TIMEOUT))
        self.settle()
        self.turn(results, running)
        self.run()
        self.settle()
        for name in ("stuck", "not begun"):
            self.step(f"value {name}", self.value, name)
        self.stop()
        self.step("drop them", self.drop, "lost", "stuck", "not begun")
        self.settle()

    def functions(self) -> None:
        self.submit("o", function=other)
        self.run()
        self.settle()
        self.step("drop o", self.drop, "o")
        self.settle()
        self.submit("p")
        mine = self.c1.session.submissions
        mine._many = 0  # as if there were very many
        self.do(mine._look)
        self.settle()
        self.stop()
        self.run()
        self.settle()
        self.step("drop p", self.drop, "p")
        self.settle()

    def copies(self) -> None:
        self.worker2 = self.driver("worker", "w2", {"address": "tcp://w2:1", "hostid": "h2", "pid": "3"})
        self.step("scatter", self.scatter_segment, "w")
        self.settle()
        self.step("fetch", self.fetch)
        self.step("fetch an old one", self.fetch, 7)
        self.settle()
        self.stop()
        self.step("lose", self.lose)
        self.settle()
        self.stop()
        self.step("drop it", self.drop, "segment")
        self.files.clear()
        self.settle()
        orphan = self.driver("executor", "f", {"threads": "1", "pid": "6"}, self.worker2.session.ordinal)
        orphan._shut(ClientClosed("killed"))
        self.step("believe dead", self.believe_dead)
        self.settle()

    def believe_dead(self) -> None:
        session = self.worker2.session
        self.worker.call(calls.lost_worker(session.ordinal, session.incarnation), TIMEOUT)
        hurry(self.worker2)  # it lives, here, and says so
        caller = f"caller:{session.ordinal}"
        self.wait(lambda: self.command("HGET", caller, "status") == b"running", "it is believed to live")

    def fetch(self, before: int = 0) -> None:
        name, attempt = self.segment()
        self.worker2.call(calls.add_replicas([calls.Replica(name, attempt + before, 5000, "bytes")]), TIMEOUT)
        self.files["w2"] = 1

    def lose(self) -> None:
        self.worker.call(calls.remove_replicas([self.segment()]), TIMEOUT)
        self.files["w"] = 0

    def messages(self) -> None:
        to = [driver.session.ordinal for driver in (self.worker, self.executor)]
        self.step("send", lambda: self.seen.append(self.call(self.c1, calls.send(to, b"message"))[2:]))
        self.stop()
        for ordinal in to:
            self.command("DEL", f"inbox:{ordinal}")
