"""One fault at every call and every push of a story in turn: the end state is that of the undisturbed one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from faults.scenario import Story
from faults.transport import CALL_FAULTS, PUSH_FAULTS, Event, Fault, Proxy
from redist.errors import FutureCancelledError, ServerFull
from redist.store.scripts import load
from servers import Server, fresh_namespace

LONG = bool(os.environ.get("REDIST_FAULTS_LONG"))


#: A story takes a tenth of a second; one that takes so long is stuck, s.
STUCK = 25.0


@contextmanager
def limited(seconds: float, describe: Callable[[], str]) -> Iterator[None]:
    """Raise in this thread when it takes longer; pytest's own limit ends the whole test."""

    def late(*_: object) -> None:
        raise AssertionError(f"stuck: {describe()}")

    before = signal.signal(signal.SIGUSR1, late)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)


class Stage:
    """Plays the story with faults and compares."""

    def __init__(self, proxy: Proxy, server: Server) -> None:
        self.proxy, self.server = proxy, server
        self.play()  # so that the server knows all scripts
        first = self.play()
        assert first.failed == {}
        assert first.along == ["q2", "q3", "q4"]
        self.events = list(proxy.events)
        self.undisturbed = {(): first}

    def play(self, fault: Fault | None = None, skip: Any = ()) -> Story:
        namespace = fresh_namespace()
        self.proxy.start_over(fault)
        story = Story(self.proxy.endpoint(namespace), self.server.endpoint(namespace), skip)
        with limited(STUCK, story.describe):
            try:
                story.tell()
                story.finish()
            finally:
                story.clear()
        return story

    def without(self, steps: Any) -> Story:
        key = tuple(sorted(steps))
        if key not in self.undisturbed:
            self.undisturbed[key] = self.play(skip=key)
        return self.undisturbed[key]


@pytest.fixture(scope="module")
def stage(proxy: Proxy, valkey: Server) -> Stage:
    return Stage(proxy, valkey)


def chosen(stage: Stage, kind: str) -> list[Event]:
    """The places where a fault is tried: all in the long mode, else one of each sort."""
    pushes = kind in PUSH_FAULTS
    events = [
        event for event in stage.events if event.what.startswith("push-") == pushes and event.caller != "all"
    ]
    if kind == "OOM":
        events = [
            event for event in events if event.what != "register" and "META, 'grown'" in load(event.what).text
        ]
    if kind == "repeat":  # a registration takes no number: who repeats one does so under another incarnation
        events = [event for event in events if event.what != "register"]
    if LONG or pushes:
        return events
    last = {(event.caller, event.what): event for event in events if event.number % 4 != 3}
    first = {(event.caller, event.what): event for event in reversed(events)}
    return sorted({*last.values(), *first.values()}, key=stage.events.index)


@pytest.mark.parametrize("kind", [*CALL_FAULTS, "OOM", *PUSH_FAULTS])
@pytest.mark.timeout(1200 if LONG else 120)
def test_end_state_is_the_undisturbed_one(stage: Stage, kind: str) -> None:
    wrong: list[str] = []
    events = chosen(stage, kind)
    assert events
    for event in events:
        fault = Fault(kind, event)
        try:
            story = stage.play(fault)
            compare(story, stage.without(story.failed), fault)
        except Exception as error:
            wrong.append(f"{fault}: {type(error).__name__}: {error}")
    print(f"{kind}: {len(events)} faults, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)


def compare(story: Story, expected: Story, fault: Fault) -> None:
    # How releases are grouped, and how often the story stands still, is a matter of moments.
    assert fault.fired or fault.event.what in ("ledger", "heartbeat")
    if fault.kind != "OOM":
        assert story.failed == {}
        assert [repr(seen) for seen in story.seen] == [repr(seen) for seen in expected.seen]
    else:
        assert {type(error) for error in story.failed.values()} <= {ServerFull, FutureCancelledError}
        assert story.failed or fault.event.what == "register"
    for i, (state, right) in enumerate(zip(story.states, expected.states, strict=True)):
        differences = {
            key: (state.get(key), right.get(key))
            for key in state.keys() | right.keys()
            if state.get(key) != right.get(key)
        }
        assert not differences, f"stop {i}: {differences}, failed {story.failed}"
