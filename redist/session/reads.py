"""Reading the states of keys whose pushes may have been missed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from redist.session.lane import Lane
from redist.session.states import PENDING, States
from redist.session.submissions import SLICE, Submissions
from redist.store import calls
from redist.store.replies import State, parse_states

__all__ = ["Reads"]


class Reads:
    """Asks for the states of keys; what has not left yet is not asked for.

    Parameters
    ----------
    lane, states, submissions
        Parts of the session.

    Attributes
    ----------
    apply : callable
        Called with every state that was read.
    """

    __slots__ = ("_lane", "_states", "_submissions", "apply")

    apply: Callable[[State], object]

    def __init__(self, lane: Lane, states: States, submissions: Submissions) -> None:
        self._lane = lane
        self._states = states
        self._submissions = submissions

    def unsettled(self) -> None:
        """After a miss: read the states of all keys that may stand otherwise."""
        unsent = self._submissions.names()
        self._ask([name for name in self._states.unsettled() if name not in unsent])

    def unfinished(self, names: Sequence[str]) -> None:
        """Read the states of those of `names` that are unfinished and on the lane."""
        unsent = self._submissions.names()
        get = self._states.get
        self._ask(
            [
                n
                for n in names
                if n not in unsent and (state := get(n)) is not None and state.status == PENDING
            ]
        )

    def _ask(self, names: Sequence[str]) -> None:
        get = self._states.get
        # Of a count that the server has not heard, as of a value that is being stored, it knows nothing yet.
        names = [name for name in names if (state := get(name)) is not None and state.sent]
        for i in range(0, len(names), SLICE):
            self._ask_slice(names[i : i + SLICE])

    def _ask_slice(self, names: Sequence[str]) -> None:
        sent_in = self._lane.round
        get = self._states.get
        asked = {name: get(name) for name in names}

        def answered(reply: list[Any]) -> None:
            # If calls were sent again meanwhile, what this read did not see may just not have been there yet.
            if self._lane.round != sent_in:
                self._ask([name for name, state in asked.items() if get(name) is state])
                return
            for read in parse_states(reply):
                # A new life of the name may have begun behind the read.
                if get(read.name) is asked.get(read.name):
                    self.apply(read)

        self._lane.enqueue(calls.states(list(asked), ours=True), answered)
