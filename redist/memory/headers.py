"""The layout of a segment, and the names of segment files.

::

    offset 0                                                                                  end of file
    | payload: an Arrow IPC stream of nbytes | gap | footer: msgpack list | trailer of 24 bytes |

    footer    [name, attempt, nbytes, type, [name of a contained key, ...]]
    trailer   nbytes u64, length of the footer u32, crc32 of the footer u32, magic 8 bytes; little endian

The payload starts the file, so any Arrow reader can open it; readers stop at the stream's end and never see the footer.
The gap is empty unless the file was recycled from a larger one. The footer lets a worker list what its directory holds
after it, or the server, lost its memory. The file's own name is a hash, so a key's name never becomes a path.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import msgpack

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone

__all__ = [
    "SPILL_LINK",
    "TRAILER_BYTES",
    "Header",
    "file_name",
    "find_header",
    "footprint",
    "path_of",
    "payload_bytes",
    "read_header",
    "spilled_path",
]

#: Link in a segment directory to where its worker's payloads lie that are on disk.
SPILL_LINK = "spill"
MAGIC = b"redist\x00\x01"
PAGE = 4096
MAX_FOOTER = 256 * 1024 * 1024

_TRAILER = struct.Struct("<QII8s")
TRAILER_BYTES = _TRAILER.size
_TAIL = 4096
#: Why a file cannot be opened that may be whole.
_SAYS_NOTHING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
_FILE_NAME = re.compile(r"[0-9a-f]{32}\.[0-9]{1,16}")


@dataclass(frozen=True, slots=True)
class Header:
    """What a segment's footer says of its payload.

    Parameters
    ----------
    name : str
        Wire name of the key.
    attempt : int
        The attempt that made the payload.
    nbytes : int
        Size of the payload, footer not counted.
    type : str
        Short type name for people.
    contains : sequence of str
        Wire names of the keys whose Futures are inside the payload.
    """

    name: str
    attempt: int
    nbytes: int
    type: str = ""
    contains: Sequence[str] = ()
    _footer: bytes = field(default=b"", init=False, repr=False, compare=False)

    @property
    def fields(self) -> list[object]:
        """The list that the footer, or a frame that announces the payload, holds."""
        return [self.name, self.attempt, self.nbytes, self.type, list(self.contains)]

    def footer(self) -> bytes:
        """Return footer and trailer, to be written at the end of the file."""
        if not self._footer:
            footer = footer_of(self.name, self.attempt, self.nbytes, self.type, self.contains)
            object.__setattr__(self, "_footer", footer)
        return self._footer

    @property
    def file_size(self) -> int:
        """Size of the segment's file: payload, footer and trailer."""
        return self.nbytes + len(self.footer())


def footer_of(name: str, attempt: int, nbytes: int, type_name: str, contains: Sequence[str]) -> bytes:
    """Return footer and trailer of a payload; see `Header`."""
    packed: bytes = msgpack.packb([name, attempt, nbytes, type_name, list(contains)])
    return packed + _TRAILER.pack(nbytes, len(packed), zlib.crc32(packed), MAGIC)


