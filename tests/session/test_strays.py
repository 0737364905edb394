"""References whose Futures are gone without a word."""

from __future__ import annotations

from redist.session import strays
from redist.session.ledger import Ledger
from redist.session.states import FutureState, States
from redist.session.strays import Strays


class Handle:
    """As a Future: it refers to the record."""

    def __init__(self, state: FutureState) -> None:
        self.state = state


class Lane:
    n = 0


class Bench:
    def __init__(self) -> None:
        self.states = States()
        self.ledger = Ledger(self.states, Lane())
        self.strays = Strays(self.ledger)

    def handle(self, name: str) -> Handle:
        return Handle(self.ledger.up(name))

    def look(self) -> bool:
        return self.strays.look(self.states.records)

    def counts(self) -> dict[str, int]:
        return dict(self.ledger.take())


def test_simple() -> None:
    bench = Bench()
    kept = bench.handle("a")
    bench.handle("a")
    bench.handle("b")
    assert bench.counts() == {"a": 2, "b": 1}
    assert bench.look()
    assert bench.ledger.drain()
    assert bench.counts() == {"a": 1, "b": 0}
    assert not bench.look()
    assert list(bench.states.records) == ["a"]
    assert kept.state.count == 1


def test_what_was_let_go_of_is_none() -> None:
    bench = Bench()
    handles = [bench.handle("a"), bench.handle("a")]
    bench.ledger.release(handles.pop().state)
    assert not bench.look()
    assert handles[0].state.count == 1
    assert bench.counts() == {"a": 1}


def test_what_the_session_keeps_is_none() -> None:
    bench = Bench()
    bench.strays.kept.append(bench.ledger.up("a"))
    assert not bench.look()
    bench.handle("a")
    assert bench.counts() == {"a": 2}
    assert bench.look()
    assert not bench.look()
    assert bench.counts() == {"a": 1}


def test_a_slice_at_a_time() -> None:
    bench = Bench()
    for i in range(5):
        bench.handle(f"k{i}")
    bench.counts()
    before, strays.SLICE = strays.SLICE, 2
    try:
        assert [bench.look() for _ in range(3)] == [True] * 3
    finally:
        strays.SLICE = before
    bench.ledger.drain()
    assert bench.counts() == {f"k{i}": 0 for i in range(5)}
