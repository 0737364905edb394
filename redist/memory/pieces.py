"""Work on a range of bytes that several threads share, each taking the next piece.

The kernel has a new thread share the core of who started it, or who waited for its start share that of the thread, for a
hundred milliseconds and more, though another core is idle. So helpers move by themselves.

Helpers work in memory alone, never by a descriptor: an interrupt may have that closed, and given to another file, while they
are at their last piece.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

from redist.memory.machine import cores

__all__ = ["Pieces", "helpers"]

_MOST_HELPERS = 3
#: s in which a helper that shares the core of who started it runs, and leaves it: else it would be there for a time slice
_HEAD_START = 20e-6


class Pieces:
    """A range of which pieces are taken, from its front or its back, until they meet; made by who has `helpers`.

    Parameters
    ----------
    begin, end : int
        The range.
    step : int
        Size of a piece, but for the last one.
    """

    #: what was taken from the back and is not done after all: begin and size
    returned: list[tuple[int, int]]

    def __init__(self, begin: int, end: int, step: int) -> None:
        self.returned = []
        self._begin, self._end, self._step = begin, end, step
        self._mutex = threading.Lock()
        self._owner = threading.get_ident()
        self._cores = _cores()
        #: where the owner took a piece last
        self._core = _current_core()()

    def front(self) -> tuple[int, int] | None:
        """Take the first piece: where it begins, and its size; None if there is none left."""
        self._part()
        with self._mutex:
            at, size = self._begin, min(self._step, self._end - self._begin)
            self._begin += size
            return (at, size) if size > 0 else None

    def back(self) -> tuple[int, int] | None:
        """Take the last piece."""
        self._part()
        with self._mutex:
            size = min(self._step, self._end - self._begin)
            self._end -= size
            return (self._end, size) if size > 0 else None

    def stop(self) -> tuple[int, int]:
        """Have nobody take any more; return what is left."""
        with self._mutex:
            left = self._begin, self._end - self._begin
            self._end = self._begin
            return left

    def _part(self) -> None:
        """Have a helper leave the core of who made this."""
        core = _current_core()()
        if threading.get_ident() == self._owner:
            self._core = core
        elif core == self._core and len(self._cores) > 1:
            with suppress(OSError):  # they were taken away meanwhile
                os.sched_setaffinity(0, self._cores - {core})  # of this thread alone


@contextmanager
def helpers(pieces: Pieces, work: Callable[[], object], most: int) -> Iterator[None]:
    """Have other threads do `work` meanwhile, one a processor; at the end `pieces` are stopped, and they waited for.

    Parameters
    ----------
    pieces : Pieces
        What they take.
    work : callable
        Raises nothing; ends soon when the pieces are stopped.
    most : int
        No more than so many.
    """
    threads: list[threading.Thread] = []
    try:
        with suppress(RuntimeError):  # the system has no more of them, or the interpreter ends
            for _ in range(min(most, cores() - 1, _MOST_HELPERS)):
                # noted before it is started: an interrupt may come as soon as it runs
                threads.append(threading.Thread(target=work, name="redist-memory", daemon=True))
                threads[-1].start()
        if threads:
            time.sleep(_HEAD_START)
        yield
    finally:
        pieces.stop()
        for thread in threads:
            with suppress(RuntimeError):  # it was not started, or an interrupt came just then
                thread.join()


def _cores() -> set[int]:
    """Return the numbers of the cores that this process may use; none where threads cannot choose."""
    return os.sched_getaffinity(0) if sys.platform == "linux" else set()


@cache
def _current_core() -> Callable[[], int]:
    """Return what tells the core of the thread that calls it."""
    found: Callable[[], int] = getattr(ctypes.PyDLL(None), "sched_getcpu", lambda: -1)
    return found