def footprint(size: int) -> int:
    """Return the memory that a file of `size` bytes takes: whole pages."""
    return -(-size // PAGE) * PAGE


def file_name(name: str, attempt: int) -> str:
    """Return the file name of one attempt's payload of the key `name`."""
    return f"{blake2b(name.encode(), digest_size=16).hexdigest()}.{attempt}"


def path_of(segments: str, name: str, attempt: int) -> str:
    """Return the path of one attempt's payload of the key `name` in the segment directory `segments`."""
    return f"{segments}/{blake2b(name.encode(), digest_size=16).hexdigest()}.{attempt}"


def spilled_path(path: str) -> str:
    """Return where the payload is that is not at `path`, if its worker has spilled it."""
    directory, _, name = path.rpartition("/")
    return f"{directory}/{SPILL_LINK}/{name}"


def is_file_name(entry: str) -> bool:
    """Tell whether `entry` is the file name of a payload."""
    return _FILE_NAME.fullmatch(entry) is not None


def payload_bytes(trailer: bytes | memoryview, size: int, path: str) -> int:
    """Return the payload's size from the last `TRAILER_BYTES` of a file of `size` bytes.

    Raises
    ------
    SegmentCorrupt
        If the trailer is not ours, or its sizes do not fit into the file.
    """
    return _check_trailer(trailer, size, path)[0]


def find_header(path: str) -> Header:
    """Read the header of the payload at `path`, or of where its worker has spilled it; see `read_header`."""
    for _ in range(2):  # it may be moved from one place to the other between two looks
        for place in (path, spilled_path(path)):
            try:
                return read_header(place)
            except SegmentGone:
                continue
    return read_header(path)


def read_header(path: str) -> Header:
    """Read and check the footer of the segment at `path`.

    Raises
    ------
    SegmentGone
        If there is no such file.
    SegmentCorrupt
        If it is no segment, is truncated, or belongs under another name.
    SegmentError
        If this process can open no more files, or has no right to read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise SegmentGone(f"{path}: the payload's file is gone") from None
    except OSError as error:
        kind = SegmentError if error.errno in _SAYS_NOTHING else SegmentCorrupt
        raise kind(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        size = os.fstat(fd).st_size
        tail = os.pread(fd, _TAIL, max(0, size - _TAIL))
        need = TRAILER_BYTES + _check_trailer(tail[-TRAILER_BYTES:], size, path)[1]
        if need > len(tail):
            tail = os.pread(fd, need, size - need)
    except OSError as error:  # no regular file
        raise SegmentCorrupt(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        os.close(fd)
    return header_in(tail, size, path)


def header_in(tail: bytes | memoryview, size: int, path: str) -> Header:
    """Return the header of the segment `path` of `size` bytes from its last bytes, footer and trailer at least.

    Raises
    ------
    SegmentCorrupt
        If it is no segment, is truncated, or belongs under another name.
    """
    nbytes, length, crc = _check_trailer(tail[-TRAILER_BYTES:], size, path)
    footer = bytes(tail[-TRAILER_BYTES - length : -TRAILER_BYTES])
    if zlib.crc32(footer) != crc:
        raise SegmentCorrupt(f"{path}: the footer's checksum is wrong")
    header = parse_fields(footer, path)
    if header.nbytes != nbytes:
        raise SegmentCorrupt(f"{path}: footer and trailer disagree about the payload's size")
    if file_name(header.name, header.attempt) != os.path.basename(path):
        raise SegmentCorrupt(f"{path}: the footer names another key or attempt")
    return header


def parse_fields(packed: bytes, where: str) -> Header:
    """Parse the msgpack list of a footer; `where` names its source in the error."""
    try:
        fields = msgpack.unpackb(packed, raw=False)
    except Exception as error:  # msgpack raises half a dozen types, ValueError and RecursionError among them
        raise SegmentCorrupt(f"{where}: the header is not msgpack: {error}") from error
    return header_of(fields, where)


def header_of(fields: object, where: str) -> Header:
    """Check the fields of a footer, or of a frame that announces a payload."""
    if not isinstance(fields, list) or len(fields) != 5:
        raise SegmentCorrupt(f"{where}: the header is no list of 5 fields")
    name, attempt, nbytes, type_name, contains = fields
    if (
        not isinstance(name, str)
        or not isinstance(type_name, str)
        or type(attempt) is not int
        or type(nbytes) is not int
        or not 0 <= attempt < 1 << 53
        or not 0 <= nbytes < 1 << 53
        or not isinstance(contains, list)
        or not all(isinstance(item, str) for item in contains)
    ):
        raise SegmentCorrupt(f"{where}: a field of the header has a wrong type or range")
    return Header(name, attempt, nbytes, type_name, tuple(contains))


def _check_trailer(trailer: bytes | memoryview, size: int, path: str) -> tuple[int, int, int]:
    if len(trailer) != TRAILER_BYTES:
        raise SegmentCorrupt(f"{path}: {size} bytes are too few for a segment")
    nbytes, length, crc, magic = _TRAILER.unpack(trailer)
    if magic != MAGIC:
        raise SegmentCorrupt(f"{path}: not a segment of this version of redist, or truncated")
    if length > MAX_FOOTER or nbytes + length + TRAILER_BYTES > size:
        raise SegmentCorrupt(f"{path}: claims {nbytes} + {length} bytes in a file of {size}")
    return nbytes, length, crc
