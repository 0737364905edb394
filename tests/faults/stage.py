"""Plays a story again and again, each time with one fault, and compares it with the undisturbed one."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import zip_longest
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
#: Calls of which there are many, all alike.
FREQUENT = ("submit", "turn", "ledger", "heartbeat", "leave")
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


def last_of_each(events: Iterable[Event]) -> list[Event]:
    """The last call of each script by anybody, but for those that do not come every time."""
    return list({event.what: event for event in events if event.number % 4 != 3}.values())


def first_and_last(events: Sequence[Event]) -> list[Event]:
    """The first and the last of each sort and caller."""
    last = {(event.caller, event.what): event for event in events if event.number % 4 != 3}
    first = {(event.caller, event.what): event for event in reversed(events)}
    return [*first.values(), *last.values()]


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
        """The places where a fault is tried: all that there are in the long mode, else some of each sort."""
        events = [event for event in self.events if event.caller != "all" and self.fits(kind, event)]
        if LONG:
            return events
        if kind in CALL_FAULTS and kind != "repeat":
            # The lane deals with it in the same way whatever the call is: every script meets half of these kinds.
            turn = CALL_FAULTS.index(kind) + (self.handling == "loop")
            chosen = [event for i, event in enumerate(last_of_each(events)) if (i + turn) % 2]
        elif self.handling == "loop":
            chosen = last_of_each(events)
        elif kind == "repeat":  # whatever a script answers, its repeat has to answer too
            chosen = [event for event in events if event.what not in FREQUENT] + first_and_last(events)
        else:
            chosen = first_and_last(events) if kind == "OOM" else events
        return sorted(set(chosen), key=self.events.index)

    def fits(self, kind: str, event: Event) -> bool:
        """Whether a kind of fault can happen there, and is not the same with another driver."""
        if event.what.startswith("push-") != (kind in PUSH_FAULTS):
            return False
        # A registration takes no number: who repeats one does so under another incarnation.
        if event.what == "register" and kind in ("OOM", "repeat"):
            return False
        if kind == "OOM" and "META, 'grown'" not in load(event.what).text:
            return False
        return (
            LONG or self.handling == "threads" or event.caller in self.first.clients or event.caller == "log"
        )

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
        # How releases are grouped, who goes on with the work, and how often the story stands still, is a matter of moments.
        assert fault.fired or fault.event.what in ("ledger", "continue", "heartbeat"), "it did not come"
        if fault.kind != "OOM":
            assert story.failed == {}, story.failed
        else:
            kinds = {type(error) for error in story.failed.values()}
            assert kinds <= {ServerFull, FutureCancelledError}, story.failed
            heard = story.failed or {fault.event.what, str(fault.event)} & {*story.unheard}
            assert heard, "nobody heard of it"
        for i, (state, right) in enumerate(zip(story.states, expected.states, strict=True)):
            differences = {
                key: (state.get(key), right.get(key))
                for key in state.keys() | right.keys()
                if state.get(key) != right.get(key)
            }
            assert not differences, f"stop {i}: {differences}, failed {story.failed}"
        if fault.kind != "OOM":
            seen, right = map(repr, story.seen), map(repr, expected.seen)
            for i, pair in enumerate(zip_longest(seen, right)):
                assert pair[0] == pair[1], f"{i}: {pair[0]} was seen, not {pair[1]}"
