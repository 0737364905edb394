"""Reads of states, on a lane that is fed by hand: what is asked for, and which answers count."""

from __future__ import annotations

from typing import Any

import pytest

from redist.session.lane import Lane
from redist.session.ledger import Ledger
from redist.session.reads import Reads
from redist.session.states import FutureState, States
from redist.session.submissions import Submissions
from redist.store.calls import Task
from redist.store.replies import State

FORGOTTEN = (b"forgotten", b"", b"", b"", b"", b"")
MEMORY = (b"memory", b"4", b"1", b"int", b"", b"v")


class Bench:
    def __init__(self) -> None:
        self.lane = Lane("redist:{t}:", lambda: 100.0, lambda: None)
        self.lane.register(7)
        self.lane.connect()
        self.states = States()
        self.ledger = Ledger(self.states, self.lane)
        self.submissions = Submissions(self.lane, self.ledger)
        self.reads = Reads(self.lane, self.states, self.submissions)
        self.read: list[State] = []
        self.reads.apply = self.read.append

    def known(self, name: str) -> FutureState:
        """Return the record of a key that the server has heard of."""
        state = self.ledger.up(name)
        self.ledger.take()
        return state

    def answer(self, *states: tuple[Any, ...]) -> None:
        self.lane.on_reply([b"OK", 0, *(item for state in states for item in state)])


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_pending_is_asked_for(bench: Bench) -> None:
    bench.known("a")
    bench.known("b").finish(1, "int", "", b"v")
    bench.reads.unsettled()
    bench.answer((b"a", *MEMORY))
    assert [(state.name, state.state) for state in bench.read] == [("a", "memory")]


def test_an_answer_is_not_for_a_new_life_of_the_name(bench: Bench) -> None:
    bench.known("a")
    old = bench.known("b")
    bench.reads.unsettled()
    bench.states.discard(old)
    bench.known("b")
    bench.answer((b"a", *FORGOTTEN), (b"b", *FORGOTTEN))
    assert [state.name for state in bench.read] == ["a"]


def test_what_the_server_has_not_heard_of_is_not_asked_for(bench: Bench) -> None:
    bench.ledger.up("counted")
    stored = bench.states.obtain("stored", 0)
    stored.count = 1
    collected = bench.states.obtain("collected", 0, "f")
    collected.count = 1
    bench.submissions.add(collected, Task("collected", "f", b""))
    bench.reads.unsettled()
    bench.reads.unfinished(["counted", "stored", "collected", "unknown"])
    assert not bench.lane.outgoing


def test_an_answer_from_before_calls_were_sent_again_is_asked_for_anew(bench: Bench) -> None:
    bench.known("a")
    bench.reads.unsettled()
    bench.lane.outgoing.clear()
    bench.lane.round += 1
    bench.answer((b"a", *FORGOTTEN))
    assert bench.read == []
    assert len(bench.lane.outgoing) == 1
    bench.answer((b"a", *MEMORY))
    assert [state.state for state in bench.read] == ["memory"]
