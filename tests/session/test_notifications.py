"""Pushes: applied to records, counted, and asked for again when one is missing."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest

from redist.errors import FutureCancelledError
from redist.session.notifications import Notifications, decode_message
from redist.session.states import Collector, FutureState, States, Waiter, hang
from redist.store.replies import State


class Bench:
    def __init__(self) -> None:
        self.states = States()
        self.forfeited: list[str] = []
        self.misses = 0
        self.untold: list[FutureState] = []
        self.notifications = Notifications(
            self.states, lambda s: self.forfeited.append(s.name), self.untold.append, self._miss
        )

    def _miss(self) -> None:
        self.misses += 1

    def told(self, name: str, born: int = 1) -> FutureState:
        """Return the record of a key of which the server was told by our call `born`."""
        state = self.states.obtain(name, 1)
        state.born = born
        return state

    def push(self, number: int, *states: tuple[Any, ...], applied: int = 1) -> None:
        flat: list[Any] = [b"s", number, applied]
        for state in states:
            flat += state
        self.notifications.states(decode_message(msgpack.packb(flat)))


def memory(name: str, value: bytes = b"v", where: str = "") -> tuple[Any, ...]:
    return (name, "memory", "4", str(len(value)), "int", where, value)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_simple(bench: Bench) -> None:
    a, b = bench.told("a"), bench.told("b")
    waiter = Waiter()
    waiter.remaining = hang(waiter, [a, b])
    bench.push(1, memory("a"))
    assert a.status == "finished"
    assert a.value == b"v"
    assert not waiter.ready()
    bench.push(2, ("b", "erred", "0", "0", "ValueError", "", b"!x"))
    assert b.status == "error"
    assert waiter.ready()
    assert bench.misses == 0


def test_collector_keeps_the_order(bench: Bench) -> None:
    names = list("abc")
    states = [bench.told(name) for name in names]
    collector = Collector()
    hang(collector, states)
    bench.push(1, memory("c"), memory("a"))
    assert [state.name for state in collector.came] == ["c", "a"]


def test_segment_and_large_inline(bench: Bench) -> None:
    a, b = bench.told("a"), bench.told("b")
    bench.push(1, memory("a", b"", "3.4711 4.4712"), ("b", "memory", "5", "3000", "bytes", "", b""))
    assert (a.where, a.value) == ("3.4711 4.4712", None)
    assert (b.where, b.value, b.nbytes) == ("", None, 3000)


def test_lost_data(bench: Bench) -> None:
    a, b = bench.told("a"), bench.told("b")
    bench.push(
        1,
        ("a", "erred", "0", "0", "DataLost", "", b"!DataLost\0gone"),
        ("b", "erred", "0", "0", "DataLost", "a", b""),
    )
    assert a.status == "lost"
    assert (b.status, b.where) == ("error", "a")


def test_cancelled(bench: Bench) -> None:
    a = bench.told("a")
    bench.push(1, ("a", "cancelled", "0", "0", "", "", b"by force"))
    assert a.status == "cancelled"
    assert isinstance(a.cache, FutureCancelledError)
    assert "by force" in str(a.cache)
    assert bench.forfeited == ["a"]


@pytest.mark.parametrize(
    "late",
    [
        ("a", "memory", "4", "1", "int", "", b"v"),
        ("a", "memory", "4", "100000", "bytes", "3.4711", b""),
        ("a", "erred", "0", "0", "ValueError", "", b"!x"),
        ("a", "erred", "0", "0", "KeyTaken", "", b"!KeyTaken\0in use"),
        ("a", "erred", "0", "0", "DataLost", "", b"!DataLost\0gone"),
        ("a", "cancelled", "0", "0", "", "", b"not known"),
    ],
)
def test_what_was_said_of_an_earlier_life_is_no_news(bench: Bench, late: tuple[Any, ...]) -> None:
    before = bench.told("a", born=3)
    bench.states.discard(before)  # released with our call 4
    a = bench.told("a", born=5)
    bench.push(1, late, applied=3)
    assert a.status == "pending"
    assert bench.forfeited == []
    bench.push(2, memory("a", b"new"), applied=5)
    assert a.value == b"new"


def test_what_has_not_left_cannot_be_meant(bench: Bench) -> None:
    bench.states.obtain("a", 1)
    bench.push(1, memory("a"), applied=1000)
    assert bench.states.records["a"].status == "pending"


def test_what_is_run_again_is_of_the_same_life(bench: Bench) -> None:
    a = bench.told("a", born=5)
    bench.push(1, memory("a"), applied=9)
    bench.push(2, ("a", "erred", "0", "0", "DataLost", "", b"!DataLost\0gone"), applied=9)
    bench.push(3, ("a", "waiting", "0", "0", "", "", b""), applied=8)  # of a lane that stands still
    assert a.status == "pending"


@pytest.mark.parametrize(
    "later",
    [
        ("a", "erred", "0", "0", "ValueError", "", b"!x"),
        ("a", "waiting", "0", "0", "", "", b""),
        ("a", "cancelled", "0", "0", "", "", b"again"),
        memory("a"),
    ],
)
def test_cancelled_it_stays(bench: Bench, later: tuple[Any, ...]) -> None:
    a = bench.told("a")
    a.cancel("by the user")
    bench.push(1, later)
    assert a.status == "cancelled"
    assert "by the user" in str(a.cache)
    assert bench.forfeited == []


def test_unknown_names_do_not_matter(bench: Bench) -> None:
    bench.push(1, memory("x"), ("y", "cancelled", "0", "0", "", "", b""))
    assert len(bench.states) == 0


def test_run_again(bench: Bench) -> None:
    a = bench.told("a")
    bench.push(1, ("a", "erred", "0", "0", "ValueError", "", b"!x"))
    bench.push(2, ("a", "waiting", "0", "0", "", "", b""))
    assert a.status == "pending"
    bench.push(3, memory("a"))
    assert a.status == "finished"


def test_miss(bench: Bench) -> None:
    bench.push(1, memory("a"))
    bench.push(3, memory("b"))
    assert bench.misses == 1
    bench.push(4, memory("c"))
    assert bench.misses == 1


def test_repeat_is_ignored(bench: Bench) -> None:
    a = bench.told("a")
    bench.push(5, memory("a", b"new"))
    bench.push(4, memory("a", b"old"))
    assert a.value == b"new"
    assert bench.misses == 0


def test_what_was_sent_under_a_registration_before_does_not_count(bench: Bench) -> None:
    """The server may have forgotten how many messages there were: then new ones have lower numbers."""
    a = bench.told("a", born=8)
    bench.notifications.subscribed()
    bench.notifications.since = 7
    bench.push(50, memory("a", b"old"), applied=6)
    assert a.status == "pending"
    bench.push(1, memory("a", b"new"), applied=8)
    assert a.value == b"new"
    assert bench.misses == 0


def test_heartbeat_tells_of_a_missing_push(bench: Bench) -> None:
    bench.push(1, memory("a"))
    bench.notifications.beat(2, now=10.0)
    bench.notifications.tick(10.0)
    assert bench.misses == 0  # it may be on its way
    assert bench.notifications.deadline is not None
    bench.notifications.tick(bench.notifications.deadline)
    assert bench.misses == 1
    bench.push(3, memory("b"))
    assert bench.misses == 1


def test_heartbeat_and_a_push_that_comes_late(bench: Bench) -> None:
    bench.push(1)
    bench.notifications.beat(2, now=10.0)
    bench.push(2)
    assert bench.notifications.deadline is None
    bench.notifications.beat(1, now=12.0)  # its answer was read late
    bench.push(3)
    assert bench.misses == 0


def test_read_states(bench: Bench) -> None:
    a, b, c = (bench.told(name) for name in "abc")
    bench.notifications.read(State("a", "memory", 4, 1, "int", "", b"v"))
    bench.notifications.read(State("b", "forgotten", 0, 0, "", "", b""))
    bench.notifications.read(State("c", "processing e3.4", 4, 0, "", "", b""))
    assert (a.status, b.status, c.status) == ("finished", "cancelled", "pending")
    assert bench.forfeited == ["b"]


def test_key_taken_after_it_finished_here(bench: Bench) -> None:
    """A value that is brought back after a loss, while somebody submitted its task again."""
    a = FutureState("a", 1)
    bench.states.records["a"] = a
    a.finish(1, "int", "", b"v")
    bench.push(1, ("a", "erred", "0", "0", "KeyTaken", "", b"!KeyTaken\0in use"))
    assert a.status == "finished"
