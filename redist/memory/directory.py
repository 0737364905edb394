"""The segment directory: payload files of one worker, with the lock that says whether the worker lives.

::

    /dev/shm/redist-UID/          0700, one a user
        DIRECTORY/                0700, one a worker
            id                    random id; who can read it here shares this host's memory
            lock                  flocked while the worker lives; first line: whose it is
            space                 the counters of `redist.memory.space`
            grant-RANDOM-N        being written
            HASH.ATTEMPT          a payload, see `redist.memory.headers`
            socket                the worker's local socket

Segments outlive the process that wrote them. A directory whose lock is free belonged to a worker that is gone: a
restarted worker adopts it, or anybody sweeps it.
"""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import secrets
import stat as statmode
import threading
import weakref
from collections.abc import Iterable
from heapq import nlargest

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.headers import Header, footprint, is_file_name, path_of, read_header
from redist.memory.host import ID_FILE, new_host_id, read_host_id
from redist.memory.locks import (
    BEING_MADE,
    LOCK_FILE,
    default_parent,
    lock_if_free,
    remove_empty_parent,
    remove_tree,
    try_lock,
)
from redist.memory.space import Space, format_size

__all__ = ["SegmentDirectory"]

logger = logging.getLogger("redist.memory")

SPACE_FILE = "space"
_GRANT = "grant-"
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


