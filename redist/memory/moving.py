"""Moving payloads between memory and disk: the coldest out, hot ones back; small ones with the whole arena they are in."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeAlias

from redist.errors import DiskFull, SegmentsFull
from redist.memory.arena import arena_path, file_of
from redist.memory.arena_state import ranges
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import PAGE, file_name, footprint
from redist.memory.locks import is_file_at, try_lock

__all__ = ["Mover"]

Copy: TypeAlias = tuple[str, int]
#: what is moved: a payload, or the arena of this number
Movable: TypeAlias = Copy | int

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
#: Two reads of a spilled payload within this time, in ns, make it hot.
_SOON = 30 * 10**9


class Mover:
    """Moves the payloads of one segment directory. Blocks; one thread at a time calls it.

    Parameters
    ----------
    directory : SegmentDirectory
        Whose payloads.

    Attributes
    ----------
    moved_out, moved_in : int
        Bytes moved so far.
    """

    def __init__(self, directory: SegmentDirectory) -> None:
        self.moved_out = 0
        self.moved_in = 0
        #: bytes that could not be moved out since somebody maps them
        self._viewed = 0
        self._directory = directory
        #: what is spilled -> when it was last read, and when it was read before since it was spilled, 0 for never
        self._seen: dict[Movable, tuple[int, int]] = {}

    def make_room(self, need: int) -> int:
        """Spill the coldest payloads that nobody maps, until `need` bytes of memory are free; return how many are.

        Raises
        ------
        DiskFull
            If the disk has no room for any of them.
        """
        self._directory.tidy()
        freed = self._viewed = 0
        full: DiskFull | None = None
        # Pages are given back while the next payload is written.
        with ThreadPoolExecutor(1, thread_name_prefix="redist-pages") as behind:
            for each in self._coldest():
                if freed >= need or self._directory.spill.closing:
                    break
                try:
                    freed += (
                        self.move_arena_out(each) if isinstance(each, int) else self.move_out(*each, behind)
                    )
                except DiskFull as error:  # a smaller one may fit
                    full = error
                    if self._directory.spill.room < 1 << 20:
                        break
        self._directory.spill.viewed = self._viewed if freed < need else 0
        if full is not None and not freed:
            raise full
        return freed

    def _coldest(self) -> Iterator[Movable]:
        directory = self._directory
        large = [copy for copy, size in list(directory.large.items()) if size]
        found: list[Movable] = [*large]
        ranked = [(directory.touched.last(file_name(*copy)), at) for at, copy in enumerate(large)]
        for written, number in directory.arenas.files.movable(spilled=False):
            ranked.append((max(written, directory.touched.last_of_arena(number)), len(found)))
            found.append(number)
        ranked.sort()
        for _, at in ranked:
            yield found[at]

    def move_out(self, name: str, attempt: int, behind: Executor | None = None) -> int:
        """Move one payload to disk unless somebody maps it; return the bytes of memory that are free now.

        Parameters
        ----------
        name, attempt : str and int
            The payload.
        behind : Executor, optional
            Where its memory is given back, which may then last a little longer.

        Raises
        ------
        DiskFull
            If there is no room for it.
        """
        directory = self._directory
        path = directory.path_of(name, attempt)
        try:
            fd = os.open(path, _OPEN)
        except OSError:
            return 0
        try:
            # A file that is mapped frees nothing. Then a lock as readers have it, so that nobody takes the file meanwhile.
            if not try_lock(fd):
                self._viewed += os.fstat(fd).st_blocks * 512
                return 0
            fcntl.flock(fd, fcntl.LOCK_SH)
            size = os.fstat(fd).st_size
            if not size or not is_file_at(fd, path):  # one that somebody has emptied has nothing to give
                return 0
            written = directory.spill.write(fd, size, os.path.basename(path))
            freed = directory.leave_memory(name, attempt, fd, written)
            if not freed:
                directory.spill.discard(written)
            elif behind is None:
                directory.give_back(fd, freed)
            else:
                behind.submit(self._give_back, fd, freed)
                fd = -1
        finally:
            if fd >= 0:
                os.close(fd)
        self.moved_out += freed
        return freed

    def _give_back(self, fd: int, size: int) -> None:
        try:
            self._directory.give_back(fd, size)
        finally:
            os.close(fd)

    def move_arena_out(self, number: int) -> int:
        """Move one arena to disk unless a value views it; return the bytes of memory that are free now, 0 if it went.

        Raises
        ------
        DiskFull
            If there is no room for it.
        """
        directory = self._directory
        pages = directory.arenas.files.pages(number, spilled=False)
        if pages is None:
            return 0
        try:
            fd = os.open(arena_path(directory.path, number), _OPEN)
        except OSError:
            return 0
        try:
            # Exclusive until it has moved: readers copy meanwhile.
            if not try_lock(fd):
                self._viewed += os.fstat(fd).st_blocks * 512
                return 0
            written = directory.spill.write(fd, os.fstat(fd).st_size, file_of(number), ranges(pages))
            freed = directory.arenas.files.leave_memory(number, written, pages)
            if not freed:
                directory.spill.discard(written)
        finally:
            os.close(fd)
            directory.arenas.files.look_at(number)  # what died meanwhile met that lock
        self.moved_out += freed
        return freed

    # --- back -------------------------------------------------------------------------------------------------------

    def hot(self) -> list[Movable]:
        """Return what is spilled and was read again soon after a read, the last read first."""
        directory = self._directory
        last_read, last_of_arena = directory.touched.last, directory.touched.last_of_arena
        before, self._seen = self._seen, {}
        spilled: list[tuple[Movable, int]] = [
            (copy, last_read(file_name(*copy))) for copy, size in list(directory.large.items()) if not size
        ]
        spilled += [
            (number, last_of_arena(number)) for _, number in directory.arenas.files.movable(spilled=True)
        ]
        found: list[tuple[int, Movable]] = []
        for each, last in spilled:
            seen, first = before.get(each, (last, 0))
            if last != seen:
                if first and last - first < _SOON:
                    found.append((last, each))
                first = last
            self._seen[each] = last, first
        found.sort(key=lambda item: item[0], reverse=True)
        return [each for _, each in found]

    def nbytes(self, what: Movable) -> int:
        """Return the bytes on disk of what is spilled, 0 if it is there no more."""
        file = file_of(what) if isinstance(what, int) else file_name(*what)
        return self._directory.spill.files.get(file, 0)

    def bring_back(self, what: Movable) -> int:
        """Move something back into memory; return its bytes, 0 if there is no room or it went."""
        return self.move_arena_in(what) if isinstance(what, int) else self.move_in(*what)

    def move_arena_in(self, number: int) -> int:
        """Move one arena back into memory; return its bytes, 0 if there is no room or it went."""
        files = self._directory.arenas.files
        pages = files.pages(number, spilled=True)
        if pages is None:
            return 0
        return self._move_in(
            number,
            sum(pages) * PAGE,
            lambda fd: self._directory.spill.read_into(file_of(number), fd, ranges(pages)),
            lambda path, size, reserved: files.enter_memory(number, path, pages),
        )

    def move_in(self, name: str, attempt: int) -> int:
        """Move one payload back into memory; return its bytes, 0 if there is no room or it went."""
        directory = self._directory
        file = file_name(name, attempt)
        nbytes = directory.spill.files.get(file)
        if nbytes is None:
            return 0
        return self._move_in(
            (name, attempt),
            nbytes,
            lambda fd: directory.spill.read_into(file, fd),
            lambda path, size, reserved: (
                footprint(size) == reserved and directory.enter_memory(name, attempt, path, reserved)
            ),
        )

    def _move_in(
        self,
        what: Movable,
        nbytes: int,
        copy: Callable[[int], int],
        enter: Callable[[str, int, int], bool],
    ) -> int:
        """Reserve `nbytes`, have ``copy(fd)`` fill a file, and ``enter(path, size, reserved)`` say whether it is used."""
        directory = self._directory
        try:
            reserved = directory.grants.reserve(nbytes)
        except SegmentsFull:
            return 0
        directory.grants.writing(reserved)
        path = directory.grants.new_path()
        done = False
        try:
            fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                size = copy(fd)
            finally:
                os.close(fd)
            done = enter(path, size, reserved)
        except OSError:  # it is gone, or memory is full
            pass
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                directory.space.release(reserved)
            directory.grants.writing(-reserved)
        self._seen.pop(what, None)
        self.moved_in += reserved if done else 0
        return reserved if done else 0
