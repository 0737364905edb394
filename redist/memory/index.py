"""Where the small payloads of a segment directory lie: a hash table in a file, shared by all processes of the host.

::

    word 0          magic
    word 1          not 0 once another file has taken, or is about to take, the place of this one
    word 2          slots, a power of two
    word 3          slots that are not empty, or more
    word 4          when an arena was last moved between memory and disk, or this table was made: monotonic time, ns
    from word 8     slots of four words: name, key, arena, place

    name, key       hash of the key's name, the second half mixed with the attempt; name 0: empty, 1: removed
    arena           number of the arena
    place           offset in the arena * 2**32 + length of the record

A word is a native unsigned integer of 8 bytes. Who changes the table holds ``flock`` on it; who looks something up holds
nothing. That works since an entry never moves within a file, its name is written last and removed first, and what was found
is verified: by the record, which repeats hash and attempt, and by a second look at the slot after the record was read. A
table that is too full is copied into a new file, and marked before that takes its place. Nothing is half changed for long if
a process dies on the way: the kernel drops its lock, the count of slots is raised before a slot is filled, and a mark
without a new file is taken off by the next who has the lock.

An arena that moves keeps its number and its entries. Word 4 changes once its old file has lost its name, and before that
loses its bytes, so the second look tells of moves as well. Only the worker changes it, without the lock.

The file is never cut short, and all of it is allocated when it is made, so its mappings raise no SIGBUS.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import secrets
import struct
import threading
import time
from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.space import available, full_error

if TYPE_CHECKING:
    Words = memoryview[int]

__all__ = [
    "FIRST",
    "INDEX_FILE",
    "MOVED",
    "REMOVED",
    "SLOTS",
    "STEP",
    "Entry",
    "Found",
    "Index",
    "digest_of",
    "hash_of",
    "make_index",
    "retire_index",
]

INDEX_FILE = "index"
MAKING = "index.new-"

_MAGIC = int.from_bytes(b"redistI\x01", "little")
MOVED, SLOTS, _USED, STAMP = 1, 2, 3, 4
FIRST = 8
STEP = 4
_EMPTY, REMOVED = 0, 1
_SMALLEST = 512
_HASH = struct.Struct("<QQ")
_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_PAUSE = 0.001


class Entry(NamedTuple):
    """What a slot says: the hash of `hash_of`, the number of the arena, offset and length of the record."""

    name: int
    key: int
    arena: int
    place: int


class Found(NamedTuple):
    """A slot in which a key was found: its table, its first word, what it says, and when an arena was last moved."""

    table: _Table
    at: int
    arena: int
    place: int
    stamp: int


def digest_of(name: str) -> bytes:
    """Return the hash of a key's name."""
    return blake2b(name.encode(), digest_size=16).digest()


def hash_of(digest: bytes, attempt: int) -> tuple[int, int]:
    """Return the first two words of a slot."""
    name, key = _HASH.unpack(digest)
    return (name if name > REMOVED else name + 2), key ^ attempt


