"""Counts: what is said of them, in which order, and what is never said."""

from __future__ import annotations

import gc
import random
import threading

import pytest

from redist.session.ledger import Ledger, checksum
from redist.session.states import FutureState, States


class Lane:
    """What gives out numbers."""

    n = 0


@pytest.fixture
def states() -> States:
    return States()


@pytest.fixture
def ledger(states: States) -> Ledger:
    return Ledger(states, Lane())


def test_simple(ledger: Ledger, states: States) -> None:
    """Absolute counts leave; the record goes with the last reference."""
    state = ledger.up("a")
    ledger.up("a")
    ledger.drain()
    assert ledger.take() == [("a", 2)]
    ledger.release(state)
    ledger.drain()
    assert ledger.take() == [("a", 1)]
    ledger.release(state)
    ledger.drain()
    assert ledger.take() == [("a", 0)]
    assert "a" not in states
    assert (ledger.keys, ledger.total, ledger.checksum) == (0, 0, 0)


def test_what_comes_and_goes_is_not_said(ledger: Ledger, states: States) -> None:
    ledger.release(ledger.up("a"))
    ledger.drain()
    assert ledger.take() == []
    assert len(states) == 0


def test_what_grows_is_said_first(ledger: Ledger) -> None:
    """A container is released in the breath in which what it holds was bound: that must not be forgotten between."""
    container = ledger.up("container")
    ledger.take()
    ledger.bind(container)
    ledger.up("inside")
    ledger.release(container)
    ledger.release(container)
    ledger.drain()
    assert ledger.take() == [("inside", 1), ("container", 0)]


def test_another_call_brings_the_count(ledger: Ledger) -> None:
    state = FutureState("a", 0)
    state.count = 1
    ledger.settled(state, 1)
    assert not ledger.dirty
    assert (ledger.keys, ledger.total) == (1, 1)


def test_dropped_before_its_submission_left(ledger: Ledger, states: States) -> None:
    state = states.obtain("a", 0)
    state.count = 1
    ledger.release(state)
    ledger.drain()
    ledger.settled(state, 1)
    assert ledger.take() == [("a", 0)]


def test_a_life_begins_with_the_call_that_has_the_server_count(states: States) -> None:
    lane = Lane()
    ledger = Ledger(states, lane)
    lane.n = 6
    first = ledger.up("a")
    assert first.born > 2**52
    ledger.take()
    assert first.born == 7
    lane.n = 9
    ledger.up("a")
    ledger.take()
    assert first.born == 7
    ledger.release(first)
    ledger.release(first)
    ledger.drain()
    ledger.take()
    lane.n = 12
    second = ledger.up("a")
    ledger.settled(second, 1)
    assert (first.born, second.born) == (7, 13)
    lane.n = 20
    assert ledger.pairs() == [("a", 1)]
    assert second.born == 21  # registered anew


def test_forfeit(ledger: Ledger) -> None:
    """What the server let go of by itself is not released again."""
    state = ledger.up("a")
    ledger.take()
    ledger.forfeit(state)
    state.cancel("because")
    ledger.release(state)
    ledger.drain()
    assert ledger.take() == []
    assert (ledger.keys, ledger.total, ledger.checksum) == (0, 0, 0)


def test_older_generation_concerns_nobody(ledger: Ledger) -> None:
    state = ledger.up("a")
    ledger.take()
    ledger.reset(1)
    ledger.release(state)
    ledger.drain()
    assert ledger.take() == []
    assert ledger.total == 0


def test_checksum_is_kept_and_independent_of_order(ledger: Ledger, states: States) -> None:
    rng = random.Random(1)
    held: list[FutureState] = []
    for _ in range(2000):
        if held and rng.random() < 0.4:
            ledger.release(held.pop(rng.randrange(len(held))))
        else:
            held.append(ledger.up(f"key-{rng.randrange(100)}"))
        if rng.random() < 0.1:
            ledger.drain()
            ledger.take()
    ledger.drain()
    ledger.take()
    pairs = [(state.name, state.count) for state in states]
    rng.shuffle(pairs)
    assert ledger.checksum == checksum(pairs) < 2**53
    assert ledger.total == sum(count for _, count in pairs) == len(held)
    assert ledger.keys == len(pairs)


def test_checksum_tells_sets_apart() -> None:
    assert checksum([("a", 1), ("b", 2)]) != checksum([("a", 2), ("b", 1)])
    assert checksum([("a", 1)]) != checksum([("b", 1)])


def test_wakes_once_until_drained(states: States) -> None:
    woken: list[int] = []
    ledger = Ledger(states, Lane(), lambda: woken.append(1))
    a = ledger.up("a")
    ledger.bind(a)
    ledger.release(a)
    ledger.release(a)
    assert len(woken) == 1
    ledger.drain()
    ledger.bind(a)
    ledger.release(a)
    assert len(woken) == 2


def test_pairs_for_a_registration_anew(ledger: Ledger, states: States) -> None:
    ledger.up("a")
    ledger.up("a")
    gone = ledger.up("b")
    ledger.take()
    ledger.release(gone)
    assert ledger.pairs() == [("a", 2)]
    assert (ledger.keys, ledger.total) == (1, 2)
    assert "b" not in states
    assert not ledger.dirty


def test_releases_from_many_threads_and_collections(ledger: Ledger) -> None:
    class Holder:
        """Releases when it is collected, in whatever thread that happens."""

        def __init__(self) -> None:
            self.me = self
            self.state = ledger.up("a")

        def __del__(self) -> None:
            ledger.release(self.state)

    lock = threading.Lock()

    def work() -> None:
        for _ in range(200):
            with lock:
                Holder()
                gc.collect(0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    gc.collect()
    ledger.drain()
    assert ledger.take() == []
