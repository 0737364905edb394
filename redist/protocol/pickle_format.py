"""Pickles as Arrow IPC streams: schema ``{data: uint8}``, a batch with the pickle, then one for each out-of-band buffer.

The schema's metadata: ``redist`` is ``pickle``, ``hmac`` the signature (`signing`) or empty.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from redist.errors import DeserializationError, RedistError
from redist.protocol.header import (
    BATCH_BYTES,
    END_OF_STREAM,
    ColumnType,
    SchemaTemplate,
    batch_message,
    read_batch_message,
)
from redist.protocol.pickling import Pickled
from redist.protocol.signing import check, is_signed, sign
from redist.protocol.sizes import padding

if TYPE_CHECKING:
    from redist.protocol.gathered import Gathered

__all__ = ["MARK", "from_stream", "loading", "to_stream"]

MARK = b"pickle"


class _Loading(threading.local):
    """How this thread loads a value right now."""

    #: whether all arrays are to be writable
    writable = False


loading = _Loading()

_SCHEMA = SchemaTemplate(ColumnType(2, 8, "i", 0), [(b"redist", MARK)], [b"hmac"])

_UNSIGNED = _SCHEMA.message([b""])


def to_stream(
    pickled: Pickled, buffers: Sequence[memoryview | Gathered]
) -> list[bytes | memoryview | Gathered]:
    """Return the stream of a pickle in pieces; large ones are the very objects.

    Parameters
    ----------
    pickled : Pickled
        The pickle.
    buffers : sequence of memoryview or Gathered
        Its out-of-band buffers, flat bytes, in order.
    """
    schema = _UNSIGNED
    if is_signed():
        signature = sign(b"value", pickled.chunks, [buffer.nbytes for buffer in buffers])
        assert signature is not None
        schema = _SCHEMA.message([signature.hex().encode()])
    pieces: list[bytes | memoryview | Gathered] = [
        schema + batch_message(pickled.nbytes, pickled.nbytes),
        *pickled.chunks,
    ]
    gap = bytes(padding(pickled.nbytes))
    for buffer in buffers:
        pieces.append(gap + batch_message(buffer.nbytes, buffer.nbytes))
        pieces.append(buffer)
        gap = bytes(padding(buffer.nbytes))
    pieces.append(gap + END_OF_STREAM)
    return pieces


def from_stream(
    schema: bytes, metadata: Mapping[bytes, bytes], buffer: memoryview, writable: bool = False
) -> Any:
    """Return the object in a stream that `to_stream` made.

    Parameters
    ----------
    schema : bytes
        The schema message that `buffer` begins with.
    metadata : mapping
        What that message says.
    buffer : memoryview
        The stream, flat bytes; arrays of the object view it.
    writable : bool
        Copy what would be read-only although the buffer is not: arrays that repeat themselves.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the pickle is not signed with it.
    DeserializationError
        If the stream is damaged or the object cannot be loaded here.
    """
    if schema == _UNSIGNED:
        signature = b""
    else:
        text = metadata.get(b"hmac", b"")
        try:
            signature = bytes.fromhex(text.decode("ascii"))
        except ValueError:
            raise DeserializationError("the payload's signature is damaged") from None
        if _SCHEMA.message([text]) != schema:
            raise DeserializationError("the payload's schema message is damaged, or of another version")
    position = len(schema)
    columns: list[memoryview] = []
    while buffer[position : position + 8] != END_OF_STREAM:
        found = read_batch_message(buffer, position)
        start = position + BATCH_BYTES
        if found is None or start + found[1] > len(buffer):
            raise DeserializationError(
                f"the payload is damaged or cut off: no batch at byte {position} of {len(buffer)}"
            )
        nbytes = found[1]
        columns.append(buffer[start : start + nbytes])
        position = start + nbytes + padding(nbytes)
    if not columns:
        raise DeserializationError("the payload holds no pickle")
    data, *buffers = columns
    if is_signed():
        check(b"value", signature, (data,), [column.nbytes for column in buffers])
    before, loading.writable = loading.writable, writable
    try:
        return pickle.loads(data, buffers=buffers)
    except (RedistError, MemoryError):
        raise
    except Exception as error:
        raise DeserializationError(
            f"the value cannot be loaded here: {type(error).__name__}: {error}"
        ) from error
    finally:
        loading.writable = before
