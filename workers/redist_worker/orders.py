"""What an executor does beside its tasks: functions of `Client.run`, sent into its inbox (see `redist.running`).

Every function has a thread of its own, so that it runs however busy the threads for tasks are; coroutines share one event
loop, which lives as long as the executor.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack

from redist.callbacks import Callbacks
from redist.errors import RedistError, SerializationError
from redist.future import Future
from redist.protocol import format_bytes, pack_error
from redist.protocol.whole import dump_whole, load_whole
from redist.running import MOST_BYTES, WAIT, WHEN_SET_UP
from redist.store import calls

if TYPE_CHECKING:
    from redist.client import Client
    from redist.session.thread_driver import ThreadDriver
    from redist.store.side import Side
    from redist_worker.local import Local

__all__ = ["Loop", "Orders"]

logger = logging.getLogger("redist.worker")

_AT_A_TIME = 100
#: Answers that are kept should the asker not have got them, and how large each may be.
_REMEMBERED, _SMALL = 256, 64 * 1024


class Loop:
    """An event loop in a thread that starts with the first coroutine."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()

    def begin(self, coroutine: Any) -> Any:
        """Start a coroutine; return its concurrent Future."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=_serve, args=(self._loop,), name="redist-loop", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def complete(self, value: Any) -> Any:
        """Return `value`, or what it gives if it is to be awaited."""
        return self.begin(_awaited(value)).result() if inspect.isawaitable(value) else value


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    while True:
        # What a `sys.exit` in a coroutine ends is its task, which has it by then; the loop has others.
        with contextlib.suppress(BaseException):
            loop.run_forever()


async def _awaited(value: Any) -> Any:
    return await value


class Orders:
    """Reads an executor's inbox and obeys.

    Parameters
    ----------
    driver : ThreadDriver
        The executor's session.
    side : Side
        For reading.
    worker : Local
        What functions see of their worker.
    loop : Loop
        Runs coroutines.
    client : callable
        Returns the client of the executor's tasks, which gets the messages that are for clients.

    Attributes
    ----------
    set_up : threading.Event
        Set when the executor's plugins are set up.
    """

    def __init__(
        self, driver: ThreadDriver, side: Side, worker: Local, loop: Loop, client: Callable[[], Client]
    ) -> None:
        self._driver = driver
        self._side = side
        self._worker = worker
        self._loop = loop
        self._client = client
        self.set_up = threading.Event()
        self._reading = Callbacks("redist-orders")
        #: token -> the answer, None while it runs
        self._known: OrderedDict[str, bytes | None] = OrderedDict()
        self._mutex = threading.Lock()

    def look(self) -> None:
        """Read the inbox soon. From anywhere."""
        self._reading.put(self._read)

    def _read(self) -> None:
        inbox = f"{self._side.endpoint.prefix}inbox:{self._driver.session.ordinal}"
        try:
            while messages := self._side.command("LPOP", inbox, _AT_A_TIME):
                for data in messages:
                    self._obey(msgpack.unpackb(data))
        except RedistError as error:
            logger.warning("the inbox cannot be read: %s", error)

    def _obey(self, message: list[Any]) -> None:
        match message:
            case ["run", str(token), int(asker), int(flags), bytes(data)]:
                if token not in self._known:
                    self._remember(token, None)
                    threading.Thread(
                        target=self._run,
                        args=(token, asker, flags, data),
                        name="redist-run",
                        daemon=True,
                    ).start()
            case ["ask", str(token), int(asker)]:
                if token not in self._known:
                    self._send(asker, ["unknown", token, self._driver.session.ordinal])
                elif (answer := self._known[token]) is not None:
                    self._driver.post(calls.send([asker], answer))
            case _:
                self._client()._inbox.obey(message)

    def _run(self, token: str, asker: int, flags: int, data: bytes) -> None:
        wait = bool(flags & WAIT)
        if flags & WHEN_SET_UP:
            self.set_up.wait()
        try:
            function, args, kwargs = load_whole(data)
            value = self._worker.call(function, *args, **kwargs)
            if inspect.iscoroutine(value):
                begun = self._loop.begin(value)
                if wait:
                    value = begun.result()
                else:
                    begun.add_done_callback(_tell_failure)
            answer = dump_whole(value if wait else None, Future._hand_over)
            if len(answer) > MOST_BYTES:
                raise SerializationError(
                    f"the value takes {format_bytes(len(answer))}, which is too much for a message: scatter it, and return "
                    "the Future"
                )
            ok = 1
        except BaseException as error:
            # the first frame is ours
            traceback = error.__traceback__.tb_next if error.__traceback__ else None
            ok, answer = 0, pack_error(error, traceback)
        try:
            message = msgpack.packb(["ran", token, self._driver.session.ordinal, ok, answer])
            self._remember(token, message if len(message) <= _SMALL else _too_large(token, self._driver))
            self._driver.post(calls.send([asker], message))
        except RedistError as error:
            logger.warning("the answer of a function cannot be sent: %s", error)

    def _send(self, ordinal: int, message: list[Any]) -> None:
        self._driver.post(calls.send([ordinal], msgpack.packb(message)))

    def _remember(self, token: str, answer: bytes | None) -> None:
        known = self._known
        with self._mutex:
            known[token] = answer
            while len(known) > _REMEMBERED:
                oldest = next((token for token, answer in known.items() if answer is not None), None)
                if oldest is None:
                    return
                del known[oldest]


def _too_large(token: str, driver: ThreadDriver) -> bytes:
    error = SerializationError("the answer was lost with a connection, and was too large to be kept")
    message: bytes = msgpack.packb(["ran", token, driver.session.ordinal, 0, pack_error(error)])
    return message


def _tell_failure(future: Any) -> None:
    if not future.cancelled() and future.exception() is not None:
        logger.error("a coroutine that nobody waits for failed", exc_info=future.exception())