class SegmentDirectory:
    """The payload files that one living worker owns.

    Make one with `create` or `adopt`. Processes that only read or write granted files need no instance:
    `redist.memory.headers.path_of` and the broker's grants give them paths. Methods may be called from any thread.

    Parameters
    ----------
    path : str
        The directory.
    lock_fd : int
        Descriptor that holds its lock.
    """

    path: str
    hostid: str
    space: Space
    #: (name, attempt) -> bytes of memory that the file takes
    files: dict[tuple[str, int], int]
    #: the highest attempt of which there was a payload
    newest: int

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self.hostid = read_host_id(path) or ""
        self.space = Space(os.path.join(path, SPACE_FILE))
        self.files = {}
        self.newest = 0
        self._lock_fd = lock_fd
        self._mutex = threading.Lock()
        # a client may still write into a grant of the dead worker whose directory this was
        self._grant_prefix = f"{path}/{_GRANT}{secrets.token_hex(4)}-"
        self._grants = itertools.count(1)
        self._total = 0
        # dropped while a reader maps them: descriptor and bytes, still counted as used
        self._lingering: list[tuple[int, int]] = []
        _living.add(self)

    @classmethod
    def create(cls, parent: str | None = None, *, limit: int = 0, owner: str = "") -> SegmentDirectory:
        """Make a new directory.

        Parameters
        ----------
        parent : str, optional
            Where; default `default_parent`. It is made if it is missing, but nothing above it is.
        limit : int
            Most bytes of payloads; 0: what the file system has.
        owner : str
            One line that says whose it is, for `dead_directories`.

        Raises
        ------
        SegmentError
            If the parent is not ours alone, cannot be written, or lies in a directory that is not there.
        """
        given = parent is not None
        parent = os.path.abspath(default_parent() if parent is None else parent)
        path = os.path.join(parent, secrets.token_hex(16))
        lock_fd = _make(parent, path, log=given)
        directory = cls(path, lock_fd)
        directory._take(limit, owner)
        return directory

    @classmethod
    def adopt(cls, path: str, *, limit: int = 0, owner: str = "") -> SegmentDirectory:
        """Take over the directory of a worker that is gone, with the payloads found in it.

        What is unfinished or damaged in it is removed. `headers` lists what was found.

        Raises
        ------
        SegmentError
            If its worker lives, or it is no segment directory of this user.
        """
        path = os.path.abspath(path)
        lock_fd = lock_if_free(path)
        if lock_fd is None:
            raise SegmentError(f"{path}: its worker lives, or it is no segment directory of ours")
        try:
            directory = cls(path, lock_fd)
        except BaseException:
            os.close(lock_fd)
            raise
        if not directory.hostid:
            _write_file(os.path.join(path, ID_FILE), new_host_id().encode())
            directory.hostid = read_host_id(path) or ""
        for entry in os.scandir(path):
            if entry.name.startswith(_GRANT):
                os.unlink(entry.path)
            elif is_file_name(entry.name):
                directory._take_found(entry.path)
        directory._take(limit, owner)
        return directory

    def _take(self, limit: int, owner: str) -> None:
        self.space.reset(self._total, limit)
        text = f"{owner}\n{os.getpid()}\n".encode()
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, text, 0)

    def _take_found(self, path: str) -> None:
        try:
            header = read_header(path)
            stat = os.lstat(path)
            if not statmode.S_ISREG(stat.st_mode) or stat.st_uid != os.getuid():
                raise SegmentCorrupt(f"{path}: not a regular file of ours")
        except SegmentError as error:
            logger.warning("removing a damaged segment: %s", error)
            os.unlink(path)
            return
        size = footprint(stat.st_size)
        self.files[header.name, header.attempt] = size
        self.newest = max(self.newest, header.attempt)
        self._total += size

    # --- space and grants -------------------------------------------------------------------------------------------

    def reserve(self, nbytes: int) -> int:
        """Reserve memory for a file of `nbytes`, and return how much that is: whole pages.

        Raises
        ------
        SegmentsFull
            Naming the path, need, limit, free space and the largest keys.
        """
        need = footprint(nbytes)
        if self._lingering:
            self.reap()
        self.space.reserve(need, self.largest)
        return need

    def release(self, nbytes: int) -> None:
        """Give back what `reserve` returned."""
        self.space.release(nbytes)

    def new_grant(self) -> str:
        """Return the path of a new file to be written and then published under `path_of` a payload."""
        return f"{self._grant_prefix}{next(self._grants)}"

    def cancel_grant(self, path: str, reserved: int) -> None:
        """Remove what was written of a grant, and give its reservation back."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        self.space.release(reserved)

    # --- payloads ---------------------------------------------------------------------------------------------------

    def path_of(self, name: str, attempt: int) -> str:
        """Return the path of one attempt's payload of the key `name`."""
        return path_of(self.path, name, attempt)

    def has(self, name: str, attempt: int) -> bool:
        """Tell whether this payload is here."""
        return (name, attempt) in self.files

    def add(self, name: str, attempt: int, reserved: int) -> bool:
        """Record a published payload, whose file replaces the reservation of `reserved` bytes.

        Returns
        -------
        bool
            False if the file is not there (dropped before it was recorded); the reservation is given back then.
        """
        try:
            size = footprint(os.stat(self.path_of(name, attempt)).st_size)
        except FileNotFoundError:
            self.space.release(reserved)
            return False
        with self._mutex:
            before = self.files.get((name, attempt), 0)
            self.files[name, attempt] = size
            self.newest = max(self.newest, attempt)
            self._total += size - before
        if reserved + before != size:
            self.space.release(reserved + before - size)
        return True

    def drop(self, name: str, attempt: int) -> bool:
        """Remove a payload. Arrays that view it stay valid; its memory is counted until the last of them is gone.

        Returns
        -------
        bool
            Whether there was such a file.
        """
        path = self.path_of(name, attempt)
        with self._mutex:
            size = self.files.pop((name, attempt), 0)
            self._total -= size
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            self.space.release(size)
            return False
        mapped = not try_lock(fd)
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass
        if mapped and size:
            with self._mutex:
                self._lingering.append((fd, size))
        else:
            os.close(fd)
            self.space.release(size)
        return True

    def reap(self) -> int:
        """Give back the memory of dropped payloads that nobody maps any more; call it now and then.

        Returns
        -------
        int
            Bytes given back.
        """
        with self._mutex:
            looked, self._lingering = self._lingering, []
        kept = []
        freed = 0
        for fd, size in looked:
            if try_lock(fd):
                os.close(fd)
                freed += size
            else:
                kept.append((fd, size))
        with self._mutex:
            self._lingering += kept
        if freed:
            self.space.release(freed)
        return freed

    @property
    def total(self) -> int:
        """Bytes of memory that the payloads take."""
        return self._total

    @property
    def lingering(self) -> int:
        """Bytes of dropped payloads that somebody still maps."""
        return sum(size for _, size in self._lingering)

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """Return names and sizes of the largest payloads."""
        with self._mutex:
            return [
                (key[0], size) for key, size in nlargest(count, self.files.items(), key=lambda item: item[1])
            ]

    def headers(self) -> list[Header]:
        """Read the headers of all payloads here; what registering anew tells the server."""
        found = []
        for name, attempt in list(self.files):
            try:
                found.append(read_header(self.path_of(name, attempt)))
            except SegmentGone:
                pass
            except SegmentCorrupt as error:
                logger.warning("dropping a damaged segment: %s", error)
                self.drop(name, attempt)
        return found

    def sweep(self, keep: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Drop every recorded payload that is not in `keep`; return the dropped ones."""
        wanted = set(keep)
        orphans = [key for key in list(self.files) if key not in wanted]
        for name, attempt in orphans:
            self.drop(name, attempt)
        return orphans

    def close(self, *, remove: bool = True) -> None:
        """Let go of the directory.

        Parameters
        ----------
        remove : bool
            Remove it with all payloads; False leaves them to be adopted.
        """
        if self._lock_fd < 0:
            return
        _living.discard(self)
        if remove:
            remove_tree(self.path)
            remove_empty_parent(self.path)
        for fd, _ in self._lingering:
            os.close(fd)
        self._lingering = []
        self.space.close()
        os.close(self._lock_fd)
        self._lock_fd = -1

    def __repr__(self) -> str:
        return f"<SegmentDirectory {self.path}: {len(self.files)} payloads, {format_size(self._total)}>"


def _make(parent: str, path: str, *, log: bool) -> int:
    """Make the directory `path` below `parent`, locked from the moment it has its name; return the lock."""
    above = os.path.dirname(parent)
    if not os.path.isdir(above):
        # a mistyped path: payloads in a new directory of the root's disk would be a surprise
        raise SegmentError(
            f"{parent}: there is no directory {above}; make it, or give another segment directory"
        )
    making = os.path.join(parent, BEING_MADE + os.path.basename(path))
    for left in (2, 1, 0):
        try:
            try:
                os.mkdir(parent, 0o700)
            except FileExistsError:
                pass
            else:
                if log:
                    logger.info("made the directory %s for payloads", parent)
            _check_private(parent)
            os.mkdir(making, 0o700)
            _write_file(os.path.join(making, ID_FILE), new_host_id().encode())
            lock_fd = os.open(os.path.join(making, LOCK_FILE), _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(making, path)
            except BaseException:
                os.close(lock_fd)
                raise
            return lock_fd
        except FileNotFoundError as error:
            # the last worker of the user left meanwhile, and took the empty parent along
            if not left:
                raise SegmentError(
                    f"{parent}: no segment directory can be made there: {error.strerror}"
                ) from error
        except OSError as error:
            remove_tree(making)
            raise SegmentError(
                f"{parent}: no segment directory can be made there: {error.strerror}"
            ) from error
    raise AssertionError


def _check_private(parent: str) -> None:
    """Refuse a parent that another user made or can write: it could replace our files under us."""
    stat = os.lstat(parent)
    if not statmode.S_ISDIR(stat.st_mode):
        raise SegmentError(f"{parent}: not a directory; give another segment directory")
    if os.path.basename(parent) == f"redist-{os.getuid()}":
        if stat.st_uid != os.getuid():
            raise SegmentError(f"{parent}: belongs to user {stat.st_uid}; give another segment directory")
        if stat.st_mode & 0o077:
            os.chmod(parent, 0o700)


def _write_file(path: str, data: bytes) -> None:
    fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


_living: weakref.WeakSet[SegmentDirectory] = weakref.WeakSet()


def _forked() -> None:
    """Close the locks, and the dropped files, in a forked child: its parent alone is the living worker."""
    for directory in list(_living):
        os.close(directory._lock_fd)
        directory._lock_fd = -1
        for fd, _ in directory._lingering:
            os.close(fd)
        directory._lingering = []
    _living.clear()


os.register_at_fork(after_in_child=_forked)
