"""Shelves: what threads have finished of their batches and not handed in, where the worker finds it.

While a task holds the GIL no thread of its executor can hand in anything, and what dies with its executor never does. So a
thread puts what it finished in memory that it shares with the worker, a shelf a thread::

    word 0   how often the shelf was cleared
    word 1   end of what lies on it, in bytes from its start
    then a msgpack list a result: name, attempt, status, nbytes, type, value

Only its thread writes to a shelf. Who reads looks at word 0 again afterwards. What the worker hands in and the
executor hands in too is void the second time, as every result of an attempt that is over.
"""

from __future__ import annotations

import mmap
import os

import msgpack

from redist.store.calls import Result

__all__ = ["SIZE", "Shelf", "make_shelves", "open_shelves"]

SIZE = 1 << 16
"""Bytes of one shelf; memory is taken by what is used of it."""

_HEAD = 16

_pack = msgpack.Packer(autoreset=True).pack


def make_shelves(count: int) -> int:
    """Return a descriptor of memory for `count` shelves."""
    fd = os.memfd_create("redist-shelves", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, count * SIZE)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_shelves(fd: int, count: int) -> list[Shelf]:
    """Return the shelves in the memory of `fd`, which is closed."""
    try:
        shared = mmap.mmap(fd, count * SIZE)
    finally:
        os.close(fd)
    return [Shelf(memoryview(shared)[i * SIZE : (i + 1) * SIZE]) for i in range(count)]


class Shelf:
    """The shelf of one thread.

    Parameters
    ----------
    memory : memoryview
        `SIZE` bytes that executor and worker share.
    """

    __slots__ = ("_end", "_memory", "_words")

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory[:_HEAD].cast("Q")
        self._end = _HEAD

    def put(self, result: Result) -> bool:
        """Put a result there; False if it is none that another process can hand in, or too large."""
        name, attempt, status, nbytes, kind, value, contains = result
        if contains or not value or status not in ("memory", "erred"):
            return False
        data = _pack((name, attempt, status, nbytes, kind, value))
        begin, end = self._end, self._end + len(data)
        if end > SIZE:
            return False
        self._memory[begin:end] = data
        self._words[1] = self._end = end
        return True

    def clear(self) -> None:
        """Take everything away: it is handed in."""
        if self._end > _HEAD:
            self._words[1] = self._end = _HEAD
            self._words[0] += 1

    def read(self) -> list[Result]:
        """Return what lies there; nothing if it was cleared meanwhile. For the worker."""
        head = tuple(self._words)
        if head[1] <= _HEAD:
            return []
        data = bytes(self._memory[_HEAD : head[1]])
        if self._words[0] != head[0]:
            return []
        unpacker = msgpack.Unpacker()
        unpacker.feed(data)
        return [Result(*fields) for fields in unpacker]

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._memory.release()
