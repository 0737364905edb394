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
from typing import NamedTuple

from redist.errors import SegmentError, SegmentsFull

__all__ = ["Space", "Standing", "available", "capacity", "format_size", "full_error", "waited_error"]

_COUNTERS = struct.Struct("<qq")


class Standing(NamedTuple):
    """What is known of a segment directory beside its counters: whose it is, and what takes memory and is no value.

    Parameters
    ----------
    worker : str
        Its worker's name, or empty.
    lingering : int
        Bytes of dropped values that somebody still maps.
    pooled : int
        Bytes of files that are to be written: those of dropped values, and what is ready for the next one.
    leaving : int
        Bytes that are being written to disk, and are free then.
    viewed : int
        Bytes of values that could not go to disk at the last try, since arrays of some process view them.
    trouble : str
        Why nothing can go to disk, and what to do; empty if it can.
    """

    worker: str = ""
    lingering: int = 0
    pooled: int = 0
    leaving: int = 0
    viewed: int = 0
    trouble: str = ""

    def parts(self) -> tuple[tuple[str, int], ...]:
        """Return what takes how many bytes."""
        return (
            ("lingering (dropped, and free once the arrays that view it are gone)", self.lingering),
            ("pooled (files that wait to be written)", self.pooled),
            ("on the way to disk", self.leaving),
            (
                "kept from the disk by arrays that view them (let go of those, or ask for copy=True)",
                self.viewed,
            ),
        )


class Space:
    """The reserved bytes of one segment directory.

    Safe to use from several threads, from several processes, and in a forked child.

    Parameters
    ----------
    path : str
        The counter file; made if it is missing.
    """

    path: str
    #: what errors tell of the directory
    standing: Callable[[], Standing]

    def __init__(self, path: str) -> None:
        self.path = path
        self.standing = Standing
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
        free = max(0, min(left, on_disk))
        directory = os.path.dirname(self.path)
        raise full_error(directory, nbytes, limit, free, holders(), used=used, standing=self.standing())

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


def capacity(place: str) -> int:
    """Return all bytes of the file system of a path; 0 if it is not there."""
    try:
        stat = os.statvfs(place)
    except OSError:
        return 0
    return stat.f_blocks * stat.f_frsize


def full_error(
    path: str,
    need: int,
    limit: int,
    free: int,
    holders: Sequence[tuple[str, int]] = (),
    *,
    used: int = 0,
    standing: Standing | None = None,
) -> SegmentsFull:
    """Return the error that says whose memory is full, what takes it, and whether `need` could ever fit.

    Parameters
    ----------
    path : str
        The segment directory, or what could not be written in it.
    need, limit, free, used : int
        Bytes: what was asked for, what may be reserved (0: what the file system has), what is left, and what is reserved.
    holders : sequence of (str, int)
        Names and bytes of the largest values.
    standing : Standing, optional
        What else is known of the directory.
    """
    standing = standing or Standing()
    who = f"worker {standing.worker!r}" if standing.worker else path
    if limit and need > limit:
        return SegmentsFull(
            f"{who}: {format_size(need)} can never fit into the memory limit of {format_size(limit)}; raise --memory-limit"
            " (memory_limit= of a LocalCluster), or split the value"
        )
    if 0 < (most := capacity(path)) < need:
        return SegmentsFull(
            f"{who}: {format_size(need)} can never fit into the file system of {path}, which has {format_size(most)}; make"
            " it larger (in Docker with --shm-size), give the worker another directory with --segments, or split the value"
        )
    text = f"{who} is full: {format_size(need)} needed, {format_size(free)} free"
    if limit and free >= limit - used:
        text += f" of a limit of {format_size(limit)}"
    else:  # it has less than that
        text += f" in the file system of {path}" if standing.worker else " in its file system"
    if used:
        text += f"; {format_size(used)} used"
    parts = [f"{format_size(nbytes)} {what}" for what, nbytes in standing.parts() if nbytes]
    if parts:
        text += f", of which {', '.join(parts)}"
    holders = [(name, nbytes) for name, nbytes in holders if nbytes]
    if holders:
        text += "; largest: " + ", ".join(f"{name!r:.60} {format_size(nbytes)}" for name, nbytes in holders)
    if standing.trouble:
        text += f"; {standing.trouble}"
    return SegmentsFull(text)


def waited_error(error: object) -> SegmentsFull:
    """Return the error of who has waited for room in vain."""
    return SegmentsFull(
        f"{error}; it waited, and nothing got free: let go of values, or allow more memory or disk"
    )


def format_size(nbytes: int) -> str:
    """Return `nbytes` for people: exact below 1 KiB, else with two digits after the point."""
    size = float(nbytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{nbytes} B" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    return f"{size:.2f} TiB"
