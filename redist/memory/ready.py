"""Memory that a worker makes ready ahead of the next large value, whose writer then has nothing to do but to copy.

To make new memory takes the kernel longer than to fill it, and in a virtual machine whose host takes free memory back up to
ten times as long. So a thread does it while nobody waits: some time after the worker's start, and after each large value
that was written into new memory, it makes one file of huge pages. Whoever is granted memory next gets that file, cut to
size, which is quick for huge pages; what is cut off lies ready for the one after it.

The file is one of the pool: it counts as pooled, is the first to go where memory is short, and goes when nothing large was
written for `redist.memory.pool.READY` seconds.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time

from redist.errors import SegmentError
from redist.memory import huge_pages
from redist.memory.holes import give_back
from redist.memory.machine import available_memory
from redist.memory.pool import Pool
from redist.memory.space import Space

__all__ = ["ReadyMemory"]

logger = logging.getLogger("redist.memory")

_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
#: s after the start, in which others have better use for the processors, and s after a large value: many come at once
_AT_FIRST, _SETTLES = 1.0, 0.1
#: s for which no value is to have come or gone in any worker's directory of the host, which would be written more slowly; s
#: between two looks; and s that a piece is put off at most
_QUIET, _LOOK, _PATIENCE = 0.25, 0.05, 0.5
#: s until a kernel is asked again that had no huge pages, or knows no such call
_REFUSED = 60.0
_PIECE = 8 << 20
#: It is at most half of what is free, by the limit and in the file system, and a sixteenth of what the machine or a control
#: group has left; it goes when there is less than as much again, or than eight times as much.
_FREE, _OF_MACHINE = 2, 16
_NEVER = float("inf")


class ReadyMemory:
    """What one segment directory has ready. Methods may be called from any thread, and wait for nothing but `close`.

    Parameters
    ----------
    pool : Pool
        Where the file goes.
    space : Space
        Where its memory is reserved.
    """

    def __init__(self, pool: Pool, space: Space) -> None:
        self._pool = pool
        self._space = space
        self._size = 0
        self._changed = threading.Condition()
        self._due = _NEVER
        self._not_before = 0.0
        self._thread: threading.Thread | None = None
        self._closed = False

    def keep(self, size: int) -> None:
        """Have at most `size` bytes ready from now on; none where the kernel gives no huge pages."""
        self._size = size // _PIECE * _PIECE if huge_pages.are_given() else 0
        self._make_in(_AT_FIRST)

    def used(self, size: int) -> None:
        """Take note that a value of `size` bytes got new memory, or what was ready."""
        if self._size and size >= huge_pages.LEAST:
            self._pool.keep_ready()
            self._make_in(_SETTLES)

    def is_much(self) -> bool:
        """Whether what is ready is much beside what is free by now, be it that another worker took that."""
        size = self._pool.ready_size
        return size > 0 and size // _FREE > _little(self._space)

    def close(self) -> None:
        """Make nothing more; return when nothing is being made."""
        with self._changed:
            self._closed = True
            self._changed.notify()
            thread = self._thread
        if thread is not None:
            thread.join()

    def forked(self) -> None:
        """Make nothing in a forked child."""
        self._changed = threading.Condition()
        self._closed = True
        self._thread = None

    def _make_in(self, seconds: float) -> None:
        with self._changed:
            now = time.monotonic()
            if self._closed or not self._size or self._pool.ready or now < self._not_before:
                return
            self._due = now + seconds
            if self._thread is not None:
                return  # it looks again when the time is there that it waits for
            self._thread = threading.Thread(target=self._main, name="redist-ready", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads, or the interpreter ends
                self._thread = None

    def _main(self) -> None:
        while self._waits():
            try:
                self._make()
            except (OSError, MemoryError, SegmentError) as error:
                logger.debug("no memory is made ready: %s", error)

    def _waits(self) -> bool:
        """Wait until something is to be made; False if nothing is."""
        with self._changed:
            while not self._closed:
                left = self._due - time.monotonic()
                if left == _NEVER:
                    break
                if left <= 0:
                    self._due = _NEVER
                    return True
                self._changed.wait(left)
            self._thread = None
            return False

    def _make(self) -> None:
        size = min(self._size, self._pool.room, _little(self._space))
        size = size // _PIECE * _PIECE
        if size <= 0 or not self._pool.expect(size):
            return
        path = self._pool.new_path()
        reserved = made = False
        try:
            # behind that: who subtracts the pool from what is used must not find too much
            self._space.reserve(size)
            reserved = True
            made = self._fill(path, size)
        finally:
            if made:
                self._pool.add_ready(path)
            else:
                give_back(path)
                if reserved:
                    self._space.release(size)
                self._pool.give_up()

    def _fill(self, path: str, size: int) -> bool:
        """Make a file of huge pages, working half of the time, or less while others are busy.

        False if that cannot be, or others need the memory.
        """
        fd = os.open(path, _FLAGS, 0o600)
        try:
            os.ftruncate(fd, size)
            view = huge_pages.map_file(fd, size, writable=True)
            spent = 0.0
            for at in range(0, size, _PIECE):
                if not self._rests(os.path.dirname(path), size, spent):
                    return False
                begun = time.monotonic()
                if not huge_pages.make(view, at, _PIECE):
                    break
                spent = time.monotonic() - begun
            if self._is_needed(size):
                return False
            made = os.fstat(fd).st_blocks * 512 >= size  # an emulator of processors ignores the advice
            if not made:
                self._not_before = time.monotonic() + _REFUSED
            return made
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)

    def _rests(self, directory: str, size: int, seconds: float) -> bool:
        """Wait, and on while values are written; False if others need the memory, or at the end."""
        until = time.monotonic() + _PATIENCE
        while not self._is_needed(size):
            with self._changed:
                self._changed.wait_for(lambda: self._closed, seconds)
                if self._closed:
                    return False
            if time.monotonic() >= until or not _is_written(directory):
                return True
            seconds = _LOOK
        return False

    def _is_needed(self, size: int) -> bool:
        """Whether others need the memory."""
        return self._pool.short or size // _FREE > _little(self._space)


def _is_written(directory: str) -> bool:
    """Whether files came, or changed their names, lately: here, or in the directory of another worker of the host."""
    lately = time.time() - _QUIET
    try:
        with os.scandir(os.path.dirname(directory)) as entries:
            return any(entry.stat().st_mtime > lately for entry in entries)
    except OSError:
        return False


def _little(space: Space) -> int:
    """Return how many bytes are little beside what is free."""
    return min(space.free() // _FREE, available_memory() // _OF_MACHINE)
