"""Reading a segment: map it, and hold its lock for as long as anything views the mapping.

A payload that is not in memory may lie on disk (`redist.memory.spill`): it is complete in one place before it leaves the
other.

The order matters. The shared lock is taken on the descriptor first, and only then is the path looked at: whoever wants
to drop or recycle the file takes the exclusive lock before it touches the path, so one of the two sees the other.
The descriptor stays open, hence the lock, until the last array that views the mapping dies, also in forked children:
``mmap.mmap`` keeps a duplicate of a small file's, `redist.memory.mappings` a large one's. A reader never unlocks by itself.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import time
from dataclasses import dataclass

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.descriptors import Descriptor, open_owned
from redist.memory.headers import TRAILER_BYTES, Header, header_in, payload_bytes, spilled_path
from redist.memory.holes import KEPT_FROM
from redist.memory.mappings import mappings
from redist.memory.touched import touch

__all__ = ["Mapping", "open_segment", "raise_file_limit"]

# Descriptors left for sockets and pipes; a mapping that would take one of them is refused. How many are in use is only
# looked at every so many mappings: it takes a system call more.
_SPARE_FILES = 40
_LOOK_EVERY = 16
#: How often a payload is looked for in memory and on disk, should it be moved just then.
_MOVES = 3
_PATIENCE, _PAUSE = 1.0, 0.0002  # s that a file may be locked against readers, and between two tries
_READ_AHEAD = 256 << 20
#: without O_NONBLOCK a pipe of that name, which somebody has put there, would hold the reader up for ever
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(slots=True, eq=False)
class Mapping:
    """A mapped payload.

    Parameters
    ----------
    view : memoryview
        The payload's bytes; read-only unless opened with ``writable=True``. The mapping lives while a view does.
    nbytes : int
        Their number.
    path : str
        The file that was mapped.
    whole : memoryview, optional
        All bytes of the file, if `view` is not of a mapping of it.
    """

    view: memoryview
    nbytes: int
    path: str
    whole: memoryview | None = None

    def header(self) -> Header:
        """Read the footer of the file."""
        whole = memoryview(self.view.obj) if self.whole is None else self.whole
        return header_in(whole, len(whole), self.path)


def open_segment(path: str, *, writable: bool = False, buffer: memoryview | None = None) -> Mapping:
    """Map the payload at `path`, without copying it.

    Parameters
    ----------
    path : str
        The segment, from `redist.memory.headers.path_of`.
    writable : bool
        Map privately: writes change this process's copy of a page only (copy on write by the kernel).
    buffer : memoryview, optional
        A file that fits is read into its beginning instead: for who is done with a small one at once, in half the time.

    Raises
    ------
    SegmentGone
        If the payload was evicted meanwhile.
    SegmentCorrupt
        If the file is no whole segment.
    SegmentError
        If the process may not open more files, or has no right to read it.
    """
    touch(path)
    try:
        return _open(path, writable, False, buffer)
    except SegmentGone:  # kept under no name: its traceback would keep this frame and those of all callers
        for place in (spilled_path(path), path) * (_MOVES - 1):
            try:
                return _open(place, writable, place is not path, buffer)
            except SegmentGone:
                continue
        raise


def _open(path: str, writable: bool, spilled: bool, buffer: memoryview | None) -> Mapping:
    global _unlooked
    until = 0.0
    while True:
        try:
            file = open_owned(path, _FLAGS)
        except OSError as error:
            raise _cannot_open(path, error) from None
        _unlooked += 1
        if _unlooked >= _LOOK_EVERY:
            _check_files_left(file, path)
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            # Its worker looks whether it is mapped, or is about to take it away: both last for a moment.
            now = time.monotonic()
            until = until or now + _PATIENCE
            if now > until:
                raise SegmentGone(f"{path}: the payload is being evicted") from None
            time.sleep(_PAUSE)
            continue
        stat = os.fstat(file.fileno())
        try:
            there = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            raise SegmentGone(f"{path}: the payload was evicted") from None
        if there.st_ino != stat.st_ino or there.st_dev != stat.st_dev:
            continue
        size = stat.st_size
        if size < TRAILER_BYTES:
            payload_bytes(b"", size, path)
        whole = None
        try:
            if buffer is not None and size <= len(buffer):
                view = whole = buffer[:size]
                if os.preadv(file.fileno(), [view], 0) != size:
                    raise SegmentCorrupt(f"{path}: it was made shorter while it was read")
            # a kept mapping would hold the disk's blocks of a file that is gone
            elif size >= KEPT_FROM and not writable and not spilled:
                kept = mappings.view(path, file, stat)
                if kept is None:
                    continue
                view = kept
            else:
                view = _map(file, size, writable, spilled)
        except OSError as error:
            raise _cannot_open(path, error) from None
        nbytes = payload_bytes(view[size - TRAILER_BYTES :], size, path)
        return Mapping(view[:nbytes], nbytes, path, whole)


def _map(file: Descriptor, size: int, writable: bool, spilled: bool) -> memoryview:
    """Map a file for one reader; the mapping has a duplicate of the locked descriptor."""
    fd = file.fileno()
    if spilled and hasattr(os, "posix_fadvise"):
        # read ahead from the disk, in large pieces
        os.posix_fadvise(fd, 0, min(size, _READ_AHEAD), os.POSIX_FADV_WILLNEED)
    return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_COPY if writable else mmap.ACCESS_READ))


def raise_file_limit() -> int:
    """Raise RLIMIT_NOFILE to its hard limit (every mapped payload holds a descriptor); return the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):  # macOS reports "unlimited" and refuses it
            pass
    return soft


def _check_files_left(file: Descriptor, path: str) -> None:
    """Raise if the next free descriptor is one of the last; until there are more, every call looks."""
    global _unlooked
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft != resource.RLIM_INFINITY:
        try:
            # not the file's own: mappings keep duplicates, and the descriptors between are the lowest free ones
            free = os.dup(file.fileno())
        except OSError as error:
            raise _cannot_open(path, error) from None
        os.close(free)
        if free >= soft - _SPARE_FILES:
            raise _too_many_files(path)
    _unlooked = 0


def _too_many_files(path: str) -> SegmentError:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return SegmentError(
        f"{path}: cannot be mapped, the process is near its limit of {soft} open files (hard limit {hard}) and every"
        " mapped payload holds one: let go of some values, use copy=True, or raise `ulimit -n`"
    )


def _cannot_open(path: str, error: OSError) -> SegmentError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return SegmentGone(f"{path}: the payload's file is gone")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return _too_many_files(path)
    if error.errno == errno.ENOMEM:
        return SegmentError(f"{path}: no address space or too many mappings (see vm.max_map_count)")
    return SegmentError(f"{path}: cannot be read: {error.strerror}")


_unlooked = 0
