"""How long a thread waits for a worker: as long as its caller allows, and no longer than the worker is there."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import ceil, inf

__all__ = ["least", "patience", "wait"]

#: s between two looks whether the worker is still there
_LOOK = 0.5

_own = threading.local()


@contextmanager
def patience(timeout: float | None, check: Callable[[], None]) -> Iterator[None]:
    """Have this thread wait no longer than `timeout` for each reply in the ``with`` block.

    `check` is called now and then while it waits; what that raises ends the wait.
    """
    _own.timeout, _own.check = timeout, check
    try:
        yield
    finally:
        _own.timeout = _own.check = None


def least(timeout: float | None) -> float | None:
    """Return `timeout`, or what this thread may wait if that is less; None for any time."""
    allowed: float | None = getattr(_own, "timeout", None)
    return timeout if allowed is None else allowed if timeout is None else min(timeout, allowed)


def wait(poll: select.poll, timeout: float | None) -> bool:
    """Wait until `poll` has something; False if nothing came within `timeout`, or raise what this thread's check raises."""
    check: Callable[[], None] | None = getattr(_own, "check", None)
    until = inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(0.0, until - time.monotonic())
        step = left if check is None else min(left, _LOOK)
        if poll.poll(None if step == inf else ceil(1000 * step)):
            return True
        if time.monotonic() >= until:
            return False
        if check is not None:
            check()
