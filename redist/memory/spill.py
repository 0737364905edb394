"""Payloads on disk: what a worker's memory has no room for lies in a directory of its own, in the same files.

::

    TEMPORARY DIRECTORY/redist-spill-UID/     0700, one a user
        DIRECTORY/                            0700, named as the segment directory
            lock                              flocked while the worker lives
            segments                          link to the segment directory, which has a link `spill` to here
            writing-HASH.ATTEMPT              being written
            HASH.ATTEMPT                      a payload, the same bytes as its file in memory had

A payload is in one place, or for a moment in both: it is complete here before it leaves memory, and complete in memory
before it leaves here. So who does not find it in one place finds it in the other. The directory is made when something is
first spilled.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os
import stat as statmode
import time

from redist.errors import DiskFull, SegmentError
from redist.memory.headers import PAGE, SPILL_LINK, footprint, is_file_name
from redist.memory.locks import (
    LOCK_FILE,
    check_private,
    remove_empty_parent,
    remove_file,
    remove_tree,
    spilled_by,
    try_lock,
)
from redist.memory.machine import is_in_memory
from redist.memory.space import available, format_size

__all__ = ["SpillDirectory", "spill_parent", "sweep_abandoned"]

logger = logging.getLogger("redist.memory")

_WRITING = "writing-"
_SEGMENTS = "segments"
_PIECE = 16 << 20
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECT = getattr(os, "O_DIRECT", 0)
#: Age in seconds from which a directory goes whose worker and whose segments are gone.
_ABANDONED = 300.0


def spill_parent() -> str:
    """Return where spill directories go by default: a temporary directory that is on a disk, empty if there is none."""
    import tempfile

    for base in (tempfile.gettempdir(), "/var/tmp"):  # noqa: S108 -- what lies in it is owner-only
        if os.path.isdir(base) and os.access(base, os.W_OK | os.X_OK) and not is_in_memory(base):
            return os.path.join(base, f"redist-spill-{os.getuid()}")
    return ""


class SpillDirectory:
    """The payloads of one segment directory that lie on disk.

    Files are written and removed by any thread; who moves payloads calls one method at a time.

    Parameters
    ----------
    segments : str
        The segment directory.
    parent : str
        Where the directory is made; empty: `spill_parent`.
    limit : int
        Most bytes on disk; 0: what the file system has.
    """

    #: the directory, empty until something was spilled
    path: str
    #: file name -> bytes on disk
    files: dict[str, int]
    #: their sum
    used: int
    limit: int

    def __init__(self, segments: str, parent: str = "", limit: int = 0) -> None:
        self.path = ""
        self.files = {}
        self.used = 0
        self.limit = limit
        self.closing = False
        self._segments = segments
        self._parent = os.path.abspath(parent) if parent else spill_parent()
        self._lock_fd = -1
        self._direct = bool(_DIRECT)

    def configure(self, parent: str, limit: int) -> None:
        """Say where the directory is made, unless it was taken over, and how much may be in it; see the parameters."""
        self._parent = os.path.abspath(parent) if parent else spill_parent()
        self.limit = limit

    # --- the directory ----------------------------------------------------------------------------------------------

    def take_over(self) -> None:
        """Take the payloads that a dead worker of the segment directory has spilled; what is unfinished is removed."""
        link = os.path.join(self._segments, SPILL_LINK)
        path = spilled_by(self._segments)
        if not path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
            return
        lock_fd = os.open(os.path.join(path, LOCK_FILE), _OPEN | os.O_CREAT, 0o600)
        if not try_lock(lock_fd):
            os.close(lock_fd)
            raise SegmentError(f"{path}: its worker lives")
        self.path, self._lock_fd = path, lock_fd
        for entry in os.scandir(path):
            if is_file_name(entry.name) and entry.is_file(follow_symlinks=False):
                self._count(entry.name, footprint(entry.stat(follow_symlinks=False).st_size))
            elif entry.name.startswith(_WRITING):
                os.unlink(entry.path)

    def _make(self) -> None:
        if not self._parent:
            raise DiskFull(
                "nothing can be spilled: the temporary directories are in memory; give a spill directory on a disk"
            )
        path = os.path.join(self._parent, os.path.basename(self._segments))
        try:
            os.makedirs(self._parent, mode=0o700, exist_ok=True)
            check_private(self._parent)
            sweep_abandoned(self._parent)
            # whoever died while it made the directory has left a part, without a payload
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            stat = os.lstat(path)
            if not statmode.S_ISDIR(stat.st_mode) or stat.st_uid != os.getuid():
                raise SegmentError(f"{path}: not a directory of ours")
            lock_fd = os.open(os.path.join(path, LOCK_FILE), _OPEN | os.O_CREAT, 0o600)
            try:
                if not try_lock(lock_fd):
                    raise SegmentError(f"{path}: somebody else has locked it")
                _link(self._segments, os.path.join(path, _SEGMENTS))
                _link(path, os.path.join(self._segments, SPILL_LINK))
            except BaseException:
                os.close(lock_fd)
                raise
        except OSError as error:
            raise DiskFull(f"{path}: nothing can be spilled there: {error.strerror}") from error
        self.path, self._lock_fd = path, lock_fd

    def close(self, *, remove: bool = True) -> None:
        """Let go of the directory; with `remove` it goes with all that is in it."""
        self.closing = True
        if self._lock_fd < 0:
            return
        if remove:
            remove_tree(self.path)
            remove_empty_parent(self.path)
        os.close(self._lock_fd)
        self._lock_fd = -1

    def forked(self) -> None:
        """Let go of the lock in a forked child."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    @property
    def room(self) -> int:
        """How many bytes may still be spilled."""
        free = available(self.path or (self._parent and _existing(self._parent)) or "/")
        return max(0, min(free, self.limit - self.used) if self.limit else free)

    # --- payloads ---------------------------------------------------------------------------------------------------

    def has(self, file: str) -> bool:
        """Tell whether the payload with this file name is here."""
        return file in self.files

    def write(self, source: int, size: int, file: str) -> str:
        """Copy the payload that is open at `source`, of `size` bytes; return the path of the unpublished copy.

        Raises
        ------
        DiskFull
            If there is no room, or the disk cannot be written.
        """
        if self.limit and self.used + footprint(size) > self.limit:
            raise DiskFull(
                f"{self.path or self._parent}: {format_size(self.used)} are spilled of at most {format_size(self.limit)},"
                f" {format_size(size)} more do not fit"
            )
        if not self.path:
            self._make()
        path = os.path.join(self.path, _WRITING + file)
        try:
            target = self._open(path, _OPEN | os.O_CREAT | os.O_TRUNC)
            try:
                with mmap.mmap(source, size, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                    self._copy(view, target, size)
            finally:
                os.close(target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(path)
            if isinstance(error, OSError):
                raise DiskFull(
                    f"{self.path}: {format_size(size)} cannot be spilled: {error.strerror}"
                ) from error
            raise
        return path

    def _open(self, path: str, flags: int) -> int:
        """Open a file past the page cache if the file system can do that."""
        if self._direct:
            try:
                return os.open(path, flags | _DIRECT, 0o600)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._direct = False  # this file system has no direct writes
        return os.open(path, flags, 0o600)

    def _copy(self, view: memoryview, target: int, size: int) -> None:
        """Write `view` past the page cache: it is not read soon, and memory is what there is too little of."""
        whole = size - size % PAGE
        # Its blocks at once: a full disk says so here, and the file grows in large extents.
        with contextlib.suppress(AttributeError):
            _allocate(target, size)
        at = 0
        while at < whole:
            if self.closing:
                raise InterruptedError(errno.EINTR, "the worker ends")
            try:
                at += os.pwrite(target, view[at : min(at + _PIECE, whole)], at)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                self._direct = False
                _buffered(target)
            if (
                at % PAGE
            ):  # a short write, as when the disk is nearly full: direct writes begin at whole pages
                at -= at % PAGE
        if whole < size:
            with mmap.mmap(
                -1, PAGE
            ) as page:  # whole pages from a page of its own, since direct writes know no others
                page[: size - whole] = view[whole:]
                if os.pwrite(target, page, whole) != PAGE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(target, size)

    def publish(self, written: str, file: str, size: int) -> None:
        """Give a complete copy its name."""
        os.rename(written, os.path.join(self.path, file))
        self._count(file, footprint(size))

    def _count(self, file: str, nbytes: int) -> None:
        self.used += nbytes - self.files.get(file, 0)
        self.files[file] = nbytes

    def discard(self, written: str) -> None:
        """Remove a copy that was not published."""
        with contextlib.suppress(OSError):
            os.unlink(written)

    def drop(self, file: str) -> bool:
        """Remove a payload, and tell whether it was here. What a reader maps of it stays valid."""
        nbytes = self.files.pop(file, None) if self.files else None
        if nbytes is None:
            return False
        self.used -= nbytes
        remove_file(os.path.join(self.path, file))
        return True

    def read_into(self, file: str, target: int) -> int:
        """Copy a payload into the open file `target`, and return its size.

        Raises
        ------
        OSError
            If it is gone, or one of the two disks fails.
        """
        path = os.path.join(self.path, file)
        source = self._open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = os.fstat(source).st_size
            with mmap.mmap(-1, min(_PIECE, footprint(size))) as buffer, memoryview(buffer) as view:
                at = 0
                while at < size:
                    if self.closing:
                        raise InterruptedError(errno.EINTR, "the worker ends")
                    count = os.preadv(source, [view], at)
                    if not count:
                        raise OSError(errno.EIO, f"{path} ends early")
                    done = 0
                    while done < count:
                        done += os.pwrite(target, view[done:count], at + done)
                    at += count
        finally:
            os.close(source)
        return size


def _link(target: str, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.symlink(target, path)


def _allocate(fd: int, size: int) -> None:
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise


def _buffered(fd: int) -> None:
    import fcntl

    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~_DIRECT)


def sweep_abandoned(parent: str, older_than: float = _ABANDONED) -> list[str]:
    """Remove what dead workers spilled whose segment directories are gone, as after the machine was started anew."""
    removed = []
    for entry in os.scandir(parent):
        try:
            if not entry.is_dir(follow_symlinks=False) or time.time() - entry.stat().st_mtime < older_than:
                continue
            if os.path.lexists(os.readlink(os.path.join(entry.path, _SEGMENTS))):
                continue
            fd = os.open(os.path.join(entry.path, LOCK_FILE), _OPEN)
        except OSError:
            continue
        if try_lock(fd):
            remove_tree(entry.path)
            removed.append(entry.path)
        os.close(fd)
    return removed


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
