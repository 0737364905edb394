"""How a story, which one thread tells, handles its clients: those that block, and those of an event loop.

The loop runs only while the story does something with a client or waits. So both are told by the same steps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from redist import Client
from redist.errors import ClientClosed
from redist.session.driver import Driver
from redist.session.thread_driver import ThreadDriver
from redist.store.connect import Endpoint

__all__ = ["HANDLINGS", "Blocking", "Handling", "InLoop"]

TICK = 0.001


class Pending(Protocol):
    """Something that a client does meanwhile."""

    def done(self) -> bool: ...


class Handling(Protocol):
    """What a story needs of its clients."""

    def client(self, endpoint: Endpoint, **options: Any) -> Client:
        """Return a client that is connected."""

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Call a method of a client and return what comes of it."""

    def begin(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a method that waits, and go on."""

    def end(self, pending: Any) -> Any:
        """Return what came of it."""

    def pause(self) -> None:
        """Let a moment pass."""

    def wait(self, driver: Any, what: Callable[[], Any], timeout: float) -> None:
        """Have a driver send and receive until `what`, at most for `timeout` seconds."""

    def beat(self, drivers: list[Any]) -> None:
        """Make the heartbeats of these drivers; from any thread."""

    def kill(self, client: Client) -> None:
        """End a client without a word."""

    def close(self) -> None:
        """End it."""


def hurry(driver: Driver) -> None:
    """Do what would come later by itself: what is due within a second, and a heartbeat."""
    if not driver.closed:
        with driver.lock:
            session = driver.session
            session.tick(session.clock() + 1.0)
            session.heart.beat()
            driver.links.transmit()


class Blocking:
    """Clients with the thread driver."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4)

    def client(self, endpoint: Endpoint, **options: Any) -> Client:
        return Client(endpoint, **options)

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return function(*args, **options)

    def begin(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._threads.submit(function, *args)

    def end(self, pending: Any) -> Any:
        return pending.result(20)

    def pause(self) -> None:
        time.sleep(TICK)

    def wait(self, driver: ThreadDriver, what: Callable[[], Any], timeout: float) -> None:
        driver.wait(what, timeout, replies=True)

    def beat(self, drivers: list[Any]) -> None:
        for driver in drivers:
            hurry(driver)

    def kill(self, client: Client) -> None:
        client._driver._shut(ClientClosed("killed"))

    def close(self) -> None:
        self._threads.shutdown()


class InLoop:
    """Clients with the asyncio driver, all in one loop; executors and workers have the thread driver here too."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()

    def client(self, endpoint: Endpoint, **options: Any) -> Client:
        async def made() -> Client:
            return await Client(endpoint, asynchronous=True, **options)

        return self._loop.run_until_complete(made())

    def do(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        result, error = self._loop.run_until_complete(_outcome(function, *args, **options))
        try:
            if error is not None:
                raise error
            return result
        finally:
            del error  # its frames, of which this is one, hold what the client was asked for

    def begin(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._loop.create_task(_called(function, *args))

    def end(self, pending: Any) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(pending, 20))

    def pause(self) -> None:
        self._loop.run_until_complete(asyncio.sleep(TICK))

    def wait(self, driver: Any, what: Callable[[], Any], timeout: float) -> None:
        if isinstance(driver, ThreadDriver):
            driver.wait(what, timeout, replies=True)
        else:
            self._loop.run_until_complete(driver.wait(what, timeout))

    def beat(self, drivers: list[Any]) -> None:
        for driver in drivers:
            if isinstance(driver, ThreadDriver):
                hurry(driver)
            else:
                self._loop.call_soon_threadsafe(hurry, driver)

    def kill(self, client: Client) -> None:
        self._loop.run_until_complete(client._driver._shut(ClientClosed("killed")))

    def close(self) -> None:
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


async def _called(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    result = function(*args, **options)
    return await result if asyncio.iscoroutine(result) else result


async def _outcome(
    function: Callable[..., Any], *args: Any, **options: Any
) -> tuple[Any, BaseException | None]:
    try:
        return await _called(function, *args, **options), None
    except Exception as error:
        # Without its frames: from Python 3.12 on they refer to those of the loop, which have this very task.
        return None, error.with_traceback(None)


HANDLINGS: dict[str, Callable[[], Handling]] = {"threads": Blocking, "loop": InLoop}
