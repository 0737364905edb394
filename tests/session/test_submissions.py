"""What leaves with tasks: without a server, replies are made up."""

from __future__ import annotations

import hiredis
import pytest

from redist.errors import ServerFull
from redist.session.lane import Lane
from redist.session.ledger import Ledger
from redist.session.states import FutureState, States
from redist.session.submissions import KEPT, SLICE, WINDOW, Submissions
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
        self.submissions = Submissions(self.lane, Ledger(self.states, self.lane))
        self.submissions.add_function("f", PICKLE)
        self.submissions.add_class(EligibilityClass("c", "w1", ""))

    def submit(self, name: str, cls: str = "", fn: str = "f") -> FutureState:
        state = self.states.obtain(name, 0, fn)
        state.count += 1
        self.submissions.add(state, Task(name, fn, b"spec", cls=cls))
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


# --- letting go -----------------------------------------------------------------------------------------------------


def fill(bench: Bench) -> list[str]:
    """Submit tasks that are done with at once, one function each, until the next one has them let go."""
    names = [f"f{i}" for i in range(KEPT - 2)]
    for fn in names:
        bench.submissions.add_function(fn, fn.encode())
        state = bench.submit(f"k-{fn}", fn=fn)
        bench.lane.on_reply([b"OK", 0])
        bench.states.discard(state)
    bench.sent()
    return names


def drops(bench: Bench) -> list[set[str]]:
    return [set(e.call.body) for e in bench.lane.unanswered if e.call.script.name == "drop_functions"]


def test_functions_that_no_task_needs_are_let_go(bench: Bench) -> None:
    kept = bench.submit("kept", "c")
    bench.lane.on_reply([b"OK", 0])
    names = fill(bench)
    assert drops(bench) == []
    bench.submissions.add_function("g", b"G")
    bench.submit("last", fn="g")
    assert drops(bench) == [set(names)]
    assert set(bench.submissions.functions) == {kept.fn, "g"}
    bench.submissions.add_function("f0", b"f0")
    bench.submit("again", fn="f0")
    assert brought(bench.lane.unanswered[-1].call) == ["f0"]
    bench.submit("of f", "c")
    assert brought(bench.lane.unanswered[-1].call) == []


def test_functions_of_what_is_unanswered_stay(bench: Bench) -> None:
    fill(bench)
    bench.submissions.add_function("g", b"G")
    state = bench.submit("unwanted", fn="g")
    bench.states.discard(state)
    bench.submissions.add_function("h", b"H")
    bench.submit("last", fn="h")
    assert {"g", "h"} <= set(bench.submissions.functions)


def test_what_only_an_unanswered_call_needs_is_looked_at_with_its_answer(bench: Bench) -> None:
    """However many functions came while nothing was answered, no further submission has to come."""
    for i in range(KEPT + 10):
        bench.submissions.add_function(f"u{i}", b"U")
        bench.submissions._ledger.release(bench.submit(f"unwanted-{i}", fn=f"u{i}"))
    while bench.lane.unanswered:
        bench.lane.on_reply([b"OK", 0])
    assert len(bench.submissions.functions) <= KEPT


def test_nothing_is_let_go_while_tasks_are_collected(bench: Bench) -> None:
    fill(bench)
    for i in range(WINDOW + 3):
        bench.submissions.add_function(f"g{i}", b"G")
        bench.submit(f"collected-{i}", fn=f"g{i}")
    (dropped,) = drops(bench)  # when nothing was collected yet
    assert not dropped & {f"g{i}" for i in range(WINDOW + 3)}
    assert len(bench.submissions.functions) == WINDOW + 3


def test_what_was_to_be_dropped_over_a_loss_may_have_been_brought_again(bench: Bench) -> None:
    names = fill(bench)
    bench.submissions.add_function("g", b"G")
    bench.submit("last", fn="g")
    drop = bench.lane.unanswered[-1]
    kept = bench.lane.unregister("anew")
    assert drop in kept
    bench.submissions.forget_server()
    bench.submissions.add_function("f0", b"f0")
    bench.submit("f0 again", fn="f0")
    bench.submissions.let_go_later(drop)
    assert drops(bench) == []
    bench.submissions._many = 0
    bench.submit("more", fn="f0")
    (dropped,) = drops(bench)
    assert dropped == set(names) - {"f0"}


def followed(bench: Bench, name: str, follower: str) -> tuple[FutureState, FutureState]:
    """Collect a task that nobody asked for, and one that needs it."""
    state, last = FutureState(name, 0, "f"), bench.states.obtain(follower, 0, "f")
    last.count = 1
    bench.submissions.add(state, Task(name, "f", b"spec"))
    bench.submissions.add(last, Task(follower, "f", b"spec", [name]))
    bench.submissions.followed[state] = last
    return state, last


def test_what_leaves_with_all_that_need_it_is_not_counted(bench: Bench) -> None:
    state, last = followed(bench, "a", "b")
    bench.submissions.pump()
    (data,) = bench.sent()
    assert b"0 0 0 0 " in data
    assert (state.sent, last.sent) == (0, 1)
    assert not bench.submissions.followed
    assert not bench.submissions._ledger.drain()


def test_what_leaves_before_something_that_needs_it_is_counted_meanwhile(bench: Bench) -> None:
    for i in range(SLICE - 1):
        bench.submissions.add(FutureState(f"x{i}", 0, "f"), Task(f"x{i}", "f", b"spec"))
    state, _ = followed(bench, "a", "b")
    bench.submissions.pump()
    first, second = bench.sent()
    assert b"\xa1a\x01" in first
    assert b"0 0 0 0 " not in first + second
    assert state.sent == 1
    assert bench.submissions._ledger.take().count(("a", 0)) == 1
    assert state.sent == 0


def test_what_a_task_needs_that_waits_for_a_value_is_counted(bench: Bench) -> None:
    """Its other dependents may leave long before."""
    bench.submissions.holding.begin({"value": ()})
    state, _ = followed(bench, "a", "b")
    bench.submissions.add(FutureState("c", 0, "f"), Task("c", "f", b"spec", ["a", "value"]))
    bench.submissions.pump()
    bench.sent()
    assert state.sent == 1
    assert bench.submissions._ledger.take(bench.submissions.holding.needed) == []
    bench.submissions.holding.stored(["value"], bench.submissions.outbox)
    bench.submissions.pump()
    assert ("a", 0) in bench.submissions._ledger.take(bench.submissions.holding.needed)
