"""A connection beside the lane, for plain reads and for output; opened when it is first needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING, Any

import hiredis

from redist.errors import ClientClosed, ConnectionLost, ServerRefused, StoreError

if TYPE_CHECKING:
    from redist.store.connect import Endpoint
    from redist.store.wire import Wire

__all__ = ["Side"]

_LATER = frozenset(["LOADING", "BUSY", "MASTERDOWN", "TRYAGAIN", "CLUSTERDOWN"])
_ELSEWHERE = frozenset(["MOVED", "ASK"])
_NEVER = frozenset(["READONLY", "NOAUTH", "NOPERM", "WRONGPASS"])
_PASSING = _LATER | _ELSEWHERE | {"READONLY"}
_PAUSE = 0.05


class Side:
    """Sends single commands that change nothing in the namespace, and may therefore be sent twice.

    Safe to use from several threads; blocks.

    Parameters
    ----------
    endpoint : Endpoint
        The server.
    timeout : float, optional
        Seconds until a command is given up; default: the endpoint's.
    """

    endpoint: Endpoint

    def __init__(self, endpoint: Endpoint, timeout: float | None = None) -> None:
        self.endpoint = endpoint
        self.timeout = endpoint.timeout if timeout is None else timeout
        self._closed = False
        self._limits = threading.local()
        self._lock = threading.Lock()
        self._wire: Wire | None = None

    @contextmanager
    def within(self, until: float | None) -> Iterator[None]:
        """Give up what this thread sends in the ``with`` block at `until` (of `time.monotonic`), if that comes first."""
        self._limits.until = inf if until is None else until
        try:
            yield
        finally:
            self._limits.until = inf

    def command(self, *args: str | bytes | int) -> Any:
        """Send one command and return its reply.

        Raises
        ------
        ConnectionLost
            If the server cannot be reached in time.
        ServerRefused
            If it does not let us in, or does not take the command now: it is loading its data, busy, or a replica.
        ClientClosed
            After `close`.
        hiredis.ReplyError
            If the reply is another error.
        """
        deadline = min(time.monotonic() + self.timeout, getattr(self._limits, "until", inf))
        if not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise ConnectionLost(
                f"{self.endpoint.url} could not be asked in time: another thread waits for its answer"
            )
        try:
            return self._send(args, deadline)
        finally:
            self._lock.release()

    def _send(self, args: tuple[str | bytes | int, ...], deadline: float) -> Any:
        kept = self._wire is not None
        while True:
            left = max(0.001, deadline - time.monotonic())
            try:
                if self._closed:
                    raise ClientClosed("the client is closed")
                wire = self._wire = self._wire or self.endpoint.open(left, retry=True)
                wire.timeout = max(0.001, deadline - time.monotonic())
                return wire.call(*args)
            except ConnectionLost:
                self._drop()
                # A kept connection may have broken long ago; a new one has just been tried until the deadline, or was cut.
                if not kept or time.monotonic() >= deadline:
                    raise
                kept = False
            except hiredis.ReplyError as error:
                word = str(error).split(" ", 1)[0]
                if word not in _LATER and word not in _ELSEWHERE and word not in _NEVER:
                    raise
                if word in _NEVER or time.monotonic() + _PAUSE > deadline:
                    raise self._refused(error) from error
                if word in _ELSEWHERE:
                    self._drop()
                time.sleep(_PAUSE)

    def _refused(self, error: hiredis.ReplyError) -> StoreError:
        refused = ServerRefused(
            f"{self.endpoint.url} does not take a command: {error}. See the server's log, and `redist acl USER` for rights"
        )
        refused.passing = str(error).split(" ", 1)[0] in _PASSING
        return refused

    def fields(self, key: str) -> dict[str, str]:
        """Return the hash at `key`, which is below the namespace's prefix."""
        flat = iter(self.command("HGETALL", self.endpoint.prefix + key))
        return {field.decode(): value.decode(errors="replace") for field, value in zip(flat, flat)}

    def has_tasks(self, worker: int) -> bool:
        """Tell whether an executor of a worker has tasks that it has not handed in."""
        prefix = self.endpoint.prefix
        executors = self.members(f"executors:{worker}")
        return any(self.command("EXISTS", f"{prefix}batches:{executor}") for executor in executors)

    def field(self, key: str, field: str) -> bytes | None:
        """Return one field of the hash at `key`, which is below the namespace's prefix."""
        value: bytes | None = self.command("HGET", self.endpoint.prefix + key, field)
        return value

    def pairs(self, key: str) -> dict[str, bytes]:
        """Return the hash at `key` as `fields` does, its values as bytes."""
        flat = iter(self.command("HGETALL", self.endpoint.prefix + key))
        return {field.decode(): value for field, value in zip(flat, flat)}

    def members(self, key: str) -> set[str]:
        """Return the set at `key`, which is below the namespace's prefix."""
        cursor: bytes = b"0"
        found: set[str] = set()
        while True:
            cursor, some = self.command("SSCAN", self.endpoint.prefix + key, cursor, "COUNT", 1000)
            found.update(member.decode() for member in some)
            if cursor == b"0":
                return found

    def close(self) -> None:
        """Close the connection; none is made again."""
        self._closed = True
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def forked(self) -> None:
        """In a forked child: drop the parent's connection."""
        self._lock = threading.Lock()
        self._drop()
