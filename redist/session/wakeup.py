"""What wakes a driver from any thread at any moment, and what a fork leaves of it."""

from __future__ import annotations

import contextlib
import os
import sys
import weakref
from types import CodeType
from typing import Protocol

__all__ = ["Wakeup", "drivers", "runs"]


class Wakeup:
    """A descriptor that becomes readable by `write`, which takes no lock: also in a garbage collection.

    Attributes
    ----------
    reading : int
        What to poll; -1 once closed.
    """

    __slots__ = ("_writing", "reading")

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self.reading = self._writing = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self.reading, self._writing = os.pipe()
            os.set_blocking(self.reading, False)
            os.set_blocking(self._writing, False)

    def write(self) -> None:
        """Wake whoever polls."""
        with contextlib.suppress(OSError):
            os.write(self._writing, b"\1\0\0\0\0\0\0\0")

    def drain(self) -> None:
        """Take what was written."""
        with contextlib.suppress(OSError):
            os.read(self.reading, 4096)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in {self.reading, self._writing}:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.reading = self._writing = -1


def runs(thread: int, code: CodeType, owner: object) -> bool:
    """Whether a thread is inside the method of `owner` that has this code."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is code and frame.f_locals.get("self") is owner:
            return True
        frame = frame.f_back
    return False


class _Forkable(Protocol):
    def forked(self) -> None: ...


#: Every living driver: a forked child drops what is the parent's.
drivers: weakref.WeakSet[_Forkable] = weakref.WeakSet()


def _after_fork() -> None:
    for driver in list(drivers):
        driver.forked()


os.register_at_fork(after_in_child=_after_fork)
