"""A connection beside the lane, for plain reads and for output; opened when it is first needed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from redist.errors import ConnectionLost

if TYPE_CHECKING:
    from redist.store.connect import Endpoint
    from redist.store.wire import Wire

__all__ = ["Side"]


class Side:
    """Sends single commands that change nothing in the namespace, and may therefore be sent twice.

    Safe to use from several threads; blocks.

    Parameters
    ----------
    endpoint : Endpoint
        The server.
    """

    endpoint: Endpoint

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._lock = threading.Lock()
        self._wire: Wire | None = None

    def command(self, *args: str | bytes | int) -> Any:
        """Send one command and return its reply.

        Raises
        ------
        ConnectionLost
            If the server cannot be reached within the endpoint's timeout.
        hiredis.ReplyError
            If the reply is an error.
        """
        with self._lock:
            if self._wire is not None:
                try:
                    return self._wire.call(*args)
                except ConnectionLost:
                    self._wire.close()
                    self._wire = None
            self._wire = self.endpoint.open(retry=True)
            return self._wire.call(*args)

    def fields(self, key: str) -> dict[str, str]:
        """Return the hash at `key`, which is below the namespace's prefix."""
        flat = iter(self.command("HGETALL", self.endpoint.prefix + key))
        return {field.decode(): value.decode(errors="replace") for field, value in zip(flat, flat)}

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._wire is not None:
                self._wire.close()
                self._wire = None

    def forked(self) -> None:
        """In a forked child: drop the parent's connection."""
        self._lock = threading.Lock()
        self.close()
