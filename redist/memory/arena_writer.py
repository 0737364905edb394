"""Writing small payloads into an arena, by the one process that it was granted to.

A record is written whole, then the index names it, and then the worker hears of it. What goes wrong in between leaves bytes
that nobody looks at; the arena is given up, and the worker takes out of the index what it was never told of.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from redist.errors import RedistError, SegmentError, SegmentGone, SegmentsFull
from redist.memory.arena import ARENA_HEAD, ARENA_SIZE, RECORD_HEAD, arena_path, extent, is_open, record_head
from redist.memory.index import Index, digest_of, hash_of
from redist.memory.space import available, full_error

__all__ = ["ArenaWriter", "Granting", "Small", "SmallWriter"]

#: Pieces that are collected for one system call, and that it takes.
_PIECES_A_CALL, _MOST_PIECES = 900, 1000
#: Arenas that may be sealed, one after the other, before a byte is written: space is short then.
_TRIES = 5
#: Payloads for which arenas are asked for at once.
_MOST_NEEDED = 5000


class Small(NamedTuple):
    """A small payload to be written: its key, size, footer, and bytes."""

    name: str
    attempt: int
    nbytes: int
    footer: bytes
    chunks: Iterable[bytes | memoryview]


class ArenaWriter:
    """Appends records to one arena. Not safe to use from several threads.

    Parameters
    ----------
    segments : str
        The segment directory.
    number : int
        The arena, which its worker has granted.
    index : Index
        The directory's index, to be written.

    Raises
    ------
    SegmentGone
        If it was taken back already, because space was short.
    SegmentError
        If it cannot be opened.
    """

    number: int
    #: where the next record goes
    end: int

    def __init__(self, segments: str, number: int, index: Index) -> None:
        self.number = number
        self.end = ARENA_HEAD
        self._index = index
        self._path = arena_path(segments, number)
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise SegmentGone(f"{self._path}: the arena was sealed and is gone") from None
        except OSError as error:
            raise SegmentError(f"{self._path}: cannot be opened: {error.strerror}") from error

    def append(self, items: Sequence[Small], start: int = 0) -> list[int]:
        """Write payloads from `items[start]` on, as many as there is room for; return the lengths of their records.

        None is written if the arena is full or sealed.

        Raises
        ------
        SegmentsFull
            If the file system is full.
        SegmentError
            If a payload has another size than it said, or the arena cannot be written.
        """
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            # one that somebody has removed is written no more: nobody would find it
            if not is_open(self._fd, self.number) or not os.fstat(self._fd).st_nlink:
                return []
            return self._append(items, start)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise full_error(self._path, ARENA_SIZE, 0, available(self._fd)) from error
            raise SegmentError(f"{self._path}: cannot be written: {error.strerror}") from error
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _append(self, items: Sequence[Small], start: int) -> list[int]:
        pieces: list[bytes | memoryview] = []
        entries: list[tuple[int, int, int, int]] = []
        lengths: list[int] = []
        end = written = self.end
        number = self.number
        for at in range(start, len(items)):
            name, attempt, nbytes, footer, chunks = items[at]
            length = RECORD_HEAD + nbytes + len(footer)
            if end + length > ARENA_SIZE:
                break
            digest = digest_of(name)
            pieces.append(record_head(number, digest, attempt, nbytes, len(footer)))
            size = 0
            for chunk in chunks:
                view = memoryview(chunk)
                pieces.append(view)
                size += view.nbytes
            if size != nbytes:
                raise SegmentError(
                    f"{self._path}: payload of {name!r:.80} announced {nbytes} bytes, gave {size}"
                )
            pieces.append(footer.ljust(extent(length) - RECORD_HEAD - nbytes, b"\0"))
            entries.append((*hash_of(digest, attempt), number, end << 32 | length))
            lengths.append(length)
            end += extent(length)
            if len(pieces) > _PIECES_A_CALL:
                _write(self._fd, pieces, written, end)
                pieces, written = [], end
        if pieces:
            _write(self._fd, pieces, written, end)
        if entries:
            self._index.lock()
            try:
                self._index.insert(entries)
            finally:
                self._index.unlock()
            self.end = end
        return lengths

    def close(self) -> None:
        """Let go of the file."""
        # in this order: an interrupt between the two must not have it closed twice
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class Granting(Protocol):
    """Grants arenas, and hears what became of them."""

    def grant(self, count: int, until: float | None = None) -> list[int]:
        """Return the numbers of new arenas, at most `count`; raises `SegmentsFull` if there is no space for one.

        Who waits for space does that until a time of `time.monotonic`, if it is given.
        """

    def open(self, number: int) -> ArenaWriter:
        """Open one of them; raises `SegmentGone` if it was taken back already."""

    def store(self, number: int, start: int, records: Sequence[tuple[str, int, int]]) -> None:
        """Hear what was written from `start` on: names, attempts, lengths of records."""

    def alive(self, number: int) -> bool:
        """Tell whether an arena may still be written, as far as is known here."""

    def leave(self, numbers: Sequence[int]) -> None:
        """Hear that nothing more will be written there."""


class SmallWriter:
    """Writes small payloads into one arena after the other. Safe to use from several threads.

    Parameters
    ----------
    granting : Granting
        Where arenas come from.
    """

    def __init__(self, granting: Granting) -> None:
        self._granting = granting
        self._mutex = threading.Lock()
        self._writer: ArenaWriter | None = None
        #: granted, and not opened yet
        self._next: list[int] = []

    def put(self, items: Sequence[Small], until: float | None = None) -> int:
        """Write payloads; return how many there was space for, which is waited for as in `Granting.grant`.

        Raises
        ------
        SegmentError
            If they cannot be written.
        TransferError
            If the worker cannot be reached.
        """
        done = 0
        tries = 0
        with self._mutex:
            try:
                if self._writer is not None and not self._granting.alive(self._writer.number):
                    self._let_go()
                while done < len(items):
                    if self._writer is None:
                        tries += 1
                        if tries > _TRIES:
                            break
                        try:
                            self._writer = self._open(items, done, until)
                        except SegmentGone:
                            self._give_back()  # those granted with it went with it
                            continue
                    writer = self._writer
                    start = writer.end
                    lengths = writer.append(items, done)
                    if lengths:
                        tries = 0
                        written = items[done : done + len(lengths)]
                        told = [(item[0], item[1], length) for item, length in zip(written, lengths)]
                        self._granting.store(writer.number, start, told)
                        done += len(lengths)
                    if done < len(items):
                        # it is full, or was sealed because it was not used
                        self._let_go()
                self._give_back()
            except SegmentsFull:
                self._give_up()
            except BaseException:
                self._give_up()
                raise
        return done

    def _open(self, items: Sequence[Small], done: int, until: float | None) -> ArenaWriter:
        """Open the next arena; several are asked for at once: an answer comes after the worker has heard of all before."""
        if not self._next:
            need = sum(
                extent(RECORD_HEAD + item[2] + len(item[3])) for item in items[done : done + _MOST_NEEDED]
            )
            self._next = self._granting.grant(max(1, need // ARENA_SIZE), until)
        return self._granting.open(self._next.pop(0))

    def _let_go(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            self._leave([writer.number])
            writer.close()

    def _give_back(self) -> None:
        """Give back what was granted and is not needed."""
        left, self._next = self._next, []
        self._leave(left)

    def _give_up(self) -> None:
        self._let_go()
        self._give_back()

    def _leave(self, numbers: Sequence[int]) -> None:
        if numbers:
            with contextlib.suppress(RedistError):  # the worker sees for itself that the connection is gone
                self._granting.leave(numbers)

    def close(self) -> None:
        """Give the arena back."""
        with self._mutex:
            self._give_up()


def _write(fd: int, pieces: Sequence[bytes | memoryview], offset: int, end: int) -> None:
    """Write `pieces` from `offset` to `end`."""
    while offset < end:
        count = os.pwritev(fd, pieces[:_MOST_PIECES], offset)
        offset += count
        if offset < end:
            pieces = _rest(pieces, count)


def _rest(pieces: Sequence[bytes | memoryview], count: int) -> list[bytes | memoryview]:
    """Return what a short write of `count` bytes left."""
    for at, piece in enumerate(pieces):
        view = memoryview(piece)
        if count < view.nbytes:
            return [view.cast("B")[count:], *pieces[at + 1 :]]
        count -= view.nbytes
    return []
