"""Fetching payloads from data servers, and putting some there, in an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from redist.errors import RedistError, TransferError
from redist.memory.broker_messages import Wanted
from redist.memory.data_exchange import DataExchanges, Open, Operation
from redist.memory.data_messages import SEND_PIECE
from redist.memory.hello import HELLO_LIMIT
from redist.memory.holders import HolderPlan, split_address
from redist.memory.receive import PIECE, FrameReceiver, Received, Sink
from redist.memory.writer import PayloadLike

__all__ = ["AsyncDataClient"]

T = TypeVar("T")


class AsyncDataClient(DataExchanges["_AsyncConnection"]):
    """`DataClient` for an event loop: the same as coroutines, without a thread."""

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
        return await self._run(self._getting(address, payloads, sink))

    async def put(
        self, address: str, items: Sequence[tuple[str, int, PayloadLike]]
    ) -> list[RedistError | None]:
        """Put payloads into the segments of a worker on another host; see `DataClient.put`."""
        return await self._run(self._putting(address, items))

    async def drop(self, address: str, payloads: Sequence[tuple[str, int]]) -> None:
        """Have a worker on another host remove payloads that were put there and then not needed."""
        await self._run(self._dropping(address, payloads))

    async def _run(self, operation: Operation[_AsyncConnection, T]) -> T:
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = operation.send(value) if error is None else operation.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            value = error = None
            try:
                if isinstance(step, Open):
                    value = await self._open(step.address)
                else:
                    await step.connection.exchange(step.data, step.receiver)
            except BaseException as raised:
                error = raised

    async def _open(self, address: str) -> _AsyncConnection:
        host, port = split_address(address)
        loop = asyncio.get_running_loop()
        tls = self._context(address)
        connecting = loop.create_connection(
            lambda: _AsyncConnection(address, self.timeout),
            host,
            port,
            ssl=tls,
            server_hostname=host if tls is not None else None,
        )
        _, connection = await asyncio.wait_for(connecting, self.timeout)
        try:
            await self._run(self._greet(connection))
        except BaseException:
            connection.close()
            raise
        return connection


class _AsyncConnection(asyncio.BufferedProtocol):
    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.since = time.monotonic()
        self.scratch = bytearray(PIECE)
        self.hello = FrameReceiver(self.scratch, HELLO_LIMIT)
        self.usable = True
        self._timeout = timeout
        self._receiver: FrameReceiver | None = self.hello
        self._waiter: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._progress = time.monotonic()
        self._failed: Exception | None = None

    async def exchange(self, data: Iterable[bytes | memoryview], receiver: FrameReceiver) -> None:
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
        self.usable = False
        if self._failed is None:
            self._failed = ConnectionResetError(
                f"the data server closed the connection{f': {exc}' if exc else ''}"
            )
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
