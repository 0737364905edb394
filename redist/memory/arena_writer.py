"""Writing small payloads into an arena, by the one process that it was granted to.

A record is written whole, then the index names it, and then the worker hears of it. What goes wrong in between leaves bytes
that nobody looks at; the arena is given up, and the worker takes out of the index what it was never told of.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Protocol, TypeAlias

from redist.errors import RedistError, SegmentError, SegmentGone, SegmentsFull
from redist.memory.arena import ARENA_HEAD, ARENA_SIZE, arena_path, extent, is_open, record_head
from redist.memory.headers import Header
from redist.memory.index import Entry, Index, digest_of, hash_of
from redist.memory.space import full_error

__all__ = ["ArenaWriter", "Granting", "Small", "SmallWriter"]

_PIECES_A_CALL = 1000
#: Arenas that may be sealed, one after the other, before a byte is written: space is short then.
_TRIES = 5

Small: TypeAlias = tuple[Header, Iterable[bytes | memoryview]]


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
    connection : object, optional
        What the grant came over.

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
    connection: Any

    def __init__(self, segments: str, number: int, index: Index, connection: Any = None) -> None:
        self.number = number
        self.end = ARENA_HEAD
        self.connection = connection
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
            if not is_open(self._fd, self.number):
                return []
            return self._append(items, start)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                stat = os.fstatvfs(self._fd)
                raise full_error(self._path, ARENA_SIZE, 0, stat.f_bavail * stat.f_frsize) from error
            raise SegmentError(f"{self._path}: cannot be written: {error.strerror}") from error
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _append(self, items: Sequence[Small], start: int) -> list[int]:
        pieces: list[bytes | memoryview] = []
        entries: list[Entry] = []
        lengths: list[int] = []
        end = written = self.end
        for header, chunks in items[start:]:
            footer = header.footer()
            length = ARENA_HEAD + header.nbytes + len(footer)
            if end + length > ARENA_SIZE:
                break
            digest = digest_of(header.name)
            pieces.append(record_head(self.number, digest, header))
            size = 0
            for chunk in chunks:
                pieces.append(chunk)
                size += len(chunk) if type(chunk) is bytes else memoryview(chunk).nbytes
            if size != header.nbytes:
                raise SegmentError(
                    f"{self._path}: payload of {header.name!r:.80} announced {header.nbytes} bytes, gave {size}"
                )
            pieces.append(footer.ljust(extent(length) - ARENA_HEAD - size, b"\0"))
            entries.append(Entry(*hash_of(digest, header.attempt), self.number, end << 32 | length))
            lengths.append(length)
            end += extent(length)
            if len(pieces) > _PIECES_A_CALL:
                _write(self._fd, pieces, written)
                pieces, written = [], end
        if pieces:
            _write(self._fd, pieces, written)
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
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            self.close()


class Granting(Protocol):
    """Grants arenas, and hears what became of them."""

    def grant(self) -> ArenaWriter:
        """Return a new arena; raises `SegmentsFull` if there is no space."""

    def store(self, writer: ArenaWriter, start: int, records: Sequence[tuple[tuple[str, int], int]]) -> None:
        """Hear of keys that were written from `start` on, and of the lengths of their records."""

    def leave(self, writer: ArenaWriter) -> None:
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

    def put(self, items: Sequence[Small]) -> int:
        """Write payloads; return how many there was space for.

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
                while done < len(items):
                    if self._writer is None:
                        tries += 1
                        if tries > _TRIES:
                            break
                        try:
                            self._writer = self._granting.grant()
                        except SegmentGone:
                            continue
                    writer = self._writer
                    start = writer.end
                    lengths = writer.append(items, done)
                    if lengths:
                        tries = 0
                        keys = [
                            (header.name, header.attempt) for header, _ in items[done : done + len(lengths)]
                        ]
                        self._granting.store(writer, start, list(zip(keys, lengths)))
                        done += len(lengths)
                    if done < len(items):
                        # it is full, or was sealed because it was not used
                        self._let_go()
            except SegmentsFull:
                self._let_go()
            except BaseException:
                self._let_go()
                raise
        return done

    def _let_go(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            try:
                self._granting.leave(writer)
            except RedistError:  # the worker sees for itself that the connection is gone
                pass
            writer.close()

    def close(self) -> None:
        """Give the arena back."""
        with self._mutex:
            self._let_go()


def _write(fd: int, pieces: Sequence[bytes | memoryview], offset: int) -> None:
    views = [view for piece in pieces if (view := memoryview(piece)).nbytes]
    left = sum(view.nbytes for view in views)
    while left:
        count = os.pwritev(fd, views[:_PIECES_A_CALL], offset)
        left -= count
        offset += count
        if left:
            views = _rest(views, count)


def _rest(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what a short write of `count` bytes left."""
    for at, view in enumerate(views):
        if count < view.nbytes:
            return [view.cast("B")[count:], *views[at + 1 :]]
        count -= view.nbytes
    return []
