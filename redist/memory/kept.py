"""Mappings that a process keeps of the files it wrote, so as to write into them again when they come back from the pool.

On one machine a kept mapping took 10.9 GB/s (memcpy between private pages 12.3), a new one that was populated at once 7.4, a
new one 2.9, ``pwrite`` into a file whose memory was there 4.2, and into a fresh one 2.9.

A file is known by its inode, which is not given to another one while its descriptor is open here. The worker that takes a
file's memory back punches it out, so that what is kept here holds nothing.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections import OrderedDict

from redist.memory import huge_pages
from redist.memory.copying import copy_shared
from redist.memory.descriptors import open_owned
from redist.memory.holes import punch
from redist.memory.huge_pages import map_file

__all__ = ["MAPPED_FROM", "Kept", "keeper"]

MAPPED_FROM = 1 << 20
"""Smallest file, in bytes, of which a mapping is kept: smaller ones are written by ``pwrite``."""

_MOST = 32
_TRIES = 3
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_COPIED = 64 << 10


class Kept:
    """A file that this process has open, and mapped for writing by `map`.

    Parameters
    ----------
    path : str
        Where it is.
    new : bool
        Whether to make it.
    """

    #: the whole file, to be written
    view: memoryview
    #: size of the file in bytes
    size: int
    inode: int

    def __init__(self, path: str, *, new: bool = False) -> None:
        self._file = open_owned(path, _OPEN | (os.O_CREAT | os.O_EXCL if new else 0))

    @property
    def fd(self) -> int:
        """Its descriptor."""
        return self._file.fileno()

    def map(self, new: int = 0) -> bool:
        """Map it, a new one with `new` bytes and no memory yet; False if there is no address space for it."""
        if new:
            os.ftruncate(self.fd, new)
        stat = os.fstat(self.fd)
        self.size = stat.st_size
        self.inode = stat.st_ino
        try:
            # populated here, in one call: a page at a time while it is written costs twice as much
            self.view = map_file(self.fd, self.size, writable=True, populate=not new)
        except OSError:
            return False
        return True

    def copy(self, offset: int, chunk: memoryview) -> None:
        """Write `chunk` (plain bytes) at `offset`; other threads of the process run meanwhile."""
        if chunk.nbytes < _COPIED:
            self.view[offset : offset + chunk.nbytes] = chunk
            return
        copy_shared(self.view[offset : offset + chunk.nbytes], chunk)

    def lock(self) -> bool:
        """Make sure that nobody reads the file, and that nobody comes to; False: somebody does."""
        for left in range(_TRIES, 0, -1):
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if left > 1:
                    time.sleep(0.0005)  # a reader that finds the path gone has the lock for a moment
            else:
                return True
        return False

    def unlock(self) -> None:
        """Let readers in."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go of it; a view that is still there keeps the mapping."""
        self._file.close()
        self.view = memoryview(b"")

    def discard(self) -> None:
        """Let go of it, and of its memory if it has no path any more and nobody reads it.

        A view that is still there would keep that: the traceback of an error refers to some.
        """
        if not os.fstat(self.fd).st_nlink and self.lock():
            punch(self.fd)
        self.close()


class _Keeper:
    """What this process keeps: at most 32 files, those that were not written for the longest time go first."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._files: OrderedDict[tuple[int, int], Kept] = OrderedDict()

    def open(self, path: str) -> Kept | None:
        """Return the granted file at `path`, mapped and locked.

        None if somebody reads it, it is too small, or there is no address space for it.

        Raises
        ------
        OSError
            If it cannot be opened.
        """
        stat = os.stat(path, follow_symlinks=False)
        if stat.st_size < MAPPED_FROM:
            return None
        with self._mutex:
            kept = self._files.pop((stat.st_dev, stat.st_ino), None)
        if kept is None or kept.size != stat.st_size:
            if kept is not None:
                kept.close()
            kept = Kept(path)
            if not kept.map():
                kept.close()
                return None
        if kept.lock():
            return kept
        kept.close()
        return None

    def make(self, path: str, size: int) -> Kept | None:
        """Make a new file of `size` bytes whose pages are huge, mapped and locked.

        None, and no file, if there are none, or no address space.

        Raises
        ------
        OSError
            If it cannot be made, or there is no memory for it.
        """
        if size < huge_pages.LEAST or not huge_pages.are_ready(os.stat(os.path.dirname(path)).st_dev):
            return None
        kept = Kept(path, new=True)
        done = False
        try:
            done = kept.map(new=size) and huge_pages.allocate(kept.fd, kept.view) and kept.lock()
        finally:
            if not done:
                os.unlink(path)
                kept.discard()
        return kept if done else None

    def keep(self, kept: Kept) -> None:
        """Keep a file that was written."""
        device = os.fstat(kept.fd).st_dev
        with self._mutex:
            self._files[device, kept.inode] = kept
            oldest = self._files.popitem(last=False)[1] if len(self._files) > _MOST else None
        if oldest is not None:
            oldest.close()
        self.look()

    def look(self) -> None:
        """Let go of files that are gone."""
        with self._mutex:
            gone = [key for key, kept in self._files.items() if os.fstat(kept.fd).st_nlink == 0]
            closing = [self._files.pop(key) for key in gone]
        for kept in closing:
            kept.close()

    def let_go(self, fd: int) -> None:
        """Let go of the open file, which is gone; waits for nothing, since this thread may have the lock already."""
        if not self._files or not self._mutex.acquire(blocking=False):
            return
        try:
            stat = os.fstat(fd)
            kept = self._files.pop((stat.st_dev, stat.st_ino), None)
        finally:
            self._mutex.release()
        if kept is not None:
            kept.close()

    def forked(self) -> None:
        """Begin anew in a forked child: the files are its parent's to write."""
        files = list(self._files.values())
        self._start()
        for kept in files:
            kept.close()


keeper = _Keeper()
os.register_at_fork(after_in_child=keeper.forked)
