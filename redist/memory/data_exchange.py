"""What a client says to data servers, without I/O: getting and putting payloads, and the connections that are used again.

An operation is a generator. It yields what it needs and is sent the outcome; an error of a step is raised at the yield. The
blocking client and the asyncio client run the same ones:

========== ===========================================================================================================
yielded    outcome
========== ===========================================================================================================
`Open`     a new connection on which the server let us in
`Exchange` None: all was sent, and the receiver has its answer
========== ===========================================================================================================
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from redist.errors import RedistError, SegmentCorrupt, TransferError
from redist.memory.broker_messages import flat, outcomes_of
from redist.memory.data_messages import DROP, GET, pieces_of, put_request
from redist.memory.frames import pack_frame
from redist.memory.hello import HELLO_LIMIT, check_server, client_hello, new_nonce
from redist.memory.receive import FrameReceiver, PayloadReceiver, PrivateSink, Received, Sink
from redist.memory.writer import PayloadLike

__all__ = ["DataConnection", "DataExchanges", "Exchange", "Open", "Operation"]

IDLE_SECONDS = 60.0


class DataConnection(Protocol):
    """A connection to a data server.

    Attributes
    ----------
    address : str
        The server.
    scratch : bytearray
        Memory to receive into.
    hello : FrameReceiver
        Receives the server's first frame, which comes unasked.
    since : float
        When it was last used.
    """

    address: str
    scratch: bytearray
    hello: FrameReceiver
    since: float

    @property
    def usable(self) -> bool:
        """Whether nothing is known to be wrong with it."""

    def close(self) -> None:
        """Close it; may be called again."""


C = TypeVar("C", bound=DataConnection)
T = TypeVar("T")


@dataclass(slots=True)
class Open:
    """Connect to the data server at `address`."""

    address: str


@dataclass(slots=True)
class Exchange(Generic[C]):
    """Send `data` on `connection`, then receive until `receiver` is done."""

    connection: C
    data: Iterable[bytes | memoryview]
    receiver: FrameReceiver


Operation: TypeAlias = Generator[Open | Exchange[C], Any, T]


class DataExchanges(Generic[C]):
    """The operations of a client, and its idle connections; `redist.memory.data_client` names the parameters."""

    token: str
    timeout: float

    def __init__(self, token: str, *, tls: ssl.SSLContext | None = None, timeout: float = 30.0) -> None:
        self.timeout = timeout
        self.token = token
        self._tls = tls
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._idle: dict[str, list[C]] = {}

    def close(self) -> None:
        """Close the idle connections."""
        with self._mutex:
            idle, self._idle = self._idle, {}
        for connections in idle.values():
            for connection in connections:
                connection.close()

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

    def _greet(self, connection: C) -> Operation[C, None]:
        """Let server and client prove that they know the token."""
        address = connection.address
        yield Exchange(connection, (), connection.hello)
        first = connection.hello.items
        nonce = new_nonce()
        proof = FrameReceiver(connection.scratch, HELLO_LIMIT)
        hello = pack_frame(client_hello(first, nonce, self.token, address))
        try:
            yield Exchange(connection, [hello], proof)
        except ConnectionError as error:
            raise TransferError(f"{address}: refused, the token of the namespace is wrong") from error
        check_server(proof.items, first[2], nonce, self.token, address)

    def _getting(
        self, address: str, payloads: Sequence[tuple[str, int]], sink: Sink | None
    ) -> Operation[C, list[Received | RedistError]]:
        """Fetch payloads from one data server."""
        sink = sink if sink is not None else PrivateSink()
        request = pack_frame([GET, *flat(payloads)])
        connection = self._take(address)
        while True:
            reused = connection is not None
            receiver = None
            try:
                if connection is None:
                    connection = yield Open(address)
                receiver = PayloadReceiver(payloads, sink, connection.scratch)
                yield Exchange(connection, [request], receiver)
            except BaseException as error:
                if connection is not None:
                    connection.close()
                if receiver is not None:
                    receiver.abort()
                if not isinstance(error, OSError | RedistError):
                    raise
                outcomes = receiver.outcomes if receiver is not None else []
                if reused and not outcomes:
                    connection = None
                    continue
                failed = _transfer_error(address, error)
                return [*outcomes, *[failed] * (len(payloads) - len(outcomes))]
            self._give(connection)
            return receiver.outcomes

    def _putting(
        self, address: str, items: Sequence[tuple[str, int, PayloadLike]]
    ) -> Operation[C, list[RedistError | None]]:
        """Put payloads into the segments of a worker on another host."""
        request = pack_frame(put_request(items))
        connection = self._take(address)
        try:
            accepted: list[RedistError | None] | None = None
            if connection is not None:
                try:
                    accepted = outcomes_of((yield from _ask(connection, [request])))
                except OSError:
                    connection.close()  # it broke while it was idle
            if connection is None or accepted is None:
                connection = yield Open(address)
                accepted = outcomes_of((yield from _ask(connection, [request])))
            outcomes = accepted
            if not any(error is not None for error in accepted):
                pieces = (piece for _, _, payload in items for piece in pieces_of(payload))
                outcomes = outcomes_of((yield from _ask(connection, pieces)))
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, OSError | SegmentCorrupt):
                raise _transfer_error(address, error) from error
            raise
        self._give(connection)
        return outcomes

    def _dropping(self, address: str, payloads: Sequence[tuple[str, int]]) -> Operation[C, None]:
        """Have a worker on another host remove payloads."""
        connection = None
        try:
            connection = yield Open(address)
            yield from _ask(connection, [pack_frame([DROP, *flat(payloads)])])
        except OSError as error:
            raise _transfer_error(address, error) from error
        finally:
            if connection is not None:
                connection.close()

    def _take(self, address: str) -> C | None:
        """Return an idle connection, None if there is none."""
        with self._mutex:
            idle = self._idle.get(address)
            while idle:
                connection = idle.pop()
                if connection.usable and time.monotonic() - connection.since < IDLE_SECONDS:
                    return connection
                connection.close()
        return None

    def _give(self, connection: C) -> None:
        connection.since = time.monotonic()
        with self._mutex:
            self._idle.setdefault(connection.address, []).append(connection)


def _ask(connection: C, data: Iterable[bytes | memoryview]) -> Operation[C, list[Any]]:
    receiver = FrameReceiver(connection.scratch)
    yield Exchange(connection, data, receiver)
    return receiver.items


def _transfer_error(address: str, error: BaseException) -> RedistError:
    """Return the error that names the data server."""
    if isinstance(error, TransferError | SegmentCorrupt):
        return error
    if isinstance(error, ssl.SSLError):
        return TransferError(f"{address}: TLS failed: {error}")
    if isinstance(error, TimeoutError):
        return TransferError(f"{address}: the data server did not answer in time")
    return TransferError(f"{address}: the data server cannot be reached: {error}")
