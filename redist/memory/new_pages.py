"""Writing much into a new file that gets small pages: by this thread from the front, by others from the back.

To make pages takes the kernel longer than to fill them, and ``pwrite`` lets only one thread of all into a file. Others get
there by a mapping: each has its pages made first, so that a file system without space is an error and no SIGBUS, and then
fills them. Of two threads the one that calls ``pwrite``, for which no page is zeroed first, does three fifths.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from contextlib import suppress
from functools import partial
from typing import Any

from redist.memory.huge_pages import populate
from redist.memory.locks import try_lock
from redist.memory.pieces import Pieces, helpers

__all__ = ["LEAST_SHARED", "write_shared"]

LEAST_SHARED = 8 << 20
"""Smallest number of bytes that are worth a thread."""

_PIECE = 2 << 20


def write_shared(fd: int, data: memoryview, offset: int, size: int) -> None:
    """Write plain bytes at `offset` of a new file, which is to be `size` bytes long.

    Raises
    ------
    OSError
        If they cannot be written; ENOSPC if the file system is full.
    """
    os.ftruncate(fd, size)
    # whole pages are shared
    begin = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (offset + data.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    _pwrite(fd, data[: begin - offset], offset)
    pieces = Pieces(begin, end, _PIECE)
    mapped: mmap.mmap | None = None
    try:
        with suppress(OSError, ValueError):  # no address space
            mapped = mmap.mmap(fd, size)
        work = partial(_fill, mapped, data, offset, pieces)
        # Who clears up behind a dead worker leaves a locked file its memory: to write where it was taken away may be SIGBUS.
        with helpers(pieces, work, data.nbytes // LEAST_SHARED if mapped and try_lock(fd) else 0):
            while (piece := pieces.front()) is not None:
                at, length = piece
                _pwrite(fd, data[at - offset : at - offset + length], at)
    finally:
        pieces.stop()  # an interrupt may have come between here and `helpers`
        if mapped is not None:
            _close(mapped)  # at once: the traceback of an error refers to it
    fcntl.flock(fd, fcntl.LOCK_UN)  # a reader that finds it locked takes it for evicted
    for at, length in pieces.returned:
        _pwrite(fd, data[at - offset : at - offset + length], at)
    _pwrite(fd, data[end - offset :], end)


def _fill(mapped: mmap.mmap | None, data: memoryview, offset: int, pieces: Pieces) -> None:
    import numpy as np  # whose copies let other threads run

    assert mapped is not None
    try:
        target: Any = np.frombuffer(mapped, np.uint8)
    except ValueError:  # closed: whoever made this thread was interrupted
        return
    source: Any = np.frombuffer(data, np.uint8)
    while (piece := pieces.back()) is not None:
        at, length = piece
        filled = False
        try:
            if populate(target.data, at, length):
                np.copyto(target[at : at + length], source[at - offset : at - offset + length])
                filled = True
        finally:
            if not filled:
                pieces.returned.append(piece)
        if not filled:
            break
    del target
    _close(mapped)  # should whoever made this thread have been interrupted, and not have waited for it


def _close(mapped: mmap.mmap) -> None:
    """Close a mapping unless a helper is at its last piece, who does it then."""
    with suppress(BufferError):
        mapped.close()


def _pwrite(fd: int, data: memoryview, at: int) -> None:
    while data.nbytes:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written
