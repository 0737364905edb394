"""The segment directory: payload files of one worker, with the lock that says whether the worker lives.

::

    /dev/shm/redist-UID/          0700, one a user
        DIRECTORY/                0700, one a worker
            id                    random id; who can read it here shares this host's memory
            lock                  flocked while the worker lives; first line: whose it is
            space                 the counters of `redist.memory.space`
            touched               when payloads were last read, see `redist.memory.touched`
            spill                 link to where payloads lie on disk, see `redist.memory.spill`
            grant-RANDOM-N        being written
            HASH.ATTEMPT          a payload, see `redist.memory.headers`
            arena-NUMBER          many small payloads, see `redist.memory.arena`
            index                 where each of them lies, see `redist.memory.index`
            socket                the worker's local socket

Segments outlive the process that wrote them. A directory whose lock is free belonged to a worker that is gone: a
restarted worker adopts it, or anybody sweeps it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat as statmode
import threading
import time
import weakref
from collections.abc import Iterable
from heapq import nlargest

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.arena import number_in
from redist.memory.arenas import Arenas
from redist.memory.collapser import Collapser
from redist.memory.grants import GRANT_FILE, Grants
from redist.memory.headers import (
    Header,
    file_name,
    find_header,
    footprint,
    is_file_name,
    path_of,
    read_header,
    spilled_path,
)
from redist.memory.holes import KEPT_FROM, LARGE, punch
from redist.memory.host import ID_FILE, new_host_id, read_host_id
from redist.memory.lingering import Dropped, Lingering
from redist.memory.locks import (
    default_parent,
    is_file_at,
    lock_if_free,
    remove_empty_parent,
    remove_file,
    remove_tree,
    try_lock,
)
from redist.memory.making import make_directory, write_file
from redist.memory.pool import POOL_FILE, Pool
from redist.memory.space import Space, Standing, capacity, format_size
from redist.memory.spill import SpillDirectory
from redist.memory.touched import Touched

__all__ = ["SegmentDirectory"]

logger = logging.getLogger("redist.memory")

SPACE_FILE = "space"
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: The pool holds at most one in so many bytes.
_POOLED = 4


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
    #: its worker's name for errors, empty until there is one
    worker: str
    space: Space
    #: (name, attempt) -> bytes of memory that the payload takes; of a large one 0 while it lies on disk
    files: dict[tuple[str, int], int]
    #: those of them that have a file of their own
    large: dict[tuple[str, int], int]
    #: the small ones
    arenas: Arenas
    #: what lies on disk
    spill: SpillDirectory
    touched: Touched
    #: leave to write payloads
    grants: Grants

    def __init__(self, path: str, lock_fd: int) -> None:
        self.path = path
        self.worker = ""
        self.hostid = read_host_id(path) or ""
        self.space = Space(os.path.join(path, SPACE_FILE))
        self.touched = Touched(path)
        self.spill = SpillDirectory(path)
        self.files = {}
        self.large = {}
        self._newest = 0
        self._lock_fd = lock_fd
        #: held while a payload that has a file of its own moves between memory and disk, or is forgotten
        self.mutex = self._mutex = threading.Lock()
        self.arenas = Arenas(path, self.space, self.spill, self.files, self._mutex)
        self._total = 0
        self.pool = Pool(path)
        self._collapser = Collapser()
        self._lingering = Lingering(self.space, self.pool)
        self.space.standing = self._standing
        self.grants = Grants(path, self.space, self._lingering, self.arenas, self.largest)
        # the process of the host that wrote a payload with a file of its own
        self._writers: dict[tuple[str, int], int] = {}
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
        lock_fd = make_directory(parent, path, log=given)
        directory = cls(path, lock_fd)
        directory._take(0, limit, owner)
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
        try:
            directory._take_all(limit, owner)
        except BaseException:
            directory.close(remove=False)
            raise
        return directory

    def _take_all(self, limit: int, owner: str) -> None:
        if not self.hostid:
            write_file(os.path.join(self.path, ID_FILE), new_host_id().encode())
            self.hostid = read_host_id(self.path) or ""
        for entry in os.scandir(self.path):
            # clients that live on may remove theirs at the same time
            if entry.name.startswith(POOL_FILE):
                remove_file(entry.path)  # with its memory: who wrote it may have kept a mapping
            elif entry.name.startswith(GRANT_FILE):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
            elif is_file_name(entry.name):
                self._take_found(entry.path)
        self._take_spilled()
        arenas = self.arenas.adopt()
        self.tidy()
        self._take(self._total + arenas, limit, owner)

    def _take(self, used: int, limit: int, owner: str) -> None:
        self.space.reset(used, limit)
        # a limit may be more than there is for this worker and others
        room = min(limit, capacity(self.path)) if limit else self.space.available_on_disk()
        self.pool.cap = room // _POOLED
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
            if isinstance(error, SegmentGone):
                return
            logger.warning("removing a damaged segment: %s", error)
            with contextlib.suppress(OSError):  # a directory stays
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        size = footprint(stat.st_size)
        self._note((header.name, header.attempt), size)
        self._newest = max(self._newest, header.attempt)
        self._total += size

    def _take_spilled(self) -> None:
        self.spill.take_over()
        for file in list(self.spill.files):
            if number_in(file) is not None:
                continue
            try:
                header = read_header(f"{self.spill.path}/{file}")
            except SegmentError as error:
                logger.warning("removing a damaged segment: %s", error)
                self.spill.drop(file)
                continue
            if (header.name, header.attempt) in self.files:
                self.spill.drop(file)  # it was being moved
            else:
                self._note((header.name, header.attempt), 0)
                self._newest = max(self._newest, header.attempt)

    def _note(self, copy: tuple[str, int], size: int) -> None:
        self.files[copy] = self.large[copy] = size

    def _forget(self, copy: tuple[str, int]) -> int:
        self.large.pop(copy, None)
        return self.files.pop(copy, 0)

    # --- payloads ---------------------------------------------------------------------------------------------------

    def path_of(self, name: str, attempt: int) -> str:
        """Return the path of one attempt's payload of the key `name`."""
        return path_of(self.path, name, attempt)

    def has(self, name: str, attempt: int) -> bool:
        """Tell whether this payload is here."""
        return (name, attempt) in self.files

    def add(self, name: str, attempt: int, reserved: int, writer: int = 0) -> bool:
        """Record a published payload of the process `writer`, whose file replaces the reservation of `reserved` bytes.

        Returns
        -------
        bool
            False if the file is not there (dropped before it was recorded); the reservation is given back then.
        """
        with self._mutex:
            try:  # with the lock: what is dropped meanwhile is not recorded then
                stat = os.stat(self.path_of(name, attempt))
            except FileNotFoundError:
                self.space.release(reserved)
                return False
            size = footprint(stat.st_size)
            before = self.files.get((name, attempt), 0)
            self._note((name, attempt), size)
            self._newest = max(self._newest, attempt)
            self._total += size - before
            self.touched.note(file_name(name, attempt))
            if writer:
                self._writers[name, attempt] = writer
        if reserved + before != size:
            self.space.release(reserved + before - size)
        self._collapser.add(self.path_of(name, attempt), stat)
        return True

    def drop(self, name: str, attempt: int, *, recycle: bool = True) -> bool:
        """Remove a payload. Arrays that view it stay valid; its memory is counted until the last of them is gone.

        Parameters
        ----------
        name, attempt
            The payload.
        recycle : bool
            Keep its file for the next one; False gives the memory back to the system, with `trim` or `reap`.

        Returns
        -------
        bool
            Whether there was such a file.
        """
        if self.arenas.has(name, attempt):
            return bool(self.arenas.drop([(name, attempt)]))
        path = self.path_of(name, attempt)
        with self._mutex:
            small = self.arenas.has(name, attempt)  # it came since
            size = 0 if small else self._forget((name, attempt))
            writer = self._writers.pop((name, attempt), 0)
            self._total -= size
            if self.spill.drop(os.path.basename(path)) and not size:
                return True
        if small:
            return bool(self.arenas.drop([(name, attempt)]))
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            self.space.release(size)
            with contextlib.suppress(OSError):
                os.unlink(path)  # it is there, and no more files can be opened
                return True
            self.arenas.drop([(name, attempt)])  # written, and not told of yet
            return False
        # what somebody has put in its place, or cut off, is not written again
        stat = os.fstat(fd)
        recycle = recycle and statmode.S_ISREG(stat.st_mode) and footprint(stat.st_size) == size
        file = Dropped(fd, path, size, writer, recycle)
        mapped = not try_lock(fd)
        try:
            if size and (mapped or size >= LARGE):
                file.path = self.pool.new_path()
                os.rename(path, file.path)
            else:
                if size >= KEPT_FROM:
                    punch(fd)
                os.unlink(path)
                if not size and not mapped:
                    punch(fd)  # not told of yet: its writer keeps a mapping
                file.path = ""
        except FileNotFoundError:
            file.path = ""
        if mapped and size:
            self._lingering.add(file)
        else:
            self._lingering.bury(file)
        if not size:
            self._unrecord(name, attempt, path)
        return True

    def _unrecord(self, name: str, attempt: int, path: str) -> None:
        """Forget a payload that was recorded between the look for its record and the end of its file."""
        with self._mutex:
            size = 0 if os.path.exists(path) else self.files.get((name, attempt), 0)
            if not size or self.arenas.has(name, attempt):
                return
            self._forget((name, attempt))
            self._writers.pop((name, attempt), None)
            self._total -= size
        self.space.release(size)

    def drop_all(self, payloads: Iterable[tuple[str, int]]) -> None:
        """Remove several payloads, the small ones together."""
        small = []
        for name, attempt in payloads:
            if self.arenas.has(name, attempt):
                small.append((name, attempt))
            else:
                self.drop(name, attempt)
        self.arenas.drop(small)

    def leave_memory(self, name: str, attempt: int, fd: int, written: str) -> int:
        """Let a payload's memory go for its copy on disk, unless somebody maps it or it went meanwhile.

        Parameters
        ----------
        name, attempt : str and int
            The payload.
        fd : int
            Its file in memory, open for writing.
        written : str
            The complete copy, from `SpillDirectory.write`, which is published.

        Returns
        -------
        int
            Bytes of memory that are to be given back with `give_back`; 0 if it stays.
        """
        path = self.path_of(name, attempt)
        with self._mutex:
            size = self.files.get((name, attempt), 0)
            # The order is that of readers: the lock first, then the path.
            if not size or not try_lock(fd) or not is_file_at(fd, path):
                return 0
            nbytes = os.fstat(fd).st_size
            self.spill.publish(written, os.path.basename(path), nbytes)
            os.unlink(path)
            self._note((name, attempt), 0)
            self._total -= size
        return size

    def give_back(self, fd: int, size: int) -> None:
        """Give back the memory of a file that `leave_memory` has taken away."""
        punch(fd)  # its writer may have kept a mapping
        self.space.release(size)

    def enter_memory(self, name: str, attempt: int, written: str, reserved: int) -> bool:
        """Have a payload that lies on disk in memory again; return whether it is still wanted.

        Parameters
        ----------
        name, attempt : str and int
            The payload.
        written : str
            The complete copy in memory.
        reserved : int
            What was reserved for it.
        """
        path = self.path_of(name, attempt)
        file = os.path.basename(path)
        with self._mutex:
            if self.files.get((name, attempt)) != 0 or not self.spill.has(file):
                return False
            os.rename(written, path)
            self._note((name, attempt), reserved)
            self._total += reserved
            self._writers.pop((name, attempt), None)  # it has no mapping of this file
            self.spill.drop(file)
        return True

    @property
    def due(self) -> bool:
        """Whether `reap` may give something back."""
        return self.arenas.due or self.spill.untidy or self._lingering.due or bool(self.pool.total)

    def tidy(self) -> None:
        """Give back the disk of what was dropped there."""
        self.arenas.files.tidy()
        self.spill.tidy()

    def trim(self, need: int = 0) -> int:
        """Give back pooled memory that is too old or too much, and `need` bytes at least if there are as many."""
        return self._lingering.trim(need)

    def reap(self) -> int:
        """Give back what dropped payloads take that nobody maps any more, and pooled memory that nobody used.

        Call it now and then, and not in an event loop: the kernel takes 0.1 s for a GiB, a disk longer.

        Arenas that nobody writes to any more give back what they do not need, which is not counted.

        Returns
        -------
        int
            Bytes of memory given back.
        """
        self.tidy()
        return self.grants.reap()

    @property
    def total(self) -> int:
        """Bytes of memory that the payloads take."""
        return self._total + self.arenas.total

    @property
    def newest(self) -> int:
        """The highest attempt of which there was a payload."""
        return max(self._newest, self.arenas.newest)

    @property
    def lingering(self) -> int:
        """Bytes of dropped payloads that somebody still maps."""
        return self._lingering.total + self.arenas.files.lingering

    def _standing(self) -> Standing:
        spill = self.spill
        return Standing(
            self.worker, self.lingering, self.pool.total, spill.leaving, spill.viewed, spill.trouble
        )

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """Return names and sizes of the largest payloads in memory."""
        with self._mutex:
            here = (item for item in self.files.items() if not self.arenas.is_spilled(*item[0]))
            return [(key[0], size) for key, size in nlargest(count, here, key=lambda item: item[1])]

    def header(self, name: str, attempt: int) -> Header:
        """Read the header of a payload.

        Raises
        ------
        SegmentGone
            If it is not here.
        SegmentCorrupt
            If it is damaged.
        """
        if self.arenas.has(name, attempt):
            return self.arenas.header(name, attempt)
        return find_header(self.path_of(name, attempt))

    def put_small(self, header: Header, data: memoryview) -> bool:
        """Write a small payload as the worker itself; return False if there is no space for an arena."""
        return self.arenas.put(header, data, self.largest)

    def age(self, name: str, attempt: int) -> float:
        """Return for how many seconds a payload has been here, at least; 0 if it is not."""
        if self.arenas.has(name, attempt):
            return self.arenas.age(name, attempt)
        path = self.path_of(name, attempt)
        for place in (path, spilled_path(path)):
            with contextlib.suppress(FileNotFoundError):
                return time.time() - os.stat(place).st_ctime
        return 0.0

    def written_by(self, writer: int) -> list[tuple[str, int]]:
        """Return the payloads here that the process `writer` has written, but for those that came back from disk."""
        with self._mutex:
            large = [copy for copy, process in self._writers.items() if process == writer]
        return large + self.arenas.written_by(writer)

    def headers(self) -> list[Header]:
        """Read the headers of all payloads here; what registering anew tells the server."""
        found = []
        for name, attempt in list(self.files):
            try:
                found.append(self.header(name, attempt))
            except SegmentCorrupt as error:
                logger.warning("dropping a damaged segment: %s", error)
                self.drop(name, attempt)
            except SegmentError:  # it is gone, or cannot be looked at just now
                pass
        return found

    def sweep(self, keep: Iterable[tuple[str, int]]) -> list[tuple[str, int]]:
        """Drop every recorded payload that is not in `keep`; return the dropped ones."""
        wanted = set(keep)
        orphans = [key for key in list(self.files) if key not in wanted]
        self.drop_all(orphans)
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
        self._collapser.close()
        self.grants.ready.close()
        self.spill.close(remove=remove)
        self.touched.close()
        if remove:
            remove_tree(self.path)
            remove_empty_parent(self.path)
        self._lingering.close()
        self.arenas.close()
        self.space.close()
        os.close(self._lock_fd)
        self._lock_fd = -1

    def __repr__(self) -> str:
        return f"<SegmentDirectory {self.path}: {len(self.files)} payloads, {format_size(self.total)}>"


_living: weakref.WeakSet[SegmentDirectory] = weakref.WeakSet()


def _forked() -> None:
    """Close the locks, and the dropped files, in a forked child: its parent alone is the living worker."""
    for directory in list(_living):
        os.close(directory._lock_fd)
        directory._lock_fd = -1
        directory.spill.forked()
        directory._collapser.forked()
        directory.grants.ready.forked()
        directory._lingering.close()
    _living.clear()


os.register_at_fork(after_in_child=_forked)
