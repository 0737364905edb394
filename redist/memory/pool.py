"""Files of dropped payloads that wait to be written again: their memory is there already, so writing is four times as fast.

A worker drops a payload by renaming its file into the pool. Whoever is granted a file of about the size gets one of those,
the processes that wrote them theirs first, since they may have kept a mapping (`redist.memory.kept`). What is pooled
stays counted as used. It goes back to the system when it has waited for `IDLE` seconds, when there is more than the pool
may hold, and as soon as memory is short. The kernel takes 0.1 s and more for a GiB, so that is the work of a thread.

One file may be there that nobody wrote yet (`redist.memory.ready`): it is cut to size for whom no other fits.
"""

from __future__ import annotations

import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from redist.memory.holes import give_back

__all__ = ["IDLE", "POOL_FILE", "READY", "Pool", "Pooled"]

POOL_FILE = "pool-"

IDLE = 10.0
"""Seconds after which an unused file goes back to the system."""

READY = 60.0
"""The same of the file that is ready for a first value, since there was last need of one."""

#: Bytes of unused files that go back in one call: payloads may have to be moved between two.
_A_CALL = 256 << 20
_WASTE = 1.25
#: A ready file is cut to an eighth at least: a new one is made each time.
_LEAST_OF_READY = 8
_NEVER = float("-inf")
#: s that are waited for who makes a file ready to stop
_STOPS = 1.0


@dataclass(slots=True)
class Pooled:
    """One file of the pool: where it is, the memory it takes, the process that wrote it, since when nobody uses it.

    One that is not to be written again has waited for ever.
    """

    path: str
    size: int
    writer: int
    since: float


class Pool:
    """The recycled files of one segment directory. Methods may be called from any thread.

    Parameters
    ----------
    path : str
        The directory.
    """

    #: most bytes that it holds
    cap: int

    def __init__(self, path: str, cap: int = 0) -> None:
        self.cap = cap
        self._prefix = f"{path}/{POOL_FILE}{secrets.token_hex(4)}-"
        self._numbers = itertools.count(1)
        self._mutex = threading.Lock()
        # the longest unused first
        self._files: list[Pooled] = []
        # with those that are being given back, or made ready
        self._total = self._going = 0
        # what is being made ready, and told when it is there or was given up
        self._making = 0
        self._made = threading.Condition(self._mutex)
        self._ready: Pooled | None = None
        self._short_until = _NEVER

    @property
    def ready(self) -> bool:
        """Whether there is a file that nobody wrote yet."""
        return self._ready is not None

    @property
    def ready_size(self) -> int:
        """Size of that file; 0 if there is none."""
        file = self._ready
        return 0 if file is None else file.size

    @property
    def room(self) -> int:
        """Bytes that it may hold beside what it holds."""
        return self.cap - self._total + self._going

    @property
    def short(self) -> bool:
        """Whether memory was short a moment ago."""
        return time.monotonic() < self._short_until

    @property
    def total(self) -> int:
        """Bytes of memory that its files take."""
        return self._total

    def new_path(self) -> str:
        """Return a name for a file that comes into the pool."""
        return f"{self._prefix}{next(self._numbers)}"

    def add(self, path: str, size: int, writer: int, *, again: bool = True) -> None:
        """Take in a file that nobody maps, which has a name of the pool already; it is only written `again` if so."""
        with self._mutex:
            if again:
                self._files.append(Pooled(path, size, writer, time.monotonic()))
            else:
                self._files.insert(0, Pooled(path, size, writer, _NEVER))
            self._total += size

    def expect(self, size: int) -> bool:
        """Count a file of `size` bytes that is to be made ready; return False if there is no need or no room for it."""
        with self._mutex:
            if self._ready is not None or self.short or size > self.room:
                return False
            self._total += size
            self._going += size
            self._making = size
            return True

    def give_up(self) -> None:
        """Count the expected file no more: it is not made after all, and its memory is free."""
        with self._mutex:
            self._total -= self._making
            self._settle()

    def add_ready(self, path: str) -> None:
        """Take in the file that was expected, and that nobody wrote yet."""
        with self._mutex:
            self._ready = Pooled(path, self._making, 0, time.monotonic())
            self._settle()

    def _settle(self) -> None:
        self._going -= self._making
        self._making = 0
        self._made.notify_all()

    def _stop_making(self, *, wait: bool) -> int:
        """Note that memory is short; `wait` until who makes a file ready has seen it, and return what that gave back."""
        with self._mutex:
            self._short_until = time.monotonic() + IDLE
            making = self._making
            if wait:
                self._made.wait_for(lambda: not self._making, _STOPS)
            return 0 if self._making or self._ready is not None else making

    def keep_ready(self) -> None:
        """Keep such a file for another `READY` seconds."""
        with self._mutex:
            if self._ready is not None:
                self._ready.since = time.monotonic()

    def take_ready(self, size: int, release: Callable[[int], None]) -> Pooled | None:
        """Take out the file that nobody wrote yet, cut to `size` bytes; None if there is none, or it does not fit.

        Parameters
        ----------
        release : callable
            Told of the bytes that were cut off.
        """
        with self._mutex:
            file = self._ready
            if file is None or size > file.size or size * _LEAST_OF_READY < file.size:
                return None
            self._ready = None
        rest = file.size - size
        try:
            os.truncate(file.path, size)
        except OSError:
            size, rest = file.size, 0
        release(rest)
        with self._mutex:
            self._total -= size + rest
        file.size = size
        return file

    def take(self, size: int, writer: int) -> Pooled | None:
        """Take out the file that fits best for `size` bytes, one of `writer` if there is one; None if none fits."""
        best: Pooled | None = None
        with self._mutex:
            for file in reversed(self._files):
                if not size <= file.size <= size * _WASTE or file.since == _NEVER:
                    continue
                if best is None or (file.writer != writer, file.size) < (best.writer != writer, best.size):
                    best = file
            if best is not None:
                self._files.remove(best)
                self._total -= best.size
        return best

    def trim(self, release: Callable[[int], None], *, need: int = 0, most: float = float("inf")) -> int:
        """Give back what is too old or too much, and `need` bytes at least if there are as many.

        Of what is too old, a part at a time.

        Parameters
        ----------
        release : callable
            Told of the bytes of each file when they are free.
        need : int
            See above.
        most : float
            What would make more bytes than these stays, and nothing is waited for.

        Returns
        -------
        int
            Bytes that went back to the system.
        """
        until = time.monotonic() - IDLE
        freed = self._stop_making(wait=most == float("inf")) if need else 0
        while (file := self._pop(until, need, freed, most)) is not None:
            give_back(file.path)
            release(file.size)
            # behind that: who subtracts the pool from what is used must not find too much
            with self._mutex:
                self._total -= file.size
                self._going -= file.size
            freed += file.size
        return freed

    def _pop(self, until: float, need: int, freed: int, most: float) -> Pooled | None:
        with self._mutex:
            wanted = freed < need or self.room < 0
            ready = self._ready
            if (
                ready is not None
                and (wanted or ready.since <= time.monotonic() - READY)
                and freed + ready.size <= most
            ):
                self._ready = None
                self._going += ready.size
                return ready
            if not self._files:
                return None
            file = self._files[0]
            old = file.since <= until and freed < _A_CALL
            if not (wanted or old) or freed + file.size > most:
                return None
            self._going += file.size
            return self._files.pop(0)
