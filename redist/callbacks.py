"""A thread for what may block but has no thread of its own: users' callbacks, messages of other clients."""

from __future__ import annotations

import _thread
import logging
import queue
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

    from redist.client import Client
    from redist.peers import Peers
    from redist.session.asyncio_driver import AsyncioDriver
    from redist.session.thread_driver import ThreadDriver

__all__ = ["Callbacks", "close_behind", "weakly"]

logger = logging.getLogger("redist.client")


class Callbacks:
    """Calls functions one after the other in a thread that starts with the first.

    Parameters
    ----------
    name : str
        For the thread's name.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # Re-entrant, as `put` may be called in a garbage collection; nothing that may collect is done under it.
        self._lock = threading.RLock()
        self._closed = False
        self._queue: queue.SimpleQueue[Callable[[], object] | None] | None = None

    def put(self, function: Callable[[], object]) -> None:
        """Have `function` called soon; after `close` by a thread of its own. From any thread."""
        mine: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        with self._lock:
            if self._queue is None:
                self._queue = mine
            functions = self._queue
            functions.put(function)
            if self._closed:
                self.close()
        if functions is mine:
            threading.Thread(target=_run, args=(mine,), name=self._name, daemon=True).start()

    def close(self) -> None:
        """End the thread when it has called what it was given."""
        with self._lock:
            self._closed = True
            functions, self._queue = self._queue, None
            if functions is not None:
                functions.put(None)


def _run(functions: queue.SimpleQueue[Callable[[], object] | None]) -> None:
    while (function := functions.get()) is not None:
        try:
            function()
        except BaseException:  # a `sys.exit` too: others want to be called by this thread
            logger.exception("the callback %r failed", function)
        del function  # it may hold a Future


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls a bound method as long as its object lives, and keeps it not alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> Any:
        bound = reference()
        return None if bound is None else bound(*args)

    return call


def close_behind(client: Client, driver: Any, peers: Peers) -> None:
    """Have `driver` and `peers` closed when `client` is collected without having been closed."""
    if client.asynchronous:
        weakref.finalize(client, _leave_in_loop, driver, peers).atexit = False
    else:
        weakref.finalize(client, _leave, driver, peers).atexit = False


# A garbage collection may come anywhere, under the driver's lock and those of `threading` too: nothing here waits.


def _leave(driver: ThreadDriver, peers: Peers) -> None:
    if not driver.closed:
        _thread.start_new_thread(_end, (driver.close, peers))


def _leave_in_loop(driver: AsyncioDriver, peers: Peers) -> None:
    if driver.closed:
        return
    try:
        driver.loop.call_soon_threadsafe(_close_in_loop, driver, peers)
    except RuntimeError:  # it is closed
        _thread.start_new_thread(_end, (driver.end, peers))
    warnings.warn(
        f"the asynchronous client {driver.session.name!r} was not closed: `await client.close()`, or use `async with`",
        ResourceWarning,
        stacklevel=2,
    )


def _end(end: Callable[[float], object], peers: Peers) -> None:
    end(1.0)
    peers.close()


_closing: set[asyncio.Task[None]] = set()  # a loop refers to its tasks weakly


def _close_in_loop(driver: AsyncioDriver, peers: Peers) -> None:
    task = driver.loop.create_task(driver.close(1.0))
    _closing.add(task)
    task.add_done_callback(_closing.discard)
    task.add_done_callback(lambda _: _thread.start_new_thread(peers.close, ()))
