"""One connection to a Redis or Valkey server: a non-blocking socket and a hiredis reader.

Nothing here knows what is sent. A `Wire` is made by `redist.store.connect.Endpoint.open`, which has authenticated it; from
then on it only moves bytes. Writers and the one reader may be different threads.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import hiredis

from redist.errors import ConnectionLost, ProtocolError

if TYPE_CHECKING:
    import ssl

__all__ = ["Wire", "pack_command"]

#: Return a command (a tuple of str, bytes and numbers) as RESP. hiredis's own stub knows tuples of one item only.
pack_command: Callable[[tuple[str | bytes | int | float, ...]], bytes] = cast(Any, hiredis.pack_command)

_BUFFER = 128 * 1024
_NOTHING = object()
_SENTINEL: Any = _NOTHING

#: How long a send may wait for a server that does not take a single byte, s.
SEND_STALL = 60.0


class Wire:
    """A connection that speaks RESP2.

    Sending and receiving are independent: several threads may send if they hold a common lock, while one other thread
    receives. The socket never blocks; whoever waits polls it first.

    Parameters
    ----------
    sock : socket.socket
        A connected socket, plain or TLS. The wire owns it from now on.
    peer : str
        The server's address for messages, without a password.
    timeout : float
        How long `call` waits for a reply, s.

    Attributes
    ----------
    peer : str
        As given.
    timeout : float
        As given; may be changed.
    closed : bool
        Whether `close` was called or the connection was found broken.
    """

    __slots__ = (
        "__weakref__", "_buffer", "_fd", "_lock", "_pid", "_poll", "_reader", "_sock", "_tls", "closed", "peer", "timeout",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, *, peer: str = "", timeout: float = 10.0) -> None:
        self.peer = peer
        self.timeout = timeout
        self.closed = False
        sock.setblocking(False)
        self._sock = sock
        self._fd = sock.fileno()
        self._pid = os.getpid()
        self._tls: ssl.SSLSocket | None = None
        if hasattr(sock, "pending"):
            self._tls = cast("ssl.SSLSocket", sock)
        # OpenSSL's connection object must not be read and written at the same time.
        self._lock = threading.Lock()
        self._buffer = bytearray(_BUFFER)
        self._reader = hiredis.Reader(notEnoughData=_SENTINEL)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def __repr__(self) -> str:
        return f"<Wire {self.peer}{' closed' if self.closed else ''}>"

    def fileno(self) -> int:
        """Return the socket's descriptor, for ``select`` and event loops; -1 once closed."""
        return -1 if self.closed else self._fd

    # --- sending ----------------------------------------------------------------------------------------------------

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of `data`.

        Raises
        ------
        ConnectionLost
            If the connection is or breaks down, or the server takes nothing for a minute. Part of `data` may have been sent.
        """
        sent = self.try_send(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        writable = select.poll()
        writable.register(self._fd, select.POLLOUT)
        while rest:
            if not writable.poll(SEND_STALL * 1000):
                raise self._lost(f"it took no data for {SEND_STALL:.0f} s")
            rest = rest[self.try_send(rest) :]

    def try_send(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the socket takes now and return how many bytes that were, 0 if it would block.

        Raises
        ------
        ConnectionLost
            If the connection is broken.
        """
        try:
            if self._tls is None:
                return self._sock.send(data)
            return self._send_tls(self._tls, data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._lost(error) from error

    def _send_tls(self, tls: ssl.SSLSocket, data: bytes | bytearray | memoryview) -> int:
        from ssl import SSLWantReadError, SSLWantWriteError

        with self._lock:
            try:
                # One record at a time: OpenSSL wants a send that would block to be repeated with the same data.
                return tls.send(memoryview(data)[:16384])
            except (SSLWantReadError, SSLWantWriteError):
                return 0

    # --- receiving --------------------------------------------------------------------------------------------------

    def receive(self, timeout: float | None = None) -> bool:
        """Wait until bytes arrive and hand them to the reader.

        Parameters
        ----------
        timeout : float or None
            How long to wait, s; None waits for ever, 0 not at all.

        Returns
        -------
        bool
            False if nothing came in time.

        Raises
        ------
        ConnectionLost
            If the connection is broken or the server closed it.
        """
        if self.closed:
            raise self._lost("it is closed")
        if self._tls is not None and self.receive_ready():
            return True
        deadline = None
        while True:
            if not self._poll.poll(None if timeout is None else math.ceil(timeout * 1000)):
                return False
            if self.receive_ready():
                return True
            # Readable without data: a TLS record that is not complete yet.
            if timeout is not None:
                now = time.monotonic()
                deadline = now + timeout if deadline is None else deadline
                timeout = max(0.0, deadline - now)
                if timeout == 0.0:
                    return False

    def receive_ready(self) -> int:
        """Hand what has arrived to the reader, without waiting, and return how many bytes that were.

        Raises
        ------
        ConnectionLost
            If the connection is broken or the server closed it; only when all that came before was handed over.
        """
        total = 0
        while True:
            try:
                n = self._sock.recv_into(self._buffer) if self._tls is None else self._receive_tls(self._tls)
            except BlockingIOError:
                return total
            except OSError as error:
                raise self._lost(error) from error
            if n < 0 or (n == 0 and total):
                return total
            if n == 0:
                raise self._lost("the server closed it")
            self._reader.feed(self._buffer, 0, n)  # type: ignore[arg-type]  # any buffer will do
            total += n
            if n < _BUFFER and self._tls is None:
                return total

    def _receive_tls(self, tls: ssl.SSLSocket) -> int:
        from ssl import SSLEOFError, SSLWantReadError, SSLWantWriteError

        with self._lock:
            try:
                return tls.recv_into(self._buffer)
            except (SSLWantReadError, SSLWantWriteError):
                return -1
            except SSLEOFError:
                return 0

    def replies(self) -> Iterator[object]:
        """Yield the complete replies that have been received.

        Simple and bulk strings are bytes, error replies `hiredis.ReplyError` instances, which are not raised.

        Raises
        ------
        ProtocolError
            If what came is not RESP; the connection is of no use any more.
        """
        gets = self._reader.gets
        try:
            while (reply := gets()) is not _NOTHING:
                yield reply
        except hiredis.ProtocolError as error:
            self.close()
            raise ProtocolError(f"{self.peer} sent what is not a Redis reply: {error}") from error

    # --- set-up -----------------------------------------------------------------------------------------------------

    def call(self, *args: str | bytes | int | float) -> Any:
        """Send one command and wait for its reply; only while nothing else is in flight.

        Raises
        ------
        hiredis.ReplyError
            If the reply is an error.
        ConnectionLost
            If the connection is broken, or no reply came within `timeout`.

        Notes
        -----
        Both close it, as a Ctrl-C does: the reply would be taken for that of the next command.
        """
        try:
            self.send(pack_command(args))
            reply = self.read_reply()
        except BaseException:
            self.close()
            raise
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def read_reply(self) -> Any:
        """Wait for one reply and return it, an error reply too; only where a single reader takes single replies.

        Raises
        ------
        ConnectionLost
            If the connection is broken, or no reply came within `timeout` (which closes it).
        """
        for reply in self.replies():
            return reply
        deadline = time.monotonic() + self.timeout
        while self.receive(max(0.0, deadline - time.monotonic())):
            for reply in self.replies():
                return reply
        self.close()
        raise ConnectionLost(f"{self.peer} did not answer within {self.timeout:g} s")

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the connection. In a forked child only the child's descriptor goes; the parent's connection lives on."""
        if self.closed:
            return
        self.closed = True
        try:
            if os.getpid() == self._pid:
                # Wakes a thread that polls this socket.
                self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._sock.close()

    def __del__(self) -> None:
        # Who drops a connection without closing it means to close it.
        if not getattr(self, "closed", True):
            self._sock.close()

    def _lost(self, reason: str | OSError) -> ConnectionLost:
        if self.closed or (isinstance(reason, OSError) and reason.errno == errno.EBADF):
            reason = "it is closed"
        self.close()
        return ConnectionLost(f"lost the connection to {self.peer}: {reason}")
