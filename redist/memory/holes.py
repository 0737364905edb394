"""Giving the memory of a file back although somebody keeps a mapping of it."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable
from functools import cache

from redist.memory.headers import footprint

__all__ = ["KEPT_FROM", "LARGE", "give_back", "punch"]

KEPT_FROM = 32 * 1024
"""Smallest file, in bytes, that readers keep mapped: the memory of a smaller one goes back when it is unlinked."""

LARGE = 256 * 1024
"""Smallest file, in bytes, that is written again."""

_PUNCH_HOLE_KEEP_SIZE = 0x03


def punch(fd: int, offset: int = 0, length: int = 0) -> bool:
    """Give the memory of a file's bytes back; who maps them finds zeros, and no SIGBUS as after a truncation.

    Parameters
    ----------
    fd : int
        The file.
    offset, length : int
        Which bytes, in whole pages; without `length` all.

    Returns
    -------
    bool
        False where the system cannot do that.
    """
    fallocate = _fallocate()
    length = length or footprint(os.fstat(fd).st_size)  # whole pages, or the last one stays
    return fallocate is not None and fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, offset, length) == 0


def give_back(path: str) -> None:
    """Unlink a file that nobody reads, and give its memory back at once.

    In this order: who replaces its pages just then (`redist.memory.collapser`) looks whether it is gone.
    """
    fd = -1
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with contextlib.suppress(OSError):  # also where no more files can be opened
            os.unlink(path)
        if fd >= 0:
            punch(fd)
    finally:
        if fd >= 0:
            os.close(fd)


@cache
def _fallocate() -> Callable[[int, int, int, int], int] | None:
    function = getattr(ctypes.CDLL(None), "fallocate", None)  # macOS has none
    if function is not None:
        function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function
