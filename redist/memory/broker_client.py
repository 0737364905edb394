"""The other end of a worker's local socket, for executors and for clients on its host that may block.

Commits are one-way: the process renames the file itself, says so on the connection of the grant, and goes on. The order
of that connection is what makes a dead process's files return and a committed one's stay.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from redist.errors import RedistError, SegmentError, TransferError
from redist.memory.arena import is_small
from redist.memory.arena_writer import ArenaWriter, Small, SmallWriter
from redist.memory.broker_conversation import Answer, Conversation, GrantHolder
from redist.memory.broker_messages import (
    ARENA,
    CHECK,
    DROP,
    FETCH,
    LEAVE,
    RESERVE,
    STAT,
    STORED,
    Grant,
    Stat,
    Wanted,
    flat,
    grants_of,
    left,
    outcomes_of,
    sizes_of,
    sources_of,
    take_back,
)
from redist.memory.frames import pack_frame
from redist.memory.headers import Header, footer_of
from redist.memory.index import Index
from redist.memory.kept import keeper
from redist.memory.local_sockets import address_of
from redist.memory.patience import least, wait
from redist.memory.writer import PayloadLike, SegmentWriter, header_for

__all__ = ["BrokerClient"]


class BrokerClient(GrantHolder):
    """Asks a worker for space and for payloads, and blocks until it answers.

    Safe to use from several threads: each request takes an idle connection, or makes one. A connection that broke
    while idle is replaced and the request is sent once more. A forked child starts with no connection.

    Parameters
    ----------
    address : str
        Path of the worker's local socket.
    timeout : float
        Seconds to wait for the answer to a reservation.
    """

    address: str
    timeout: float

    def __init__(self, address: str, *, timeout: float = 60.0) -> None:
        self.address = address
        self.timeout = timeout
        self._start()
        _living.add(self)

    def _start(self) -> None:
        self._idle: list[_Connection] = []
        self._all: weakref.WeakSet[_Connection] = weakref.WeakSet()
        self._mutex = threading.Lock()
        self._closed = False
        self._small = SmallWriter(_Arenas(self))

    def put(self, items: Sequence[tuple[str, int, PayloadLike]], wait: float | None = None) -> None:
        """Write payloads into the worker's segments: reserve, write, publish, commit.

        Parameters
        ----------
        items : sequence of (name, attempt, payload)
            The payloads; `payload` has ``nbytes``, ``type``, ``contains`` and ``chunks()``.
        wait : float, optional
            Seconds for which room is waited for at most; as long as the worker waits by default.

        Raises
        ------
        SegmentsFull
            If there is no space; then none of them is there.
        TransferError
            If the worker cannot be reached, or ends meanwhile.
        """
        until = None if wait is None else time.monotonic() + wait
        used: list[_Connection] = []
        grants: list[Grant] = []
        published: list[Grant] = []
        small: list[Small] = []
        large: list[tuple[Header, PayloadLike]] = []
        for name, attempt, payload in items:
            nbytes = payload.nbytes
            if is_small(nbytes):
                footer = footer_of(name, attempt, nbytes, payload.type, payload.contains)
                if is_small(nbytes, len(footer)):
                    small.append(Small(name, attempt, nbytes, footer, payload.chunks()))
                    continue
            large.append((header_for(name, attempt, payload), payload))
        try:
            if small:
                rest = {item[:2] for item in small[self._small.put(small, until) :]}
                # what no arena can be had for gets a file
                large += [(header_for(*item), item[2]) for item in items if item[:2] in rest] if rest else ()
                if not large:
                    return
            grants = self._reserve([header for header, _ in large], used, until)
            for grant, (_, payload) in zip(grants, large, strict=True):
                published.append(grant)
                with SegmentWriter(grant.path, grant.header) as writer:
                    writer.write(payload.chunks())
                    writer.publish(grant.final_path)
            self.commit(grants)
        except BaseException as error:
            self._undo(error, used, grants, published)
            if small:
                with contextlib.suppress(RedistError):
                    self.drop([item[:2] for item in small])
            if (
                isinstance(error, SegmentError)
                and grants
                and not os.path.isdir(os.path.dirname(grants[0].path))
            ):
                raise TransferError(f"{self.address}: the worker ended while values were written") from error
            raise

    def _undo(
        self,
        error: BaseException,
        used: Sequence[_Connection],
        grants: Sequence[Grant],
        published: Sequence[Grant],
    ) -> None:
        """Give back what `put` reserved and wrote; never raises in place of `error`."""
        take_back(published)
        keeper.look()  # what it keeps of them for the next payloads would hold their memory
        if not grants:
            if not isinstance(error, Exception):
                # What was granted is not known: it returns with the connection.
                for connection in used:
                    connection.hang_up()
            return
        try:
            self.abort(grants)
        except RedistError:
            for connection in used:
                connection.hang_up()
        if not isinstance(error, Exception):
            # The commit may have left whole before the interrupt; what is dropped before it comes is not recorded then.
            with contextlib.suppress(RedistError):
                self.drop([(grant.header.name, grant.header.attempt) for grant in grants])

    def reserve(self, headers: Sequence[Header]) -> list[Grant]:
        """Reserve space for payloads, all or none.

        Raises
        ------
        SegmentsFull
            If there is no space.
        TransferError
            If the worker cannot be reached.
        """
        return self._reserve(headers, [])

    def _reserve(
        self, headers: Sequence[Header], used: list[_Connection], until: float | None = None
    ) -> list[Grant]:
        connection, answer = self._ask(RESERVE, sizes_of(headers, left(until)), self.timeout, used)
        return grants_of(answer, headers, connection)

    def fetch(self, wanted: Sequence[Wanted], *, timeout: float | None = None) -> list[RedistError | None]:
        """Have the worker bring payloads of other hosts into its segments.

        Parameters
        ----------
        wanted : sequence of (name, attempt, addresses)
            The payloads, each with the data servers that have it, the best first.
        timeout : float, optional
            Seconds to wait; the worker gives up by itself when no holder answers.

        Returns
        -------
        list
            For each payload None (it is there now) or what went wrong.
        """
        return outcomes_of(self._ask(FETCH, sources_of(wanted), timeout)[1])

    def check(self, payloads: Sequence[tuple[str, int]], *, timeout: float) -> list[RedistError | None]:
        """Have the worker look at payloads (name, attempt) that could not be read, and tell the server of those it lacks.

        Returns
        -------
        list
            For each None (it is whole, as the worker sees it) or what is wrong with it, of which the server knows by then.
        """
        return outcomes_of(self._ask(CHECK, flat(payloads), timeout)[1])

    def drop(self, payloads: Sequence[tuple[str, int]]) -> None:
        """Have the worker remove payloads (name, attempt) that were written and then not needed; waits for nothing."""
        connection = self._take() or self._connect()
        try:
            connection.send([DROP, 0, *flat(payloads)])
        finally:
            self._give(connection)

    def stat(self) -> Stat:
        """Return what the worker's directory holds."""
        return Stat(*self._ask(STAT, (), self.timeout)[1])

    def close(self) -> None:
        """Close all connections; what was granted and not committed returns."""
        self._small.close()
        self._closed = True
        _living.discard(self)
        with self._mutex:
            for connection in list(self._all):
                connection.close()
            self._idle.clear()

    def __enter__(self) -> BrokerClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _ask(
        self,
        kind: int,
        items: Sequence[Any],
        timeout: float | None,
        used: list[_Connection] | None = None,
    ) -> tuple[_Connection, list[Any]]:
        """Send a request on an idle connection and wait for its answer; `used` gets the connection before that."""
        used = [] if used is None else used
        idle = self._take()
        while True:
            connection = idle or self._connect()
            used.append(connection)
            try:
                answer = connection.ask(kind, items, timeout)
            except TransferError:
                if idle is None or not connection.broken:
                    if kind in (RESERVE, ARENA):
                        connection.hang_up()  # what may yet be granted returns with it
                    raise
            else:
                return connection, answer.get()
            finally:
                self._give(connection)
            idle = None  # it broke meanwhile, as when the worker was restarted: once more, on a new one

    def _take(self) -> _Connection | None:
        if self._closed:
            raise TransferError(f"{self.address}: the connection to the worker was closed")
        with self._mutex:
            while self._idle:
                connection = self._idle.pop()
                if not connection.broken:
                    return connection
                connection.close()
        return None

    def _connect(self) -> _Connection:
        connection = _Connection(self.address, self.timeout)
        with self._mutex:
            self._all.add(connection)
        return connection

    def _give(self, connection: _Connection) -> None:
        if connection.broken or self._closed:
            connection.close()
        else:
            with self._mutex:
                self._idle.append(connection)


