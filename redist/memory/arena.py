"""The layout of an arena: a file of at most 1 MiB that holds many small payloads.

::

    offset 0     | magic 8 bytes | number u64 |                                   open, or zeros: sealed
    from 64      records, each at a multiple of 64, one after the other

    record       | magic 8 bytes | arena u64 | attempt u64 | hash of the name 16 bytes | nbytes u64 |
                   length of the rest u32 | crc32 of all that u32 | zeros, 64 bytes in all
                 | payload of nbytes | footer | trailer                           as in a segment, see redist.memory.headers

Integers are little endian. One process writes an arena, from its beginning to its end, under ``flock`` on it, and only
while it is not sealed; nothing in it is ever written twice. A record lives while the directory's index
(`redist.memory.index`) names it. Pages in which no record lives are punched out. A sealed arena may lie in the spill
directory (`redist.memory.spill`), under the same name.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator

from redist.errors import SegmentCorrupt
from redist.memory.headers import TRAILER_BYTES, Header, header_in

__all__ = [
    "ARENA_SIZE",
    "LARGEST",
    "RECORD_HEAD",
    "RECORD_MAGIC",
    "SUMMED",
    "arena_path",
    "check_record",
    "extent",
    "file_of",
    "is_small",
    "number_in",
    "payload_size",
    "record_end",
    "record_head",
    "scan",
    "walk",
]

ARENA_SIZE = 1 << 20
#: bytes at the beginning of an arena, and of a record
ARENA_HEAD = RECORD_HEAD = 64
_MORE_THAN = 4 * 1024
LARGEST = 36 * 1024
"""The payloads that go into arenas: smaller ones are kept inline; 36 KiB are 32 KiB of data as a stream, with its footer."""

_PREFIX = "arena-"
_ARENA_MAGIC = b"redistA\x01"
RECORD_MAGIC = b"redistR\x01"
_ARENA = struct.Struct("<8sQ")
_RECORD = struct.Struct("<8sQQ16sQI")
_CRC = struct.Struct("<I")
_CHECKED = struct.Struct(_RECORD.format + "I")
#: bytes of a record's head that its checksum is of
SUMMED = _RECORD.size
_PADDING = bytes(RECORD_HEAD - _RECORD.size - _CRC.size)


def is_small(nbytes: int, footer: int = 0) -> bool:
    """Tell whether a payload of `nbytes` bytes, with a footer of `footer` bytes, goes into an arena."""
    return _MORE_THAN < nbytes <= LARGEST - footer


def arena_path(segments: str, number: int) -> str:
    """Return the path of an arena in memory."""
    return f"{segments}/{_PREFIX}{number:016x}"


def file_of(number: int) -> str:
    """Return the file name of an arena, in memory or on disk."""
    return f"{_PREFIX}{number:016x}"


def number_in(entry: str) -> int | None:
    """Return the number of an arena from its file's name, None if it is none."""
    if entry.startswith(_PREFIX) and len(entry) == len(_PREFIX) + 16:
        try:
            return int(entry[len(_PREFIX) :], 16)
        except ValueError:
            pass
    return None


def arena_head(number: int) -> bytes:
    """Return the first bytes of an open arena."""
    return _ARENA.pack(_ARENA_MAGIC, number).ljust(ARENA_HEAD, b"\0")


def is_open(fd: int, number: int) -> bool:
    """Tell whether the arena may be written."""
    return os.pread(fd, _ARENA.size, 0) == _ARENA.pack(_ARENA_MAGIC, number)


def seal(fd: int) -> None:
    """Have nobody write the arena any more. The caller has its lock."""
    os.pwrite(fd, bytes(_ARENA.size), 0)


