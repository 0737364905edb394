"""What drivers have in common: a session, its two connections, and whether they still serve."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from redist.errors import ForkedClientError
from redist.session.links import Links
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
        """
        if self._closed is not None:
            raise self._closed.with_traceback(None)

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
