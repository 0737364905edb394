"""Operations of a thread driver, awaited in an event loop: by a coroutine that uses a synchronous client, as tasks do.

The operation runs in the loop, as with an asyncio driver, so that it hears of its task's cancellation. What blocks has a
thread of its own: in a pool of the loop's, those that wait for a lock would keep away the one that is to give it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from redist.session.operations import Operation, Post, Request, Send, Until, carry_out
from redist.session.states import Waiter
from redist.session.thread_driver import ThreadDriver

__all__ = ["run"]

T = TypeVar("T")


async def run(driver: ThreadDriver, operation: Operation[T]) -> T:
    """Run an operation to its end and return what it returns."""

    async def perform(request: Request) -> Any:
        if isinstance(request, Post):
            return driver.post(request.call)
        if isinstance(request, Send):
            return driver.send_all(request.calls)
        if not isinstance(request, Until):
            return await _in_a_thread(driver.perform, request)
        if request.waiter.ready():
            return True
        waiter = _Breakable(request.waiter, driver.nudge)
        try:
            return await _in_a_thread(driver.wait, waiter, request.timeout)
        except asyncio.CancelledError:
            waiter.break_off()
            raise

    return await carry_out(operation, perform)


class _Breakable(Waiter):
    """A wait that a cancelled task breaks off, so that its thread ends.

    Parameters
    ----------
    waiter : Waiter
        What is waited for.
    nudge : callable
        Has whoever waits look again.
    """

    __slots__ = ("_broken", "_nudge", "_waiter")

    def __init__(self, waiter: Waiter, nudge: Callable[[], object]) -> None:
        super().__init__()
        self._waiter = waiter
        self._nudge = nudge
        self._broken = False
        if waiter.foreign:
            waiter.wake = nudge

    def ready(self) -> bool:
        """Return whether the wait is over."""
        return self._broken or self._waiter.ready()

    def break_off(self) -> None:
        """End the wait."""
        self._broken = True
        self._nudge()


async def _in_a_thread(function: Callable[..., T], *args: Any) -> T:
    """Return what a function returns that blocks."""
    loop = asyncio.get_running_loop()
    context = contextvars.copy_context()
    done: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(value: Any, error: BaseException | None) -> None:
        if not done.done():
            done.set_result((value, error))

    def work() -> None:
        value, error = None, None
        try:
            value = context.run(function, *args)
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, value, error)
        del value, error  # the traceback of the error holds this frame

    threading.Thread(target=work, name="redist-await", daemon=True).start()
    result: T
    result, error = await done
    if error is not None:
        try:
            raise error
        finally:
            del error
    return result
