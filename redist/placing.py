"""Which worker gets a value that is about to be stored, and under which number (its attempt).

The server chooses. Where it does not matter which life of a key a number belongs to, some are asked for ahead, so that the
next values need no round trip for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from redist.describing import workers_changed
from redist.errors import NoWorkers, StoreError
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation, Run, Until
from redist.session.states import Condition, Waiter
from redist.store import calls
from redist.store.replies import parse_place

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["PlacesAhead", "place"]

#: Places that are asked for beside those that are needed now, and how long they are good, s: clients are told of workers
#: that come, go and close, and this bounds what happens where such news is late.
_AHEAD, _GOOD_FOR = 16, 2.0


class PlacesAhead:
    """Places that a client was given and has not used. Safe to use from several threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._places: list[tuple[int, int]] = []
        self._while: Hashable = None
        self._until = 0.0

    def take(self, count: int, standing: Hashable) -> list[tuple[int, int]] | None:
        """Return `count` places, None if there are not so many that were given while things stood so."""
        with self._mutex:
            if count > len(self._places) or standing != self._while or time.monotonic() > self._until:
                return None
            taken, self._places = self._places[:count], self._places[count:]
            return taken

    def keep(self, places: list[tuple[int, int]], standing: Hashable) -> None:
        """Keep places instead of those that are left."""
        with self._mutex:
            self._places, self._while = places, standing
            self._until = time.monotonic() + _GOOD_FOR

    def forget(self) -> None:
        """Forget them: a worker did not answer."""
        with self._mutex:
            self._places = []


def place(
    client: Client,
    count: int,
    total: int,
    workers: Sequence[str],
    deadline: float | None,
    timeout: float | None,
    *,
    ahead: bool,
) -> Operation[list[tuple[int, int]]]:
    """Choose a worker for each of `count` values: its ordinal, after the attempt.

    Parameters
    ----------
    client : Client
        Who stores them.
    count, total : int
        How many they are, and their bytes.
    workers : sequence of str
        Whom to choose from; empty: anybody, on this host if one is here.
    deadline, timeout : float, optional
        Until when workers are waited for, and for how many seconds each reply.
    ahead : bool
        Whether places may be used that were asked for before. Their attempts may be lower than one that another client has
        given a key of the same name since then: only for names that are new, or of the content.

    Raises
    ------
    NoWorkers
        If none came.
    QuotaExceeded
        If a quota forbids it; the commit looks at that too.
    """
    host = yield from _host_id(client, timeout)
    until = time.monotonic() + client._timeout if deadline is None else deadline
    ahead = ahead and not workers and count <= _AHEAD
    while True:
        seen = client._workers_seen
        standing = seen, host, client.session.generation, client.session.lane.incarnation
        if ahead and (places := client._places.take(count, standing)) is not None:
            return places
        try:
            reply = yield Ask(calls.place(count, total, workers, host, _AHEAD if ahead else 0), timeout)
            places = parse_place(reply)
            if ahead:
                client._places.keep(places[count:], standing)
            return places[:count]
        except Refused as refused:
            left = until - time.monotonic()
            if refused.code != "workers" or left <= 0:
                raise NoWorkers(f"{refused.message}; start one, or relax workers=") from None
        # A worker that joins is announced; the short period is for an announcement that was lost.
        yield Until(Condition(partial(workers_changed, client, seen)), min(left, 1.0))


def _host_id(client: Client, timeout: float | None) -> Operation[str]:
    """Return this host's id; with an infinite timeout the server is asked until it answers."""
    while True:
        try:
            host: str = yield Run(client._peers.host_id)
            return host
        except StoreError:
            if timeout != inf:
                raise
        yield Until(Waiter(1), 0.2)
