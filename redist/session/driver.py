"""What drivers have in common: a session, its two connections, and whether they still serve."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any

from redist.errors import ForkedClientError, StoreError
from redist.session.lane import Entry
from redist.session.links import Links
from redist.session.operations import Sendable
from redist.session.outcome import Outcome
from redist.session.session import Session
from redist.session.wakeup import Wakeup
from redist.store.connect import Endpoint

__all__ = ["Driver"]


class Driver:
    """Runs a session.

    Parameters
    ----------
    session : Session
        The session; from now on only touched under `lock`.
    endpoint : Endpoint
        Where to connect.
    lock : context manager
        Guards the session. Not re-entrant.
    check : bool
        Whether to see at the start if the server is fit.
    """

    session: Session
    endpoint: Endpoint
    lock: AbstractContextManager[Any]
    links: Links
    #: Called, without the lock, before and after an operation waits: in an executor a task gives up its place, whatever
    #: session it waits for.
    on_block: Callable[[], object] | None = None
    on_unblock: Callable[[], object] | None = None
    #: How long operations wait for a reply, s; None for ever: what a task waits for cannot be given up without its result.
    reply_timeout: float | None = None

    def __init__(
        self, session: Session, endpoint: Endpoint, lock: AbstractContextManager[Any], check: bool
    ) -> None:
        self.session = session
        self.endpoint = endpoint
        self.lock = session.lock = lock
        self.links = Links(session, endpoint, self._changed)
        self._check = check
        self._closed: BaseException | None = None
        self._wakeup = Wakeup()
        session.ledger.wake = self._wakeup.write

    def __repr__(self) -> str:
        state = "closed" if self._closed else "up" if self.links.up else "down"
        return f"<{type(self).__name__} of {self.session.kind} {self.session.name!r} {state}>"

    @property
    def closed(self) -> bool:
        """Whether `close` was called, or this is a forked child."""
        return self._closed is not None

    def check_alive(self) -> None:
        """Raise if calls are not possible any more.

        Raises
        ------
        ClientClosed
            After `close`; in a forked child `ForkedClientError`.
        RedistError
            What the session was given up for.
        """
        error = self._closed or self.session.failure
        if error is not None:
            raise error.with_traceback(None)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Return a context in which the calling task has no place, for it waits."""
        block, unblock = self.on_block, self.on_unblock
        if block is None or unblock is None:
            yield
            return
        block()
        try:
            yield
        finally:
            unblock()

    def enqueue_all(self, calls: Sequence[Sendable], outcome: Outcome) -> list[Entry]:
        """Put calls on the lane, whose replies go to `outcome`. Under the lock."""
        enqueue = self.session.enqueue
        return [enqueue(call() if callable(call) else call, *outcome.of(i)) for i, call in enumerate(calls)]

    def limit(self, timeout: float | None) -> tuple[float | None, bool]:
        """Return how long to wait for replies, and whether from the last thing on that the server did for us."""
        if timeout is None:
            return self.reply_timeout, True
        return (None if timeout == inf else max(0.0, timeout)), False

    def late(
        self, outcome: Outcome, entries: Sequence[Entry], timeout: float, stays: bool
    ) -> StoreError | None:
        """Give up what was not answered in time; return the error, None if it was answered right now. Under the lock."""
        if outcome.ready():
            return None
        # From the end, so that numbers that never left can be taken back.
        pending = [self.session.lane.withdraw(entry, stays=stays) for entry in reversed(entries)]
        return self.links.unanswered(timeout, any(pending))

    def progress(self, outcome: Outcome) -> tuple[int, int]:
        """Return what changes when the server does something for us."""
        return self.session.lane.progress, outcome.remaining

    def forked(self) -> None:
        """In a forked child: drop what is the parent's without a word to the server."""
        self.session.failure = self._closed = ForkedClientError(
            "this client belongs to the parent process; make a new one in the child"
        )
        self.session.ledger.wake = None
        self.links.close()
        self._wakeup.close()

    def _changed(self) -> None:
        """Take note that a connection came or went, or did not take all that was sent."""
        raise NotImplementedError
