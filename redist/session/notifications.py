"""What is pushed to a caller: decoded, counted, and asked for again when something is missing.

Messages with states are numbered a caller. Whoever misses one, or subscribed anew, asks for the states of all its
unfinished keys; nothing else is lost with a message. Each says as well which of our calls was the last to be applied before
it: what it tells of a key that we let go, and referred to again in a later call, is of the key's life before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import msgpack

from redist.session.states import CANCELLED, PENDING, FutureState, States

if TYPE_CHECKING:
    from redist.store.replies import State

__all__ = ["Notifications", "decode_message"]

_UNFINISHED = frozenset(["waiting", "queued", "processing"])

#: How long pushes that a heartbeat spoke of may still be on their way, s.
_LATE = 0.25


def decode_message(data: bytes) -> list[Any]:
    """Return a message's flat list; strings are bytes."""
    result = msgpack.unpackb(data, raw=True, strict_map_key=False)
    if not isinstance(result, list):
        raise ValueError(f"not a message: {data!r:.80}")
    return result


class Notifications:
    """Applies pushed states to records and notices what is missing.

    Parameters
    ----------
    states : States
        The records.
    on_forfeit : callable
        Called with a record that the server let go of by itself.
    on_untold : callable
        Called with a record whose task is to be submitted again: another, that had submitted it first, went in the middle.
    on_miss : callable
        Called without arguments when the states of unfinished keys have to be asked for.

    Attributes
    ----------
    number : int
        The number of the last message, -1 if unknown.
    since : int
        The number of our registration, behind which what earlier messages may have told is asked for.
    """

    def __init__(
        self,
        states: States,
        on_forfeit: Callable[[FutureState], object],
        on_untold: Callable[[FutureState], object],
        on_miss: Callable[[], object],
    ) -> None:
        self.number = -1
        self.since = 0
        self.suspect: tuple[int, float] | None = None
        self._states = states
        self._on_forfeit = on_forfeit
        self._on_untold = on_untold
        self._on_miss = on_miss
        #: what was submitted again, so that nothing erred for it yet
        self._told_again: WeakSet[FutureState] = WeakSet()

    # --- numbers ----------------------------------------------------------------------------------------------------

    def subscribed(self) -> None:
        """Note a new subscription: what came before it is unknown."""
        self.number = -1
        self.suspect = None

    def beat(self, pushed: int, now: float) -> None:
        """Compare with the number of messages that had been sent to us at a heartbeat; later ones may be here already."""
        if self.number < 0:
            self.number = pushed
        elif pushed > self.number and self.suspect is None:
            self.suspect = (pushed, now + _LATE)

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        return self.suspect[1] if self.suspect else None

    def tick(self, now: float) -> None:
        """Ask for states if what a heartbeat spoke of did not come."""
        if self.suspect and now >= self.suspect[1]:
            pushed, _ = self.suspect
            self.suspect = None
            if self.number < pushed:
                self.number = pushed
                self._on_miss()

    def numbered(self, number: int, applied: int) -> bool:
        """Take note of a message's number, sent when our call `applied` was the last; return False if it may be old.

        A repeat is, and one that was sent under an earlier registration, maybe by a server that has begun to count anew.
        """
        if applied < self.since:
            return False
        expected = self.number + 1
        if number != expected:
            if self.number >= 0 and number < expected:
                return False
            if self.number >= 0:
                self._on_miss()
        self.number = number
        if self.suspect and number >= self.suspect[0]:
            self.suspect = None
        return True

    # --- states -----------------------------------------------------------------------------------------------------

    def states(self, message: list[Any]) -> None:
        """Apply an ``s`` message."""
        applied = int(message[2])
        if not self.numbered(message[1], applied):
            return
        get = self._states.records.get
        for i in range(3, len(message), 7):
            state = get(message[i].decode())
            if state is None or applied < state.born:
                continue
            word = message[i + 1]
            if word == b"memory":
                if state.status != CANCELLED:
                    state.finish(
                        int(message[i + 3] or 0),
                        message[i + 4].decode(),
                        message[i + 5].decode(),
                        message[i + 6],
                    )
            else:
                self._apply(
                    state,
                    word.decode(),
                    message[i + 4].decode(),
                    message[i + 5].decode(),
                    message[i + 6],
                    untold=message[i + 2] == b"1",
                    pushed=True,
                )

    def read(self, read: State) -> None:
        """Apply what a `states` call answered of one key; `forgotten` if the server does not know it."""
        state = self._states.get(read.name)
        if state is None:
            return
        if read.state == "memory":
            if state.status != CANCELLED:
                state.finish(read.nbytes, read.type, read.where, read.value)
        else:
            untold = read.attempt == 1
            self._apply(state, read.state, read.type, read.where, read.value, untold=untold, pushed=False)

    def _apply(
        self,
        state: FutureState,
        word: str,
        type_: str,
        where: str,
        value: bytes,
        *,
        untold: bool,
        pushed: bool,
    ) -> None:
        word = word.split(" ", 1)[0]
        if state.status == CANCELLED:
            return
        if word == "erred" and state.status == PENDING:
            if untold and state.task is not None:
                self._told_again.add(state)
                self._on_untold(state)
                return
            cause = self._states.get(where) if self._told_again else None
            if cause is not None and cause.status == PENDING and cause in self._told_again:
                return
        if word not in _UNFINISHED and state in self._told_again:
            self._told_again.discard(state)
            self._on_miss()  # what it was blamed for is so
        if word == "erred":
            if type_ == "KeyTaken":
                # The server refused us: the key is another function's, and our count was not taken.
                if state.status == "finished":
                    return
                self._on_forfeit(state)
            state.err(type_, where, value)
        elif word == "cancelled":
            self._on_forfeit(state)
            state.cancel(value.decode(errors="replace") or "cancelled")
        elif word == "forgotten":
            self._on_forfeit(state)
            state.cancel(
                "the key is not known any more (released everywhere, cancelled, or lost with the server)"
            )
        elif word in _UNFINISHED and pushed:
            state.again()
