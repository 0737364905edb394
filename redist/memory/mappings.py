"""Mappings of large files that outlive the arrays that viewed them, for whoever maps the same file next.

A fresh mapping of 200 MB costs its first reader 50,000 looks at a page, 20 to 40 ms; one whose pages were touched before
costs nothing. Tasks of one executor that take the same argument, and values that come in recycled files
(`redist.memory.pool`), meet the same file again. So what is here is a mapping without a lock; the lock belongs to each
`_Reading`, which lives as long as an array views it. A mapping that nobody reads holds no memory either: whoever gives a
file's memory back punches it out.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from redist.memory.kept import keeper

__all__ = ["CACHED_FROM", "mappings"]

CACHED_FROM = 1 << 20
"""Smallest file, in bytes, whose mapping is kept."""

_MOST = 64
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class _Mapped:
    """One file, mapped for reading, and open so that its inode is not another file's; closes `fd`, also if it fails."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd  # first: from here on nobody else closes it
        self.size = size
        import numpy as np

        self._bytes: Any = np.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_READ), np.uint8)
        self.address: int = self._bytes.__array_interface__["data"][0]

    @property
    def gone(self) -> bool:
        """Whether its file is unlinked."""
        return os.fstat(self.fd).st_nlink == 0

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        if getattr(self, "fd", -1) >= 0:
            close(self.fd)


class _Reading:
    """Holds the shared lock of a file for as long as a view of its bytes is there; also in a forked child."""

    def __init__(self, mapped: _Mapped, lock_fd: int) -> None:
        self._mapped = mapped
        # Has a duplicate of the descriptor, and lets go of it in C: an interrupt inside `__del__` would leave the lock.
        self._lock = mmap.mmap(lock_fd, 1, access=mmap.ACCESS_READ)
        #: what numpy makes an array of: the bytes, read-only
        self.__array_interface__ = {
            "version": 3,
            "shape": (mapped.size,),
            "typestr": "|u1",
            "data": (mapped.address, True),
        }

    def __del__(self) -> None:
        lock = getattr(self, "_lock", None)
        if lock is not None:
            lock.close()
            # Unlinked while it was read, so nobody has punched it out, or will.
            if mappings is not None and self._mapped.gone:  # None: the interpreter ends
                mappings.let_go(self._mapped)


class _Mappings:
    """What this process has mapped: at most 64 files, those that were not read for the longest time go first."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._mapped: OrderedDict[tuple[int, int], _Mapped] = OrderedDict()

    def view(self, path: str, lock_fd: int, stat: os.stat_result) -> memoryview | None:
        """Return the bytes of the file at `path`, whose views keep the lock of `lock_fd`; None if it is another by now.

        Raises
        ------
        OSError
            If it cannot be mapped.
        """
        import numpy as np

        key = stat.st_dev, stat.st_ino
        with self._mutex:
            mapped = self._mapped.get(key)
            if mapped is not None:
                self._mapped.move_to_end(key)
        if mapped is None or mapped.size != stat.st_size:
            mapped = self._map(path, stat)
            if mapped is None:
                return None
            self._keep(key, mapped)
        array: Any = np.asarray(_Reading(mapped, lock_fd))
        return memoryview(array)

    def _map(self, path: str, stat: os.stat_result) -> _Mapped | None:
        # not through the locked descriptor: a mapping keeps what it was made of open
        fd = os.open(path, _FLAGS)
        try:
            there = os.fstat(fd)
        except BaseException:
            os.close(fd)
            raise
        if (there.st_dev, there.st_ino, there.st_size) == (stat.st_dev, stat.st_ino, stat.st_size):
            return _Mapped(fd, stat.st_size)
        os.close(fd)
        return None

    def _keep(self, key: tuple[int, int], mapped: _Mapped) -> None:
        self.look()
        with self._mutex:
            self._mapped[key] = mapped
            let_go = self._mapped.popitem(last=False)[1] if len(self._mapped) > _MOST else None
        del let_go  # closed outside of the lock

    def let_go(self, mapped: _Mapped) -> None:
        """Let go of a file that is gone; waits for nothing, since this thread may have the lock already."""
        if self._mutex.acquire(blocking=False):
            try:
                for key, each in list(self._mapped.items()):
                    if each is mapped:
                        del self._mapped[key]
            finally:
                self._mutex.release()
        keeper.let_go(mapped.fd)

    def look(self) -> None:
        """Let go of files that are gone."""
        with self._mutex:
            let_go = [self._mapped.pop(key) for key, each in list(self._mapped.items()) if each.gone]
        del let_go

    def forked(self) -> None:
        """Have a lock of its own in a forked child; what is mapped serves both."""
        mapped = self._mapped
        self._start()
        self._mapped = mapped


mappings = _Mappings()
os.register_at_fork(after_in_child=mappings.forked)
