"""What wakes a driver from any thread at any moment, and what a fork leaves of it."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import weakref
from types import CodeType, FrameType
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

    def renew(self) -> None:
        """Have the same numbers be other descriptors, which no loop ever watched; what was written is lost."""
        fresh = Wakeup()
        for new, old in {fresh.reading: self.reading, fresh._writing: self._writing}.items():
            os.dup2(new, old, inheritable=False)
        fresh.close()

    def close(self) -> None:
        """Close the descriptors."""
        for fd in {self.reading, self._writing}:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.reading = self._writing = -1


_looking = threading.Lock()
_paused = False  # the garbage collection, by `frames`


def frames() -> dict[int, FrameType]:
    """Return the topmost frame of every thread.

    CPython makes the dict under its lock of all threads. A garbage collection at that moment that comes to a
    `threading.local`, which wants the same lock, would be the end of the process.
    """
    global _paused
    with _looking:
        _paused = gc.isenabled()
        gc.disable()
        try:
            return sys._current_frames()
        finally:
            if _paused:
                gc.enable()
                _paused = False


def runs(thread: int, code: CodeType, owner: object) -> bool:
    """Whether a thread is inside the method of `owner` that has this code."""
    frame = frames().get(thread)
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
    global _looking
    _looking = threading.Lock()
    if _paused:
        gc.enable()
    for driver in list(drivers):
        driver.forked()


os.register_at_fork(after_in_child=_after_fork)
