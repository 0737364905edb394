"""Plays a story again and again, each time with one fault, and compares it with the undisturbed one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from faults.handling import HANDLINGS
from faults.scenario import Story
from faults.transport import CALL_FAULTS, PUSH_FAULTS, Event, Fault, Proxy
from redist.errors import FutureCancelledError, ServerFull
from redist.store.scripts import load
from servers import Server, fresh_namespace

__all__ = ["KINDS", "LONG", "Stage"]

KINDS = (*CALL_FAULTS, "OOM", *PUSH_FAULTS)
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
    """Plays one story.

    Attributes
    ----------
    events : list of Event
        What happens in the undisturbed story.
    first : Story
        The undisturbed story.
    """

    def __init__(self, proxy: Proxy, server: Server, story: type[Story], handling: str) -> None:
        self.proxy, self.server, self.story, self.handling = proxy, server, story, handling
        self.play()  # so that the server knows all scripts
        self.first = self.play()
        assert self.first.failed == {}
        self.events = list(proxy.events)
        self.undisturbed = {(): self.first}

    def play(self, fault: Fault | None = None, skip: Any = ()) -> Story:
        namespace = fresh_namespace()
        self.proxy.start_over(fault)
        handling = HANDLINGS[self.handling]()
        story = self.story(self.proxy.endpoint(namespace), self.server.endpoint(namespace), handling, skip)
        with limited(STUCK, story.describe):
            try:
                story.tell()
                story.finish()
            finally:
                story.clear()
        return story

    def without(self, steps: Any) -> Story:
        """Return the undisturbed story without some steps."""
        key = tuple(sorted(steps))
        if key not in self.undisturbed:
            self.undisturbed[key] = self.play(skip=key)
        return self.undisturbed[key]

    def chosen(self, kind: str) -> list[Event]:
        """The places where a fault is tried: all in the long mode, else one of each sort."""
        pushes = kind in PUSH_FAULTS
        events = [
            event
            for event in self.events
            if event.what.startswith("push-") == pushes and event.caller != "all"
        ]
        if kind == "OOM":
            events = [event for event in events if "META, 'grown'" in load(event.what).text]
            events = [event for event in events if event.what != "register"]
        if (
            kind == "repeat"
        ):  # a registration takes no number: who repeats one does so under another incarnation
            events = [event for event in events if event.what != "register"]
        if LONG or pushes:
            return events
        last = {(event.caller, event.what): event for event in events if event.number % 4 != 3}
        first = {(event.caller, event.what): event for event in reversed(events)}
        return sorted({*last.values(), *first.values()}, key=self.events.index)

    def try_all(self, kind: str) -> None:
        """Try a kind of fault everywhere; fail with all that went wrong."""
        wrong: list[str] = []
        events = self.chosen(kind)
        for event in events:
            fault = Fault(kind, event)
            try:
                self.compare(self.play(fault), fault)
            except Exception as error:
                wrong.append(f"{fault}: {type(error).__name__}: {error}")
        print(f"{kind}: {len(events)} faults, {len(wrong)} wrong")
        assert not wrong, "\n".join(wrong)

    def compare(self, story: Story, fault: Fault) -> None:
        expected = self.without(story.failed)
        # How releases are grouped, and how often the story stands still, is a matter of moments.
        assert fault.fired or fault.event.what in ("ledger", "heartbeat")
        if fault.kind != "OOM":
            assert story.failed == {}
        else:
            assert {type(error) for error in story.failed.values()} <= {ServerFull, FutureCancelledError}
            assert story.failed or fault.event.what in story.unheard
        for i, (state, right) in enumerate(zip(story.states, expected.states, strict=True)):
            differences = {
                key: (state.get(key), right.get(key))
                for key in state.keys() | right.keys()
                if state.get(key) != right.get(key)
            }
            assert not differences, f"stop {i}: {differences}, failed {story.failed}"
        if fault.kind != "OOM":
            assert [repr(seen) for seen in story.seen] == [repr(seen) for seen in expected.seen]
