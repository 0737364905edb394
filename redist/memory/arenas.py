"""The arenas of a segment directory, as its worker keeps them: who writes which, what lives where, and what is given back.

An arena is granted with space for all of it. Its writer says what it has written; what it has not said when it leaves or
dies is taken out of the index. When a payload is dropped the index forgets it first; pages in which nothing lives any more
are punched out then, and a sealed arena in which nothing lives is removed. Nothing is ever moved: what cannot be given back
is less than two pages a living payload.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull
from redist.memory.arena import (
    ARENA_SIZE,
    arena_head,
    arena_path,
    extent,
    header_at,
    name_hash,
    number_in,
    scan,
    seal,
    walk,
)
from redist.memory.arena_state import ArenaState, runs
from redist.memory.arena_writer import ArenaWriter, Small, SmallWriter
from redist.memory.headers import PAGE, Header
from redist.memory.holes import punch
from redist.memory.index import MAKING, Entry, Index, digest_of, hash_of, make_index
from redist.memory.locks import try_lock
from redist.memory.space import Space

__all__ = ["Arenas"]

logger = logging.getLogger("redist.memory")

#: How long the worker waits for somebody who changes the index, and at its start for one who writes an arena, s.
_PATIENCE, _LONG_PATIENCE = 0.2, 1.0
#: How long the index is let alone when it could not be had, s.
_PAUSE = 1.0
#: Most arenas that are granted together.
_MOST_GRANTED = 256

Key: TypeAlias = tuple[str, int]
Place: TypeAlias = tuple[int, int, int]


class Arenas:
    """The arenas of one segment directory. Safe to use from several threads of its worker.

    Parameters
    ----------
    segments : str
        The segment directory.
    space : Space
        Where their bytes are reserved.
    files : dict
        All payloads of the directory and their sizes; the small ones are noted here.
    files_mutex : threading.Lock
        Held while `files` is changed.
    """

    #: An arena that nothing was written to for so long is sealed, s.
    idle: float
    #: bytes that the payloads take
    total: int
    #: the highest attempt of which there was one
    newest: int

    def __init__(
        self, segments: str, space: Space, files: dict[Key, int], files_mutex: threading.Lock
    ) -> None:
        self.idle = 2.0
        self.total = 0
        self.newest = 0
        # number of the arena, offset and length of the record
        self._places: dict[Key, Place] = {}
        self._files = files
        self._files_mutex = files_mutex
        self._writer: SmallWriter | None = None
        self._segments = segments
        self._space = space
        self._arenas: dict[int, ArenaState] = {}
        self._mutex = threading.RLock()
        # A number is never given twice: readers keep arenas open by it.
        self._numbers = itertools.count((secrets.randbits(31) << 32) + 1)
        #: dropped while somebody else changed the index
        self._late: list[tuple[Key, Place | None]] = []
        self._not_before = 0.0
        #: bytes of space since the start
        self._given_back = 0
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The directory's index, for changes."""
        if self._index is None:
            self._index = Index(self._segments, writable=True)
        return self._index

    @property
    def open(self) -> int:
        """How many arenas may be written."""
        return sum(not arena.sealed for arena in self._arenas.values())

    # --- being written ----------------------------------------------------------------------------------------------

    def grant_all(self, owner: object, count: int, largest: Callable[[], list[tuple[str, int]]]) -> list[int]:
        """Make arenas, as many of `count` as there is space for, and return their numbers; see `grant`."""
        numbers = [self.grant(owner, largest)]
        try:
            while len(numbers) < min(count, _MOST_GRANTED):
                numbers.append(self.grant(owner, largest))
        except SegmentsFull:
            pass
        return numbers

    def grant(self, owner: object, largest: Callable[[], list[tuple[str, int]]]) -> int:
        """Make an arena that `owner` may write, and return its number.

        Raises
        ------
        SegmentsFull
            If there is no space.
        """
        with self._mutex:
            number = next(self._numbers)
            try:
                self._space.reserve(ARENA_SIZE, largest)
            except SegmentsFull:
                if not self.seal_idle(0.0):
                    raise
                self._space.reserve(ARENA_SIZE, largest)
            path = arena_path(self._segments, number)
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    os.pwrite(fd, arena_head(number), 0)
                finally:
                    os.close(fd)
            except OSError as error:
                self._space.release(ARENA_SIZE)
                with contextlib.suppress(OSError):
                    os.unlink(path)
                raise SegmentError(f"{path}: cannot be written: {error.strerror}") from error
            self._arenas[number] = ArenaState(number, owner)
            return number

    def store(
        self, owner: object, number: int, start: int, records: Iterable[tuple[str, int, int]]
    ) -> list[Key]:
        """Take in what `owner` has written from `start` on: names, attempts, lengths of records.

        Returns
        -------
        list
            Those that are here now; the others were dropped before.

        Raises
        ------
        SegmentCorrupt
            If that cannot be.
        """
        with self._mutex:
            arena = self._arenas.get(number)
            if arena is None or arena.owner is not owner or arena.sealed or arena.told != start:
                raise SegmentCorrupt(f"arena {number:x}: the process does not write there at {start}")
            says = self.index.says
            stored: list[tuple[Key, Place]] = []
            for name, attempt, length in records:
                offset = arena.told
                if length <= 0 or offset + length > ARENA_SIZE:
                    raise SegmentCorrupt(f"arena {number:x}: no record of {length} bytes fits at {offset}")
                arena.told += extent(length)
                if says(*hash_of(digest_of(name), attempt), number, offset << 32 | length):
                    arena.count(offset, length, 1)
                    stored.append(((name, attempt), (number, offset, length)))
            replaced = self._record(stored)
            arena.touched = time.monotonic()
            arena.written = time.time()
            if replaced:
                self._uncount(replaced)
            return [key for key, _ in stored]

    def _record(self, stored: Iterable[tuple[Key, Place]]) -> list[Place]:
        """Note where payloads lie; return where those lay that were here already."""
        places, files = self._places, self._files
        replaced = []
        with self._files_mutex:
            for key, place in stored:
                before = places.get(key)
                if before is not None:
                    self.total -= extent(before[2])
                    replaced.append(before)
                places[key] = place
                files[key] = size = extent(place[2])
                self.total += size
                if key[1] > self.newest:
                    self.newest = key[1]
        return replaced

    def put(self, header: Header, data: memoryview, largest: Callable[[], list[tuple[str, int]]]) -> bool:
        """Write a payload as the worker itself; return whether there was space for it."""
        with self._mutex:
            if self._writer is None:
                self._writer = SmallWriter(_OwnArenas(self, largest))
        return (
            self._writer.put([Small(header.name, header.attempt, header.nbytes, header.footer(), (data,))])
            == 1
        )

    def leave(self, owner: object, number: int | None = None) -> None:
        """Have nothing more be written by `owner`, in all of its arenas or one, and forget what it did not tell of."""
        with self._mutex:
            arenas = list(self._arenas.values()) if number is None else [self._arenas.get(number)]
            for arena in arenas:
                if arena is not None and arena.owner is owner and not arena.sealed:
                    arena.leaving = True
                    self._seal(arena)

    def seal_idle(self, idle: float | None = None) -> int:
        """Seal arenas that nothing was written to for `idle` seconds; return how many bytes of space that gave back."""
        idle = self.idle if idle is None else idle
        with self._mutex:
            before = self._given_back
            until = time.monotonic() - idle
            for arena in list(self._arenas.values()):
                if not arena.sealed and (arena.leaving or arena.touched <= until):
                    self._seal(arena)
            self._forget_late()
            return self._given_back - before

    def _seal(self, arena: ArenaState) -> None:
        """Seal an arena unless it is being written just now; one that its writer has not left, only if nothing is untold."""
        fd = self._open(arena.number)
        if fd is not None:
            try:
                if not try_lock(fd):
                    return
                if not self._settle(arena, fd):
                    return
                seal(fd)
            finally:
                os.close(fd)
        arena.sealed = True
        arena.owner = None
        arena.pages[0] -= 1
        self._give_back([arena])

    def _settle(self, arena: ArenaState, fd: int) -> bool:
        """Take out of the index what an arena holds and nobody told of; return whether that is done."""
        end = os.fstat(fd).st_size
        if end <= arena.told:
            return True
        if not arena.leaving:
            return False
        data = os.pread(fd, ARENA_SIZE, 0)
        index = self.index
        if not index.lock(_PATIENCE):
            return False
        try:
            for offset, length in walk(data, arena.number, arena.told):
                index.remove(*hash_of(*name_hash(data, offset)), arena.number, offset << 32 | length)
        finally:
            index.unlock()
        return True

    def _open(self, number: int) -> int | None:
        try:
            return os.open(arena_path(self._segments, number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None

    # --- giving back ------------------------------------------------------------------------------------------------

    def drop(self, keys: Iterable[Key]) -> list[Key]:
        """Remove payloads; return those that were here. One that was not told of yet will not be taken in."""
        with self._mutex:
            dropped = [(key, self._places.pop(key, None)) for key in keys]
            with self._files_mutex:
                for key, place in dropped:
                    if place is not None:
                        self.total -= self._files.pop(key, 0)
            self._late += dropped
            self._forget_late()
            return [key for key, place in dropped if place is not None]

    def _forget_late(self) -> None:
        """Take what was dropped out of the index, and give back where it lay; later, if somebody has the index for long."""
        if not self._late or time.monotonic() < self._not_before:
            return
        if not self.index.lock(_PATIENCE):
            # whoever has it was stopped inside; this worker must not be, by waiting again and again
            self._not_before = time.monotonic() + _PAUSE
            return
        late, self._late = self._late, []
        try:
            index = self.index
            for (name, attempt), place in late:
                where = (0, 0) if place is None else (place[0], place[1] << 32 | place[2])
                index.remove(*hash_of(digest_of(name), attempt), *where)
            index.shrink()
        finally:
            self.index.unlock()
        self._uncount([place for _, place in late if place is not None])

    def _uncount(self, places: Iterable[Place]) -> None:
        """Give back where records lay that the index does not name any more."""
        touched: dict[int, ArenaState] = {}
        for number, offset, length in places:
            arena = touched[number] = self._arenas[number]
            arena.count(offset, length, -1)
        self._give_back(touched.values())

    def _give_back(self, arenas: Iterable[ArenaState]) -> None:
        """Give back the memory of pages, and of whole arenas, in which nothing lives."""
        pages = 0
        for arena in arenas:
            if arena.sealed and not arena.living:
                pages += sum(arena.taken)
                self._remove(arena.number)
            else:
                pages += self._punch(arena)
        if pages:
            self._given_back += pages * PAGE
            self._space.release(pages * PAGE)

    def _punch(self, arena: ArenaState) -> int:
        """Punch out what is free in an arena; return how many pages that gave back."""
        free = arena.free_pages()
        if not free:
            return 0
        fd = self._open(arena.number)
        if fd is None:
            return 0
        given = 0
        try:
            for first, last in runs(free):
                if punch(fd, first * PAGE, (last - first) * PAGE):
                    arena.taken[first:last] = bytes(last - first)
                    given += last - first
        finally:
            os.close(fd)
        return given

    def _remove(self, number: int) -> None:
        del self._arenas[number]
        path = arena_path(self._segments, number)
        with contextlib.suppress(OSError):
            os.truncate(path, 0)  # readers may have it open for long
            os.unlink(path)

    def close(self) -> None:
        """Let go of everything; what is here is left as it is."""
        with self._mutex:
            self._writer = self._index = None

    # --- what is here -----------------------------------------------------------------------------------------------

    def has(self, name: str, attempt: int) -> bool:
        """Tell whether this payload is here."""
        return (name, attempt) in self._places

    def header(self, name: str, attempt: int) -> Header:
        """Read the header of a payload.

        Raises
        ------
        SegmentGone
            If it is not here.
        SegmentCorrupt
            If it is damaged.
        """
        place = self._places.get((name, attempt))
        fd = None if place is None else self._open(place[0])
        if place is None or fd is None:
            raise SegmentGone(f"{self._segments}: no arena has attempt {attempt} of {name!r:.80}")
        number, offset, length = place
        try:
            data = os.pread(fd, length, offset)
        finally:
            os.close(fd)
        if (name, attempt) not in self._places:
            raise SegmentGone(f"{self._segments}: attempt {attempt} of {name!r:.80} was dropped")
        return header_at(data, 0, length, number, arena_path(self._segments, number))

    def age(self, name: str, attempt: int) -> float:
        """Return the seconds since a payload was written, or another one after it in the same arena; 0 if it is not here."""
        place = self._places.get((name, attempt))
        arena = None if place is None else self._arenas.get(place[0])
        return 0.0 if arena is None else time.time() - arena.written

    # --- after a predecessor ----------------------------------------------------------------------------------------

    def adopt(self) -> int:
        """Take over the arenas of a dead worker; return the bytes that they take. What was found is noted."""
        numbers = []
        for file in os.listdir(self._segments):
            if (number := number_in(file)) is not None:
                numbers.append(number)
            elif file.startswith(MAKING):
                with contextlib.suppress(FileNotFoundError):  # a client may be just making it
                    os.unlink(f"{self._segments}/{file}")
        until = time.monotonic() + _LONG_PATIENCE
        for number in numbers:
            self._seal_found(number, until)
        entries = self._entries_found()
        by_arena: dict[int, list[Entry]] = {}
        for entry in entries or ():
            by_arena.setdefault(entry.arena, []).append(entry)
        kept: list[Entry] = []
        for number in numbers:
            kept += self._take_found(number, None if entries is None else by_arena.get(number, []))
        if entries is None or set(kept) != set(entries):
            make_index(self._segments, kept)
        return sum(sum(arena.taken) for arena in self._arenas.values()) * PAGE

    def _seal_found(self, number: int, until: float) -> None:
        """Have a client that outlived the worker write to an arena no more."""
        fd = self._open(number)
        if fd is not None:
            try:
                while not try_lock(fd) and time.monotonic() < until:
                    time.sleep(0.001)
                seal(fd)
            finally:
                os.close(fd)

    def _entries_found(self) -> list[Entry] | None:
        """Return what the predecessor's index says, None if it is lost."""
        try:
            return Index(self._segments).entries()
        except SegmentError as error:
            logger.warning("arenas are searched for payloads: %s", error)
            return None

    def _take_found(self, number: int, entries: list[Entry] | None) -> list[Entry]:
        """Take over one arena, with what the index says is in it or, without an index, with all that is found."""
        path = arena_path(self._segments, number)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            logger.warning("%s: cannot be read: %s", path, error.strerror)
            return []
        try:
            data = os.pread(fd, ARENA_SIZE, 0)
            written = os.fstat(fd).st_mtime
        finally:
            os.close(fd)
        if entries is None:
            places = list(scan(data, number))
        else:
            places = [(entry.place >> 32, entry.place & 0xFFFFFFFF) for entry in entries]
        arena = self._arenas[number] = ArenaState(number, None)
        arena.sealed = True
        arena.pages[0] = 0
        arena.written = written
        kept = []
        for offset, length in places:
            try:
                header = header_at(data, offset, length, number, path)
            except SegmentCorrupt as error:
                logger.warning("leaving out a damaged record: %s", error)
                continue
            digest = digest_of(header.name)
            arena.count(offset, length, 1)
            self._record([((header.name, header.attempt), (number, offset, length))])
            kept.append(Entry(*hash_of(digest, header.attempt), number, offset << 32 | length))
        if arena.living:
            self._punch(arena)
        else:
            self._remove(number)
        return kept


class _OwnArenas:
    """Arenas that the worker writes itself."""

    def __init__(self, arenas: Arenas, largest: Callable[[], list[tuple[str, int]]]) -> None:
        self._arenas = arenas
        self._largest = largest

    def grant(self, count: int) -> list[int]:
        return [self._arenas.grant(self, self._largest)]

    def open(self, number: int) -> ArenaWriter:
        return ArenaWriter(self._arenas._segments, number, self._arenas.index)

    def store(self, number: int, start: int, records: Sequence[tuple[str, int, int]]) -> None:
        self._arenas.store(self, number, start, records)

    def alive(self, number: int) -> bool:
        return True

    def leave(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._arenas.leave(self, number)
