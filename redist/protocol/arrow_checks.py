"""What is looked at in a stream before pyarrow reads it, so that a damaged or forged one is an error and nothing worse.

That costs some microseconds a batch and does not touch the values. Whether offsets, indices and characters are within bounds
only a look at every value tells; that is done while a secret is in force, when whoever wrote the payload is not trusted.
"""

from __future__ import annotations

import struct
from operator import add
from typing import Any

from redist.errors import DeserializationError
from redist.protocol.flatbuffers import field, follow
from redist.protocol.header import CONTINUATION
from redist.protocol.signing import is_signed

__all__ = ["check_messages", "check_names", "check_values"]

_UINT = struct.Struct("<I")
_LONG = struct.Struct("<q")
_SCHEMA, _DICTIONARY_BATCH, _RECORD_BATCH = 1, 2, 3


def check_messages(buffer: memoryview) -> None:
    """Check that a stream is whole, that its buffers lie within their messages, and that none of them is compressed.

    Parameters
    ----------
    buffer : memoryview
        The stream, flat bytes; what follows its end does not matter.

    Raises
    ------
    DeserializationError
        If that is not so. A compressed stream, which redist never writes, would take as much memory as it claims.
    """
    position = 0
    try:
        while True:
            start = position + 8
            if start > len(buffer) or buffer[position : position + 4] != CONTINUATION:
                raise _damaged(position, "there is no message")
            size = int(_UINT.unpack_from(buffer, position + 4)[0])
            if not size:
                return
            if start + size > len(buffer):
                raise _damaged(position, f"a message of {size} bytes does not fit")
            body = _body(buffer[start : start + size])
            if not 0 <= body <= len(buffer) - start - size:
                raise _damaged(position, f"a body of {body} bytes does not fit")
            position = start + size + body
    except (struct.error, IndexError) as error:
        raise _damaged(position, str(error)) from error


def check_names(schema: Any) -> None:
    """Check that the names of all fields are characters: polars takes that for granted.

    Raises
    ------
    DeserializationError
        If they are not.
    """
    kinds = [column.type for column in schema]
    try:
        for column in schema:
            str(column.name)
        while kinds:
            kind = kinds.pop()
            for i in range(kind.num_fields):
                str(kind.field(i).name)
                kinds.append(kind.field(i).type)
    except UnicodeDecodeError as error:
        raise DeserializationError(f"the payload is damaged: a column's name is no text: {error}") from error


def check_values(table: Any) -> None:
    """Check what pyarrow can check: at once what costs nothing, and every value while a secret is in force.

    Raises
    ------
    pyarrow.ArrowException
        If something is wrong.
    """
    table.validate(full=is_signed())


def _body(flat: memoryview) -> int:
    """Return the length of a message's body, after checking that its buffers lie in it."""
    message = follow(flat, 0)
    kind = field(flat, message, 1)
    length = field(flat, message, 3)
    body = int(_LONG.unpack_from(flat, length)[0]) if length else 0
    what = flat[kind] if kind else 0
    if what == _SCHEMA:
        return body
    if what not in (_DICTIONARY_BATCH, _RECORD_BATCH):
        raise IndexError(f"a message of the kind {what}")
    batch = follow(flat, field(flat, message, 2))
    if what == _DICTIONARY_BATCH:
        batch = follow(flat, field(flat, batch, 1))
    if field(flat, batch, 3):
        raise IndexError("its buffers are compressed")
    rows = field(flat, batch, 0)
    if rows and _LONG.unpack_from(flat, rows)[0] < 0:
        raise IndexError("a batch of fewer than no rows")
    counts, nulls = _pairs(flat, field(flat, batch, 1))
    if counts and (min(counts) < 0 or min(nulls) < -1):
        raise IndexError("a column of fewer than no rows")
    offsets, sizes = _pairs(flat, field(flat, batch, 2))
    if offsets and (min(offsets) < 0 or min(sizes) < 0 or max(map(add, offsets, sizes)) > body):
        raise IndexError(f"a buffer that does not lie in its body of {body} bytes")
    return body


def _pairs(flat: memoryview, reference: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return firsts and seconds of a vector of pairs of integers."""
    if not reference:
        return (), ()
    vector = follow(flat, reference)
    count = 2 * int(_UINT.unpack_from(flat, vector)[0])
    if vector + 4 + 8 * count > len(flat):
        raise IndexError("a list does not fit into its message")
    values = struct.unpack_from(f"<{count}q", flat, vector + 4)
    return values[::2], values[1::2]


def _damaged(position: int, why: str) -> DeserializationError:
    return DeserializationError(f"the table's payload is damaged or cut off at byte {position}: {why}")
