"""Fetching payloads from data servers, and putting some there, for who may block."""

from __future__ import annotations

import os
import socket
import ssl
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from redist.errors import RedistError
from redist.memory.broker_messages import Wanted
from redist.memory.data_exchange import DataExchanges, Open, Operation
from redist.memory.hello import HELLO_LIMIT
from redist.memory.holders import HolderPlan, split_address
from redist.memory.receive import PIECE, FrameReceiver, Received, Sink
from redist.memory.writer import PayloadLike

__all__ = ["DataClient"]

T = TypeVar("T")


class DataClient(DataExchanges["_Connection"]):
    """Moves payloads over TCP, and blocks meanwhile. Safe to use from several threads, and in a forked child.

    Parameters
    ----------
    token : str
        The secret of the namespace; a server that lost its memory makes another one, which is to be assigned to `token`.
    tls : ssl.SSLContext, optional
        Client-side context.
    timeout : float
        Seconds to wait for a connection, and for progress on one.
    """

    def __init__(self, token: str, *, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> None:
        super().__init__(token, tls=tls, timeout=timeout)
        _living.add(self)

    def fetch(self, wanted: Sequence[Wanted], sink: Sink | None = None) -> list[Received | RedistError]:
        """Fetch payloads, each from the first of its holders that has it.

        Parameters
        ----------
        wanted : sequence of (name, attempt, addresses)
            The payloads and who has them.
        sink : Sink, optional
            Where they go; default: memory of this process.

        Returns
        -------
        list
            For each payload what arrived, or the error of the last holder that was asked.
        """
        plan = HolderPlan(wanted)
        while groups := plan.groups():
            for address, indices in groups.items():
                plan.record(indices, self.get(address, plan.payloads(indices), sink))
        return plan.outcomes()

    def get(
        self, address: str, payloads: Sequence[tuple[str, int]], sink: Sink | None = None
    ) -> list[Received | RedistError]:
        """Fetch payloads (name, attempt) from one data server; errors are returned, one a payload."""
        return self._run(self._getting(address, payloads, sink))

    def put(self, address: str, items: Sequence[tuple[str, int, PayloadLike]]) -> list[RedistError | None]:
        """Put payloads into the segments of a worker on another host.

        Parameters
        ----------
        address : str
            Its data server.
        items : sequence of (name, attempt, payload)
            The payloads; `payload` has ``nbytes``, ``type``, ``contains`` and ``chunks()``.

        Returns
        -------
        list
            For each payload None (it is there) or what went wrong.

        Raises
        ------
        TransferError
            If the worker cannot be reached, or the connection broke on the way.
        """
        return self._run(self._putting(address, items))

    def drop(self, address: str, payloads: Sequence[tuple[str, int]]) -> None:
        """Have a worker on another host remove payloads that were put there and then not needed."""
        self._run(self._dropping(address, payloads))

    def close(self) -> None:
        """Close the idle connections."""
        _living.discard(self)
        super().close()

    def _run(self, operation: Operation[_Connection, T]) -> T:
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
                    value = self._open(step.address)
                else:
                    step.connection.exchange(step.data, step.receiver)
            except BaseException as raised:
                error = raised

    def _open(self, address: str) -> _Connection:
        connection = _Connection(address, self._context(address), self.timeout)
        try:
            self._run(self._greet(connection))
        except BaseException:
            connection.close()
            raise
        return connection


class _Connection:
    """A blocking connection to a data server."""

    usable = True

    def __init__(self, address: str, tls: ssl.SSLContext | None, timeout: float) -> None:
        self.address = address
        self.since = time.monotonic()
        self.scratch = bytearray(PIECE)
        self.hello = FrameReceiver(self.scratch, HELLO_LIMIT)
        host, port = split_address(address)
        self._socket = socket.create_connection((host, port), timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
        except BaseException:
            self._socket.close()
            raise

    def exchange(self, data: Iterable[bytes | memoryview], receiver: FrameReceiver) -> None:
        """Send the pieces in `data`, and receive until `receiver` is done."""
        for piece in data:
            self._socket.sendall(piece)
        receive_into = self._socket.recv_into
        while not receiver.done:
            count = receive_into(receiver.get_buffer())
            if not count:
                raise ConnectionResetError("the data server closed the connection")
            receiver.buffer_updated(count)

    def close(self) -> None:
        self._socket.close()


_living: weakref.WeakSet[DataClient] = weakref.WeakSet()


def _forked() -> None:
    for client in list(_living):
        for connections in client._idle.values():
            for connection in connections:
                connection.close()
        client._start()


os.register_at_fork(after_in_child=_forked)
