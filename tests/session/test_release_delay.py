"""Releases leave within 2 ms: by a clock that stands until the test moves it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from redist.session.asyncio_driver import AsyncioDriver
from redist.session.session import Session
from redist.store.connect import Endpoint

WITHIN = 0.002


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def hold(session: Session, name: str) -> Any:
    """Have a reference of which the server was told."""
    state = session.states.obtain(name, session.generation)
    state.count = 1
    session.ledger.settled(state, 1)
    return state


def counts(session: Session) -> list[list[Any]]:
    return [entry.call.body for entry in session.lane.unanswered if entry.call.script.name == "ledger"]


def test_session_plans_it() -> None:
    clock = Clock()
    session = made(clock)
    session.ledger.wake = session.dirty
    state = hold(session, "a")
    assert session.deadline == float("inf")
    session.ledger.release(state)
    assert session.deadline == WITHIN
    clock.now = WITHIN / 2
    session.ledger.release(hold(session, "b"))  # puts nothing off
    session.tick()
    assert counts(session) == []
    clock.now = session.deadline
    assert clock.now == WITHIN
    session.tick()
    assert counts(session) == [["a", 0, "b", 0]]
    assert len(session.lane.outgoing) == 1


def made(clock: Callable[[], float]) -> Session:
    """A session that is registered, without a server."""

    class Nowhere:
        prefix, subscribe, sharded = "redist:{x}:", "SUBSCRIBE", False

    session = Session(Nowhere(), "client", "c", clock=clock)  # type: ignore[arg-type]
    session.lane.register(1)
    session.lane.connected = True
    return session


@pytest.mark.parametrize("where", ["in the loop", "in a thread"])
def test_asyncio_driver_keeps_to_the_plan(endpoint: Endpoint, where: str) -> None:
    async def main() -> None:
        clock = Clock()
        driver = AsyncioDriver(Session(endpoint, "client", "c"), endpoint)
        await driver.start()
        session = driver.session
        await driver.wait(lambda: not session.lane.due and session.ready, 10)
        session.heart.stop()
        session.clock = clock
        state = hold(session, "a")
        if where == "in the loop":
            session.ledger.release(state)
        else:
            await asyncio.to_thread(session.ledger.release, state)
        while session.deadline > WITHIN:
            await asyncio.sleep(0)
        assert session.deadline == WITHIN
        assert driver._watch is not None
        assert driver._watch.planned == WITHIN, "the loop's timer is not set for it"
        clock.now = WITHIN / 2
        for _ in range(100):
            await asyncio.sleep(0)
        assert session.ledger.dirty
        clock.now = WITHIN
        while session.ledger.dirty:  # the timer sends it, nobody else
            await asyncio.sleep(0)
        await driver.wait(lambda: not session.lane.unanswered, 10)
        await driver.close()

    asyncio.run(asyncio.wait_for(main(), 20))
