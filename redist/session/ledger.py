"""The reference ledger: how often this process refers to each key, as absolute counts.

The server hears ``(key, my count now)``, never a difference, so that a repeat converges. Counts go up under the driver's
lock. They go down through a queue: ``Future.__del__`` may run in any thread at any moment, in a garbage collection inside
our own lock too, so it only appends; the driver drains the queue within about 2 ms. An up is counted at once and a down
later, so a release can never overtake the reference that came before it.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from redist.session.lineage import with_needs
from redist.session.states import CANCELLED, PENDING, FutureState, States

if TYPE_CHECKING:
    from redist.store.calls import Task

__all__ = ["Ledger", "checksum"]

_MASK = (1 << 53) - 1
_MIX = 0x1F7A3C5B9E6D4B


def _weight(name: str) -> int:
    data = name.encode()
    return ((zlib.crc32(data) << 21) ^ (zlib.crc32(data, 0x9E3779B9) * _MIX)) & _MASK


def checksum(pairs: Iterable[tuple[str, int]]) -> int:
    """Return the 53-bit checksum of (wire name, count) pairs, whatever their order."""
    total = 0
    for name, count in pairs:
        total += _weight(name) * count
    return total & _MASK


class Numbers(Protocol):
    """The lane, of which the ledger has to know which number was given out last."""

    n: int


class Ledger:
    """Counts of references and what of them the server has still to hear.

    Parameters
    ----------
    states : States
        The records that hold the counts.
    lane : Numbers
        What the counts leave on.
    wake : callable
        Called without arguments, from any thread and inside garbage collections too, when the first release since the last
        drain came in. It must not take a lock.

    Attributes
    ----------
    keys, total, checksum : int
        How many keys are counted, the sum and the checksum of their counts, as last put on the lane.
    generation : int
        Counts of records of an older generation concern nobody.
    """

    __slots__ = (
        "_dirty", "_lane", "_queue", "_states", "armed", "checksum", "generation", "keys", "total", "wake",
    )  # fmt: skip

    def __init__(self, states: States, lane: Numbers, wake: Callable[[], object] | None = None) -> None:
        self._states = states
        self._lane = lane
        self._queue: deque[FutureState] = deque()
        self._dirty: dict[FutureState, None] = {}
        self.armed = False
        self.wake = wake
        self.generation = 0
        self.keys = 0
        self.total = 0
        self.checksum = 0

    # --- counting ---------------------------------------------------------------------------------------------------

    def up(self, name: str) -> FutureState:
        """Count one more reference to `name` and return its record. Under the driver's lock."""
        state = self._states.obtain(name, self.generation)
        self.bind(state)
        return state

    def bind(self, state: FutureState) -> None:
        """Count one more reference to the key of `state`. Under the driver's lock.

        Where another call is about to bring the count (`settled`), the caller adds to ``state.count`` by itself.
        """
        state.count += 1
        self._dirty[state] = None

    def settled(self, state: FutureState, count: int) -> None:
        """Note that the next call, another than `ledger`, brings `count` of the key of `state`; what differs follows later.

        It has the server say how the key stands, whatever that said before.
        """
        state.born = self._lane.n + 1
        self.sent(state, count)
        self.unsettled(state)

    def unsettled(self, state: FutureState) -> None:
        """Note that no other call brings the count of the key of `state`."""
        if state.count == state.sent:
            self._dirty.pop(state, None)
        else:
            self._dirty[state] = None

    def release(self, state: FutureState) -> None:
        """Count one reference less. From any thread, with or without the lock, in a garbage collection too."""
        self._queue.append(state)
        if not self.armed:
            self.armed = True
            if self.wake is not None:
                self.wake()

    def down(self, name: str) -> None:
        """Count one reference less to `name`. From any thread."""
        state = self._states.get(name)
        if state is not None:
            self.release(state)

    # --- what leaves ------------------------------------------------------------------------------------------------

    def drain(self) -> bool:
        """Apply the releases that came in; return whether there are counts to send."""
        self.armed = False
        queue, dirty = self._queue, self._dirty
        pop = queue.popleft
        while queue:
            state = pop()
            state.count -= 1
            dirty[state] = None
        return bool(dirty)

    @property
    def changed(self) -> bool:
        """Whether there are counts to send, releases in the queue aside."""
        return bool(self._dirty)

    @property
    def dirty(self) -> bool:
        """Whether there are counts that the server has not heard."""
        return bool(self._dirty or self._queue)

    def take(self, but: Collection[str] = ()) -> list[tuple[str, int]]:
        """Return (name, count) pairs for the lane, what grows first, and note them as sent. Records without a count go.

        The counts of the names in `but` stay here.
        """
        grown: list[tuple[str, int]] = []
        shrunk: list[tuple[str, int]] = []
        dirty = self._dirty
        later = [state for state in dirty if state.name in but] if but else ()
        for state in later:
            del dirty[state]
        generation, discard, note = self.generation, self._states.discard, self.sent
        born = self._lane.n + 1
        for state in dirty:
            count, before = state.count, state.sent
            if count != before and state.status != CANCELLED and state.generation == generation:
                if not before:
                    state.born = born
                (grown if count > before else shrunk).append((state.name, count))
                note(state, count)
            if count <= 0:
                discard(state)
        dirty.clear()
        for state in later:
            dirty[state] = None
        # What contains a key may be released in the same breath as the key was bound.
        return grown + shrunk if shrunk else grown

    def sent(self, state: FutureState, count: int) -> None:
        """Note that the server will hold `count` references of ours to the key of `state`."""
        before = state.sent
        if count != before:
            state.sent = count
            self.keys += (count > 0) - (before > 0)
            self.total += count - before
            self.checksum = (self.checksum + (count - before) * _weight(state.name)) & _MASK

    def forfeit(self, state: FutureState) -> None:
        """Note that the server let go of our references by itself: a cancellation or a refusal."""
        self.sent(state, 0)
        self._dirty.pop(state, None)

    def tasks(self) -> Iterator[Task]:
        """Return the tasks of the keys that we refer to, and of what they need."""
        held = [state for state in self._states if state.task is not None and state.count > 0]
        return (state.task for state in with_needs(held, self._states.records) if state.task is not None)

    def disown(self, state: FutureState) -> None:
        """Forfeit our references, and pay no attention to what the server says of the key from now on."""
        self.forfeit(state)
        self._states.discard(state)

    def pairs(self, lent: Iterable[FutureState] = ()) -> list[tuple[str, int]]:
        """Return (name, count) of everything that is counted, for a registration anew, and note it as sent.

        Counts that another call is about to bring (`settled`) are left to it: the server does not know those keys yet.
        `lent` are told already of one reference each, which nobody has: it is still to be released.
        """
        self.drain()
        dirty = set(self._dirty)
        self._dirty.clear()
        self.keys = self.total = self.checksum = 0
        result = []
        for state in list(self._states):
            before, state.sent = state.sent, 0
            if state.count <= 0:
                self._states.discard(state)
            elif not before and state.status == PENDING and state.task is None and state not in dirty:
                continue
            elif state.status != CANCELLED:
                state.born = self._lane.n + 1
                self.sent(state, state.count)
                result.append((state.name, state.count))
        for state in lent:
            state.sent = 0
            self.sent(state, 1)
            self._dirty[state] = None
        return result

    def reset(self, generation: int) -> None:
        """Forget all counts: the cluster was restarted."""
        self._dirty.clear()
        self.generation = generation
        self.keys = self.total = self.checksum = 0
