"""The worker's side of its local socket: reserves space for the processes of the host and fetches for them.

Runs in the worker's event loop; nothing here blocks for long. An answer to RESERVE is made at once unless room has to
be made first, so a slow fetch never holds up a commit behind it on the same connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

from redist.errors import RedistError, SegmentCorrupt, SegmentError, SegmentsFull, TransferError
from redist.memory.arena import ARENA_SIZE
from redist.memory.broker_messages import (
    ABORT,
    ARENA,
    CHECK,
    COMMIT,
    DROP,
    FETCH,
    LEAVE,
    RESERVE,
    STAT,
    STORED,
    Wanted,
    left,
)
from redist.memory.directory import SegmentDirectory
from redist.memory.frames import FrameParser, error_fields, pack_frame
from redist.memory.headers import footprint
from redist.memory.host import is_near
from redist.memory.local_sockets import bind
from redist.memory.space import waited_error

__all__ = ["Broker"]

logger = logging.getLogger("redist.memory")

T = TypeVar("T")

FetchCall: TypeAlias = Callable[[Sequence[Wanted]], Awaitable[list[RedistError | None]]]
CheckCall: TypeAlias = Callable[[Sequence[tuple[str, int]]], Awaitable[list[RedistError | None]]]


@dataclass(slots=True)
class _Granted:
    path: str
    name: str
    attempt: int
    size: int
    reserved: int


class Broker:
    """Serves the local socket of one worker.

    Parameters
    ----------
    directory : SegmentDirectory
        Where payloads go.
    fetch : callable, optional
        Coroutine that brings payloads of other hosts into `directory`; `redist.memory.fetcher.Fetcher.fetch`.
    on_committed : callable, optional
        Called with name, attempt and file size when a process of the host has published a payload.
    on_dropped : callable, optional
        Called with name and attempt when a process of the host took one back.
    on_gone : callable, optional
        Called with the pid of a process that has no connection left; one that may count its pid otherwise aside.
    make_room : callable, optional
        Coroutine called with the bytes that are missing when space cannot be reserved; True: try again.
    check : callable, optional
        Coroutine called with names and attempts that a process of the host could not read; returns what is wrong with each.
    """

    directory: SegmentDirectory
    #: path of the socket while it is served
    address: str

    def __init__(
        self,
        directory: SegmentDirectory,
        *,
        fetch: FetchCall | None = None,
        on_committed: Callable[[str, int, int], None] | None = None,
        on_dropped: Callable[[str, int], None] | None = None,
        on_gone: Callable[[int], None] | None = None,
        make_room: Callable[[int], Coroutine[Any, Any, bool]] | None = None,
        check: CheckCall | None = None,
    ) -> None:
        self.directory = directory
        self.address = ""
        self._fetch = fetch
        self._on_committed = on_committed
        self._on_dropped = on_dropped
        self._on_gone = on_gone
        self._make_room = make_room
        self._check = check
        self._server: asyncio.AbstractServer | None = None
        self._refusing = False
        self._numbers = itertools.count(1)
        self._peers: set[_Peer] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def start(self) -> str:
        """Serve; return the path of the socket."""
        path = os.path.join(self.directory.path, "socket")
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: _Peer(self), sock=bind(path), backlog=512)
        self.address = path
        return path

    async def close(self) -> None:
        """Stop serving; what was granted and not committed returns."""
        self._on_gone = None
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        for peer in list(self._peers):
            peer.abort()
        if self.address:
            try:
                os.unlink(self.address)
            except FileNotFoundError:
                pass
            self.address = ""

    async def grant_no_more(self, seconds: float) -> None:
        """Refuse whoever wants to write anything here; return when what was granted is written, after `seconds` at most."""
        self._refusing = True
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while True:
            self.directory.arenas.seal_idle(0.0)  # which their writers may go on to write
            unwritten = any(peer.grants for peer in self._peers) or self.directory.arenas.open
            if not unwritten or loop.time() > until:
                return
            await asyncio.sleep(0.01)

    def disconnect(self, pid: int) -> None:
        """Close the connections of a process that died; children it forked may hold them open."""
        for peer in list(self._peers):
            if peer.pid == pid:
                peer.abort()

    @property
    def granted(self) -> int:
        """Bytes granted and neither committed nor returned, to others and to this process itself."""
        others = sum(grant.reserved for peer in self._peers for grant in peer.grants.values())
        return others + self.directory.grants.own

    @property
    def peers(self) -> int:
        """Open connections."""
        return len(self._peers)

    # --- requests ---------------------------------------------------------------------------------------------------

    def _obey(self, peer: _Peer, items: list[Any]) -> None:
        kind, number = items[0], items[1]
        if self._refusing and kind in (RESERVE, ARENA):
            peer.send([number, error_fields(TransferError("the worker is about to end"))])
        elif kind == RESERVE:
            wait = _span(items.pop()) if len(items) % 3 == 0 else None
            wanted = [_wish(*items[at : at + 3]) for at in range(2, len(items), 3)]
            need = sum(footprint(size) for _, _, size in wanted)
            self._once_there_is_room(peer, number, need, partial(self._grant, peer, number, wanted), wait)
        elif kind == COMMIT:
            for item in items[2:]:
                self._commit(peer, _number(item))
        elif kind == ABORT:
            for item in items[2:]:
                grant = peer.grants.pop(_number(item), None)
                if grant is not None:
                    self.directory.grants.cancel(grant.path, grant.reserved)
        elif kind == STORED:
            self._stored(peer, _number(items[2]), _number(items[3]), items[4:])
        elif kind == ARENA:
            self._grant_arenas(peer, number, _number(items[2]), _span(items[3]) if len(items) > 3 else None)
        elif kind == LEAVE:
            for item in items[2:]:
                self.directory.arenas.leave(peer, _number(item))
        elif kind == FETCH:
            self._answer_later(peer, number, self._fetch, [_wanted(*item) for item in items[2:]], "fetches")
        elif kind == CHECK:
            self._answer_later(peer, number, self._check, _copies(items), "checks")
        elif kind == STAT:
            space = self.directory.space
            counters = [
                len(self.directory.files),
                self.directory.total,
                space.limit,
                space.used,
                self.granted,
            ]
            peer.send([number, None, *counters])
        elif kind == DROP:
            dropped = _copies(items)
            self.directory.drop_all(dropped)
            if self._on_dropped is not None:
                for name, attempt in dropped:
                    self._on_dropped(name, attempt)
        else:
            raise SegmentCorrupt(f"request {kind!r:.40} is unknown")

    def _grant(self, peer: _Peer, number: int, wanted: list[tuple[str, int, int]]) -> None:
        granted = self.directory.grants.grant([size for _, _, size in wanted], peer.pid)
        answer: list[Any] = [number, None]
        for (name, attempt, size), (path, nbytes) in zip(wanted, granted, strict=True):
            grant = next(self._numbers)
            peer.grants[grant] = _Granted(path, name, attempt, size, nbytes)
            answer += (grant, path)
        peer.send(answer)

    def _grant_arenas(self, peer: _Peer, number: int, count: int, wait: float | None) -> None:
        arenas, largest = self.directory.arenas, self.directory.largest

        def grant() -> None:
            peer.send([number, None, self.directory.path, *arenas.grant_all(peer, count, largest, peer.pid)])

        # one is enough to go on with
        self._once_there_is_room(peer, number, ARENA_SIZE, grant, wait)

    def _once_there_is_room(
        self, peer: _Peer, number: int, need: int, grant: Callable[[], None], wait: float | None
    ) -> None:
        """Grant now, or when `need` bytes are free; answer the error if they are not for `wait` s, or can never be."""
        try:
            grant()
        except SegmentsFull as error:
            limit = self.directory.space.limit
            if self._make_room is None or (limit and need > limit):
                peer.send([number, error_fields(error)])
            else:
                until = None if wait is None else time.monotonic() + wait
                self._spawn(self._grant_later(peer, number, need, grant, until))
        except SegmentError as error:
            peer.send([number, error_fields(error)])

    async def _grant_later(
        self, peer: _Peer, number: int, need: int, grant: Callable[[], None], until: float | None
    ) -> None:
        assert self._make_room is not None
        while True:
            # Who gives up cancels nothing: what is being moved is moved.
            making = self._spawn(self._make_room(need))
            await asyncio.wait([making], timeout=left(until))
            again = making.done() and not making.cancelled() and not making.exception() and making.result()
            if peer.closed:
                return
            try:
                grant()
                return
            except SegmentsFull as error:
                if not again:
                    peer.send([number, error_fields(waited_error(error))])
                    return
            except SegmentError as error:
                peer.send([number, error_fields(error)])
                return

    def _commit(self, peer: _Peer, number: int) -> None:
        grant = peer.grants.pop(number, None)
        if grant is None:
            return
        if self.directory.add(grant.name, grant.attempt, grant.reserved, peer.pid):
            if self._on_committed is not None:
                self._on_committed(grant.name, grant.attempt, grant.size)
        else:
            # never renamed, or dropped before it was recorded
            try:
                os.unlink(grant.path)
            except FileNotFoundError:
                pass

    def _stored(self, peer: _Peer, arena: int, start: int, items: list[Any]) -> None:
        records = [_wish(*items[at : at + 3]) for at in range(0, len(items), 3)]
        stored = self.directory.arenas.store(peer, arena, start, records)
        if self._on_committed is not None:
            sizes = {(name, attempt): length for name, attempt, length in records}
            for key in stored:
                self._on_committed(*key, sizes[key])

    def _answer_later(
        self,
        peer: _Peer,
        number: int,
        ask: Callable[[Sequence[T]], Awaitable[list[RedistError | None]]] | None,
        payloads: list[T],
        does: str,
    ) -> None:
        """Answer a request with what `ask` says of each payload."""
        if ask is None:
            peer.send([number, error_fields(SegmentError(f"this worker {does} nothing"))])
        else:
            self._spawn(self._answer_with(peer, number, ask(payloads)))

    async def _answer_with(
        self, peer: _Peer, number: int, asked: Awaitable[list[RedistError | None]]
    ) -> None:
        try:
            outcomes = await asked
        except RedistError as error:
            peer.send([number, error_fields(error)])
        else:
            peer.send([number, None, *(None if error is None else error_fields(error) for error in outcomes)])

    def _lost(self, peer: _Peer) -> None:
        self._peers.discard(peer)
        self._take_back(peer)
        if peer.near and self._on_gone is not None and all(other.pid != peer.pid for other in self._peers):
            self._on_gone(peer.pid)

    def _take_back(self, peer: _Peer) -> None:
        self.directory.arenas.leave(peer)
        grants, peer.grants = peer.grants, {}
        if not grants:
            return
        others = {(grant.name, grant.attempt) for other in self._peers for grant in other.grants.values()}
        for grant in grants.values():
            self.directory.grants.cancel(grant.path, grant.reserved)
            key = grant.name, grant.attempt
            if key not in others and not self.directory.has(*key):
                # it died between renaming the file and saying so
                self.directory.drop(*key)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a request on the local socket failed", exc_info=task.exception())


class _Peer(asyncio.Protocol):
    """One connection to the local socket."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.grants: dict[int, _Granted] = {}
        self.pid = 0
        self.near = False
        self.closed = False
        self._parser = FrameParser()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.broker._peers.add(self)
        sock = transport.get_extra_info("socket")
        if sock is not None and hasattr(socket, "SO_PEERCRED"):
            self.pid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            self.near = self.pid > 0 and is_near(self.pid)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
            while not self.closed and (items := self._parser.next()) is not None:
                self.broker._obey(self, items)
        except Exception as error:
            # a foreign or broken peer: only its own connection suffers
            logger.warning("closing the local connection of process %d: %s", self.pid, error)
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self.broker._lost(self)

    def send(self, items: list[Any]) -> None:
        if self._transport is not None and not self.closed:
            self._transport.write(pack_frame(items))

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)


def _number(item: Any) -> int:
    if type(item) is int:
        return item
    raise SegmentCorrupt(f"not the number of a grant: {item!r:.40}")


def _span(item: Any) -> float | None:
    if item is None:
        return None
    if type(item) in (int, float) and item >= 0:
        return float(item)
    raise SegmentCorrupt(f"not a number of seconds: {item!r:.40}")


def _wish(name: Any, attempt: Any, size: Any) -> tuple[str, int, int]:
    if isinstance(name, str) and type(attempt) is int and type(size) is int and attempt >= 0 and size >= 0:
        return name, attempt, size
    raise SegmentCorrupt(f"not a name, an attempt and a size: {name!r:.40}, {attempt!r:.20}, {size!r:.20}")


def _copies(items: list[Any]) -> list[tuple[str, int]]:
    return [_wish(items[at], items[at + 1], 0)[:2] for at in range(2, len(items), 2)]


def _wanted(name: Any, attempt: Any, addresses: Any) -> Wanted:
    _wish(name, attempt, 0)
    if isinstance(addresses, list) and all(isinstance(address, str) for address in addresses):
        return name, attempt, addresses
    raise SegmentCorrupt(f"not a list of addresses: {addresses!r:.80}")