def extent(length: int) -> int:
    """Return how much of an arena a record of `length` bytes takes."""
    return -(-length // RECORD_HEAD) * RECORD_HEAD


def record_head(arena: int, digest: bytes, attempt: int, nbytes: int, rest: int) -> bytes:
    """Return what stands ahead of a payload; `digest` is the hash of its key's name, `rest` the length of its footer."""
    packed = _RECORD.pack(RECORD_MAGIC, arena, attempt, digest, nbytes, rest)
    return packed + _CRC.pack(zlib.crc32(packed)) + _PADDING


def check_record(record: bytes | memoryview, arena: int, digest: bytes, attempt: int) -> int:
    """Return the size of the payload in a whole record, after seeing that it is this one.

    Raises
    ------
    SegmentCorrupt
        If it is none, or another one; who calls knows the names of key and file.
    """
    if len(record) < RECORD_HEAD + TRAILER_BYTES:
        raise SegmentCorrupt(f"{len(record)} bytes are too few for a record")
    magic, number, its_attempt, its_digest, nbytes, rest = _RECORD.unpack_from(record)
    if magic != RECORD_MAGIC or _CRC.unpack_from(record, _RECORD.size)[0] != zlib.crc32(
        record[: _RECORD.size]
    ):
        raise SegmentCorrupt("no record of this version of redist begins here, or it is damaged")
    if number != arena or its_attempt != attempt or its_digest != digest:
        raise SegmentCorrupt("the record is of another key, attempt or arena")
    if rest < TRAILER_BYTES or RECORD_HEAD + nbytes + rest != len(record):
        raise SegmentCorrupt(f"it claims {nbytes} + {rest} bytes in a record of {len(record)}")
    return int(nbytes)


def payload_size(data: bytes, start: int, end: int, arena: int, digest: bytes, attempt: int) -> int:
    """Return the size of the payload in the record from `start` to `end`; -1 if `check_record` would refuse that."""
    if end - start < RECORD_HEAD + TRAILER_BYTES:
        return -1
    magic, number, its_attempt, its_digest, nbytes, rest, crc = _CHECKED.unpack_from(data, start)
    if (
        its_digest != digest
        or its_attempt != attempt
        or number != arena
        or magic != RECORD_MAGIC
        or RECORD_HEAD + nbytes + rest != end - start
        or rest < TRAILER_BYTES
        or crc != zlib.crc32(data[start : start + _RECORD.size])
    ):
        return -1
    return int(nbytes)


def record_end(data: bytes, offset: int, arena: int) -> int:
    """Return where the record at `offset` ends, 0 if none begins there."""
    if offset + RECORD_HEAD > len(data):
        return 0
    magic, number, _, _, nbytes, rest = _RECORD.unpack_from(data, offset)
    crc = _CRC.unpack_from(data, offset + _RECORD.size)[0]
    if magic != RECORD_MAGIC or number != arena or crc != zlib.crc32(data[offset : offset + _RECORD.size]):
        return 0
    end = offset + RECORD_HEAD + int(nbytes) + int(rest)
    return end if end <= ARENA_SIZE else 0


def name_hash(data: bytes, offset: int) -> tuple[bytes, int]:
    """Return hash and attempt in the head of a record."""
    fields = _RECORD.unpack_from(data, offset)
    return fields[3], fields[2]


def walk(data: bytes, arena: int, start: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of the records that lie one after the other from `start` on."""
    while end := record_end(data, start, arena):
        yield start, end - start
        start += extent(end - start)


def scan(data: bytes, arena: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of every record in an arena with holes."""
    at = ARENA_HEAD
    while (at := data.find(RECORD_MAGIC, at)) >= 0:
        end = 0 if at % RECORD_HEAD else record_end(data, at, arena)
        if end:
            yield at, end - at
        at += extent(end - at) if end else 1


def header_at(data: bytes, offset: int, length: int, arena: int, path: str) -> Header:
    """Return the header of the record at `offset` of an arena's bytes.

    Raises
    ------
    SegmentCorrupt
        If it is no whole record.
    """
    if not length or record_end(data, offset, arena) != offset + length or offset + length > len(data):
        raise SegmentCorrupt(f"{path}: no whole record of {length} bytes begins at {offset}")
    digest, attempt = name_hash(data, offset)
    return record_header(data[offset : offset + length], digest, attempt, path)


def record_header(record: bytes | memoryview, digest: bytes, attempt: int, path: str) -> Header:
    """Return the header at the end of a checked record of the arena `path`.

    Raises
    ------
    SegmentCorrupt
        If there is none.
    """
    # The footer speaks for a file of its own.
    return header_in(record, len(record), f"{path}/{digest.hex()}.{attempt}")
