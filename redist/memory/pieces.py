"""Work on a range of bytes that several threads share, each taking the next piece.

Helpers work in memory alone, never by a descriptor: an interrupt may have that closed, and given to another file, while they
are at their last piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from redist.memory.machine import cores

__all__ = ["Pieces", "helpers"]

_MOST_HELPERS = 3


class Pieces:
    """A range of which pieces are taken, from its front or its back, until they meet.

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

    def front(self) -> tuple[int, int] | None:
        """Take the first piece: where it begins, and its size; None if there is none left."""
        with self._mutex:
            at, size = self._begin, min(self._step, self._end - self._begin)
            self._begin += size
            return (at, size) if size > 0 else None

    def back(self) -> tuple[int, int] | None:
        """Take the last piece."""
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
        yield
    finally:
        pieces.stop()
        for thread in threads:
            with suppress(RuntimeError):  # it was not started, or an interrupt came just then
                thread.join()
