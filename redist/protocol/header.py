"""The messages of an Arrow IPC stream with one column, written by template and read without pyarrow.

::

    schema message        0xFFFFFFFF, size, flatbuffer; zeros to a multiple of 64
    then for each batch:
      batch message       0xFFFFFFFF, size, flatbuffer; zeros to BATCH_BYTES
      the column's bytes  zeros to a multiple of 64
    end of stream         0xFFFFFFFF, 0

The column has no nulls, hence no validity buffer. Whatever differs between streams of one kind stands at a known place:
in a schema, the metadata's last values, which are its last bytes; in a batch, four integers. A reader takes them out,
makes the whole message anew and compares, so a damaged or foreign message is never trusted.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from typing import NamedTuple

from redist.protocol.flatbuffers import FlatBuffer, field, follow, string
from redist.protocol.sizes import padding

__all__ = [
    "BATCH_BYTES",
    "CONTINUATION",
    "END_OF_STREAM",
    "ColumnType",
    "SchemaTemplate",
    "batch_message",
    "read_batch_message",
    "read_metadata",
    "schema_size",
]

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

CONTINUATION = b"\xff\xff\xff\xff"
_VERSION = ("h", 4)  # MetadataVersion.V5
_SCHEMA, _RECORD_BATCH = 1, 3
_LENGTH = struct.Struct("<I")
_BEGIN = struct.Struct("<4sI")
_CACHED_BYTES = 4096


class ColumnType(NamedTuple):
    """An Arrow type whose description is one integer, or two.

    Parameters
    ----------
    type_id : int
        Number of the type in the union ``Type``.
    parameter : int
        Bit width, precision, byte width or unit.
    form : str
        How the parameter is written, as in `struct`.
    signed : int, optional
        Of integers: whether they have a sign.
    """

    type_id: int
    parameter: int
    form: str = "i"
    signed: int | None = None


class SchemaTemplate:
    """Schema messages of one column type, with metadata.

    Parameters
    ----------
    column : ColumnType
        Type of the column, which is called ``data`` and has no nulls.
    constant : sequence of (bytes, bytes)
        Metadata that is the same in all messages.
    keys : sequence of bytes
        Names of the metadata whose values differ.
    """

    #: what every message begins with, after the first 8 bytes
    head: bytes

    __slots__ = ("_places", "_start", "head")

    def __init__(
        self, column: ColumnType, constant: Sequence[tuple[bytes, bytes]], keys: Sequence[bytes]
    ) -> None:
        flat = FlatBuffer()
        (header,), _ = flat.table(flat.root(), [_VERSION, ("B", _SCHEMA), ("offset", 0), ("q", 0)])
        (fields, metadata), _ = flat.table(header, [("h", 0), ("offset", 0), ("offset", 0)])
        pairs = flat.offsets(metadata, len(constant) + len(keys))
        variable = []
        for i, pair in enumerate(pairs):
            (key, value), _ = flat.table(pair, [("offset", 0), ("offset", 0)])
            if i < len(constant):
                flat.string(key, constant[i][0])
                flat.string(value, constant[i][1])
            else:
                flat.string(key, keys[i - len(constant)])
                variable.append(value)
        (field,) = flat.offsets(fields, 1)
        (name, kind, children), _ = flat.table(
            field,
            [("offset", 0), ("B", 0), ("B", column.type_id), ("offset", 0), None, ("offset", 0)],
        )
        parameters: list[tuple[str, int] | None] = [(column.form, column.parameter)]
        if column.signed is not None:
            parameters.append(("B", column.signed))
        flat.table(kind, parameters)
        flat.string(name, b"data")
        flat.offsets(children, 0)
        flat.data += bytes(-len(flat.data) % 4)
        self._start = len(flat.data)
        self._places = [value.position for value in variable]
        self.head = bytes(flat.data)

    def message(self, values: Sequence[bytes]) -> bytes:
        """Return the schema message with `values` for the keys, padded to a multiple of 64 bytes."""
        flat = bytearray(8)
        flat += self.head
        for place, value in zip(self._places, values):
            _LENGTH.pack_into(flat, 8 + place, len(flat) - 8 - place)
            size = len(value)
            flat += _LENGTH.pack(size)
            flat += value
            flat += bytes(4 - size % 4)  # a NUL at least
        flat += bytes(padding(len(flat)))
        flat[:4] = CONTINUATION
        _LENGTH.pack_into(flat, 4, len(flat) - 8)
        return bytes(flat)


def _batch_template() -> tuple[bytes, list[int]]:
    flat = FlatBuffer()
    (header,), message = flat.table(flat.root(), [_VERSION, ("B", _RECORD_BATCH), ("offset", 0), ("q", 0)])
    (nodes, buffers), batch = flat.table(header, [("q", 0), ("offset", 0), ("offset", 0)])
    node = flat.longs(nodes, 1, [0, 0])
    # the validity buffer, which is empty, then the data
    buffer = flat.longs(buffers, 2, [0, 0, 0, 0])
    flat.data += bytes(padding(8 + len(flat.data)))
    data = CONTINUATION + _LENGTH.pack(len(flat.data)) + flat.data
    # an 8-byte field is the first of its table, right after the offset of the vtable
    return bytes(data), [8 + message + 8, 8 + batch + 8, 8 + node, 8 + buffer + 24]


_BATCH, _BATCH_PLACES = _batch_template()

BATCH_BYTES = len(_BATCH)
"""Size of a batch message, the column's bytes not included."""

