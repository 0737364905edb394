"""Fetching payloads from data servers, and putting some there, in an event loop."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from typing import Any

from redist.errors import RedistError, SegmentCorrupt, TransferError
from redist.memory.broker_messages import Wanted, flat, outcomes_of
from redist.memory.data_client import IDLE_SECONDS, transfer_error
from redist.memory.data_messages import DROP, GET, SEND_PIECE, pieces_of, put_request
from redist.memory.frames import pack_frame
from redist.memory.hello import HELLO_LIMIT, check_server, client_hello, new_nonce
from redist.memory.holders import HolderPlan, split_address
from redist.memory.receive import PIECE, FrameReceiver, PayloadReceiver, PrivateSink, Received, Sink
from redist.memory.writer import PayloadLike

__all__ = ["AsyncDataClient"]


class AsyncDataClient:
    """`DataClient` for an event loop: the same as coroutines, without a thread.

    Parameters
    ----------
    token : str
        The secret of the namespace; a server that lost its memory makes another one, which is to be assigned to `token`.
    tls : ssl.SSLContext, optional
        Client-side context.
    timeout : float
        Seconds to wait for a connection, and for progress on one.
    """

    timeout: float

    def __init__(self, token: str, *, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.token = token
        self._tls = tls
        self._idle: dict[str, list[_AsyncConnection]] = {}

    async def fetch(self, wanted: Sequence[Wanted], sink: Sink | None = None) -> list[Received | RedistError]:
        """Fetch payloads, each from the first of its holders that has it; see `DataClient.fetch`."""
        plan = HolderPlan(wanted)
        while groups := plan.groups():
            answers = await asyncio.gather(
                *(self.get(address, plan.payloads(indices), sink) for address, indices in groups.items())
            )
            for indices, answer in zip(groups.values(), answers, strict=True):
                plan.record(indices, answer)
        return plan.outcomes()

    async def get(
        self, address: str, payloads: Sequence[tuple[str, int]], sink: Sink | None = None
    ) -> list[Received | RedistError]:
        """Fetch payloads (name, attempt) from one data server; errors are returned, one a payload."""
        sink = sink if sink is not None else PrivateSink()
        request = pack_frame([GET, *flat(payloads)])
        connection = self._take(address)
        while True:
            reused = connection is not None
            receiver = None
            try:
                if connection is None:
                    connection = await self._connect(address)
                receiver = PayloadReceiver(payloads, sink, connection.scratch)
                await connection.converse(receiver, [request])
            except (OSError, RedistError) as error:
                if connection is not None:
                    connection.close()
                if receiver is not None:
                    receiver.abort()
                outcomes = receiver.outcomes if receiver is not None else []
                if reused and not outcomes:
                    connection = None
                    continue
                failed = transfer_error(address, error)
                return [*outcomes, *[failed] * (len(payloads) - len(outcomes))]
            except BaseException:
                if connection is not None:
                    connection.close()
                if receiver is not None:
                    receiver.abort()
                raise
            self._give(connection)
            return receiver.outcomes

    async def put(
        self, address: str, items: Sequence[tuple[str, int, PayloadLike]]
    ) -> list[RedistError | None]:
        """Put payloads into the segments of a worker on another host; see `DataClient.put`."""
        request = pack_frame(put_request(items))
        connection = self._take(address)
        try:
            accepted: list[RedistError | None] | None = None
            if connection is not None:
                try:
                    accepted = outcomes_of(await connection.ask([request]))
                except OSError:
                    connection.close()
            if connection is None or accepted is None:
                connection = await self._connect(address)
                accepted = outcomes_of(await connection.ask([request]))
            if any(error is not None for error in accepted):
                self._give(connection)
                return accepted
            pieces = (piece for _, _, payload in items for piece in pieces_of(payload))
            outcomes = outcomes_of(await connection.ask(pieces))
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError | SegmentCorrupt):
                raise transfer_error(address, error) from error
            raise
        self._give(connection)
        return outcomes

    async def drop(self, address: str, payloads: Sequence[tuple[str, int]]) -> None:
        """Have a worker on another host remove payloads that were put there and then not needed."""
        connection = None
        try:
            connection = await self._connect(address)
            await connection.ask([pack_frame([DROP, *flat(payloads)])])
        except OSError as error:
            raise transfer_error(address, error) from error
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _take(self, address: str) -> _AsyncConnection | None:
        idle = self._idle.get(address)
        while idle:
            connection = idle.pop()
            if connection.lost is None and time.monotonic() - connection.since < IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def _give(self, connection: _AsyncConnection) -> None:
        connection.since = time.monotonic()
        self._idle.setdefault(connection.address, []).append(connection)

    async def _connect(self, address: str) -> _AsyncConnection:
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        connecting = loop.create_connection(
            lambda: _AsyncConnection(address, self.timeout),
            host,
            port,
            ssl=self._tls,
            server_hostname=host if self._tls is not None else None,
        )
        _, connection = await asyncio.wait_for(connecting, self.timeout)
        try:
            await connection.greet(self.token)
        except BaseException:
            connection.close()
            raise
        return connection


class _AsyncConnection(asyncio.BufferedProtocol):
    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.since = time.monotonic()
        self.scratch = bytearray(PIECE)
        self.lost: OSError | None = None
        self._timeout = timeout
        self._hello = FrameReceiver(self.scratch, HELLO_LIMIT)
        self._receiver: FrameReceiver | None = self._hello
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._progress = time.monotonic()
        self._failed: Exception | None = None

    async def greet(self, token: str) -> None:
        await self._wait(self._hello)
        first = self._hello.items
        nonce = new_nonce()
        receiver = FrameReceiver(self.scratch, HELLO_LIMIT)
        try:
            await self.converse(receiver, [pack_frame(client_hello(first, nonce, token, self.address))])
        except ConnectionError as error:
            raise TransferError(f"{self.address}: refused, the token of the namespace is wrong") from error
        check_server(receiver.items, first[2], nonce, token, self.address)

    async def ask(self, data: Any) -> list[Any]:
        receiver = FrameReceiver(self.scratch)
        await self.converse(receiver, data)
        return receiver.items

    async def converse(self, receiver: FrameReceiver, data: Any) -> None:
        """Send the pieces in `data`, and receive until `receiver` is done."""
        self._receiver = receiver
        for piece in data:
            if self._failed is not None:
                raise self._failed
            self._transport.write(piece)
            if self._drained is not None:
                await asyncio.wait_for(self._drained, self._timeout)
        await self._wait(receiver)

    async def _wait(self, receiver: FrameReceiver) -> None:
        loop = asyncio.get_running_loop()
        self._progress = time.monotonic()
        while not receiver.done:
            if self._failed is not None:
                raise self._failed
            self._waiter = loop.create_future()
            handle = loop.call_later(self._timeout, self._wake)
            try:
                await self._waiter
            finally:
                handle.cancel()
                self._waiter = None
            if (
                not receiver.done
                and self._failed is None
                and time.monotonic() - self._progress >= self._timeout
            ):
                raise TimeoutError(f"no progress for {self._timeout} s")
        if self._failed is not None and not receiver.done:
            raise self._failed
        self._receiver = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(SEND_PIECE)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._receiver is None:
            return memoryview(self.scratch)
        return self._receiver.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._progress = time.monotonic()
        try:
            if self._receiver is None:
                raise TransferError(f"{self.address}: {nbytes} bytes came unasked")
            self._receiver.buffer_updated(nbytes)
        except (OSError, RedistError) as error:
            self._failed = error
            self._transport.abort()
            self._wake()
            return
        if self._receiver.done:
            self._receiver = None
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = ConnectionResetError(f"the data server closed the connection{f': {exc}' if exc else ''}")
        if self._failed is None:
            self._failed = self.lost
        self.resume_writing()
        self._wake()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    def close(self) -> None:
        self._transport.abort()
