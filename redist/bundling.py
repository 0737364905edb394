"""Bundles: how a value contains more keys than one script may pin.

A bundle is a value of redist's own, inline and a few bytes long, that contains a part of the keys; the value is then told
to contain its bundles. They are made known first, so no key is unpinned while the value is known, and their maker holds
them until the call that tells of the value was answered, so none outlives a maker that dies in between. A maker that was
taken for dead brings them again; one of whose keys is gone by then is not taken, and what is to be kept under a name is
refused with it. The file of a value lists the keys themselves: a worker that registers anew pins them without bundles, a
part at a time.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from redist.committing import Written, commit, give_up
from redist.errors import DependencyUnknown
from redist.future import Future
from redist.protocol import Payload, dumps
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation
from redist.session.states import FutureState
from redist.session.submissions import SLICE
from redist.store import calls
from redist.store.calls import MOST_CONTAINED
from redist.store.keys import BUNDLE, decode_key
from redist.store.replies import parse_states

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Bundles"]


class Bundles:
    """The bundles of one call.

    Parameters
    ----------
    client : Client
        Who makes the call.

    Attributes
    ----------
    futures : list of Future
        What holds them until that call was answered, or is ahead of every release on the lane.
    """

    __slots__ = ("_client", "_incarnation", "_names", "futures")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._incarnation = client.session.incarnation
        self._names: list[str] = []
        self.futures: list[Future[Any]] = []

    def of(self, names: Sequence[str], timeout: float | None = None) -> Operation[Sequence[str]]:
        """Return keys, `MOST_CONTAINED` at most, that stand for `names`: bundles, of bundles where these are too many."""
        if len(names) > MOST_CONTAINED:
            self._names += names
        while len(names) > MOST_CONTAINED:
            parts = [names[at : at + MOST_CONTAINED] for at in range(0, len(names), MOST_CONTAINED)]
            names = yield from self._make(parts, timeout)
        return names

    def _make(self, parts: Sequence[Sequence[str]], timeout: float | None) -> Operation[Sequence[str]]:
        session = self._client.session
        states: list[FutureState] = []
        sent: set[str] = set()
        try:
            with session.lock:
                self._client._check_alive()
                written: list[Written] = []
                for part in parts:
                    state = session.states.obtain(BUNDLE + secrets.token_hex(16), session.generation)
                    state.count += 1  # told with the commit
                    self.futures.append(Future._of(state, self._client))
                    states.append(state)
                    session.bundles[state] = part
                    value = dumps(len(part)).inline
                    written.append((state, Payload((), "bundle", tuple(part), value), 0, 0))
            yield from commit(self._client, written, False, timeout, sent)
        except BaseException as error:
            give_up(self._client, states, sent, error)
            raise
        return [state.name for state in states]

    def check(self, timeout: float | None = None) -> Operation[None]:
        """Once the value is known, see to it that what the bundles stood for was not given up with this client before.

        Raises
        ------
        DependencyUnknown
            If a key is gone: the client was away for longer than its lease after the bundles were told of.
        """
        if self._names and self._client.session.incarnation != self._incarnation:
            gone = yield from self._gone(timeout)
            if gone is not None:
                raise _lost(gone)

    def explain(self, refused: Refused, timeout: float | None = None) -> Operation[BaseException]:
        """Return what to raise for the refusal of a value; one that names a bundle is for a key that went with it."""
        if not refused.message.startswith(BUNDLE):
            return refused
        return _lost((yield from self._gone(timeout)) or self._names[0])

    def _gone(self, timeout: float | None) -> Operation[str | None]:
        """Return the first of the keys that the server does not know any more."""
        for at in range(0, len(self._names), SLICE):
            reply = yield Ask(calls.states(self._names[at : at + SLICE]), timeout)
            for read in parse_states(reply):
                if read.state == "forgotten":
                    return read.name
        return None

    def release(self) -> None:
        """Let go of them, not only when the traceback goes of an error that came."""
        for future in self.futures:
            future.release()
        self.futures.clear()


def _lost(name: str) -> DependencyUnknown:
    return DependencyUnknown(
        decode_key(name),
        "it went while a value with its Future was being stored, since this client was away for longer than its lease; make "
        "what the value contains again, and then the value",
    )
