"""References that nobody will let go of: a Ctrl-C came inside a Future's `__del__`, or before there was a Future.

Whoever will let go of a reference refers to its record: a Future, or what is about to make one. So a record that fewer
objects refer to than it counts references has strays. What else refers to it, as a task that waits, hides them for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from sys import getrefcount
from typing import TYPE_CHECKING

from redist.session.states import FutureState

if TYPE_CHECKING:
    from redist.session.ledger import Ledger

__all__ = ["Strays"]

#: Records that are looked at with one heartbeat.
SLICE = 5000


class Strays:
    """Lets go of stray references.

    Parameters
    ----------
    ledger : Ledger
        Where they are counted.

    Attributes
    ----------
    kept : list of FutureState
        Records of which the session itself has a reference, without a Future.
    """

    __slots__ = ("_base", "_ledger", "_names", "kept")

    def __init__(self, ledger: Ledger) -> None:
        self.kept: list[FutureState] = []
        self._ledger = ledger
        self._names: list[str] = []
        self._base = _referrers({"": FutureState("", 0)}, "")

    def look(self, records: Mapping[str, FutureState]) -> bool:
        """Let go of the strays of some records, the next time of others; return whether there were any. Under the lock."""
        self._ledger.drain()
        if not self._names:
            self._names = list(records)
        names = self._names[-SLICE:]
        del self._names[-SLICE:]
        found = False
        for name in names:
            if name in records:
                strays = records[name].count - (_referrers(records, name) - self._base)
                for _ in range(strays):
                    self._ledger.release(records[name])
                    found = True
        return found


def _referrers(records: Mapping[str, FutureState], name: str) -> int:
    """How many there are to a record; no name here is one more."""
    return getrefcount(records[name])
