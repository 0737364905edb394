"""The arenas of a segment directory, as its worker keeps them: who writes which, what lives where, and what is given back.

An arena is granted with space for all of it. Its writer says what it has written; what it has not said when it leaves or
dies is taken out of the index. When a payload is dropped the index forgets it first; then pages in which nothing lives any
more are given back (`redist.memory.arena_files`). No record is ever moved within or between arenas: what cannot be given
back is less than two pages a living payload.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull
from redist.memory.arena import (
    ARENA_SIZE,
    arena_path,
    extent,
    header_at,
    name_hash,
    number_in,
    seal,
    walk,
)
from redist.memory.arena_files import ArenaFiles
from redist.memory.arena_state import ArenaState
from redist.memory.arena_writer import ArenaWriter, Small, SmallWriter
from redist.memory.arenas_found import find_arenas
from redist.memory.headers import PAGE, Header
from redist.memory.index import Index, digest_of, hash_of
from redist.memory.locks import try_lock
from redist.memory.space import Space
from redist.memory.spill import SpillDirectory

__all__ = ["Arenas"]

logger = logging.getLogger("redist.memory")

#: How long the worker waits for somebody who changes the index, s.
_PATIENCE = 0.2
#: How long the index is let alone when it could not be had, s.
_PAUSE = 1.0
#: Most arenas that are granted together, and the part of the free space that they take: nothing of it can be spilled.
_MOST_GRANTED, _PART = 256, 8

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
    spill : SpillDirectory
        Where arenas lie that memory has no room for.
    sizes : dict
        All payloads of the directory and their sizes; the small ones are noted here.
    sizes_mutex : threading.Lock
        Held while `sizes` is changed.
    """

    #: An arena that nothing was written to for so long is sealed, s.
    idle: float
    #: the files
    files: ArenaFiles
    #: the highest attempt of which there was one
    newest: int

    def __init__(
        self,
        segments: str,
        space: Space,
        spill: SpillDirectory,
        sizes: dict[Key, int],
        sizes_mutex: threading.Lock,
    ) -> None:
        self.idle = 2.0
        self.newest = 0
        # number of the arena, offset and length of the record
        self._places: dict[Key, Place] = {}
        self._sizes = sizes
        self._sizes_mutex = sizes_mutex
        self._writer: SmallWriter | None = None
        self._segments = segments
        self._space = space
        self._spill = spill
        self._mutex = threading.RLock()
        self.files = ArenaFiles(segments, space, spill, self._mutex, lambda: self.index)
        self._arenas = self.files.arenas
        #: dropped while somebody else changed the index
        self._late: list[tuple[Key, Place | None]] = []
        self._not_before = 0.0
        self._index: Index | None = None
        #: bytes of the index that are counted as used
        self._index_bytes = 0

    @property
    def index(self) -> Index:
        """The directory's index, for changes."""
        if self._index is None:
            self._index = Index(self._segments, writable=True)
        return self._index

    @property
    def total(self) -> int:
        """Bytes of memory that the payloads take."""
        return self.files.total

    @property
    def due(self) -> bool:
        """Whether there is something to be given back by `seal_idle` or by `ArenaFiles.tidy`."""
        return self.files.untidy or self.files.due or bool(self._late or self.open)

    @property
    def open(self) -> int:
        """How many arenas may be written."""
        with self._mutex:
            return sum(not arena.sealed for arena in self._arenas.values())

    def _count_index(self) -> None:
        """Count the bytes of the index, which writers replace by larger ones."""
        before, self._index_bytes = self._index_bytes, self.index.extra
        if before != self._index_bytes:
            self._space.release(before - self._index_bytes)

    # --- being written ----------------------------------------------------------------------------------------------

    def grant_all(
        self, owner: object, count: int, largest: Callable[[], list[tuple[str, int]]], writer: int = 0
    ) -> list[int]:
        """Make arenas, `count` or as many as take a part of the free space, and return their numbers; see `grant`."""
        with self._mutex:
            numbers = [self.grant(owner, largest, writer)]
            count = min(count - 1, self._space.free() // (_PART * ARENA_SIZE), _MOST_GRANTED)
            try:
                for _ in range(count):
                    self._space.reserve(ARENA_SIZE)
                    numbers.append(self.files.make(owner, writer))
            except SegmentsFull:  # somebody else was faster
                pass
            return numbers

    def grant(self, owner: object, largest: Callable[[], list[tuple[str, int]]], writer: int = 0) -> int:
        """Make an arena that `owner` may write, of the process `writer` if that is known, and return its number.

        Raises
        ------
        SegmentsFull
            If there is no space.
        """
        with self._mutex:
            try:
                self._space.reserve(ARENA_SIZE, largest)
            except SegmentsFull:
                if not self.seal_idle(0.0):
                    raise
                self._space.reserve(ARENA_SIZE, largest)
            return self.files.make(owner, writer)

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
                    self.files.count(arena, offset, length, 1)
                    stored.append(((name, attempt), (number, offset, length)))
            replaced = self._record(stored)
            arena.touched = time.monotonic()
            arena.written = time.time()
            if replaced:
                self._uncount(replaced)
            self._count_index()
            return [key for key, _ in stored]

    def _record(self, stored: Iterable[tuple[Key, Place]]) -> list[Place]:
        """Note where payloads lie; return where those lay that were here already."""
        places, sizes = self._places, self._sizes
        replaced = []
        with self._sizes_mutex:
            for key, place in stored:
                before = places.get(key)
                if before is not None:
                    replaced.append(before)
                places[key] = place
                sizes[key] = extent(place[2])
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
        """Seal arenas that nothing was written to for `idle` seconds, and look whether others are viewed no more.

        Returns
        -------
        int
            How many bytes of space that gave back.
        """
        idle = self.idle if idle is None else idle
        with self._mutex:
            before = self.files.given_back
            until = time.monotonic() - idle
            for arena in list(self._arenas.values()):
                if not arena.sealed and (arena.leaving or arena.touched <= until):
                    self._seal(arena)
            self._forget_late()
            if self.files.due or not idle:
                self.files.look()
            return self.files.given_back - before

    def _seal(self, arena: ArenaState) -> None:
        """Seal an arena unless it is being written just now; one that its writer has not left, only if nothing is untold."""
        fd = self.files.open(arena)
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
        self.files.give_back([arena])

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

    # --- giving back ------------------------------------------------------------------------------------------------

    def drop(self, keys: Iterable[Key]) -> list[Key]:
        """Remove payloads; return those that were here. One that was not told of yet will not be taken in."""
        with self._mutex:
            dropped = [(key, self._places.pop(key, None)) for key in keys]
            with self._sizes_mutex:
                for key, place in dropped:
                    if place is not None:
                        self._sizes.pop(key, None)
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
        self._count_index()
        self._uncount([place for _, place in late if place is not None])

    def _uncount(self, places: Iterable[Place]) -> None:
        """Give back where records lay that the index does not name any more."""
        touched: dict[int, ArenaState] = {}
        for number, offset, length in places:
            arena = touched[number] = self._arenas[number]
            self.files.count(arena, offset, length, -1)
        self.files.give_back(touched.values())

    def close(self) -> None:
        """Let go of everything; what is here is left as it is."""
        with self._mutex:
            self._writer = self._index = None

    # --- what is here -----------------------------------------------------------------------------------------------

    def has(self, name: str, attempt: int) -> bool:
        """Tell whether this payload is here."""
        return (name, attempt) in self._places

    def is_spilled(self, name: str, attempt: int) -> bool:
        """Tell whether this payload is here, and its arena on disk."""
        place = self._places.get((name, attempt))
        arena = None if place is None else self._arenas.get(place[0])
        return arena is not None and arena.spilled

    def written_by(self, writer: int) -> list[Key]:
        """Return the payloads here that the process `writer` has written."""
        with self._mutex:
            numbers = {arena.number for arena in self._arenas.values() if arena.writer == writer}
            return self.inside(numbers)

    def inside(self, numbers: Collection[int]) -> list[Key]:
        """Return the payloads here that lie in the arenas of these numbers."""
        with self._mutex:
            places = list(self._places.items()) if numbers else []
        return [key for key, place in places if place[0] in numbers]

    def header(self, name: str, attempt: int) -> Header:
        """Read the header of a payload.

        Raises
        ------
        SegmentGone
            If it is not here.
        SegmentCorrupt
            If it is damaged.
        SegmentError
            If its arena is there and cannot be opened.
        """
        with self._mutex:  # or it might be moved before it is read
            place = self._places.get((name, attempt))
            if place is None:
                raise SegmentGone(f"{self._segments}: no arena has attempt {attempt} of {name!r:.80}")
            number, offset, length = place
            fd = self.files.open(self._arenas[number])
            if fd is None:
                path = self.files.path(self._arenas[number])
                if os.path.lexists(path):
                    raise SegmentError(f"{path}: cannot be opened")
                raise SegmentGone(f"{path}: the payload's file is gone")
            try:
                data = os.pread(fd, length, offset)
            finally:
                os.close(fd)
        return header_at(data, 0, length, number, arena_path(self._segments, number))

    def age(self, name: str, attempt: int) -> float:
        """Return the seconds since a payload was written, or another one after it in the same arena; 0 if it is not here."""
        place = self._places.get((name, attempt))
        arena = None if place is None else self._arenas.get(place[0])
        return 0.0 if arena is None else time.time() - arena.written

    # --- after a predecessor ----------------------------------------------------------------------------------------

    def adopt(self) -> int:
        """Take over the arenas of a dead worker; return the bytes of memory that they take. What was found is noted."""
        spilled: dict[int, str] = {}
        for file in list(self._spill.files):
            if (number := number_in(file)) is None:
                continue
            if os.path.exists(arena_path(self._segments, number)):
                self._spill.drop(file)  # it was being moved
            else:
                spilled[number] = f"{self._spill.path}/{file}"
        for arena, records in find_arenas(self._segments, spilled):
            self._arenas[arena.number] = arena
            self._record(
                ((header.name, header.attempt), (arena.number, offset, length))
                for header, offset, length in records
            )
            if not arena.spilled:
                self.files.total += arena.nbytes
            if arena.living:
                self.files.punch(arena)
            else:
                del self._arenas[arena.number]
                self.files.remove(arena)
        self._index_bytes = self.index.extra
        taken = sum(sum(arena.taken) for arena in self._arenas.values() if not arena.spilled)
        return (taken + self.files.abandoned) * PAGE + self._index_bytes


class _OwnArenas:
    """Arenas that the worker writes itself."""

    def __init__(self, arenas: Arenas, largest: Callable[[], list[tuple[str, int]]]) -> None:
        self._arenas = arenas
        self._largest = largest

    def grant(self, count: int, until: float | None = None) -> list[int]:
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
