"""The files of a segment directory's arenas: what in them is taken, what is given back, and whether they lie on disk.

Pages in which nothing lives are punched out, and a sealed arena in which nothing lives is removed. Sealed arenas move as a
whole, to the spill directory and back (`redist.memory.moving`): number, index and offsets stay as they are, and only pages
in which something lives are copied. The copy is complete in the new place before the old file loses its name, and readers
are told (`Index.note_move`) before it loses its bytes. What dies on disk waits for `ArenaFiles.tidy`, which may block.

Values may view a sealed arena in memory (`redist.memory.arena_views`); its readers have a shared lock on it for as long.
So whoever takes bytes from a file in memory has the exclusive lock; what cannot be taken now lingers until a `look` later.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable

from redist.errors import SegmentError
from redist.memory.arena import ARENA_SIZE, arena_head, arena_path, extent, file_of
from redist.memory.arena_state import ArenaState, runs
from redist.memory.headers import PAGE
from redist.memory.holes import punch
from redist.memory.index import Index
from redist.memory.locks import try_lock
from redist.memory.looks import Looks
from redist.memory.space import Space
from redist.memory.spill import SpillDirectory

__all__ = ["ArenaFiles"]


class ArenaFiles:
    """The arenas of one segment directory, as files. Safe to use from several threads of its worker.

    Parameters
    ----------
    segments : str
        The segment directory.
    space : Space
        Where their bytes are reserved.
    spill : SpillDirectory
        Where arenas lie that memory has no room for.
    mutex : threading.RLock
        Held while anything changes.
    index : callable
        Returns the directory's index, for changes.
    """

    #: the arenas by their numbers
    arenas: dict[int, ArenaState]
    #: bytes of memory that the payloads take
    total: int
    #: bytes of space that were given back since the start
    given_back: int

    def __init__(
        self,
        segments: str,
        space: Space,
        spill: SpillDirectory,
        mutex: threading.RLock,
        index: Callable[[], Index],
    ) -> None:
        self.arenas = {}
        self.total = 0
        self.given_back = 0
        self._segments = segments
        self._space = space
        self._spill = spill
        self._mutex = mutex
        self._index = index
        # A number is never given twice: readers keep arenas open by it.
        self._numbers = itertools.count((secrets.randbits(31) << 32) + 1)
        #: those on disk in which something died
        self._untidy: dict[int, ArenaState] = {}
        #: those in memory that would give something back if nobody viewed them
        self._viewed: dict[int, ArenaState] = {}
        self._looks = Looks()

    def make(self, owner: object, writer: int = 0) -> int:
        """Make an arena for which space is reserved, and return its number; see `ArenaState`."""
        number = next(self._numbers)
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
        self.arenas[number] = ArenaState(number, owner, writer)
        return number

    def count(self, arena: ArenaState, offset: int, length: int, by: int) -> None:
        """Count a record."""
        arena.count(offset, length, by)
        if not arena.spilled:
            self.total += by * extent(length)

    def path(self, arena: ArenaState) -> str:
        """Return where an arena lies."""
        return f"{self._spill.path if arena.spilled else self._segments}/{file_of(arena.number)}"

    def open(self, arena: ArenaState) -> int | None:
        """Open an arena, None if it is gone."""
        try:
            return os.open(self.path(arena), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return None

    # --- giving back ---------------------------------------------------------------------------------------------------

    def give_back(self, arenas: Iterable[ArenaState]) -> None:
        """Give back the memory of pages, and of whole arenas, in which nothing lives; what lies on disk waits for `tidy`."""
        for arena in arenas:
            self._viewed.pop(arena.number, None)
            if arena.spilled:
                self._untidy[arena.number] = arena
            elif arena.sealed and not arena.living:
                self.arenas.pop(arena.number, None)
                self.remove(arena)
            else:
                self.punch(arena)

    @property
    def due(self) -> bool:
        """Whether a look at what somebody viewed is worth its time."""
        return self._looks.due(len(self._viewed))

    @property
    def lingering(self) -> int:
        """Bytes of memory of pages in which nothing lives, in arenas that somebody views."""
        with self._mutex:
            return PAGE * sum(len(arena.free_pages()) for arena in self._viewed.values())

    @property
    def abandoned(self) -> int:
        """Pages of arenas in which nothing lives any more, and that somebody views."""
        return sum(sum(arena.taken) for arena in self._viewed.values() if arena.number not in self.arenas)

    def look_at(self, number: int) -> None:
        """Give back what nobody views any more of one arena."""
        with self._mutex:
            if (arena := self._viewed.get(number)) is not None:
                self.give_back([arena])

    def look(self) -> None:
        """Give back what nobody views any more."""
        with self._mutex:
            began = time.monotonic()
            viewed, self._viewed = self._viewed, {}
            self.give_back(viewed.values())
            self._looks.took(began)

    @property
    def untidy(self) -> bool:
        """Whether `tidy` would give something back."""
        return bool(self._untidy)

    def tidy(self) -> None:
        """Give back the disk of pages, and of whole arenas, in which nothing lives; that takes milliseconds for each."""
        with self._mutex:
            untidy, self._untidy = self._untidy, {}
        for number, arena in untidy.items():
            with self._mutex:
                if not arena.spilled or self.arenas.get(number) is not arena:
                    continue  # it has come back, and was punched then
                if dead := not arena.living:
                    del self.arenas[number]
            if dead:
                self.remove(arena)
            else:
                self.punch(arena)

    def punch(self, arena: ArenaState) -> None:
        """Punch out what is free in an arena."""
        with self._mutex:
            taken, free = arena.taken, arena.free_pages()
            fd = self.open(arena) if free else None
            if fd is None or not self._lock(arena, fd):
                return
        try:
            # Nothing is ever written there again, also not if the arena is moved just now.
            punched = [
                (first, last) for first, last in runs(free) if punch(fd, first * PAGE, (last - first) * PAGE)
            ]
        finally:
            os.close(fd)
        with self._mutex:
            if arena.taken is not taken:
                return
            given = 0
            for first, last in punched:
                given += sum(taken[first:last])
                taken[first:last] = bytes(last - first)
            self._release(arena, given)

    def remove(self, arena: ArenaState) -> None:
        """Remove the file of an arena in which nothing lives, and which is not noted any more."""
        fd = self.open(arena)
        if fd is not None:
            if not self._lock(arena, fd):
                return
            with contextlib.suppress(OSError):
                os.ftruncate(fd, 0)  # readers may have it open for long
            os.close(fd)
        with contextlib.suppress(OSError):
            os.unlink(self.path(arena))
        with self._mutex:
            self._release(arena, sum(arena.taken))

    def _lock(self, arena: ArenaState, fd: int) -> bool:
        """Lock an arena, so that bytes may be taken from it; else it is closed, and looked at again later."""
        if arena.spilled or try_lock(fd):
            return True
        os.close(fd)
        self._viewed[arena.number] = arena
        return False

    def _release(self, arena: ArenaState, pages: int) -> None:
        """Count pages of an arena as free."""
        if arena.spilled:
            self._spill.shrink(file_of(arena.number), pages * PAGE)
        elif pages:
            self.given_back += pages * PAGE
            self._space.release(pages * PAGE)

    # --- moving -----------------------------------------------------------------------------------------------------

    def movable(self, *, spilled: bool) -> list[tuple[int, int]]:
        """List the arenas that lie on disk, or that can go there: when they were last written, in ns, and their numbers."""
        with self._mutex:
            return [
                (int(arena.touched * 1e9), arena.number)
                for arena in self.arenas.values()
                if arena.sealed and arena.living and arena.spilled == spilled
            ]

    def pages(self, number: int, *, spilled: bool) -> bytearray | None:
        """Return for each page of an arena whether something lives in it; None if there is no such arena there."""
        with self._mutex:
            arena = self.arenas.get(number)
            if arena is None or not arena.sealed or not arena.living or arena.spilled != spilled:
                return None
            return arena.living_pages()

    def leave_memory(self, number: int, written: str, pages: bytearray) -> int:
        """Let an arena's memory go for its copy on disk. The caller has the lock of its file in memory.

        Parameters
        ----------
        number : int
            The arena.
        written : str
            The copy, from `SpillDirectory.write`, which is published.
        pages : bytearray
            What was copied, from `pages`.

        Returns
        -------
        int
            Bytes of memory that are free now; 0 if it stays, since it went meanwhile.
        """
        with self._mutex:
            if self.pages(number, spilled=False) is None:
                return 0
            arena = self.arenas[number]
            self._spill.publish(written, file_of(number), sum(pages) * PAGE)
            self._move_from(arena_path(self._segments, number))
            freed = sum(arena.taken)
            self._release(arena, freed)
            self._settle_in(arena, pages, spilled=True)
            return freed * PAGE

    def enter_memory(self, number: int, written: str, pages: bytearray) -> bool:
        """Have an arena that lies on disk in memory again; return whether it is still wanted.

        Parameters
        ----------
        number, written, pages
            As for `leave_memory`; for each of the pages memory was reserved.
        """
        with self._mutex:
            if self.pages(number, spilled=True) is None:
                return False
            arena = self.arenas[number]
            os.rename(written, arena_path(self._segments, number))
            self._move_from(self.path(arena))
            self._spill.forget(file_of(number))
            self._settle_in(arena, pages, spilled=False)
            return True

    def _move_from(self, path: str) -> None:
        """Give back the file that an arena has left. In this order: see `redist.memory.index`."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # somebody has removed it
            self._index().note_move()
            return
        try:
            os.unlink(path)
            self._index().note_move()
            os.ftruncate(fd, 0)  # readers may have it open for long
        finally:
            os.close(fd)

    def _settle_in(self, arena: ArenaState, pages: bytearray, *, spilled: bool) -> None:
        """Count an arena in its new place, and give back what died while it was copied."""
        arena.spilled = spilled
        arena.taken = bytearray(pages)
        self.total += -arena.nbytes if spilled else arena.nbytes
        self.give_back([arena])
