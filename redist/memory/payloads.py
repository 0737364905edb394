"""Reading a payload of this host, wherever it lies: a small one is copied out of its arena, any other one is mapped.

Where many are read at once that take much of their arena, that is mapped (`redist.memory.arena_views`). No lock, and no
lifetime, ties a copy to its arena. The record is read first, and then the index is looked at once more: if
it still names the record then nothing of it had been given back when it was read. An arena may lie on disk, and moves as a
whole: one that is kept open here is looked at again whenever the index says that some arena was moved.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.arena import (
    ARENA_SIZE,
    LARGEST,
    RECORD_HEAD,
    arena_path,
    check_record,
    header_at,
    payload_size,
)
from redist.memory.arena_views import view_arena
from redist.memory.headers import Header, file_name, spilled_path
from redist.memory.index import Entry, Found, Index, digest_of, hash_of
from redist.memory.mappings import mappings
from redist.memory.reader import Mapping, open_segment
from redist.memory.touched import touch_arena

if TYPE_CHECKING:
    from mmap import mmap

    from redist.memory.lookups import InArena, Piece

    Place = tuple[bytes | mmap, int, int]

__all__ = ["let_go", "list_payloads", "open_payload", "read_small"]

_MOST_ARENAS = 64
_MOST_INDICES = 64
_LOOKS = 100
#: An arena is mapped for payloads that take so much of it: a value that stays keeps all of it.
_WORTH_A_VIEW = ARENA_SIZE // 4


class _Arena:
    """An open arena; its descriptor is closed when the last thread that reads from it lets go.

    `stamp` is that of the index (`Found.stamp`) ahead of which it was last seen to be where it lies.
    """

    __slots__ = ("fd", "stamp")

    def __init__(self, path: str, stamp: int) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self.stamp = stamp

    def is_there(self, stamp: int) -> bool:
        """Tell whether it still has its name; one that has not was moved."""
        there = os.fstat(self.fd).st_nlink > 0
        if there:
            self.stamp = stamp
        return there

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


def open_payload(
    segments: str,
    name: str,
    attempt: int,
    *,
    writable: bool = False,
    nbytes: int = 0,
    buffer: memoryview | None = None,
) -> Mapping:
    """Return one attempt's payload of the key `name` in the segment directory `segments`.

    Parameters
    ----------
    segments : str
        The segment directory, on this host.
    name : str
        Wire name of the key.
    attempt : int
        The attempt.
    writable : bool
        Map privately, see `redist.memory.reader.open_segment`. What is copied is read-only all the same.
    nbytes : int
        Its size, if it is known: a large one is not looked for in arenas.
    buffer : memoryview, optional
        Where a file that fits is read into instead of being mapped, see there.

    Raises
    ------
    SegmentGone
        If the payload was evicted meanwhile.
    SegmentCorrupt
        If what lies there is no whole payload, or another one.
    SegmentError
        If the process may not open more files, or has no right to read it.
    """
    digest = digest_of(name)
    if nbytes > LARGEST:
        with suppress(SegmentGone):  # or smaller than it was, since it was computed again
            return open_segment(f"{segments}/{digest.hex()}.{attempt}", writable=writable)
    index = _indices.get(segments)
    if index is None:
        index = _open_index(segments)
    if index is not None:
        name_hash, key = hash_of(digest, attempt)
        try:
            found = index.find(name_hash, key)
            for _ in range(_LOOKS):
                if found is None:
                    break
                mapping = _read(segments, index, found, digest, name, attempt)
                if mapping is not None:
                    return mapping
                found = index.find(name_hash, key)
        except SegmentGone:
            _forget(segments)
            raise
    return open_segment(f"{segments}/{digest.hex()}.{attempt}", writable=writable, buffer=buffer)


def _read(
    segments: str, index: Index, found: Found, digest: bytes, name: str, attempt: int
) -> Mapping | None:
    """Copy the record that was found; return None if it is gone or elsewhere by now."""
    _, _, number, place, stamp = found
    length = place & 0xFFFFFFFF
    arena = _arenas.get(number)
    if arena is None or arena.stamp != stamp:
        try:
            arena = _arena_at(segments, number, stamp)
        except FileNotFoundError:
            if index.stands(found):
                raise SegmentGone(f"{arena_path(segments, number)}: the payload's file is gone") from None
            return None
    touch_arena(segments, number)
    try:
        record = os.pread(arena.fd, min(length, ARENA_SIZE), place >> 32)
    except OSError as error:
        raise SegmentError(f"{arena_path(segments, number)}: cannot be read: {error.strerror}") from error
    if not index.stands(found):
        return None
    try:
        nbytes = check_record(record, number, digest, attempt)
    except SegmentCorrupt as error:
        path = arena_path(segments, number)
        if os.path.exists(path) or os.path.exists(spilled_path(path)):
            raise SegmentCorrupt(f"{path}: {name!r:.80} attempt {attempt}: {error}") from None
        raise SegmentGone(f"{path}: the payload's file is gone") from None
    file = f"{segments}/{digest.hex()}.{attempt}"
    return Mapping(memoryview(record)[RECORD_HEAD : RECORD_HEAD + nbytes], nbytes, file)


def read_small(segments: str, wanted: Sequence[tuple[str, int]]) -> list[Place | None]:
    """Read many small payloads at once: a sealed arena of which they take much is mapped, of others they are copied.

    Parameters
    ----------
    segments : str
        The segment directory, on this host.
    wanted : sequence of (str, int)
        Wire name of each key, and attempt.

    Returns
    -------
    list of (bytes or mmap, int, int) or None
        Bytes that several share, and where the payload begins and ends in them: up to 64 KiB of a copy, or a mapped arena,
        which its worker keeps for as long. None: `open_payload` has to look for it.
    """
    from redist.memory.lookups import find_many

    places: list[Place | None] = [None] * len(wanted)
    index = _indices.get(segments) or _open_index(segments)
    if index is None:
        return places
    try:
        found = find_many(index, wanted)
    except SegmentGone:
        _forget(segments)
        return places
    pieces: list[tuple[Piece, _Arena, bytes]] = []
    views: list[tuple[InArena, mmap]] = []
    for place in found.arenas():
        touch_arena(segments, place.number)
        if place.nbytes >= _WORTH_A_VIEW and (view := view_arena(segments, place.number)) is not None:
            views.append((place, view))
            continue
        for piece in place.pieces():
            try:
                arena = _arena_at(segments, piece.arena, found.stamp)
                pieces.append((piece, arena, os.pread(arena.fd, min(piece.length, ARENA_SIZE), piece.offset)))
            except (OSError, SegmentError):  # who looks for it alone says why
                continue
    standing, moves = found.standing(), found.moves
    for place, view in views:
        for at, start, end in found.payloads_in(view, place, standing):
            places[at] = view, start, end
    stands: list[bool] = standing.tolist() if pieces else []
    for piece, arena, data in pieces:
        # one that has its name still had its bytes when they were read
        if len(data) < piece.length or (moves and not arena.is_there(found.stamp)):
            continue
        for at, start, end in piece.records:
            # one that is damaged is named when it is looked for alone
            if stands[at]:
                nbytes = payload_size(data, start, end, piece.arena, found.digests[at], wanted[at][1])
                if nbytes >= 0:
                    places[at] = data, start + RECORD_HEAD, start + RECORD_HEAD + nbytes
    return places


def _arena_at(segments: str, number: int, stamp: int) -> _Arena:
    """Return an open arena that is where it lies, or was later than the index said `stamp`."""
    arena = _arenas.get(number)
    if arena is not None and (arena.stamp == stamp or arena.is_there(stamp)):
        return arena
    return _open_arena(segments, number, stamp)


def _open_arena(segments: str, number: int, stamp: int) -> _Arena:
    path = arena_path(segments, number)
    try:
        arena = _find_arena(path, stamp)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SegmentError(f"{path}: cannot be read: {error.strerror}") from error
    with _mutex:
        _arenas[number] = arena
        while len(_arenas) > _MOST_ARENAS:
            _arenas.popitem(last=False)
    return arena


def _find_arena(path: str, stamp: int) -> _Arena:
    """Open an arena in memory or on disk; it is complete in one place before it leaves the other."""
    for place in (path, spilled_path(path)):
        with suppress(FileNotFoundError):
            return _Arena(place, stamp)
    return _Arena(path, stamp)


def _open_index(segments: str) -> Index | None:
    """Return the index of a directory, None if it has none."""
    try:
        index = Index(segments)
    except SegmentGone:
        return None
    with _mutex:
        _indices[segments] = index
        while len(_indices) > _MOST_INDICES:
            _indices.popitem(last=False)
    return index


def let_go() -> None:
    """Close what is kept open, until it is needed again, and mappings of files that are gone."""
    mappings.look()
    with _mutex:
        _indices.clear()
        _arenas.clear()


def _forget(segments: str) -> None:
    """Let go of a directory that was removed, and of all arenas: which are of it is not known."""
    with _mutex:
        _indices.pop(segments, None)
        _arenas.clear()


_mutex = threading.Lock()
_indices: OrderedDict[str, Index] = OrderedDict()
#: by their numbers, which are never given twice
_arenas: OrderedDict[int, _Arena] = OrderedDict()


def _forked() -> None:
    global _mutex
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def list_payloads(segments: str) -> dict[str, Header]:
    """Return the headers of all small payloads in the directory of a living worker, by what their files would be called.

    Raises
    ------
    SegmentError
        If a record is damaged, or the directory is gone.
    """
    index = Index(segments)
    found: dict[str, Header] = {}
    by_arena: dict[int, list[Entry]] = {}
    for entry in index.entries():
        by_arena.setdefault(entry.arena, []).append(entry)
    for number, entries in by_arena.items():
        path = arena_path(segments, number)
        data = _read_arena(index, path)
        for name, key, _, place in entries:
            try:
                header = header_at(data, place >> 32, place & 0xFFFFFFFF, number, path)
            except SegmentCorrupt:
                again = index.find(name, key)
                if again is None or again.place != place:
                    continue  # dropped meanwhile
                raise
            found[file_name(header.name, header.attempt)] = header
    return found


def _read_arena(index: Index, path: str) -> bytes:
    """Return the bytes of an arena, read while it was in one place; none if it is gone."""
    while True:
        stamp = index.stamp
        try:
            arena = _find_arena(path, stamp)
            data = os.pread(arena.fd, ARENA_SIZE, 0)
        except FileNotFoundError:
            data = b""
        if index.stamp == stamp:
            return data
