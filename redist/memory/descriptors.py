"""Descriptors that close when nothing refers to them any more.

A lock by ``flock`` goes with the last descriptor of its open file. One that is closed by ``__del__``, or in a ``finally``,
stays for good if an interrupt (Ctrl-C) comes in between; one that an object in C owns does not.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Protocol, cast

__all__ = ["Descriptor", "open_owned"]


class Descriptor(Protocol):
    """Owns a descriptor."""

    def fileno(self) -> int:
        """Return its number."""

    def close(self) -> None:
        """Close it before its time."""


class _Closing:
    """The same in Python, where the system has no epoll."""

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    __del__ = close


#: An epoll object that nobody polls: of the standard library's types written in C the one that takes any descriptor,
#: keeps it without a duplicate, and closes it without a warning.
_own = cast("Callable[[int], Descriptor]", select.epoll.fromfd if hasattr(select, "epoll") else _Closing)


def open_owned(path: str, flags: int) -> Descriptor:
    """Open a file whose descriptor closes with the object that is returned; one that is made is its user's alone.

    Raises
    ------
    OSError
        As `os.open` does.
    """
    # One call after the other in C: an interrupt that comes while a file is opened is raised when it has its owner.
    return next(map(_own, map(os.open, (path,), (flags,), (0o600,))))
