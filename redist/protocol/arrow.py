"""Tables as Arrow IPC streams with buffers at multiples of 64, which pyarrow itself has no option for.

pyarrow writes into a collector that keeps each piece uncopied; then the offsets in the batches' metadata are set anew and
the metadata is padded with zeros. What is not a table travels as one, with a word in the schema's metadata under
``redist``: ``batch``, ``array`` or ``chunked`` (a column each), ``polars`` or ``polars.series``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from redist.errors import DeserializationError
from redist.imported import imported
from redist.protocol.arrow_checks import check_messages, check_names, check_values
from redist.protocol.flatbuffers import field, follow
from redist.protocol.header import CONTINUATION, END_OF_STREAM
from redist.protocol.sizes import padding

__all__ = ["PACKAGES", "from_stream", "has_stream", "is_foreign", "polars_frame", "polars_table", "to_stream"]

PACKAGES = frozenset({"pyarrow", "polars"})
"""Packages whose objects may have a stream of their own."""

_MARK = b"redist"
_UINT = struct.Struct("<I")
_LONG = struct.Struct("<q")
_ENTRY = struct.Struct("<qq")
_DICTIONARY_BATCH = 2
# Shorter pieces are joined, so that a table of many small columns is not written in many small calls.
_SMALL_PIECE = 16 * 1024


def has_stream(obj: Any) -> bool:
    """Return whether `obj`, from one of `PACKAGES`, can travel as a stream of its own."""
    kind = type(obj)
    polars: Any = imported("polars")
    if polars is not None and (kind is polars.DataFrame or kind is polars.Series):
        return True
    import pyarrow as pa

    if kind is pa.Table or kind is pa.RecordBatch:
        if _MARK in (obj.schema.metadata or {}):  # as in a payload that was read by other means
            return False
        return not any(is_foreign(column.type) for column in obj.schema)
    return (kind is pa.ChunkedArray or isinstance(obj, pa.Array)) and not is_foreign(obj.type)


def to_stream(obj: Any) -> list[bytes | memoryview] | None:
    """Return the stream of a table, batch, array or polars frame in pieces, large buffers uncopied.

    None if Arrow has no stream for it, so that it has to be pickled.

    Parameters
    ----------
    obj : object
        Something for which `has_stream` is true.
    """
    import pyarrow as pa

    collector = _Collector()
    try:
        table, mark = _as_table(obj)
        schema = table.schema
        if mark:
            schema = schema.with_metadata({**(schema.metadata or {}), _MARK: mark})
            table = table.replace_schema_metadata(schema.metadata)
        with pa.ipc.new_stream(pa.PythonFile(collector, mode="w"), schema) as writer:
            if table.num_rows:
                writer.write(table)
            else:  # a stream without a batch is more than some readers can take
                writer.write(pa.RecordBatch.from_pylist([], schema=schema))
    except (pa.ArrowException, NotImplementedError, OverflowError):
        return None
    return list(_joined(_aligned(collector.pieces)))


def from_stream(buffer: memoryview) -> Any:
    """Return what is in a stream; it views `buffer`.

    Parameters
    ----------
    buffer : memoryview
        The stream. Not only of `to_stream`: any Arrow IPC stream is a table.

    Raises
    ------
    DeserializationError
        If the stream is damaged.
    """
    import pyarrow as pa

    check_messages(buffer)
    try:
        with pa.ipc.open_stream(pa.py_buffer(buffer)) as reader:
            schema = reader.schema
            metadata = dict(schema.metadata or {})
            mark = metadata.pop(_MARK, b"")
            table = reader.read_all()
        check_values(table)
        if not mark:
            return table
        if mark == b"batch" or mark == b"array":
            (batch,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=schema)]
            return batch.column(0) if mark == b"array" else batch.replace_schema_metadata(metadata or None)
        if mark == b"chunked":
            return table.column(0)
        if mark == b"polars" or mark == b"polars.series":
            return _polars(table.replace_schema_metadata(metadata or None), mark)
    except (pa.ArrowException, OSError, ValueError, IndexError, KeyError) as error:
        raise DeserializationError(f"the table's payload is damaged or cut off: {error}") from error
    raise DeserializationError(f"the payload is of a kind that this version does not know: {mark!r:.40}")


def _polars(table: Any, mark: bytes) -> Any:
    try:
        from polars.exceptions import PanicException
    except ImportError as error:
        raise DeserializationError(f"the value is a polars frame, and polars is not here: {error}") from error
    check_names(table.schema)
    try:
        frame = polars_frame(table)
        return frame if mark == b"polars" else frame.to_series(0)
    except (Exception, PanicException) as error:  # the latter is no Exception
        raise DeserializationError(f"polars does not take the table of the payload: {error}") from error


class _Collector:
    """The file that pyarrow writes into; it keeps every piece, and where the buffers are."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[Any] = []
        self._position = 0

    def write(self, piece: Any) -> int:
        self.pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None: ...

    def close(self) -> None: ...


