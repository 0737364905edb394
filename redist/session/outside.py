"""Calls that another thread makes on a client of an event loop, when it cannot go on without their replies.

The loop sends them. A thread that waits here may itself run a loop that others wait for, so meanwhile it sends what they ask
of its own loop's clients, and takes the replies: two loops that ask each other both go on.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from redist.errors import ConnectionLost
from redist.session.outcome import Outcome

if TYPE_CHECKING:
    from redist.session.asyncio_driver import AsyncioDriver
    from redist.store.calls import Call

__all__ = ["ask", "send"]

#: How long a thread that runs a loop looks for nothing but its own answer, s.
_GLANCE = 0.001

_changed = threading.Condition()
_unanswered: list[_Asked] = []


class _Asked(Outcome):
    """A call from outside, and its reply."""

    __slots__ = ("call", "driver", "sent")

    def __init__(self, driver: AsyncioDriver, call: Call) -> None:
        super().__init__(1)
        self.driver = driver
        self.call = call
        self.sent = False
        self.wake = _tell


def _tell() -> None:
    with _changed:
        _changed.notify_all()


def ask(driver: AsyncioDriver, call: Call, timeout: float) -> list[Any]:
    """Have the loop of `driver` send `call`, and return the reply; from another thread."""
    asked = _Asked(driver, call)
    mine = asyncio._get_running_loop()
    deadline = time.monotonic() + timeout
    with _changed:
        _unanswered.append(asked)
        _changed.notify_all()
    try:
        driver.loop.call_soon_threadsafe(send, driver)
        while not asked.ready():
            left = deadline - time.monotonic()
            if left <= 0:
                raise ConnectionLost(
                    f"no reply from {driver.endpoint.url}, whose client belongs to another event loop"
                )
            with _changed:
                if not asked.ready():
                    _changed.wait(left if mine is None else min(left, _GLANCE))
            if mine is not None:
                _serve(mine)
    finally:
        with _changed:
            _unanswered.remove(asked)
    result: list[Any] = asked.result()[0]
    return result


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    """Do what others ask of the clients of `loop`, which stands still in this thread."""
    with _changed:
        drivers = {asked.driver for asked in _unanswered if asked.driver._loop is loop}
    for driver in drivers:
        send(driver)
        driver.stand_still_once()


def send(driver: AsyncioDriver) -> None:
    """Send what others ask of `driver`; in the thread of its loop."""
    with _changed:
        new = [asked for asked in _unanswered if asked.driver is driver and not asked.sent]
        for asked in new:
            asked.sent = True
    for asked in new:
        taken, refused = asked.of(0)
        try:
            driver.post_settled(asked.call, taken, refused)
        except Exception as error:  # the client was closed meanwhile
            refused(error)


def _forked() -> None:
    """In a forked child: nobody waits here."""
    global _changed
    _changed = threading.Condition()
    _unanswered.clear()


os.register_at_fork(after_in_child=_forked)