_LONG = struct.Struct("<q")
_BODY, _ROWS, _NODE, _DATA = _BATCH_PLACES
# All four numbers in one go, with the constant bytes between them.
_BATCH_STRUCT = struct.Struct(
    f"<{_BODY}sq{_ROWS - _BODY - 8}sq{_NODE - _ROWS - 8}sq{_DATA - _NODE - 8}sq{BATCH_BYTES - _DATA - 8}s"
)
_A, _, _B, _, _C, _, _D, _, _E = _BATCH_STRUCT.unpack(_BATCH)


def batch_message(rows: int, nbytes: int) -> bytes:
    """Return the message of a batch of `rows` values that take `nbytes`, `BATCH_BYTES` long.

    The column's bytes follow it, then zeros to a multiple of 64.
    """
    return _BATCH_STRUCT.pack(_A, nbytes + padding(nbytes), _B, rows, _C, rows, _D, nbytes, _E)


def read_batch_message(buffer: memoryview, position: int) -> tuple[int, int] | None:
    """Return rows and bytes of the column of the batch at `position`, or None if that is no message of `batch_message`."""
    if position + BATCH_BYTES > len(buffer):
        return None
    a, body, b, rows, c, node, d, nbytes, e = _BATCH_STRUCT.unpack_from(buffer, position)
    if (
        (a, b, c, d, e) != (_A, _B, _C, _D, _E)
        or node != rows
        or nbytes < 0
        or body != nbytes + padding(nbytes)
    ):
        return None
    return rows, nbytes


def schema_size(buffer: memoryview) -> int:
    """Return the size of the message that `buffer` begins with; 0 if there is none or it is not all there."""
    if len(buffer) < 8:
        return 0
    mark, length = _BEGIN.unpack_from(buffer)
    size: int = 8 + length
    return size if mark == CONTINUATION and size <= len(buffer) else 0


def read_metadata(message: bytes) -> dict[bytes, bytes] | None:
    """Return the custom metadata of any schema message, whoever wrote it; None if it is no schema message."""
    if len(message) > _CACHED_BYTES:
        return _read_metadata(message)
    return _read_metadata_cached(message)


def _read_metadata(message: bytes) -> dict[bytes, bytes] | None:
    flat = memoryview(message)[8:]
    try:
        root = follow(flat, 0)
        kind = field(flat, root, 1)
        header = field(flat, root, 2)
        if not kind or flat[kind] != _SCHEMA or not header:
            return None
        pairs = field(flat, follow(flat, header), 2)
        if not pairs:
            return {}
        vector = follow(flat, pairs)
        metadata = {}
        for i in range(_LENGTH.unpack_from(flat, vector)[0]):
            pair = follow(flat, vector + 4 + 4 * i)
            key, value = field(flat, pair, 0), field(flat, pair, 1)
            metadata[string(flat, key)] = string(flat, value)
    except (struct.error, IndexError):
        return None
    return metadata


_read_metadata_cached = functools.lru_cache(maxsize=512)(_read_metadata)