def _as_table(obj: Any) -> tuple[Any, bytes]:
    import pyarrow as pa

    kind = type(obj)
    if kind is pa.Table:
        return obj, b""
    if kind is pa.RecordBatch:
        return obj, b"batch"
    if kind is pa.ChunkedArray:
        return pa.table([obj], ["data"]), b"chunked"
    if isinstance(obj, pa.Array):
        return pa.RecordBatch.from_arrays([obj], ["data"]), b"array"
    import polars

    return polars_table(obj), b"polars" if kind is polars.DataFrame else b"polars.series"


def polars_table(obj: Any) -> Any:
    """Return the memory of a polars frame or series as a table.

    Raises
    ------
    NotImplementedError
        If polars would not make the same of it again.
    """
    import polars

    frame = obj.to_frame() if type(obj) is polars.Series else obj
    try:
        table = frame.to_arrow(compat_level=polars.CompatLevel.newest())
        again = polars_frame(table.slice(0, 0)).schema
    except (
        polars.exceptions.PolarsError,
        polars.exceptions.PanicException,
    ) as error:  # the latter is no Exception
        raise NotImplementedError(str(error)) from error
    if again != frame.schema:
        raise NotImplementedError("polars has types that Arrow does not give back")
    return table


def polars_frame(table: Any) -> Any:
    """Return a table as a polars frame over the same memory."""
    import polars

    frame: Any = polars.from_arrow(table, rechunk=False)
    if frame.columns != table.column_names:  # polars names what has no name
        frame.columns = table.column_names
    return frame


def is_foreign(kind: Any) -> bool:
    """Return whether a type, or one inside of it, is a Python class, which another process may not have registered."""
    import pyarrow as pa

    if isinstance(kind, pa.ExtensionType):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return is_foreign(kind.storage_type)
    if isinstance(kind, pa.DictionaryType):
        return is_foreign(kind.value_type)
    return any(is_foreign(kind.field(i).type) for i in range(kind.num_fields))


def _aligned(pieces: list[Any]) -> Iterator[bytes | memoryview]:
    """Yield the messages that pyarrow wrote, with every buffer at a multiple of 64."""
    import pyarrow as pa

    # pyarrow writes a message as: mark, size, metadata, zeros, then each buffer with zeros behind it. Only buffers are
    # pa.Buffer, so the rest up to the next one that is not of this message is bytes.
    heads: list[bytes] = []
    bodies: list[list[Any]] = []
    end = 0
    position = 0
    for piece in pieces:
        if position >= end and piece == CONTINUATION:
            heads.append(b"")
            bodies.append([])
            end = position + 8
        if isinstance(piece, pa.Buffer):
            bodies[-1].append(piece)
        elif not bodies[-1]:
            heads[-1] += bytes(piece)
        position += len(piece)
    for head, body in zip(heads, bodies):
        if head == END_OF_STREAM:
            yield head
        else:
            yield from _message(bytearray(head), body)


def _message(head: bytearray, body: list[Any]) -> Iterator[bytes | memoryview]:
    (size,) = _UINT.unpack_from(head, 4)
    del head[8 + size :]
    flat = memoryview(head)[8:]
    message = follow(flat, 0)
    sizes = [buffer.size for buffer in body]
    header = follow(flat, field(flat, message, 2))
    if flat[field(flat, message, 1)] != 1:
        _set_offsets(flat, header, message, sizes)
    flat.release()
    head += bytes(padding(len(head)))
    _UINT.pack_into(head, 4, len(head) - 8)
    yield bytes(head)
    for buffer in body:
        yield memoryview(buffer).cast("B")
        yield bytes(padding(buffer.size))


def _set_offsets(flat: memoryview, header: int, message: int, sizes: list[int]) -> None:
    if flat[field(flat, message, 1)] == _DICTIONARY_BATCH:
        header = follow(flat, field(flat, header, 1))
    offset = 0
    written = iter(sizes)
    reference = field(flat, header, 2)
    if reference:
        vector = follow(flat, reference)
        for i in range(_UINT.unpack_from(flat, vector)[0]):
            entry = vector + 4 + 16 * i
            length = _ENTRY.unpack_from(flat, entry)[1]
            _LONG.pack_into(flat, entry, offset)
            if length:
                if next(written, None) != length:
                    raise NotImplementedError("pyarrow wrote other buffers than it announced")
                offset += length + padding(length)
    if next(written, None) is not None:
        raise NotImplementedError("pyarrow wrote more buffers than it announced")
    if offset:
        _LONG.pack_into(flat, field(flat, message, 3), offset)


def _joined(pieces: Iterator[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    small: list[bytes | memoryview] = []
    for piece in pieces:
        if len(piece) < _SMALL_PIECE:
            small.append(piece)
        else:
            yield b"".join(small)
            small = []
            yield piece
    if small:
        yield b"".join(small)
