"""Fetching payloads from data servers, and putting some there, for who may block.

This client and `redist.memory.data_client_async` hold idle connections, hand the bytes to `redist.memory.receive`, and go on
with the next holder when one dies or has lost the payload: `redist.memory.holders` decides whom to ask for what.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

from redist.errors import RedistError, SegmentCorrupt, TransferError
from redist.memory.broker_messages import Wanted, flat, outcomes_of
from redist.memory.data_messages import DROP, GET, pieces_of, put_request
from redist.memory.frames import MAX_FRAME, pack_frame
from redist.memory.hello import HELLO_LIMIT, check_server, client_hello, new_nonce
from redist.memory.holders import HolderPlan, split_address
from redist.memory.receive import PIECE, FrameReceiver, PayloadReceiver, PrivateSink, Received, Sink
from redist.memory.writer import PayloadLike

__all__ = ["DataClient"]

IDLE_SECONDS = 60.0


class DataClient:
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

    timeout: float

    def __init__(self, token: str, *, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.token = token
        self._tls = tls
        self._start()
        _living.add(self)

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._idle: dict[str, list[_Connection]] = {}

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
        sink = sink if sink is not None else PrivateSink()
        request = pack_frame([GET, *flat(payloads)])
        connection, reused = self._take(address)
        while True:
            receiver = None
            try:
                if connection is None:
                    connection = _Connection(address, self.token, self._tls, self.timeout)
                receiver = PayloadReceiver(payloads, sink, connection.scratch)
                connection.send(request)
                connection.receive(receiver)
            except (OSError, RedistError) as error:
                if connection is not None:
                    connection.close()
                if receiver is not None:
                    receiver.abort()
                outcomes = receiver.outcomes if receiver is not None else []
                if reused and not outcomes:
                    connection, reused = None, False
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
        request = put_request(items)
        connection, reused = self._take(address)
        try:
            try:
                if connection is None:
                    connection = _Connection(address, self.token, self._tls, self.timeout)
                accepted = outcomes_of(connection.ask(request))
            except (OSError, TransferError):
                if not reused:
                    raise
                connection = _Connection(address, self.token, self._tls, self.timeout)
                accepted = outcomes_of(connection.ask(request))
            if any(error is not None for error in accepted):
                self._give(connection)
                return accepted
            for _, _, payload in items:
                for piece in pieces_of(payload):
                    connection.send(piece)
            outcomes = outcomes_of(connection.receive_frame())
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError | SegmentCorrupt):
                raise transfer_error(address, error) from error
            raise
        self._give(connection)
        return outcomes

    def drop(self, address: str, payloads: Sequence[tuple[str, int]]) -> None:
        """Have a worker on another host remove payloads that were put there and then not needed."""
        connection = _Connection(address, self.token, self._tls, self.timeout)
        try:
            connection.ask([DROP, *flat(payloads)])
        except OSError as error:
            raise transfer_error(address, error) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        _living.discard(self)
        with self._mutex:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _take(self, address: str) -> tuple[_Connection | None, bool]:
        with self._mutex:
            idle = self._idle.get(address)
            while idle:
                connection = idle.pop()
                if time.monotonic() - connection.since < IDLE_SECONDS:
                    return connection, True
                connection.close()
        return None, False

    def _give(self, connection: _Connection) -> None:
        connection.since = time.monotonic()
        with self._mutex:
            self._idle.setdefault(connection.address, []).append(connection)


class _Connection:
    """A blocking connection to a data server, let in."""

    def __init__(self, address: str, token: str, tls: ssl.SSLContext | None, timeout: float) -> None:
        self.address = address
        self.since = time.monotonic()
        self.scratch = bytearray(PIECE)
        host, port = split_address(address)
        self._socket = socket.create_connection((host, port), timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket = tls.wrap_socket(self._socket, server_hostname=host)
            first = self.receive_frame(HELLO_LIMIT)
            nonce = new_nonce()
            self.send(pack_frame(client_hello(first, nonce, token, address)))
            try:
                proof = self.receive_frame(HELLO_LIMIT)
            except ConnectionError as error:
                raise TransferError(f"{address}: refused, the token of the namespace is wrong") from error
            check_server(proof, first[2], nonce, token, address)
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes | memoryview) -> None:
        self._socket.sendall(data)

    def receive(self, receiver: FrameReceiver) -> None:
        receive_into = self._socket.recv_into
        while not receiver.done:
            count = receive_into(receiver.get_buffer())
            if not count:
                raise ConnectionResetError("the data server closed the connection")
            receiver.buffer_updated(count)

    def receive_frame(self, limit: int = MAX_FRAME) -> list[Any]:
        receiver = FrameReceiver(self.scratch, limit)
        self.receive(receiver)
        return receiver.items

    def ask(self, items: list[Any]) -> list[Any]:
        self.send(pack_frame(items))
        return self.receive_frame()

    def close(self) -> None:
        self._socket.close()


def transfer_error(address: str, error: BaseException) -> RedistError:
    """Return the error that names the data server."""
    if isinstance(error, TransferError | SegmentCorrupt):
        return error
    if isinstance(error, ssl.SSLError):
        return TransferError(f"{address}: TLS failed: {error}")
    if isinstance(error, TimeoutError):
        return TransferError(f"{address}: the data server did not answer in time")
    return TransferError(f"{address}: the data server cannot be reached: {error}")


_living: weakref.WeakSet[DataClient] = weakref.WeakSet()


def _forked() -> None:
    for client in list(_living):
        for connections in client._idle.values():
            for connection in connections:
                connection.close()
        client._start()


os.register_at_fork(after_in_child=_forked)
