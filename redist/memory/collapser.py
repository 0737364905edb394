"""Huge pages for payloads that were written into small ones, a little at a time, as the kernel's own khugepaged does it.

A virtual machine whose host takes free memory back has single pages at hand, but has to wait for huge ones; so has a
machine whose memory is in pieces. There a payload is written into small pages (`redist.memory.huge_pages`), and a thread
of its worker replaces them afterwards, for whoever reads it often and for the payloads that get the file later. It works
at most half of the time, and looks at a file only once.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict, deque

from redist.memory import huge_pages
from redist.memory.descriptors import Descriptor, open_owned
from redist.memory.holes import punch
from redist.memory.locks import try_lock

__all__ = ["Collapser"]

logger = logging.getLogger("redist.memory")

_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: s that a file is left alone after it came: many go at once, and others are read just then
_SETTLES = 0.25
_PIECE = 8 << 20
_MOST_WAITING = 256
_MOST_SEEN = 4096
#: s that the thread waits for more
_LINGERS = 2.0
#: How often, and after how many s again, it looks whether somebody reads a file that is gone.
_LOOKS, _PAUSE = 5, 0.01


class Collapser:
    """Replaces the pages of the large files of one segment directory.

    Methods may be called from any thread, and wait for nothing.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[tuple[float, Descriptor]] = deque()
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._runs = False
        self._closed = False

    def add(self, path: str, stat: os.stat_result) -> None:
        """Have a file looked at that was written, unless it was before."""
        if stat.st_size < huge_pages.LEAST or not huge_pages.are_given():
            return
        with self._changed:
            if self._closed or stat.st_ino in self._seen or len(self._waiting) >= _MOST_WAITING:
                return
            try:
                file = open_owned(path, _FLAGS)
            except OSError:
                return
            self._seen[stat.st_ino] = None
            if len(self._seen) > _MOST_SEEN:
                self._seen.popitem(last=False)
            self._waiting.append((time.monotonic() + _SETTLES, file))
            self._changed.notify()
            if self._runs:
                return
            self._runs = True
        started = False
        try:
            threading.Thread(target=self._main, name="redist-pages", daemon=True).start()
            started = True
        except RuntimeError:  # no more threads, or the interpreter ends
            pass
        finally:
            if not started:
                with self._changed:
                    self._runs = False
                    self._waiting.clear()

    def close(self) -> None:
        """Look at nothing more."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify()

    def forked(self) -> None:
        """Keep no file open in a forked child, where there is no thread to look at them."""
        self._changed = threading.Condition()
        self._waiting.clear()
        self._closed = True

    def _main(self) -> None:
        while (file := self._next()) is not None:
            try:
                self._collapse(file)
            except (OSError, MemoryError) as error:
                logger.debug("a file keeps its small pages: %s", error)
            del file

    def _next(self) -> Descriptor | None:
        with self._changed:
            while True:
                now = time.monotonic()
                if self._closed:
                    break
                if not self._waiting:
                    if not self._changed.wait(_LINGERS) and not self._waiting:
                        break
                elif self._waiting[0][0] > now:
                    self._changed.wait(self._waiting[0][0] - now)
                else:
                    return self._waiting.popleft()[1]
            self._runs = False
            return None

    def _collapse(self, file: Descriptor) -> None:
        fd = file.fileno()
        stat = os.fstat(fd)
        if not stat.st_nlink or stat.st_size < huge_pages.LEAST:
            return
        view = huge_pages.map_file(fd, stat.st_size)
        for at in range(0, stat.st_size, _PIECE):
            begun = time.monotonic()
            if self._closed:
                return
            more = huge_pages.collapse(view, at, min(_PIECE, stat.st_size - at))
            if not os.fstat(fd).st_nlink:
                _give_back(fd)
                return
            if not more:
                return
            time.sleep(time.monotonic() - begun)


def _give_back(fd: int) -> None:
    """Give the memory of a file that is gone back once more, of which a part may have come again with huge pages.

    Not while somebody reads it: a file also goes with its directory, and arrays that view it stay valid.
    """
    for _ in range(_LOOKS):
        if try_lock(fd):
            punch(fd)
            return
        time.sleep(_PAUSE)  # its worker may have locked it just then
