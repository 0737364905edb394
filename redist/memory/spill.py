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
import itertools
import logging
import mmap
import os
import stat as statmode
import threading
import time
from collections.abc import Sequence

from redist.errors import DiskFull, SegmentError
from redist.memory.arena import ARENA_SIZE, number_in
from redist.memory.headers import PAGE, SPILL_LINK, footprint, is_file_name
from redist.memory.locks import (
    LOCK_FILE,
    is_file_at,
    remove_empty_parent,
    remove_file,
    remove_tree,
    spilled_by,
    try_lock,
)
from redist.memory.machine import is_in_memory
from redist.memory.places import FULL, make_place
from redist.memory.space import available, format_size

__all__ = ["SpillDirectory", "spill_parent", "sweep_abandoned"]

logger = logging.getLogger("redist.memory")

_WRITING, _GONE = "writing-", "gone-"
_SEGMENTS = "segments"
_PIECE = 16 << 20
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_DIRECT = getattr(os, "O_DIRECT", 0)
#: Dropped payloads that are mapped are looked at again after so many seconds; a look takes a small part of the time.
_LOOK_AGAIN, _PART = 0.1, 50
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

    #: where it is made
    parent: str
    #: the directory, empty until something was spilled
    path: str
    #: file name -> bytes on disk
    files: dict[str, int]
    #: bytes on disk, those of dropped payloads too until they are given back
    used: int
    limit: int
    #: bytes of memory that are being written to disk
    leaving: int
    #: bytes of memory that could not be written there at the last try, since they are mapped
    viewed: int
    #: why nothing could be spilled at the last try, and what to do; empty since something was
    trouble: str

    def __init__(self, segments: str, parent: str = "", limit: int = 0) -> None:
        self.path = ""
        self.files = {}
        self.used = self.leaving = self.viewed = 0
        self.limit = limit
        self.closing = False
        self.trouble = ""
        self._short = False  # whether that is for lack of room
        #: paths and bytes of dropped payloads
        self._gone: list[tuple[str, int]] = []
        self._numbers = itertools.count(1)
        self._not_before = 0.0
        self._mutex = threading.Lock()
        self._segments = segments
        self.parent = os.path.abspath(parent) if parent else spill_parent()
        self._lock_fd = -1
        self._direct = bool(_DIRECT)

    def configure(self, parent: str, limit: int) -> None:
        """Say where the directory is made, unless it was taken over, and how much may be in it; see the parameters."""
        self.parent = os.path.abspath(parent) if parent else spill_parent()
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
            elif number_in(entry.name) is not None:
                self._count(entry.name, ARENA_SIZE)  # whoever adopts it punches out what it does not need
            elif entry.name.startswith((_WRITING, _GONE)):
                os.unlink(entry.path)

    def _ensure(self) -> None:
        """Make the directory, once more if somebody removed it or emptied it, so that its lock is nobody's."""
        with contextlib.suppress(NotADirectoryError):  # another error says nothing of the directory
            if self._lock_fd >= 0 and is_file_at(self._lock_fd, os.path.join(self.path, LOCK_FILE)):
                return
        before = self.path
        self._make()
        if before:
            logger.warning("%s: somebody has removed this spill directory; it was made again", before)

    def _make(self) -> None:
        if not self.parent and not self.path:
            raise DiskFull(
                "nothing can be spilled: the temporary directories are in memory; give a spill directory on a disk"
            )
        path = self.path or os.path.join(self.parent, os.path.basename(self._segments))
        parent = os.path.dirname(path)
        try:
            make_place(parent, log=False)
            sweep_abandoned(parent)
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
        except SegmentError as error:  # it is not ours alone
            raise DiskFull(f"nothing can be spilled: {error}") from error
        before, self.path, self._lock_fd = self._lock_fd, path, lock_fd
        if before >= 0:
            os.close(before)

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
        place = self.path or self.parent
        try:
            free = available(_existing(place) if place else "/")
        except OSError:  # it goes just now, or its disk fails
            return 0
        return max(0, min(free, self.limit - self.used) if self.limit else free)

    # --- payloads ---------------------------------------------------------------------------------------------------

    def has(self, file: str) -> bool:
        """Tell whether the payload with this file name is here."""
        return file in self.files

    def write(
        self, source: int, size: int, file: str, ranges: Sequence[tuple[int, int]] | None = None
    ) -> str:
        """Copy the file that is open at `source`; return the path of the unpublished copy.

        Parameters
        ----------
        source, size : int
            The file, and its size.
        file : str
            The name that it is to have here.
        ranges : sequence of (int, int), optional
            What of it is copied, from whole pages to whole pages; the rest becomes holes. It may be truncated meanwhile.

        Raises
        ------
        DiskFull
            If there is no room, or the disk cannot be written; `trouble` says so from then on.
        """
        try:
            return self._write(source, size, file, ranges)
        except DiskFull as error:
            self._note(error)
            raise

    def _note(self, error: DiskFull) -> None:
        cause = error.__cause__
        self._short = cause is None or (isinstance(cause, OSError) and cause.errno in FULL)
        self.trouble = str(error)

    def _write(self, source: int, size: int, file: str, ranges: Sequence[tuple[int, int]] | None) -> str:
        need = size if ranges is None else sum(end - start for start, end in ranges)
        if self.limit and self.used + footprint(need) > self.limit:
            raise DiskFull(
                f"{self.path or self.parent}: {format_size(self.used)} are spilled of at most {format_size(self.limit)},"
                f" {format_size(need)} more do not fit"
            )
        path = ""
        self.leaving += need
        try:
            self._ensure()
            path = os.path.join(self.path, _WRITING + file)
            target = self._open(path, _OPEN | os.O_CREAT | os.O_TRUNC)
            try:
                if ranges is None:
                    # Its blocks at once: a full disk says so here, and the file grows in large extents.
                    with contextlib.suppress(AttributeError):
                        _allocate(target, size)
                with _mapped(source, size, ranges is None) as mapped, memoryview(mapped) as view:
                    for start, end in ranges or [(0, size)]:
                        self._copy(view, target, start, min(end, size))
                os.ftruncate(target, size)
            finally:
                os.close(target)
        except BaseException as error:
            if path:
                self.discard(path)
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise
        finally:
            self.leaving -= need
        return path

    def _unwritable(self, error: OSError) -> DiskFull:
        place = self.path or os.path.join(self.parent, os.path.basename(self._segments))
        return DiskFull(f"{place}: nothing can be spilled there: {error.strerror}; {_mend(error)}")

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

    def _copy(self, view: memoryview, target: int, at: int, end: int) -> None:
        """Write `view` past the page cache: it is not read soon, and memory is what there is too little of."""
        whole = end - end % PAGE
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
        if whole < end:
            with mmap.mmap(
                -1, PAGE
            ) as page:  # whole pages from a page of its own, since direct writes know no others
                page[: end - whole] = view[whole:end]
                if os.pwrite(target, page, whole) != PAGE:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def publish(self, written: str, file: str, size: int) -> None:
        """Give a complete copy its name.

        Raises
        ------
        DiskFull
            If that cannot be, as when somebody has removed it; nothing of it is left then.
        """
        try:
            os.rename(written, os.path.join(self.path, file))
        except OSError as error:
            self.discard(written)
            full = self._unwritable(error)
            full.__cause__ = error
            self._note(full)
            raise full from error
        self._count(file, footprint(size))
        self.trouble = ""

    def _count(self, file: str, nbytes: int) -> None:
        with self._mutex:
            self.used += nbytes - self.files.get(file, 0)
            self.files[file] = nbytes

    def shrink(self, file: str, nbytes: int) -> None:
        """Count `nbytes` less for a file, of which they were given back."""
        left = self.files.get(file, 0) - nbytes
        if left > 0:
            self._count(file, left)
        else:
            self.forget(file)

    def forget(self, file: str) -> int | None:
        """Count a file no more; return what was counted, None if it was not here."""
        with self._mutex:
            nbytes = self.files.pop(file, None)
        self._free(nbytes or 0)
        return nbytes

    def discard(self, written: str) -> None:
        """Remove a copy that was not published."""
        with contextlib.suppress(OSError):
            os.unlink(written)

    def drop(self, file: str) -> bool:
        """Take a payload away, and tell whether it was here. What a reader maps of it stays valid.

        Its disk goes with `tidy`, once nobody maps it: the kernel takes 0.1 s for a GiB, and an event loop waits.
        """
        nbytes = self.files.pop(file, None) if self.files else None
        if nbytes is None:
            return False
        gone = f"{self.path}/{_GONE}{next(self._numbers)}"
        try:
            os.rename(f"{self.path}/{file}", gone)
        except OSError:  # somebody has removed it
            self._free(nbytes)
        else:
            with self._mutex:
                self._gone.append((gone, nbytes))
        return True

    def _free(self, nbytes: int) -> None:
        with self._mutex:
            self.used -= nbytes
            if nbytes and self._short:
                self.trouble = ""

    def vanished(self) -> list[str]:
        """Return the names of files that are counted here and that somebody has removed. Blocks."""
        counted = list(self.files)
        if not counted:
            return []
        try:
            found = set(os.listdir(self.path))
        except (FileNotFoundError, NotADirectoryError):
            found = set()
        except OSError:  # that says nothing of the files
            return []
        return [file for file in counted if file not in found and file in self.files]

    @property
    def untidy(self) -> bool:
        """Whether `tidy` is due."""
        return bool(self._gone) and time.monotonic() >= self._not_before

    def tidy(self) -> None:
        """Give back the disk of dropped payloads that nobody maps."""
        began = time.monotonic()
        with self._mutex:
            gone, self._gone = self._gone, []
        mapped = []
        for path, nbytes in gone:
            if remove_file(path, if_mapped=False):
                self._free(nbytes)
            else:
                mapped.append((path, nbytes))
        if mapped:
            with self._mutex:
                self._gone += mapped
            now = time.monotonic()
            self._not_before = now + max(_LOOK_AGAIN, _PART * (now - began))

    def read_into(self, file: str, target: int, ranges: Sequence[tuple[int, int]] | None = None) -> int:
        """Copy a file into the open file `target`, and return its size; of `ranges` only, as in `write`.

        Raises
        ------
        OSError
            If it is gone, or one of the two disks fails.
        """
        path = os.path.join(self.path, file)
        source = self._open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            size = os.fstat(source).st_size
            with mmap.mmap(-1, min(_PIECE, footprint(size))) as buffer, memoryview(buffer) as view:
                for start, end in ranges or [(0, footprint(size))]:
                    at = start
                    while at < min(end, size):
                        if self.closing:
                            raise InterruptedError(errno.EINTR, "the worker ends")
                        # whole pages, also at the end of the file: direct reads know no others
                        count = os.preadv(source, [view[: min(len(view), end - at)]], at)
                        if not count:
                            raise OSError(errno.EIO, f"{path} ends early")
                        done = 0
                        while done < count:
                            done += os.pwrite(target, view[done:count], at + done)
                        at += count
        finally:
            os.close(source)
        return size


def _mend(error: OSError) -> str:
    """Return what to do about a disk that cannot be written."""
    if error.errno in FULL:
        return "free space there, or give a spill directory on a larger disk"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "make the directory above it again, or give another spill directory"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "make it writable, or give another spill directory"
    return "see to that disk, or give another spill directory"


def _mapped(source: int, size: int, whole: bool) -> mmap.mmap:
    """Return the bytes of an open file to be written past the page cache, which takes whole pages."""
    if whole:
        return mmap.mmap(source, size, access=mmap.ACCESS_READ)
    # To touch a mapping of what is truncated meanwhile would be SIGBUS, and fill holes.
    buffer = mmap.mmap(-1, footprint(size) or PAGE)
    os.preadv(source, [buffer], 0)
    return buffer


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
    removed: list[str] = []
    try:
        entries = list(os.scandir(parent))
    except OSError:  # without rights: nothing was spilled there
        return removed
    for entry in entries:
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
