"""Bytes are reserved here before they are written: one counter file a segment directory.

The file holds two little-endian int64: bytes in use, and the limit (0: only what the file system has). It is changed
under ``flock`` by any process of the host, and read and written with ``pread`` and ``pwrite``: a mapping of it would
raise SIGBUS should the file ever be truncated. The kernel drops the lock of a process that dies.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from redist.errors import SegmentError, SegmentsFull

__all__ = ["Space", "available", "format_size", "full_error"]

_COUNTERS = struct.Struct("<qq")


class Space:
    """The reserved bytes of one segment directory.

    Safe to use from several threads, from several processes, and in a forked child.

    Parameters
    ----------
    path : str
        The counter file; made if it is missing.
    """

    path: str

    def __init__(self, path: str) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise SegmentError(
                f"{self.path}: the space counter cannot be opened: {error.strerror}"
            ) from error

    @contextmanager
    def _locked(self) -> Iterator[list[int]]:
        if self._pid != os.getpid():
            # a forked child shares its parent's open file, and with it the lock: it needs a file of its own
            os.close(self._fd)
            self._open()
        with self._mutex:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            try:
                stored = os.pread(self._fd, _COUNTERS.size, 0).ljust(_COUNTERS.size, b"\0")
                counters = list(_COUNTERS.unpack(stored))
                before = tuple(counters)
                yield counters
                if before != tuple(counters):
                    os.pwrite(self._fd, _COUNTERS.pack(*counters), 0)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def used(self) -> int:
        """Bytes reserved now."""
        return int(_COUNTERS.unpack(os.pread(self._fd, _COUNTERS.size, 0).ljust(_COUNTERS.size, b"\0"))[0])

    @property
    def limit(self) -> int:
        """Most bytes that may be reserved; 0: as many as the file system has."""
        return int(_COUNTERS.unpack(os.pread(self._fd, _COUNTERS.size, 0).ljust(_COUNTERS.size, b"\0"))[1])

    def reset(self, used: int, limit: int) -> None:
        """Set both counters; only for the directory's owner, when it starts."""
        with self._locked() as counters:
            counters[:] = used, limit

    def reserve(self, nbytes: int, holders: Callable[[], list[tuple[str, int]]] = list) -> None:
        """Reserve `nbytes`.

        Parameters
        ----------
        nbytes : int
            Bytes to reserve.
        holders : callable
            Returns names and bytes of the largest holders, for the error's text.

        Raises
        ------
        SegmentsFull
            If the limit or the file system does not allow it; nothing is reserved then.
        """
        on_disk = self.available_on_disk()
        with self._locked() as counters:
            used, limit = counters
            left = limit - used if limit else on_disk
            if nbytes <= left and nbytes <= on_disk:
                counters[0] += nbytes
                return
        raise full_error(os.path.dirname(self.path), nbytes, limit, max(0, min(left, on_disk)), holders())

    def release(self, nbytes: int) -> None:
        """Give `nbytes` back; a negative number takes them without asking (a file turned out larger)."""
        with self._locked() as counters:
            counters[0] = max(0, counters[0] - nbytes)

    def free(self) -> int:
        """Return how many bytes could be reserved now."""
        on_disk = self.available_on_disk()
        with self._locked() as counters:
            used, limit = counters
        return max(0, min(limit - used, on_disk) if limit else on_disk)

    def available_on_disk(self) -> int:
        """Return the free bytes of the file system."""
        return available(self._fd)

    def close(self) -> None:
        """Close the counter file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def available(place: str | int) -> int:
    """Return the free bytes of the file system of a path or an open file."""
    stat = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize


def full_error(
    path: str, need: int, limit: int, free: int, holders: Sequence[tuple[str, int]] = ()
) -> SegmentsFull:
    """Return the error that names path, need, limit, free space and the largest holders."""
    if limit and need > limit:
        return SegmentsFull(
            f"{path}: {format_size(need)} needed, more than the memory limit of {format_size(limit)}: it can never fit;"
            " give the worker a larger memory limit, or put it there in parts"
        )
    text = f"{path} is full: {format_size(need)} needed, {format_size(free)} free"
    text += f" of a limit of {format_size(limit)}" if limit else " in the file system"
    holders = [(name, nbytes) for name, nbytes in holders if nbytes]
    if holders:
        text += "; largest: " + ", ".join(f"{name!r:.60} {format_size(nbytes)}" for name, nbytes in holders)
    return SegmentsFull(text)


def format_size(nbytes: int) -> str:
    """Return `nbytes` for people: exact below 1 KiB, else with two digits after the point."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{nbytes} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"
