"""Several requests to data servers at the same time, in one thread: each server works on its own while others are heard.

Asked one after the other, every server but one would wait; and one that is slow, or silent, would hold up all behind it.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Sequence

from redist.errors import RedistError
from redist.memory.receive import FrameReceiver

__all__ = ["Exchange", "exchange_all"]

#: Receives of one connection in a row, before others have their turn.
_IN_A_ROW = 4


class Exchange:
    """A request on its way, and what receives the answer.

    Parameters
    ----------
    sock : socket.socket
        The connection; nobody else uses it meanwhile.
    request : bytes
        What is sent.
    receiver : FrameReceiver
        Gets the answer.

    Attributes
    ----------
    error : BaseException or None
        What ended it ahead of time; the connection is of no further use.
    """

    error: OSError | RedistError | None

    def __init__(self, sock: socket.socket, request: bytes, receiver: FrameReceiver) -> None:
        self.socket = sock
        self.receiver = receiver
        self.error = None
        self.heard = time.monotonic()
        self._unsent = memoryview(request)
        #: Whether TLS has to write before it can read.
        self._must_write = False

    @property
    def done(self) -> bool:
        """Whether nothing more is to be done."""
        return self.error is not None or (self.receiver.done and not self._unsent)

    @property
    def events(self) -> int:
        """What is to be waited for."""
        # An answer may be here, and more than that, before the server has read all of the request.
        reads = 0 if self.receiver.done else select.POLLIN
        return reads | (select.POLLOUT if self._unsent or self._must_write else 0)

    @property
    def ready(self) -> bool:
        """Whether decrypted bytes wait, of which the system knows nothing."""
        return isinstance(self.socket, ssl.SSLSocket) and self.socket.pending() > 0

    def step(self) -> None:
        """Send and receive what can be without waiting."""
        try:
            if self._unsent:
                self._send()
            self._receive()
        except (OSError, RedistError) as error:
            self.error = error

    def _send(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
                self.heard = time.monotonic()
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            pass

    def _receive(self) -> None:
        self._must_write = False
        try:
            for _ in range(_IN_A_ROW):
                if self.receiver.done:
                    return
                buffer = self.receiver.get_buffer()
                count = self.socket.recv_into(buffer)
                if not count:
                    raise ConnectionResetError("the data server closed the connection")
                self.receiver.buffer_updated(count)
                self.heard = time.monotonic()
                # There was no more. TLS gives a record at a time, however many are there.
                if count < len(buffer) and not isinstance(self.socket, ssl.SSLSocket):
                    return
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except ssl.SSLWantWriteError:
            self._must_write = True


def exchange_all(exchanges: Sequence[Exchange], timeout: float) -> None:
    """Carry out all; what goes wrong with one is its `error` and does not concern the others.

    Parameters
    ----------
    exchanges : sequence of Exchange
        The requests.
    timeout : float
        Seconds without progress after which one is given up.
    """
    for exchange in exchanges:
        exchange.socket.setblocking(False)
        exchange.step()
    poll = select.poll()
    running = {exchange.socket.fileno(): exchange for exchange in exchanges if not exchange.done}
    events = {descriptor: exchange.events for descriptor, exchange in running.items()}
    for descriptor, wanted in events.items():
        poll.register(descriptor, wanted)
    while running:
        left = min(exchange.heard for exchange in running.values()) + timeout - time.monotonic()
        wait = 0.0 if any(exchange.ready for exchange in running.values()) else max(0.0, left)
        heard = {descriptor for descriptor, _ in poll.poll(1000 * wait)}
        now = time.monotonic()
        for descriptor, exchange in list(running.items()):
            if descriptor in heard or exchange.ready:
                exchange.step()
            elif now - exchange.heard >= timeout:
                exchange.error = TimeoutError("the data server did not answer in time")
            if exchange.done:
                poll.unregister(descriptor)
                del running[descriptor]
            elif exchange.events != events[descriptor]:
                events[descriptor] = exchange.events
                poll.modify(descriptor, events[descriptor])
    for exchange in exchanges:
        if exchange.error is None:
            exchange.socket.settimeout(timeout)
