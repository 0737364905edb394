"""Fetching payloads from data servers, and putting some there, for who may block."""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from threading import Thread
from typing import Any

from redist.errors import RedistError, SegmentCorrupt, TransferError
from redist.memory.adopting import AdoptingReceiver
from redist.memory.broker_messages import Wanted, flat, outcomes_of
from redist.memory.data_messages import DROP, GET, pieces_of, put_request, send_all
from redist.memory.exchanges import Exchange, exchange_all
from redist.memory.frames import pack_frame
from redist.memory.hello import HELLO_LIMIT, check_server, client_hello, new_nonce
from redist.memory.holders import HolderPlan, split_address
from redist.memory.patience import least
from redist.memory.receive import PIECE, FrameReceiver, PayloadReceiver, PrivateSink, Received, Sink
from redist.memory.writer import PayloadLike

__all__ = ["DataClient"]

IDLE_SECONDS = 60.0
#: Connections that are made at the same time.
_MOST_OPENED = 16


class DataClient:
    """Moves payloads over TCP, and blocks meanwhile. Safe to use from several threads, and in a forked child.

    Parameters
    ----------
    token : str
        The secret of the namespace; a server that lost its memory makes another one, which is to be assigned to `token`.
    tls : ssl.SSLContext, optional
        Client-side context; with it only servers that use TLS are spoken to.
    timeout : float
        Seconds to wait for a connection, and for progress on one.
    """

    token: str
    timeout: float

    def __init__(self, token: str, *, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> None:
        self.token = token
        self.timeout = timeout
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
            requests = [(address, plan.payloads(indices)) for address, indices in groups.items()]
            for indices, outcomes in zip(groups.values(), self._get_all(requests, sink)):
                plan.record(indices, outcomes)
        return plan.outcomes()

    def get(
        self, address: str, payloads: Sequence[tuple[str, int]], sink: Sink | None = None
    ) -> list[Received | RedistError]:
        """Fetch payloads (name, attempt) from one data server; errors are returned, one a payload."""
        return self._get_all([(address, payloads)], sink)[0]

    def _get_all(
        self, requests: Sequence[tuple[str, Sequence[tuple[str, int]]]], sink: Sink | None
    ) -> list[list[Received | RedistError]]:
        """Have several servers send payloads at the same time; for each request what `get` returns."""
        sink = sink if sink is not None else PrivateSink()
        gets = [_Get(address, payloads) for address, payloads in requests]
        try:
            for get in gets:
                get.connection = self._take(get.address)
                get.reused = get.connection is not None
            todo = gets
            while todo:
                self._open_all([get for get in todo if get.connection is None])
                under_way = [get for get in todo if get.connection is not None]
                exchange_all([get.begin(sink) for get in under_way], self.timeout)
                todo = []
                for get in under_way:
                    if get.ended():
                        connection, get.connection = get.connection, None
                        assert connection is not None
                        self._give(connection)
                    elif get.failed is None:
                        todo.append(get)
        except BaseException:
            for get in gets:
                get.break_off()
            raise
        return [get.outcomes() for get in gets]

    def _open_all(self, gets: Sequence[_Get]) -> None:
        """Connect, to several at the same time: one that does not answer holds up nobody but who waits for all."""
        left = iter(gets)
        errors: list[BaseException] = []

        def open_some() -> None:
            for get in left:
                if get.over:
                    continue
                try:
                    get.opened(self._open(get.address))
                except (OSError, RedistError) as error:
                    get.failed = _transfer_error(get.address, error)

        def help_out() -> None:
            try:
                open_some()
            except BaseException as error:
                errors.append(error)

        # Neither a Ctrl-C nor the end of the program waits for those who are silent.
        threads: list[Thread] = []
        with suppress(RuntimeError):  # the system has no more of them, or the interpreter ends
            for _ in range(min(len(gets), _MOST_OPENED) - 1):
                thread = Thread(target=help_out, name="redist-connect", daemon=True)
                thread.start()
                threads.append(thread)
        open_some()
        for thread in threads:
            thread.join()
        if errors:
            try:
                raise errors[0]
            finally:
                errors.clear()

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
        request = pack_frame(put_request(items))
        connection = self._take(address)
        timeout = least(self.timeout)
        try:
            accepted: list[RedistError | None] | None = None
            if connection is not None:
                connection.socket.settimeout(timeout)
                try:
                    accepted = outcomes_of(connection.ask([request]))
                except OSError as error:
                    connection.close()  # it broke while it was idle
                    if isinstance(error, TimeoutError):
                        raise
            if connection is None or accepted is None:
                connection = self._open(address)
                accepted = outcomes_of(connection.ask([request]))
            outcomes = accepted
            if not any(error is not None for error in accepted):
                pieces = (piece for _, _, payload in items for piece in pieces_of(payload))
                outcomes = outcomes_of(connection.ask(pieces))
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError | SegmentCorrupt):
                raise _transfer_error(address, error) from error
            raise
        connection.socket.settimeout(self.timeout)
        self._give(connection)
        return outcomes

    def drop(self, address: str, payloads: Sequence[tuple[str, int]]) -> None:
        """Have a worker on another host remove payloads that were put there and then not needed."""
        connection = None
        try:
            connection = self._open(address)
            connection.ask([pack_frame([DROP, *flat(payloads)])])
        except OSError as error:
            raise _transfer_error(address, error) from error
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close the idle connections."""
        _living.discard(self)
        with self._mutex:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def _open(self, address: str) -> _Connection:
        """Return a new connection on which the server let us in."""
        connection = _Connection(address, self._context(address), least(self.timeout))
        try:
            connection.greet(self.token)
        except BaseException:
            connection.close()
            raise
        return connection

    def _context(self, address: str) -> ssl.SSLContext | None:
        """Return the context for a connection to `address`, None for a plain one.

        Raises
        ------
        TransferError
            If only one of the two sides uses TLS.
        """
        encrypted = address.startswith("tls://")
        if encrypted and self._tls is None:
            raise TransferError(
                f"{address}: the worker wants TLS: set tls.ca-file, tls.cert and tls.key here too"
            )
        if self._tls is not None and not encrypted:
            raise TransferError(f"{address}: the worker does not use TLS, which is set here")
        return self._tls

    def _take(self, address: str) -> _Connection | None:
        """Return an idle connection, None if there is none."""
        with self._mutex:
            idle = self._idle.get(address)
            while idle:
                connection = idle.pop()
                if time.monotonic() - connection.since < IDLE_SECONDS:
                    return connection
                connection.close()
        return None

    def _give(self, connection: _Connection) -> None:
        connection.since = time.monotonic()
        with self._mutex:
            self._idle.setdefault(connection.address, []).append(connection)


class _Get:
    """One request to one server."""

    def __init__(self, address: str, payloads: Sequence[tuple[str, int]]) -> None:
        self.address = address
        self.connection: _Connection | None = None
        self.reused = False
        #: Whether nobody waits for it any more.
        self.over = False
        self.failed: RedistError | None = None
        self._payloads = payloads
        self._receiver: PayloadReceiver | None = None
        self._exchange: Exchange | None = None

    def opened(self, connection: _Connection) -> None:
        """Take a new connection."""
        self.connection = connection
        if self.over:
            self.break_off()

    def begin(self, sink: Sink) -> Exchange:
        """Return the exchange to be carried out."""
        assert self.connection is not None
        scratch = self.connection.scratch
        if isinstance(sink, PrivateSink):
            self._receiver = AdoptingReceiver(self._payloads, sink, scratch)
        else:
            self._receiver = PayloadReceiver(self._payloads, sink, scratch)
        request = pack_frame([GET, *flat(self._payloads)])
        self._exchange = Exchange(self.connection.socket, request, self._receiver)
        return self._exchange

    def ended(self) -> bool:
        """Tell whether all of the answer came; if not, and nothing has `failed`, it is to be asked on a new connection."""
        assert self._exchange is not None
        assert self._receiver is not None
        error, self._exchange = self._exchange.error, None
        if error is None:
            return True
        self.break_off()
        if self.reused and not self._receiver.outcomes:
            self.reused = self.over = False  # it broke while it was idle
        else:
            self.failed = _transfer_error(self.address, error)
        return False

    def break_off(self) -> None:
        """Let go of the connection and of what is half received."""
        self.over = True
        # a thread that has just connected may do this at the same time
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()
        if self._receiver is not None:
            self._receiver.abort()

    def outcomes(self) -> list[Received | RedistError]:
        """Return for each payload what arrived, or what went wrong."""
        came = self._receiver.outcomes if self._receiver is not None else []
        if self.failed is None:
            return came
        return [*came, *[self.failed] * (len(self._payloads) - len(came))]


class _Connection:
    """A blocking connection to a data server."""

    def __init__(self, address: str, tls: ssl.SSLContext | None, timeout: float | None) -> None:
        self.address = address
        self.since = time.monotonic()
        self.scratch = bytearray(PIECE)
        host, port = split_address(address)
        self.socket = socket.create_connection((host, port), timeout)
        try:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        except BaseException:
            self.socket.close()
            raise

    def exchange(self, data: Iterable[bytes | memoryview], receiver: FrameReceiver) -> None:
        """Send the pieces in `data`, and receive until `receiver` is done."""
        for piece in data:
            send_all(self.socket, [piece])
        receive_into = self.socket.recv_into
        while not receiver.done:
            count = receive_into(receiver.get_buffer())
            if not count:
                raise ConnectionResetError("the data server closed the connection")
            receiver.buffer_updated(count)

    def ask(self, data: Iterable[bytes | memoryview]) -> list[Any]:
        """Send the pieces in `data`, and return the frame that answers them."""
        receiver = FrameReceiver(self.scratch)
        self.exchange(data, receiver)
        return receiver.items

    def greet(self, token: str) -> None:
        """Let server and client prove that they know the token."""
        hello = FrameReceiver(self.scratch, HELLO_LIMIT)
        self.exchange((), hello)  # the server speaks first
        nonce = new_nonce()
        proof = FrameReceiver(self.scratch, HELLO_LIMIT)
        answer = pack_frame(client_hello(hello.items, nonce, token, self.address))
        try:
            self.exchange([answer], proof)
        except ConnectionError as error:
            raise TransferError(f"{self.address}: refused, the token of the namespace is wrong") from error
        check_server(proof.items, hello.items[2], nonce, token, self.address)

    def close(self) -> None:
        """Close it; may be called again."""
        self.socket.close()


def _transfer_error(address: str, error: BaseException) -> RedistError:
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
