"""Memory of this process for payloads of other hosts; what nothing views any more is kept a while for those that come next.

To get new memory, page by page, takes the kernel as long as to fill it, and in a virtual machine whose host takes free
memory back ten times as long: a value of 200 MiB that came every three seconds took 0.5 s, and takes 0.05 in memory that
was kept.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import time
import weakref
from collections import deque
from contextlib import suppress
from typing import Any

from redist.memory.machine import memory_of_machine

__all__ = ["BLOCK", "allocate", "let_go", "private_memory"]

BLOCK = 2 << 20
"""Bytes of a huge page, which the kernel gives in a tenth of the time that as many small ones take."""

#: Smallest memory, in bytes, that is kept; how much all of it may be, of the machine's as well; and s for which it is kept.
_LEAST, _MOST, _PART, _IDLE = 1 << 20, 256 << 20, 32, 10.0
#: Most that is left over of memory that is used again, and most that is added for whole huge pages: an eighth.
_LEFT_OVER = 8
#: s that a huge page may take, and s until one is asked for after it took longer. It takes 0.0002 where memory lies ready;
#: in a virtual machine whose host takes free memory back 0.005, and as many small ones 0.0007.
_SLOW, _PAUSE = 0.0015, 2.0
_HUGE, _SMALL = getattr(mmap, "MADV_HUGEPAGE", None), getattr(mmap, "MADV_NOHUGEPAGE", None)


class _Lent(weakref.ref[Any]):
    """Refers to what exports memory to all that view it, and dies when nothing does any more."""

    __slots__ = ("memory",)

    memory: mmap.mmap


class PrivateMemory:
    """What this process keeps. Safe to use from several threads, and in a forked child."""

    def __init__(self) -> None:
        self._most = 0
        self._no_huge_before = 0.0
        #: by their ids: they have the hash of what they refer to, which has none
        self._lent: dict[int, _Lent] = {}
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        #: by size, and since when
        self._free: dict[int, list[tuple[float, mmap.mmap]]] = {}
        #: what came back since then
        self._returned: deque[tuple[float, mmap.mmap]] = deque()
        self._used = 0.0
        self._thread: threading.Thread | None = None

    @property
    def kept(self) -> int:
        """Bytes that nothing views."""
        returned = sum(len(memory) for _, memory in tuple(self._returned))
        return returned + sum(size * len(free) for size, free in list(self._free.items()))

    def take(self, nbytes: int) -> memoryview:
        """Return memory with anything in it; if it is large it begins at a multiple of 64.

        Raises
        ------
        OSError, ValueError, OverflowError, MemoryError
            If there is no such memory.
        """
        if nbytes < _LEAST:
            return memoryview(bytearray(nbytes))
        memory = self._reuse(nbytes)
        if memory is None:
            memory = self._new(nbytes)
        exporter = (ctypes.c_ubyte * nbytes).from_buffer(memory)
        lent = _Lent(exporter, self._give_back)
        lent.memory = memory
        self._lent[id(lent)] = lent
        return memoryview(exporter).cast("B")

    def let_go(self) -> None:
        """Keep nothing of what nothing views now."""
        with self._mutex:
            self._free = {}
            self._returned.clear()

    def forked(self) -> None:
        """Begin anew in a forked child; what was lent is viewed there as before."""
        self._start()

    def _reuse(self, nbytes: int) -> mmap.mmap | None:
        """Return kept memory of which little is left over."""
        with self._mutex:
            self._used = time.monotonic()
            self._be_watched()
            self._take_in()
            most = nbytes + nbytes // _LEFT_OVER
            size = min(
                (size for size, free in self._free.items() if nbytes <= size <= most and free), default=0
            )
            return self._free[size].pop()[1] if size else None

    def _give_back(self, lent: _Lent) -> None:
        """Keep memory that nothing views; without the lock, which this thread may have already."""
        self._lent.pop(id(lent), None)
        if self.kept + len(lent.memory) <= self._most:
            self._returned.append((time.monotonic(), lent.memory))
            if self._thread is None:  # nobody would let go of it
                self._returned.clear()

    def _take_in(self) -> None:
        with suppress(IndexError):
            while True:
                since, memory = self._returned.popleft()
                self._used = since
                self._free.setdefault(len(memory), []).append((since, memory))

    def _new(self, nbytes: int) -> mmap.mmap:
        size = _whole(nbytes, BLOCK)
        if size > nbytes + nbytes // _LEFT_OVER:
            size = _whole(nbytes, mmap.PAGESIZE)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if size >= BLOCK and _HUGE is not None and time.monotonic() >= self._no_huge_before:
            with suppress(OSError):  # a kernel without them
                memory.madvise(_HUGE)
                self._take_pages(memory)
        return memory

    def _take_pages(self, memory: mmap.mmap) -> None:
        """Have the kernel give huge pages for as long as it has some ready."""
        ended = time.monotonic()
        for at in range(0, len(memory), BLOCK):
            begun, memory[at] = ended, 0
            ended = time.monotonic()
            if ended - begun > _SLOW:
                self._no_huge_before = ended + _PAUSE
                if _SMALL is not None:
                    memory.madvise(_SMALL)
                break

    def _be_watched(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        self._most = min(_MOST, memory_of_machine() // _PART)
        self._thread = threading.Thread(target=self._watch, name="redist-private", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads, or the interpreter ends
            self._thread = None

    def _watch(self) -> None:
        """Let go of what was kept for long; ends when nothing is, and nothing was lent or came back, for as long."""
        while True:
            time.sleep(_IDLE / 4)
            with self._mutex:
                before = time.monotonic() - _IDLE
                self._take_in()
                old = self._take_old(before)
                over = not self._free and self._used < before
                if over:
                    self._thread = None
                    self._take_in()  # what came back meanwhile goes with the rest
                    self._free = {}
            del old  # takes a moment, in which others have the lock
            if over:
                return

    def _take_old(self, before: float) -> list[mmap.mmap]:
        old = [memory for free in self._free.values() for since, memory in free if since < before]
        for size, free in list(self._free.items()):
            self._free[size] = [each for each in free if each[0] >= before]
            if not self._free[size]:
                del self._free[size]
        return old


def _whole(nbytes: int, unit: int) -> int:
    return -(-nbytes // unit) * unit


private_memory = PrivateMemory()
allocate = private_memory.take
let_go = private_memory.let_go
os.register_at_fork(after_in_child=private_memory.forked)
