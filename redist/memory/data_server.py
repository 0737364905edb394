"""The data server of a worker: payloads for other hosts, and from their clients.

Connections wait in the event loop and cost no thread. When a request arrives the connection moves to a thread of a small
pool, so at most ``transfers`` payloads are on their way at a time, and back when it has been quiet for a moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from redist.errors import RedistError, SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull, TransferError
from redist.memory.data_messages import DROP, GET, PUT, SEND_PIECE, SEND_STRAIGHT, send_all
from redist.memory.directory import SegmentDirectory
from redist.memory.frames import MAX_FRAME, FrameParser, error_fields, pack_frame, pack_padded
from redist.memory.headers import Header, footprint, header_of
from redist.memory.hello import HELLO_LIMIT, check_client, new_nonce, server_hello, server_proof
from redist.memory.payloads import open_payload
from redist.memory.receive import ALIGNMENT, PIECE, STRAIGHT, SegmentSink, Target
from redist.memory.space import waited_error

__all__ = ["DataServer", "ip_towards"]

logger = logging.getLogger("redist.memory")

#: Largest file, in bytes, that is read and sent with others; and most pieces that leave in one call.
_GATHERED = 128 * 1024
_MOST_PIECES = 512
_LINGER = 0.005
_HELLO_SECONDS = 5.0


class DataServer:
    """Serves the payloads of one segment directory over TCP.

    Parameters
    ----------
    directory : SegmentDirectory
        Whose payloads are served, and where those of remote clients go.
    token : str
        The secret of the namespace; a server that lost its memory makes another one, which is to be assigned to `token`.
    tls : ssl.SSLContext, optional
        Server-side context.
    transfers : int
        Most connections that are served at the same time; others wait.
    timeout : float
        Seconds without progress after which a connection is closed.
    make_room : callable, optional
        Coroutine called in the event loop with the bytes that are missing when there is no space; True: try again.
    on_committed : callable, optional
        Called in the event loop with name, attempt and file size when a remote client has put a payload.
    on_dropped : callable, optional
        Called in the event loop with name and attempt when a remote client took one back.
    on_unread : callable, optional
        Called in the event loop with name and attempt when one was asked for whose file is damaged or gone.
    """

    def __init__(
        self,
        directory: SegmentDirectory,
        token: str,
        *,
        tls: ssl.SSLContext | None = None,
        transfers: int = 8,
        timeout: float = 30.0,
        make_room: Callable[[int], Coroutine[Any, Any, bool]] | None = None,
        on_committed: Callable[[str, int, int], None] | None = None,
        on_dropped: Callable[[str, int], None] | None = None,
        on_unread: Callable[[str, int], None] | None = None,
    ) -> None:
        if not token:
            raise ValueError("a data server needs a token")
        self.directory = directory
        self.timeout = timeout
        #: bytes sent and received since the start
        self.sent = 0
        self.received = 0
        #: whether payloads are refused that remote clients want to put
        self.refusing = False
        self.token = token
        self._tls = tls
        self._transfers = transfers
        self._make_room = make_room
        self._on_committed = on_committed
        self._on_dropped = on_dropped
        self._on_unread = on_unread
        self._sink = SegmentSink(directory)
        self._connections: set[_Connection] = set()
        self._mutex = threading.Lock()
        #: where small payloads are gathered, one a thread that sends
        self._buffers: list[memoryview] = []
        self._closed = False
        self._listening: socket.socket | None = None

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen, and return the address for peers, ``tcp://`` or ``tls://host:port``; see `ip_towards` for a wildcard."""
        self._loop = asyncio.get_running_loop()
        infos = await self._loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = infos[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(256)
        except OSError as error:
            listening.close()
            raise TransferError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        listening.setblocking(False)
        self._listening = listening
        self._pool = ThreadPoolExecutor(self._transfers, thread_name_prefix="redist-data")
        # strangers, who may be slow on purpose, never take a thread from those who are let in
        self._door = ThreadPoolExecutor(2, thread_name_prefix="redist-data-hello")
        self._loop.add_reader(listening.fileno(), self._accept)
        host, port = listening.getsockname()[:2]
        scheme = "tcp" if self._tls is None else "tls"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    async def close(self) -> None:
        """Stop listening and close all connections."""
        self._closed = True
        if self._listening is None:
            return
        self._loop.remove_reader(self._listening.fileno())
        self._listening.close()
        self._listening = None
        with self._mutex:
            connections = list(self._connections)
        for connection in connections:
            if connection.parked:
                self._loop.remove_reader(connection.socket.fileno())
                self._forget(connection)
            else:
                with contextlib.suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)
        for pool in (self._pool, self._door):
            await self._loop.run_in_executor(None, pool.shutdown)

    # --- in the event loop ------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._listening is not None
        for _ in range(64):
            try:
                accepted, _ = self._listening.accept()
            except OSError:  # nobody left, or out of descriptors: the next turn of the loop tries again
                return
            connection = _Connection(accepted)
            with self._mutex:
                self._connections.add(connection)
            self._door.submit(self._greet, connection)

    def _park(self, connection: _Connection) -> None:
        if self._closed:
            self._forget(connection)
            return
        connection.parked = True
        self._loop.add_reader(connection.socket.fileno(), self._unpark, connection)

    def _unpark(self, connection: _Connection) -> None:
        connection.parked = False
        self._loop.remove_reader(connection.socket.fileno())
        self._pool.submit(self._serve, connection)

    def _call_in_loop(self, callback: Callable[..., None], *args: Any) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback, *args)
        except RuntimeError:  # the loop was closed meanwhile
            return False
        return True

    # --- in threads -------------------------------------------------------------------------------------------------

    def _greet(self, connection: _Connection) -> None:
        try:
            connection.socket.settimeout(_HELLO_SECONDS)
            connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connection.socket = self._tls.wrap_socket(connection.socket, server_side=True)
            nonce = new_nonce()
            connection.socket.sendall(pack_frame(server_hello(nonce)))
            items = connection.next_frame(time.monotonic() + _HELLO_SECONDS)
            client_nonce = check_client(items, nonce, self.token)
            connection.socket.sendall(pack_frame(server_proof(nonce, client_nonce, self.token)))
            connection.let_in(self.timeout)
        except (OSError, RedistError) as error:
            logger.warning("a data connection was refused: %s", error)
            self._forget(connection)
        else:
            self._hand_back(connection)

    def _serve(self, connection: _Connection) -> None:
        try:
            while True:
                self._obey(connection, connection.next_frame())
                if not connection.more_within(_LINGER):
                    break
        except _Ended:
            self._forget(connection)
        except (OSError, RedistError) as error:
            logger.warning("closing a data connection: %s", error)
            self._forget(connection)
        except Exception:
            logger.exception("closing a data connection")
            self._forget(connection)
        else:
            self._hand_back(connection)

    def _hand_back(self, connection: _Connection) -> None:
        if self._closed or not self._call_in_loop(self._park, connection):
            self._forget(connection)

    def _forget(self, connection: _Connection) -> None:
        with self._mutex:
            self._connections.discard(connection)
        connection.socket.close()

    def _obey(self, connection: _Connection, items: list[Any]) -> None:
        kind = items[0]
        if kind == GET:
            self._send(connection.socket, _pairs(items))
        elif kind == PUT:
            headers = [header_of(fields, "a request") for fields in items[1:]]
            if self.refusing:
                error = TransferError("the worker is about to end")
                connection.socket.sendall(pack_frame([error_fields(error)] * len(headers)))
            else:
                self._receive(connection, headers)
        elif kind == DROP:
            dropped = _pairs(items)
            self.directory.drop_all(dropped)
            for name, attempt in dropped:
                if self._on_dropped is not None:
                    self._call_in_loop(self._on_dropped, name, attempt)
            connection.socket.sendall(pack_frame([0]))
        else:
            raise SegmentCorrupt(f"request {kind!r:.40} is unknown")

    def _send(self, sock: socket.socket, wanted: list[tuple[str, int]]) -> None:
        """Send payloads; small ones are read into a buffer, and leave together."""
        try:
            buffer = self._buffers.pop()  # not looked at first: other threads take them too
        except IndexError:
            buffer = memoryview(bytearray(SEND_PIECE))
        try:
            self._send_from(buffer, sock, wanted)
        finally:
            self._buffers.append(buffer)

    def _send_from(self, buffer: memoryview, sock: socket.socket, wanted: list[tuple[str, int]]) -> None:
        path = self.directory.path
        gathered: list[bytes | memoryview] = []
        at = waiting = position = 0
        for name, attempt in wanted:
            if at > SEND_PIECE - _GATHERED or waiting >= SEND_PIECE or len(gathered) >= _MOST_PIECES:
                send_all(sock, gathered)
                gathered, at, waiting = [], 0, 0
            try:
                mapping = open_payload(path, name, attempt, buffer=buffer[at : at + _GATHERED])
                header = mapping.header()
            except SegmentError as error:
                if self._on_unread is not None and isinstance(error, SegmentGone | SegmentCorrupt):
                    self._call_in_loop(self._on_unread, name, attempt)
                # the path is this host's affair
                short = type(error)(f"{name!r:.80} attempt {attempt}: {_without_path(error, path)}")
                gathered.append(pack_frame([error_fields(short)]))
                waiting += len(gathered[-1])
                position += len(gathered[-1])
                continue
            gathered.append(pack_padded([None, *header.fields], position, ALIGNMENT))
            position += len(gathered[-1]) + mapping.nbytes
            if mapping.view.obj is buffer.obj:
                at += mapping.nbytes
            if mapping.nbytes <= _GATHERED:
                gathered.append(mapping.view)
                waiting += mapping.nbytes
            else:
                send_all(sock, gathered)
                gathered, at, waiting = [], 0, 0
                for start in range(0, mapping.nbytes, SEND_STRAIGHT):
                    send_all(sock, [mapping.view[start : start + SEND_STRAIGHT]])
            self.sent += mapping.nbytes
        send_all(sock, gathered)

    def _receive(self, connection: _Connection, headers: list[Header]) -> None:
        targets: list[Target] = []
        taken: list[Header] = []
        refused: RedistError | None = None
        try:
            for header in headers:
                try:
                    targets.append(self._start(header))
                except SegmentError as error:
                    refused = error
                    break
            if refused is not None:
                while targets:
                    targets.pop().abort()
                connection.socket.sendall(pack_frame([error_fields(refused)] * len(headers)))
                return
            connection.socket.sendall(pack_frame([None] * len(headers)))
            outcomes: list[Any] = []
            for header in headers:
                error_met = connection.receive_into(targets[0], header.nbytes)
                target = targets.pop(0)
                if error_met is None:
                    try:
                        target.finish()
                    except SegmentError as error:
                        error_met = error
                if error_met is not None:
                    target.abort()
                    outcomes.append(error_fields(error_met))
                else:
                    outcomes.append(None)
                    taken.append(header)
                    self.received += header.nbytes
            if connection.ended:
                raise TransferError("the peer left before it was told that its payloads are here")
            connection.socket.sendall(pack_frame(outcomes))
        except BaseException:
            # Who put them does not know that they are here, and has them written elsewhere, or not at all.
            self.directory.drop_all([(header.name, header.attempt) for header in taken])
            raise
        finally:
            for target in targets:
                target.abort()
        if self._on_committed is not None:
            for header in taken:
                self._call_in_loop(self._on_committed, header.name, header.attempt, header.file_size)

    def _start(self, header: Header) -> Target:
        """Return where a payload goes, once there is room for it."""
        while True:
            try:
                return self._sink.start(header)
            except SegmentsFull as error:
                limit = self.directory.space.limit
                need = footprint(header.file_size)
                if self._make_room is None or (limit and need > limit) or self._closed:
                    raise
                work = self._make_room(need)
                try:
                    again = asyncio.run_coroutine_threadsafe(work, self._loop).result()
                except RuntimeError:  # the loop was closed meanwhile
                    work.close()
                    again = False
                if not again:
                    raise waited_error(error) from error


