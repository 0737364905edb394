"""The other end of a worker's local socket, for an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from redist.errors import RedistError, TransferError
from redist.memory.broker_conversation import Answer, Conversation, GrantHolder
from redist.memory.broker_messages import (
    DROP,
    FETCH,
    RESERVE,
    STAT,
    Grant,
    Stat,
    Wanted,
    flat,
    grants_of,
    outcomes_of,
    sizes_of,
    sources_of,
    take_back,
)
from redist.memory.frames import pack_frame
from redist.memory.headers import Header
from redist.memory.local_sockets import address_of
from redist.memory.writer import PayloadLike, SegmentWriter, header_for

__all__ = ["AsyncBrokerClient"]

_SLICE = 16 << 20


class AsyncBrokerClient(GrantHolder):
    """`BrokerClient` for an event loop: the same requests as coroutines, on one connection, without a thread.

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
        self._connecting = asyncio.Lock()
        self._peer: _AsyncConnection | None = None

    async def put(self, items: Sequence[tuple[str, int, PayloadLike]]) -> None:
        """Write payloads into the worker's segments; lets other coroutines run every 16 MiB. See `BrokerClient.put`."""
        grants = await self.reserve([header_for(name, attempt, payload) for name, attempt, payload in items])
        published: list[Grant] = []
        try:
            for grant, (_, _, payload) in zip(grants, items, strict=True):
                with SegmentWriter(grant.path, grant.header) as writer:
                    for pieces in _slices(payload):
                        writer.write(pieces)
                        await asyncio.sleep(0)
                    writer.publish(grant.final_path)
                published.append(grant)
            self.commit(grants)
        except BaseException:
            take_back(published)
            self.abort(grants)
            raise

    async def reserve(self, headers: Sequence[Header]) -> list[Grant]:
        """Reserve space for payloads, all or none; see `BrokerClient.reserve`."""
        connection, answer = await self._ask(RESERVE, sizes_of(headers), self.timeout)
        return grants_of(answer, headers, connection)

    async def fetch(
        self, wanted: Sequence[Wanted], *, timeout: float | None = None
    ) -> list[RedistError | None]:
        """Have the worker bring payloads of other hosts into its segments; see `BrokerClient.fetch`."""
        _, answer = await self._ask(FETCH, sources_of(wanted), timeout)
        return outcomes_of(answer)

    async def drop(self, payloads: Sequence[tuple[str, int]]) -> None:
        """Have the worker remove payloads that were written and then not needed."""
        (await self._connected()).send([DROP, 0, *flat(payloads)])

    async def stat(self) -> Stat:
        """Return what the worker's directory holds."""
        _, answer = await self._ask(STAT, (), self.timeout)
        return Stat(*answer)

    def close(self) -> None:
        """Close the connection; what was granted and not committed returns."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    async def _ask(
        self, kind: int, items: Sequence[Any], timeout: float | None
    ) -> tuple[_AsyncConnection, list[Any]]:
        peer = await self._connected()
        try:
            answer = await asyncio.wait_for(peer.ask(kind, items), timeout)
        except TimeoutError:
            raise TransferError(f"{self.address}: the worker did not answer within {timeout} s") from None
        return peer, answer.get()

    async def _connected(self) -> _AsyncConnection:
        async with self._connecting:
            if self._peer is None or self._peer.lost is not None:
                loop = asyncio.get_running_loop()
                try:
                    with address_of(self.address) as short:
                        _, self._peer = await loop.create_unix_connection(
                            lambda: _AsyncConnection(self.address), short
                        )
                except OSError as error:
                    raise TransferError(f"{self.address}: the worker cannot be reached: {error}") from error
            return self._peer


class _AsyncConnection(asyncio.Protocol):
    def __init__(self, address: str) -> None:
        self.address = address
        self.lost: TransferError | None = None
        self._conversation = Conversation(address)
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self._conversation.received(data)
            while (answer := self._conversation.next_answer()) is not None:
                waiter = self._waiting.pop(answer.number, None)
                if waiter is not None and not waiter.done():
                    waiter.set_result(answer)
                elif (undoing := answer.undoing()) is not None:
                    self.send(undoing)
        except RedistError as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost is None:
            self.lost = TransferError(
                f"{self.address}: the worker cannot be reached: {exc or 'it closed the connection'}"
            )
            for waiter in self._waiting.values():
                if not waiter.done():
                    waiter.set_exception(self.lost)
            self._waiting.clear()
            if self._transport is not None:
                self._transport.abort()

    async def ask(self, kind: int, items: Sequence[Any]) -> Answer:
        number, message = self._conversation.request(kind, items)
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = waiter
        try:
            self.send(message)
            return await waiter
        finally:
            self._waiting.pop(number, None)

    def send(self, items: list[Any]) -> None:
        if self.lost is not None or self._transport is None:
            raise self.lost or TransferError(f"{self.address}: not connected")
        self._transport.write(pack_frame(items))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _slices(payload: PayloadLike) -> Iterator[list[memoryview | bytes]]:
    """Yield the chunks of a payload in lists of at most 16 MiB."""
    pieces: list[memoryview | bytes] = []
    room = _SLICE
    for chunk in payload.chunks():
        view = memoryview(chunk)
        view = view.cast("B") if view.nbytes else view
        while view.nbytes:
            piece = view[:room]
            pieces.append(piece)
            room -= piece.nbytes
            view = view[piece.nbytes :]
            if not room:
                yield pieces
                pieces, room = [], _SLICE
    yield pieces
