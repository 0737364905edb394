"""Marks: what each thread of an executor runs, in memory that outlives it.

::

    bytes 0..7    ordinal of the executor, 0 until it is registered
    bytes 8..15   how many actors live in it
    bytes 16..63  unused
    then a slot of 16 bytes a thread: attempt that runs (0: none), monotonic time of its start in ns

A mark is set before the task's code is reached and cleared when it has returned, so whoever reads the file of a dead
executor knows what died with it; a death between tasks blames nobody. The file lies in the worker's segment directory,
where a worker that takes over a dead predecessor finds it too.
"""

from __future__ import annotations

import mmap
import os
from time import monotonic_ns

__all__ = ["SLOTS", "Marks"]

SLOTS = 1023
"""Threads that can be marked at a time; further ones run unmarked."""

_HEADER = 8  # in words of 8 bytes
_SIZE = 8 * (_HEADER + 2 * SLOTS + 2)


class Marks:
    """The marks of one executor.

    Parameters
    ----------
    path : str
        The file; made if it is missing.
    """

    path: str

    def __init__(self, path: str) -> None:
        self.path = path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(fd).st_size < _SIZE:
                os.ftruncate(fd, _SIZE)
            self._map = mmap.mmap(fd, _SIZE)
        finally:
            os.close(fd)
        self._words = memoryview(self._map).cast("Q")
        # popping and appending are atomic, so threads need no lock
        self._free = list(range(SLOTS - 1, -1, -1))
        self._was = 0

    @property
    def ordinal(self) -> int:
        """Ordinal of the executor; 0 until it is registered. It stays known when the marks are closed."""
        return self._words[0] if not self._map.closed else self._was

    @ordinal.setter
    def ordinal(self, ordinal: int) -> None:
        self._words[0] = ordinal

    @property
    def actors(self) -> int:
        """How many actors live in the executor."""
        return self._words[1]

    @actors.setter
    def actors(self, count: int) -> None:
        self._words[1] = count

    def take_slot(self) -> int:
        """Return a slot for one thread."""
        try:
            return self._free.pop()
        except IndexError:
            return SLOTS

    def give_slot(self, slot: int) -> None:
        """Return a slot that its thread needs no more."""
        self.clear(slot)
        if slot < SLOTS:
            self._free.append(slot)

    def set(self, slot: int, attempt: int) -> None:
        """Say that the thread of `slot` runs `attempt` from now on."""
        at = _HEADER + 2 * slot
        self._words[at + 1] = monotonic_ns()
        self._words[at] = attempt

    def began(self, slot: int) -> int:
        """Return when the thread of `slot` last started something; a time that stays tells that it does not go on."""
        return self._words[_HEADER + 2 * slot + 1]

    def clear(self, slot: int) -> None:
        """Say that the thread of `slot` runs nothing."""
        self._words[_HEADER + 2 * slot] = 0

    def running(self) -> list[tuple[int, float]]:
        """Return (attempt, seconds since its start) of everything that is marked."""
        now = monotonic_ns()
        words = self._words
        found = []
        for at in range(_HEADER, _HEADER + 2 * SLOTS, 2):
            attempt = words[at]
            if attempt:
                found.append((attempt, (now - words[at + 1]) / 1e9))
        return found

    def close(self, *, remove: bool = False) -> None:
        """Unmap the file, and with `remove` delete it."""
        self._was = self.ordinal  # what the executor has finished may be handed in later yet
        self._words.release()
        self._map.close()
        if remove:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