class _Arenas:
    """Arenas that the worker grants."""

    def __init__(self, client: BrokerClient) -> None:
        self._client = weakref.proxy(client)
        self._segments = ""
        self._index: Index | None = None
        #: over which each arena was granted
        self._connections: dict[int, _Connection] = {}

    def grant(self, count: int, until: float | None = None) -> list[int]:
        numbers: list[int]
        connection, (self._segments, *numbers) = self._client._ask(
            ARENA, (count, left(until)), self._client.timeout
        )
        self._connections.update(dict.fromkeys(numbers, connection))
        return numbers

    def open(self, number: int) -> ArenaWriter:
        if self._index is None:
            self._index = Index(self._segments, writable=True)
        return ArenaWriter(self._segments, number, self._index)

    def store(self, number: int, start: int, records: Sequence[tuple[str, int, int]]) -> None:
        self._connections[number].send([STORED, 0, number, start, *itertools.chain.from_iterable(records)])

    def alive(self, number: int) -> bool:
        return self._connections[number].alive

    def leave(self, numbers: Sequence[int]) -> None:
        for connection in {self._connections[number] for number in numbers}:
            of_it = [number for number in numbers if self._connections[number] is connection]
            for number in of_it:
                del self._connections[number]
            connection.send([LEAVE, 0, *of_it])


