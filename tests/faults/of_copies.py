"""The story of copies: how many there should be, where they move, and a worker that retires."""

from __future__ import annotations

import msgpack

from faults.scenario import TIMEOUT, Story
from redist.session.thread_driver import ThreadDriver
from redist.store import calls, copying

__all__ = ["OfCopies"]


class OfCopies(Story):
    """One value, of which three workers make copies as they are asked to; there are no files."""

    def tell(self) -> None:
        self.open()
        self.workers = {"w": self.worker}
        for i, name in ((2, "w2"), (3, "w3")):
            details = {"address": f"tcp://{name}:1", "hostid": f"h{i}", "memory": f"m{i}", "pid": f"1{i}"}
            self.workers[name] = self.driver("worker", name, details)
        self.settle()
        step = self.step
        step("scatter", self.scatter_segment, "w")
        self.settle()
        step("replicate", self.replicate, 2)
        step("see it coming", self.count)
        self.obey("cannot copy", able=False)
        step("replicate again", self.replicate, 2, "workers")
        self.stop()
        self.obey("copy")
        step("count", self.count)
        self.stop()
        step("want one", self.replicate, 1)
        step("drop surplus", self.drop_surplus, "w")
        step("drop the last", self.drop_surplus, "w3")
        self.stop()
        step("move", self.move, "w3", "w2")
        step("move in vain", self.move, "w", "w2")
        self.obey("copy there")
        self.stop()
        step("replicate nowhere", self.nowhere)
        step("retire", self.retire, "w2")
        step("see what only it has", self.sole, "w2")
        self.obey("copy what only it has")
        step("see that others have it", self.sole, "w2")
        self.stop()
        step("drop", self.drop, "segment")
        self.settle()
        self.stop()

    def name(self) -> str:
        return self.segment()[0]

    def ordinal(self, worker: str) -> int:
        return self.workers[worker].session.ordinal

    def replicate(self, wanted: int, plan: copying.Plan = "") -> None:
        call = copying.replicate([self.name()], wanted, plan=plan, most=wanted)
        self.call(self.c1, call)
        self.settle()

    def nowhere(self) -> None:
        call = copying.replicate([self.name()], plan="workers", most=2, workers=["nowhere"])
        self.refused(self.c1._driver.call, call)

    def count(self) -> None:
        self.seen.append(self.call(self.c1, copying.copies([self.name()]))[2:])

    def obey(self, step: str, *, able: bool = True) -> None:
        """Have those who are asked for a copy make it, or say that they cannot."""
        asked: list[tuple[str, ThreadDriver]] = []
        for name, worker in self.workers.items():
            inbox = f"inbox:{worker.session.ordinal}"
            words = {msgpack.unpackb(message)[0] for message in self.command("LRANGE", inbox, "0", "-1")}
            self.command("DEL", inbox)
            if "copy" in words:
                asked.append((name, worker))
        self.seen.append([name for name, _ in asked])
        for name, worker in asked:
            self.step(step, self.answer, name, worker, able)
        self.settle()

    def answer(self, name: str, worker: ThreadDriver, able: bool) -> None:
        value, attempt = self.segment()
        made = calls.add_replicas([calls.Replica(value, attempt, 5000, "bytes")])
        worker.call(made if able else copying.not_copied([value]), TIMEOUT)
        self.files[name] = int(able)

    def drop_surplus(self, worker: str) -> None:
        mine = [self.segment()]
        reply = self.workers[worker].call(copying.drop_surplus(mine), TIMEOUT)
        self.seen.append(copying.parse_surplus(reply, mine))
        self.settle()

    def move(self, sender: str, receiver: str) -> None:
        moves = [(self.name(), self.ordinal(sender), self.ordinal(receiver))]
        self.seen.append(self.call(self.c1, copying.move(moves))[2:])
        self.settle()

    def retire(self, worker: str) -> None:
        reply = self.call(self.c1, copying.retire([self.ordinal(worker)], close=False))
        self.seen.append(len(reply[2:]))
        self.settle()

    def sole(self, worker: str) -> None:
        self.seen.append(self.call(self.c1, copying.sole(self.ordinal(worker)))[2:])
