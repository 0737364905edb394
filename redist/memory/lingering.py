"""Files of dropped payloads that somebody still maps: their memory stays counted until the last reader lets go."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

from redist.memory.holes import LARGE, give_back
from redist.memory.locks import try_lock
from redist.memory.looks import Looks
from redist.memory.pool import Pool
from redist.memory.space import Space

__all__ = ["Dropped", "Lingering"]


@dataclass(slots=True)
class Dropped:
    """A dropped file that is open: its name in the pool, or empty, its memory, its writer, and what becomes of it."""

    fd: int
    path: str
    size: int
    writer: int
    recycle: bool


class Lingering:
    """The dropped files of one segment directory. Methods may be called from any thread.

    Parameters
    ----------
    space : Space
        Where their memory is given back.
    pool : Pool
        Where they go when nobody maps them any more.
    """

    pool: Pool

    def __init__(self, space: Space, pool: Pool) -> None:
        self._space = space
        self.pool = pool
        self._mutex = threading.Lock()
        self._files: list[Dropped] = []
        self._looks = Looks()

    @property
    def due(self) -> bool:
        """Whether a look for those that nobody maps any more is worth its time."""
        return self._looks.due(len(self._files))

    @property
    def total(self) -> int:
        """Bytes of memory that they take."""
        return sum(file.size for file in self._files)

    def add(self, file: Dropped) -> None:
        """Take in a file that somebody maps."""
        with self._mutex:
            self._files.append(file)

    def bury(self, file: Dropped) -> int:
        """Pool a dropped file that nobody maps, or give its memory back if it is small; return how much that is."""
        os.close(file.fd)
        if file.path and file.size >= LARGE:
            self.pool.add(file.path, file.size, file.writer, again=file.recycle)
            return 0
        if file.path:
            give_back(file.path)
        self._space.release(file.size)
        return file.size

    def trim(self, need: int = 0, most: float = float("inf")) -> int:
        """Give back pooled memory that is too old or too much, and `need` bytes at least if there are as many.

        Only if it is no more than `most` bytes.
        """
        return self.pool.trim(self._space.release, need=need, most=most)

    def reap(self) -> int:
        """Bury the files that nobody maps any more; return how much memory that gave back."""
        began = time.monotonic()
        with self._mutex:
            looked, self._files = self._files, []
        kept = []
        freed = 0
        for file in looked:
            if try_lock(file.fd):
                freed += self.bury(file)
            else:
                kept.append(file)
        with self._mutex:
            self._files += kept
        self._looks.took(began)
        return freed

    def close(self) -> None:
        """Let go of all files, also in a forked child."""
        files, self._files = self._files, []
        for file in files:
            os.close(file.fd)