class _Connection:
    """One connection; a request at a time, one-way messages from any thread in between."""

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.broken = False
        self._mutex = threading.Lock()
        self._conversation = Conversation(address)
        self._socket = _connect(address, timeout)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    @property
    def alive(self) -> bool:
        """Whether the worker's end is open; waits for nothing."""
        if self.broken:
            return False
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def send(self, items: list[Any]) -> None:
        frame = pack_frame(items)
        with self._mutex:
            if self.broken:
                raise TransferError(f"{self.address}: the connection to the worker broke")
            try:
                self._send(frame)
            except TransferError:
                self.hang_up()
                raise
            except OSError as error:
                self.broken = True
                raise TransferError(f"{self.address}: the worker cannot be reached: {error}") from error
            except BaseException:
                # an interrupt meanwhile leaves half a frame behind
                self.hang_up()
                raise

    def _send(self, frame: bytes) -> None:
        """Send a frame; one that a stopped worker does not read is waited for as its answer would be."""
        left = memoryview(frame)
        while left:
            try:
                left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._socket, select.POLLOUT)
                timeout = least(None)
                if not wait(poll, timeout):
                    raise TransferError(
                        f"{self.address}: the worker did not read within {timeout:g} s"
                    ) from None

    def ask(self, kind: int, items: Sequence[Any], timeout: float | None) -> Answer:
        """Send a request and return its answer."""
        number, message = self._conversation.request(kind, items)
        self.send(message)
        return self._receive(number, timeout)

    def _receive(self, number: int, timeout: float | None) -> Answer:
        timeout = least(timeout)
        while True:
            answer = self._answer_to(number)
            if answer is not None:
                return answer
            # polled before recv: a blocked recv is woken when the worker reads the request
            if not wait(self._poll, timeout):
                raise TransferError(f"{self.address}: the worker did not answer within {timeout:.3g} s")
            try:
                data = self._socket.recv(65536)
                if not data:
                    raise ConnectionResetError("the worker closed the connection")
            except OSError as error:
                self.broken = True
                raise TransferError(f"{self.address}: the worker cannot be reached: {error}") from error
            self._conversation.received(data)

    def _answer_to(self, number: int) -> Answer | None:
        """Return the answer to a request if it came; those that nobody waits for any more are undone."""
        try:
            while (answer := self._conversation.next_answer()) is not None:
                if answer.number == number:
                    return answer
                undoing = answer.undoing()
                if undoing is not None:
                    self.send(undoing)
        except RedistError:
            self.broken = True
            raise
        return None

    def hang_up(self) -> None:
        """Have the worker see the end at once; the descriptor stays, for a thread that polls it."""
        self.broken = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.broken = True
        self._socket.close()


def _connect(address: str, timeout: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # a stopped worker accepts nobody, and some time its backlog is full
    limit = max(0.001, least(timeout) or 0.0)
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(limit), int(limit % 1 * 1e6))
    )
    try:
        with address_of(address) as short:
            sock.connect(short)
    except OSError as error:
        sock.close()
        raise TransferError(f"{address}: the worker cannot be reached: {error.strerror or error}") from error
    return sock


_living: weakref.WeakSet[BrokerClient] = weakref.WeakSet()


def _forked() -> None:
    """Close the connections in a forked child without a word: grants go by the parent's life alone."""
    for client in list(_living):
        for connection in list(client._all):
            connection.close()
        client._start()


os.register_at_fork(after_in_child=_forked)
