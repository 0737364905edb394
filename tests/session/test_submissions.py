"""What leaves with tasks: without a server, replies are made up."""

from __future__ import annotations

import hiredis
import pytest

from redist.errors import ServerFull
from redist.session.lane import Lane
from redist.session.ledger import Ledger
from redist.session.states import FutureState, States
from redist.session.submissions import WINDOW, Submissions
from redist.store.calls import EligibilityClass, Task
from redist.store.supplies import brought

OOM = hiredis.ReplyError("OOM command not allowed when used memory > 'maxmemory'.")
PICKLE = b"the pickle of f"


class Bench:
    def __init__(self) -> None:
        self.lane = Lane("redist:{n}:", lambda: 0.0, lambda: None)
        self.lane.register(1)
        self.lane.connect()
        self.states = States()
        self.submissions = Submissions(self.lane, Ledger(self.states))
        self.submissions.add_function("f", PICKLE)
        self.submissions.add_class(EligibilityClass("c", "w1", ""))

    def submit(self, name: str, cls: str = "") -> FutureState:
        state = self.states.obtain(name, 0, "f")
        state.count += 1
        self.submissions.add(state, Task(name, "f", b"spec", cls=cls))
        self.submissions.pump()
        return state

    def sent(self) -> list[bytes]:
        sent, self.lane.outgoing[:] = list(self.lane.outgoing), []
        return sent


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_pickle_leaves_once(bench: Bench) -> None:
    bench.submit("a")
    bench.submit("b")
    assert [PICKLE in data for data in bench.sent()] == [True, False]
    bench.submissions.forget_server()
    bench.submit("c")
    assert [PICKLE in data for data in bench.sent()] == [True]


def test_every_submission_brings_the_classes_of_its_tasks(bench: Bench) -> None:
    for name in "ab":
        bench.submit(name, "c")
    bench.submit("d")
    assert [b"w1" in data for data in bench.sent()] == [True, True, False]


def test_what_is_on_the_lane_brings_what_a_refused_one_should_have(bench: Bench) -> None:
    refused = bench.submit("a")
    states = [bench.submit(f"b{i}") for i in range(WINDOW + 2)]
    assert len(bench.sent()) == WINDOW
    assert len(bench.submissions.outbox) == 3
    bench.lane.on_reply(OOM)
    assert refused.status == "error"
    assert isinstance(refused.cache, ServerFull)
    # The no-op, the submissions again of which the first brings the pickle, and what was collected.
    assert [PICKLE in data for data in bench.sent()] == [False, True, *(False,) * (WINDOW - 1)]
    assert [brought(entry.call) for entry in list(bench.lane.unanswered)[1:3]] == [["f"], []]
    for _ in range(WINDOW - 1):
        bench.lane.on_reply([b"GAP", 0])  # what was pipelined behind it
    bench.lane.on_reply([b"OK", 0])
    bench.lane.on_reply(OOM)
    assert states[0].status == "error"
    assert [PICKLE in data for data in bench.sent()][:2] == [False, True]
    assert states[1].status == "pending"


def test_a_submission_kept_over_a_loss_brings_what_it_relied_on(bench: Bench) -> None:
    bench.submit("a")
    bench.lane.on_reply([b"OK", 0])
    bench.submit("b")
    (entry,) = bench.lane.unregister("anew")
    bench.submissions.forget_server()
    bench.submissions.send_entry_again(entry)
    assert brought(entry.call) == ["f"]
