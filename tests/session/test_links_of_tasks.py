"""How tasks are put into calls: no call does too much, however many dependencies there are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest

from redist.errors import ServerFull
from redist.session.lane import OldGeneration
from redist.session.ledger import Ledger
from redist.session.states import FutureState, States
from redist.session.submissions import LINKS, PART, Submissions
from redist.store.calls import MORE, Call, Task


class Lane:
    """Keeps what is put on it."""

    def __init__(self) -> None:
        self.n = 0
        self.sent: list[tuple[Call, Callable[[Any], object] | None, Callable[[Any], object] | None]] = []
        self.unanswered: deque[Any] = deque()

    def enqueue(self, call: Call, on_reply: Any = None, on_error: Any = None, instead: Any = None) -> None:
        self.sent.append((call, on_reply, on_error))

    @property
    def scripts(self) -> list[str]:
        return [call.script.name for call, _, _ in self.sent]


class Rig:
    def __init__(self) -> None:
        self.lane = Lane()
        self.states = States()
        self.ledger = Ledger(self.states, self.lane)
        self.submissions = Submissions(self.lane, self.ledger)  # type: ignore[arg-type]

    def add(self, name: str, deps: list[str]) -> FutureState:
        state = self.states.obtain(name, 0)
        state.count = 1
        self.submissions.add(state, Task(name, "f", b"spec", deps))
        return state

    def told(self) -> list[tuple[str, int, list[str], int]]:
        """Return name, what was told before, dependencies and total of every call; a total of -1 promises more."""
        found = []
        for call, _, _ in self.lane.sent:
            if call.script.name == "link":
                name, before, total, *deps = call.body
                found.append((name, before, deps, total))
            else:
                assert call.body[0] == 1
                name, _, _, options, n = call.body[6:11]
                flags = 0 if options in ("", "+") else int(options.split(" ")[0])
                found.append((name, 0, call.body[11 : 11 + n], -1 if flags & MORE else n))
        return found


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("count", [LINKS + 1, 3 * PART, 3 * PART + 1, 10 * PART - 1])
def test_one_task_with_many(rig: Rig, count: int) -> None:
    names = [f"d{i}" for i in range(count)]
    rig.add("all", [*names, *names])
    rig.submissions.pump()
    assert rig.lane.scripts == ["submit"] + ["link"] * (len(rig.lane.sent) - 1)
    told = rig.told()
    assert [name for name, *_ in told] == ["all"] * len(told)
    assert [dep for _, _, deps, _ in told for dep in deps] == names
    assert [before for _, before, _, _ in told] == list(range(0, count, PART))
    assert [total for *_, total in told] == [-1] + [0] * (len(told) - 2) + [count]
    assert all(len(deps) <= PART for _, _, deps, _ in told)
    assert rig.submissions.unanswered == 1
    assert not rig.submissions.outbox


def test_few_that_are_named_often(rig: Rig) -> None:
    rig.add("all", ["a", "b"] * LINKS)
    rig.submissions.pump()
    assert rig.told() == [("all", 0, ["a", "b"], 2)]


def test_many_tasks_with_several(rig: Rig) -> None:
    for i in range(400):
        rig.add(f"t{i}", [f"d{k}" for k in range(5)])
    rig.add("big", [f"d{k}" for k in range(LINKS + 1)])
    rig.add("last", ["big"])
    rig.submissions.send_all()
    assert rig.lane.scripts == ["submit", "submit", "submit", *["link"] * (LINKS // PART), "submit"]
    assert [call.body[0] for call, _, _ in rig.lane.sent if call.script.name == "submit"] == [200, 200, 1, 1]


def test_a_part_that_a_full_server_refuses(rig: Rig) -> None:
    state = rig.add("all", [f"d{i}" for i in range(3 * PART)])
    rig.submissions.pump()
    _, _, refused = rig.lane.sent[1]
    assert refused is not None
    error = ServerFull("no room")
    refused(error)
    refused(error)
    assert (state.status, state.cache) == ("error", error)
    call, _, _ = rig.lane.sent[-1]
    assert (call.script.name, call.body) == ("ledger", ["all", 0])
    assert rig.lane.scripts.count("ledger") == 1
    assert "all" not in rig.states  # so that the server's word for it changes nothing
    assert (rig.ledger.keys, rig.ledger.total, rig.ledger.checksum) == (0, 0, 0)
    rig.ledger.release(state)
    assert rig.ledger.drain()
    assert rig.ledger.take() == []


def test_a_part_that_is_refused_when_the_task_has_failed_already(rig: Rig) -> None:
    """The last one: nothing else tells the server that it will never be whole, and it could be run again."""
    state = rig.add("all", [f"d{i}" for i in range(3 * PART)])
    rig.submissions.pump()
    _, _, refused = rig.lane.sent[-1]
    assert refused is not None
    error = ValueError("of a dependency")
    state.fail(error)
    refused(ServerFull("no room"))
    assert (state.status, state.cache) == ("error", error)
    call, _, _ = rig.lane.sent[-1]
    assert (call.script.name, call.body) == ("ledger", ["all", 0])
    assert "all" not in rig.states


def test_a_part_of_before_a_restart(rig: Rig) -> None:
    state = rig.add("all", [f"d{i}" for i in range(3 * PART)])
    rig.submissions.pump()
    _, _, refused = rig.lane.sent[1]
    assert refused is not None
    refused(OldGeneration())
    assert state.status == "cancelled"
    assert "ledger" not in rig.lane.scripts
