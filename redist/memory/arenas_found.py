"""What a dead worker's arenas hold, in memory and on disk, as its successor finds them."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from redist.errors import SegmentCorrupt, SegmentError
from redist.memory.arena import ARENA_SIZE, arena_path, header_at, is_open, number_in, scan, seal
from redist.memory.arena_state import ArenaState
from redist.memory.headers import Header
from redist.memory.index import MAKING, Entry, Index, digest_of, hash_of, make_index
from redist.memory.locks import try_lock

__all__ = ["FoundArena", "find_arenas"]

logger = logging.getLogger("redist.memory")

#: How long the worker waits at its start for one who writes an arena, s.
_PATIENCE = 1.0


class FoundArena(NamedTuple):
    """An arena with the headers, offsets and lengths of the records that live in it."""

    state: ArenaState
    records: list[tuple[Header, int, int]]


def find_arenas(segments: str, spilled: Mapping[int, str]) -> Iterator[FoundArena]:
    """Seal the arenas of a segment directory and yield them; the index names just what is in them afterwards.

    Parameters
    ----------
    segments : str
        The directory.
    spilled : mapping
        Numbers of the arenas that lie on disk, and not in memory, and their paths.
    """
    in_memory = []
    for file in os.listdir(segments):
        if (number := number_in(file)) is not None:
            in_memory.append(number)
        elif file.startswith(MAKING):
            with contextlib.suppress(FileNotFoundError):  # a client may be just making it
                os.unlink(f"{segments}/{file}")
    until = time.monotonic() + _PATIENCE
    for number in in_memory:
        _seal(segments, number, until)
    entries = _entries(segments)
    by_arena: dict[int, list[Entry]] = {}
    for entry in entries or ():
        by_arena.setdefault(entry.arena, []).append(entry)
    kept: list[Entry] = []
    for number in [*in_memory, *spilled]:
        path = spilled.get(number) or arena_path(segments, number)
        found = _look(path, number, None if entries is None else by_arena.get(number, []))
        if found is not None:
            found.state.spilled = number in spilled
            for header, offset, length in found.records:
                where = number, offset << 32 | length
                kept.append(Entry(*hash_of(digest_of(header.name), header.attempt), *where))
            yield found
    if entries is None or set(kept) != set(entries):
        make_index(segments, kept)


def _seal(segments: str, number: int, until: float) -> None:
    """Have a client that outlived the worker write to an arena no more."""
    with contextlib.suppress(OSError):
        fd = os.open(arena_path(segments, number), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not is_open(fd, number):  # values may view it
                return
            while not try_lock(fd) and time.monotonic() < until:
                time.sleep(0.001)
            seal(fd)
        finally:
            os.close(fd)


def _entries(segments: str) -> list[Entry] | None:
    """Return what the predecessor's index says, None if it is lost."""
    try:
        return Index(segments).entries()
    except SegmentError as error:
        logger.warning("arenas are searched for payloads: %s", error)
        return None


def _look(path: str, number: int, entries: list[Entry] | None) -> FoundArena | None:
    """Return what is in one arena, by what the index says or, without an index, all that is found; None: unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            data = os.pread(fd, ARENA_SIZE, 0)
            written = os.fstat(fd).st_mtime
        finally:
            os.close(fd)
    except OSError as error:
        logger.warning("%s: cannot be read: %s", path, error.strerror)
        return None
    if entries is None:
        places = list(scan(data, number))
    else:
        places = [(entry.place >> 32, entry.place & 0xFFFFFFFF) for entry in entries]
    state = ArenaState(number, None)
    state.sealed = True
    state.pages[0] = 0
    state.written = written
    records = []
    for offset, length in places:
        try:
            header = header_at(data, offset, length, number, path)
        except SegmentCorrupt as error:
            logger.warning("leaving out a damaged record: %s", error)
            continue
        state.count(offset, length, 1)
        records.append((header, offset, length))
    return FoundArena(state, records)
