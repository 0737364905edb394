"""Leave to write payloads: memory that is reserved, and a path, which is a file of the pool where one fits."""

from __future__ import annotations

import itertools
import os
import secrets
import threading
from collections.abc import Callable, Sequence

from redist.errors import SegmentsFull
from redist.memory.arenas import Arenas
from redist.memory.headers import footprint
from redist.memory.holes import LARGE
from redist.memory.lingering import Lingering
from redist.memory.pool import Pooled
from redist.memory.ready import ReadyMemory
from redist.memory.space import Space

__all__ = ["GRANT_FILE", "Grants"]

GRANT_FILE = "grant-"


class Grants:
    """The grants of one segment directory. Methods may be called from any thread.

    Parameters
    ----------
    path : str
        The directory.
    space : Space
        Where memory is reserved.
    lingering : Lingering
        Dropped files and, behind them, the pool.
    arenas : Arenas
        What they do not need they give back where memory is short.
    largest : callable
        Returns names and bytes of the largest payloads, for the text of an error.
    """

    #: So many bytes of the pool are given back for a grant. Where more would have to be it fails: who asked has them given
    #: back in a thread.
    at_once: float

    def __init__(
        self,
        path: str,
        space: Space,
        lingering: Lingering,
        arenas: Arenas,
        largest: Callable[[], list[tuple[str, int]]],
    ) -> None:
        self.at_once = float("inf")
        self._space = space
        self._lingering = lingering
        self._pool = lingering.pool
        #: makes memory for what is granted next
        self.ready = ReadyMemory(self._pool, space)
        self._arenas = arenas
        self._largest = largest
        # a client may still write into a grant of the dead worker whose directory this was
        self._prefix = f"{path}/{GRANT_FILE}{secrets.token_hex(4)}-"
        self._numbers = itertools.count(1)
        self._mutex = threading.Lock()
        self._own = 0

    @property
    def own(self) -> int:
        """Bytes reserved for what this process itself is writing: from other hosts, and back from disk."""
        return self._own

    def writing(self, nbytes: int) -> None:
        """Count `nbytes` more that this process is writing; fewer, if negative, once they are recorded or given up."""
        with self._mutex:
            self._own += nbytes

    def grant(self, sizes: Sequence[int], writer: int = 0) -> list[tuple[str, int]]:
        """Reserve memory for files of `sizes` bytes, all or none, and give each a path.

        Where a file of the pool fits, it is that one, to be written over; else nothing is there yet.

        Parameters
        ----------
        sizes : sequence of int
            Size of each file.
        writer : int
            The process that is to write them.

        Returns
        -------
        list of (path, reserved)
            Where to write, to be published under `path_of` a payload, and how many bytes are reserved for it.

        Raises
        ------
        SegmentsFull
            Naming the path, need, limit, free space and the largest keys.
        """
        if self._lingering.due:
            self._lingering.reap()
        recycled = [self._recycled(size, writer) for size in sizes]
        try:
            fresh = sum(footprint(size) for size, file in zip(sizes, recycled) if file is None)
            if fresh:
                self.reserve(fresh)
        except BaseException:
            for file in recycled:
                if file is not None:
                    self._pool.add(file.path, file.size, file.writer)
            raise
        granted = []
        for size, file in zip(sizes, recycled, strict=True):
            path = self.new_path()
            if file is not None:
                os.rename(file.path, path)
            granted.append((path, footprint(size) if file is None else file.size))
        return granted

    def _recycled(self, size: int, writer: int) -> Pooled | None:
        """Return a file whose memory is there, if one fits."""
        if size < LARGE:
            return None
        size = footprint(size)
        file = self._pool.take(size, writer)
        if file is None:
            file = self._pool.take_ready(size, self._space.release)
            self.ready.used(size)
        return file

    def reserve(self, nbytes: int) -> int:
        """Reserve memory for fresh files of `nbytes` bytes, and return how much that is: whole pages.

        Raises
        ------
        SegmentsFull
            Naming the path, need, limit, free space and the largest keys.
        """
        need = footprint(nbytes)
        try:
            self._space.reserve(need, self._largest)
        except SegmentsFull:
            # what is pooled, and what arenas have reserved and not written, is needed less
            trimmed = self._lingering.reap() + self._lingering.trim(need, self.at_once)
            if not trimmed + self._arenas.seal_idle(0.0):
                raise
            self._space.reserve(need, self._largest)
        return need

    def reap(self) -> int:
        """Give back what nobody maps or uses any more; see `SegmentDirectory.reap`."""
        self._arenas.seal_idle()
        return self._lingering.reap() + self._lingering.trim(int(self.ready.is_much()))

    def new_path(self) -> str:
        """Return the path of a new file to be written and then published under `path_of` a payload."""
        return f"{self._prefix}{next(self._numbers)}"

    def cancel(self, path: str, reserved: int) -> None:
        """Remove what was written of a grant, and give its reservation back."""
        try:
            if os.stat(path).st_blocks * 512 > self.at_once:
                # not for others: its writer may live, and write on
                os.rename(path, gone := self._pool.new_path())
                self._pool.add(gone, reserved, 0, again=False)
                return
            os.unlink(path)  # not punched, for the same reason
        except FileNotFoundError:
            pass
        self._space.release(reserved)