class _Table:
    """One index file, mapped."""

    __slots__ = ("fd", "id", "mask", "words")

    def __init__(self, path: str, *, writable: bool) -> None:
        try:
            self.fd = os.open(path, _OPEN if writable else os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise SegmentGone(f"{path}: the segment directory is gone") from None
        except OSError as error:
            raise SegmentError(f"{path}: cannot be opened: {error.strerror}") from error
        try:
            stat = os.fstat(self.fd)
            self.id = stat.st_dev, stat.st_ino
            size = stat.st_size
            if size < _bytes_of(1) or size % 8:
                raise SegmentCorrupt(f"{path}: {size} bytes are no index")
            mapped = mmap.mmap(self.fd, size, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
            self.words: Words = memoryview(mapped).cast("Q")
            slots = self.words[SLOTS]
            if self.words[0] != _MAGIC or slots & (slots - 1) or not slots or _bytes_of(slots) != size:
                raise SegmentCorrupt(f"{path}: not an index of this version of redist, or damaged")
        except OSError as error:
            raise SegmentError(f"{path}: cannot be mapped: {error.strerror}") from error
        self.mask = slots - 1

    def lock(self, until: float | None) -> bool:
        """Wait until nobody else has the lock; return False if that is later than `until`."""
        if until is None:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            return True
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= until:
                    return False
                time.sleep(_PAUSE)

    def unlock(self) -> None:
        # The mapping has a duplicate of the descriptor: closing that would not do.
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class Index:
    """The index of one segment directory.

    Lookups may be made from any thread. Changes are made between `lock` and `unlock`.

    Parameters
    ----------
    segments : str
        The segment directory.
    writable : bool
        Whether changes are made.

    Raises
    ------
    SegmentGone
        If there is no such directory, or no index in it.
    SegmentCorrupt
        If the index is none.
    """

    path: str

    def __init__(self, segments: str, *, writable: bool = False) -> None:
        self.path = f"{segments}/{INDEX_FILE}"
        self._writable = writable
        self._pid = os.getpid()
        self._mutex = threading.Lock()
        self._table = _Table(self.path, writable=writable)
        self._held = self._table

    # --- looking something up ---------------------------------------------------------------------------------------

    def find(self, name: int, key: int) -> Found | None:
        """Return where the record of a key (`hash_of` its name and attempt) lies, None if it has none.

        Raises
        ------
        SegmentGone
            If the directory is gone.
        """
        table = self._table
        if table.words[MOVED]:
            table = self._newest(table)
        while True:
            words, mask = table.words, table.mask
            stamp = words[STAMP]  # first: an arena that is moved from now on is noticed
            slot = (name ^ key) & mask
            for _ in range(mask + 1):
                at = FIRST + STEP * slot
                word = words[at]
                if word == name and words[at + 1] == key:
                    return Found(table, at, words[at + 2], words[at + 3], stamp)
                if word == _EMPTY:
                    break
                slot = slot + 1 & mask
            # what is missing here may have been added to a newer one
            newest = self._newest(table) if words[MOVED] else table
            if newest is table:
                return None
            table = newest

    def says(self, name: int, key: int, arena: int, place: int) -> bool:
        """Tell whether a key's record lies there."""
        found = self.find(name, key)
        return found is not None and found[2] == arena and found[3] == place

    def stands(self, found: Found) -> bool:
        """Tell whether the slot still says the same and no arena was moved: then nothing that it names was given back.

        Raises
        ------
        SegmentGone
            If the directory is gone.
        """
        table, at, arena, place, stamp = found
        words = table.words
        return (
            words[at] > REMOVED
            and words[at + 2] == arena
            and words[at + 3] == place
            and words[STAMP] == stamp
            and (not words[MOVED] or self._newest(table) is table)
        )

    def _newest(self, table: _Table) -> _Table:
        """Return the table in force; `table` itself if nothing has taken its place yet."""
        try:
            stat = os.stat(self.path)
        except OSError:
            raise SegmentGone(f"{self.path}: the segment directory is gone") from None
        if (stat.st_dev, stat.st_ino) != table.id:
            self._table = table = _Table(self.path, writable=self._writable)
        return table

    def entries(self) -> list[Entry]:
        """Return all entries."""
        return _entries(self.words())

    def words(self) -> Words:
        """Return the table in force, to be read."""
        table = self._table
        return (self._newest(table) if table.words[MOVED] else table).words

    @property
    def stamp(self) -> int:
        """When an arena was last moved, as `Found.stamp`."""
        return self.words()[STAMP]

    @property
    def slots(self) -> int:
        """How many slots the table has."""
        return self._table.mask + 1

    @property
    def extra(self) -> int:
        """Bytes that the table takes beyond the smallest one."""
        return _bytes_of(self.slots) - _bytes_of(min(self.slots, _SMALLEST))

    # --- changes ----------------------------------------------------------------------------------------------------

    def lock(self, patience: float | None = None) -> bool:
        """Begin to change the table; return False if somebody else does for longer than `patience` seconds.

        Raises
        ------
        SegmentGone
            If the directory is gone.
        """
        if self._pid != os.getpid():
            # a forked child shares its parent's open file, and with it the lock: it needs a file of its own
            self._pid = os.getpid()
            self._mutex = threading.Lock()
            self._table = _Table(self.path, writable=True)
        until = None if patience is None else time.monotonic() + patience
        if not self._mutex.acquire(timeout=-1 if patience is None else patience):
            return False
        try:
            while (table := self._table).lock(until):
                if not table.words[MOVED]:
                    self._held = table
                    return True
                if self._newest(table) is table:
                    table.words[MOVED] = 0  # who was about to replace it died
                    self._held = table
                    return True
                table.unlock()
        except BaseException:
            table.unlock()
            self._mutex.release()
            raise
        self._mutex.release()
        return False

    def unlock(self) -> None:
        """End the changes."""
        try:
            self._held.unlock()
        finally:
            self._mutex.release()

    def note_move(self) -> None:
        """Have readers see that an arena was moved; without the lock, by the directory's worker alone."""
        table = self._table
        while True:
            table.words[STAMP] = time.monotonic_ns()
            # One that takes its place from now on was not looked at before: its own stamp is a new one.
            newest = self._newest(table) if table.words[MOVED] else table
            if newest is table:
                return
            table = newest

    def insert(self, entries: Iterable[tuple[int, int, int, int]]) -> None:
        """Add entries; one with the same hash goes. The table is locked.

        Raises
        ------
        SegmentsFull
            If there is no memory for a larger table; entries may have been added already.
        """
        words, mask = self._held.words, self._held.mask
        most = 3 * (mask + 1) // 5
        for name, key, arena, place in entries:
            if words[_USED] >= most:
                self._copy()
                words, mask = self._held.words, self._held.mask
                most = 3 * (mask + 1) // 5
            slot = (name ^ key) & mask
            free = before = -1
            while (word := words[at := FIRST + STEP * slot]) != _EMPTY:
                if word == REMOVED:
                    free = at if free < 0 else free
                elif word == name and words[at + 1] == key:
                    before = at
                slot = slot + 1 & mask
            if free < 0:
                words[_USED] += 1
                free = at
            words[free + 1] = key
            words[free + 2] = arena
            words[free + 3] = place
            words[free] = name
            if before >= 0:
                words[before] = REMOVED

    def remove(self, name: int, key: int, arena: int = 0, place: int = 0) -> bool:
        """Remove an entry, with `arena` only if it says so; return whether there was one. The table is locked."""
        words, mask = self._held.words, self._held.mask
        slot = (name ^ key) & mask
        for _ in range(mask + 1):
            at = FIRST + STEP * slot
            word = words[at]
            if word == _EMPTY:
                return False
            if word == name and words[at + 1] == key:
                if arena and (words[at + 2], words[at + 3]) != (arena, place):
                    return False
                words[at] = REMOVED
                self._clean(slot)
                return True
            slot = slot + 1 & mask
        return False

    def _clean(self, slot: int) -> None:
        """Empty removed slots that no entry lies behind."""
        words, mask = self._held.words, self._held.mask
        if words[FIRST + STEP * (slot + 1 & mask)] != _EMPTY:
            return
        while words[at := FIRST + STEP * slot] == REMOVED:
            words[at] = _EMPTY
            words[_USED] -= 1
            slot = slot - 1 & mask

    def shrink(self) -> None:
        """Copy the table into a smaller file if it has become much too large. It is locked."""
        if self.slots > _SMALLEST and 16 * self._held.words[_USED] < self.slots:
            self._copy()

    def _copy(self) -> None:
        """Replace the table by one of a size that fits. The old one is locked, and then the new one."""
        before = self._held
        self._held = self._table = _replace(self.path, _entries(before.words), before)
        before.unlock()


def make_index(segments: str, entries: Iterable[Entry] = ()) -> None:
    """Make the index of a segment directory; only for its owner, when it starts.

    An older one is replaced: whoever still has it goes on with the new one.
    """
    path = f"{segments}/{INDEX_FILE}"
    before = None
    with contextlib.suppress(SegmentError):
        before = _Table(path, writable=True)
    _replace(path, list(entries), before).unlock()


def retire_index(segments: str) -> None:
    """Tell whoever has the index of a directory that is about to be removed."""
    with contextlib.suppress(SegmentError):
        _Table(f"{segments}/{INDEX_FILE}", writable=True).words[MOVED] = 1


def _replace(path: str, entries: list[Entry], before: _Table | None) -> _Table:
    """Put a new table, which is returned locked, in the place of `before`."""
    slots = _SMALLEST
    while 2 * slots < 5 * len(entries):
        slots *= 2
    making = f"{os.path.dirname(path)}/{MAKING}{secrets.token_hex(4)}"
    try:
        _allocate(making, slots)
        table = _Table(making, writable=True)
        fcntl.flock(table.fd, fcntl.LOCK_EX)
        words, mask = table.words, table.mask
        for name, key, arena, place in entries:
            slot = (name ^ key) & mask
            while words[at := FIRST + STEP * slot] != _EMPTY:
                slot = slot + 1 & mask
            words[at], words[at + 1], words[at + 2], words[at + 3] = name, key, arena, place
        words[_USED] = len(entries)
        if before is not None:
            before.words[MOVED] = 1
        os.rename(making, path)
    except BaseException as error:
        if before is not None:
            before.words[MOVED] = 0
        with contextlib.suppress(FileNotFoundError):
            os.unlink(making)
        if not isinstance(error, OSError):
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise full_error(path, _bytes_of(slots), 0, available(os.path.dirname(path))) from error
        raise SegmentError(f"{path}: cannot be written: {error.strerror}") from error
    return table


def _allocate(path: str, slots: int) -> None:
    """Make the file of an empty table; by writing: a page that is missing would be SIGBUS in a full file system."""
    head = struct.pack("=8Q", _MAGIC, 0, slots, 0, time.monotonic_ns(), 0, 0, 0)
    fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        rest = _bytes_of(slots) - len(head)
        os.write(fd, head)
        while rest:
            rest -= os.write(fd, bytes(min(rest, 1 << 20)))
    finally:
        os.close(fd)


def _entries(words: Words) -> list[Entry]:
    flat = words.tolist()
    return [
        Entry(name, key, arena, place)
        for name, key, arena, place in zip(
            flat[FIRST::STEP],
            flat[FIRST + 1 :: STEP],
            flat[FIRST + 2 :: STEP],
            flat[FIRST + 3 :: STEP],
        )
        if name > REMOVED
    ]


def _bytes_of(slots: int) -> int:
    return 8 * (FIRST + STEP * slots)
