"""Mappings of large files that outlive the arrays that viewed them, for whoever maps the same file next.

A fresh mapping of 200 MB costs its first reader 50,000 looks at a page, 20 to 40 ms; one whose pages were touched before
costs nothing. Tasks of one executor that take the same argument, and values that come in recycled files
(`redist.memory.pool`), meet the same file again. So what is here is a mapping without a lock; the lock belongs to each
`Reading`, which lives as long as an array views it. A mapping that nobody reads holds no memory either: whoever gives a
file's memory back punches it out.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from functools import cache
from typing import Any

from redist.memory.descriptors import Descriptor, open_owned
from redist.memory.huge_pages import map_file
from redist.memory.kept import keeper

__all__ = ["mappings"]

_MOST = 64
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class _Mapped:
    """One file, mapped for reading, and open so that it can be asked whether it is gone."""

    def __init__(self, file: Descriptor, size: int) -> None:
        self.file: Descriptor | None = file
        self.size = size
        self.mapping = map_file(file.fileno(), size)

    @property
    def gone(self) -> bool:
        """Whether its file is unlinked; False once it is not kept any more."""
        file = self.file
        return file is not None and os.fstat(file.fileno()).st_nlink == 0


@cache
def _reading_class() -> Any:
    import numpy as np

    class Reading(np.ndarray[Any, Any]):
        """Holds the shared lock of a file for as long as a view of its bytes is there; also in a forked child."""

        mapped: _Mapped
        lock: Descriptor

        def __del__(self) -> None:
            own = self.__dict__
            mapped = own.get("mapped")
            if mapped is not None:
                own.clear()  # and the lock is free
                # Unlinked while it was read, so nobody has punched it out, or will.
                if mappings is not None and mapped.gone:  # None: the interpreter ends
                    mappings.let_go(mapped)

    return Reading


class _Mappings:
    """What this process has mapped: at most 64 files, those that were not read for the longest time go first."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._mutex = threading.Lock()
        self._mapped: OrderedDict[tuple[int, int], _Mapped] = OrderedDict()
        self._until_look = _MOST

    def view(self, path: str, lock: Descriptor, stat: os.stat_result) -> memoryview | None:
        """Return the bytes of the file at `path`, which keep the locked descriptor; None if it is another by now.

        Raises
        ------
        OSError
            If it cannot be mapped.
        """
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
        reading = _reading_class()(mapped.size, "u1", mapped.mapping)
        reading.lock, reading.mapped = lock, mapped
        view: memoryview = reading.data
        return view

    def _map(self, path: str, stat: os.stat_result) -> _Mapped | None:
        # not through the locked descriptor: a mapping keeps what it was made of open
        file = open_owned(path, _FLAGS)
        there = os.fstat(file.fileno())
        if (there.st_dev, there.st_ino, there.st_size) == (stat.st_dev, stat.st_ino, stat.st_size):
            return _Mapped(file, stat.st_size)
        return None

    def _keep(self, key: tuple[int, int], mapped: _Mapped) -> None:
        self._until_look -= 1
        if self._until_look <= 0:
            self._until_look = _MOST
            self.look()
        let_go = []
        with self._mutex:
            self._mapped[key] = mapped
            while len(self._mapped) > _MOST:
                let_go.append(self._mapped.popitem(last=False)[1])
        for each in let_go:
            each.file = None  # one descriptor less for as long as it is read

    def let_go(self, mapped: _Mapped) -> None:
        """Let go of a file that is gone; waits for nothing, since this thread may have the lock already."""
        if self._mutex.acquire(blocking=False):
            try:
                for key, each in list(self._mapped.items()):
                    if each is mapped:
                        del self._mapped[key]
            finally:
                self._mutex.release()
        if mapped.file is not None:
            keeper.let_go(mapped.file.fileno())

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