class _Ended(Exception):
    """The peer closed the connection between two requests."""


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.parked = False
        self._parser = FrameParser(HELLO_LIMIT)
        self._scratch = bytearray(0)

    def let_in(self, timeout: float) -> None:
        self.socket.settimeout(timeout)
        self._parser.limit = MAX_FRAME
        self._scratch = bytearray(PIECE)

    def next_frame(self, deadline: float | None = None) -> list[Any]:
        while (items := self._parser.next()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TransferError("the hello took too long")
            data = self.socket.recv(65536)
            if not data:
                self._parser.close()
                raise _Ended if deadline is None else TransferError("the peer left before its hello")
            self._parser.feed(data)
        return items

    @property
    def ended(self) -> bool:
        """Whether the peer has closed its end, as far as the system tells."""
        poll = select.poll()
        poll.register(self.socket, getattr(select, "POLLRDHUP", 0))  # with TLS nothing else says so
        return bool(poll.poll(0))

    def more_within(self, seconds: float) -> bool:
        if isinstance(self.socket, ssl.SSLSocket) and self.socket.pending():
            return True
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(int(seconds * 1000)))

    def receive_into(self, target: Target, nbytes: int) -> RedistError | None:
        """Receive `nbytes` into `target`; return the error that storing them met (they are received all the same)."""
        failed: RedistError | None = None
        direct = target.view
        view = memoryview(self._scratch) if direct is None else direct
        at = 0
        while nbytes:
            piece = min(PIECE if direct is None else STRAIGHT, nbytes)
            count = self.socket.recv_into(view[at : at + piece], piece)
            if not count:
                raise TransferError(f"the connection ended {nbytes} bytes before the end of a payload")
            nbytes -= count
            if direct is not None:
                at += count
            elif failed is None:
                try:
                    target.write(view[:count])
                except SegmentError as error:
                    failed = error
        return failed


def ip_towards(host: str, port: int = 9) -> str:
    """Return the address of this host that others on the way to `host` can reach; nothing is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as sock:
            sock.connect(address)
            found: str = sock.getsockname()[0]
            return found
    except OSError:
        return "127.0.0.1"


def _pairs(items: list[Any]) -> list[tuple[str, int]]:
    names, attempts = items[1::2], items[2::2]
    if len(names) != len(attempts):
        raise SegmentCorrupt("a request has a name without an attempt")
    if not all(isinstance(name, str) for name in names) or not all(
        type(attempt) is int for attempt in attempts
    ):
        raise SegmentCorrupt("a request holds something else than names and attempts")
    if any(attempt < 0 for attempt in attempts):
        raise SegmentCorrupt("a request holds a negative attempt")
    return list(zip(names, attempts, strict=True))


def _without_path(error: Exception, segments: str) -> str:
    return re.sub(rf"{re.escape(segments)}/[^\s:]+: ", "", str(error))
