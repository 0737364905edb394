"""Frames of the local socket and of the data sockets: a length of 4 bytes (big endian), then one msgpack list.

Nothing in a frame is ever executed: plain msgpack without extension types, bounded in size and depth.
"""

from __future__ import annotations

import struct
from typing import Any

import msgpack

from redist.errors import RedistError, SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull, TransferError

__all__ = [
    "MAX_FRAME",
    "FrameParser",
    "error_fields",
    "error_of",
    "frame_length",
    "pack_frame",
    "pack_padded",
    "unpack_body",
]

MAX_FRAME = 64 * 1024 * 1024
"""Largest frame that is accepted, in bytes; payload bytes do not travel in frames."""

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size


def pack_frame(items: list[Any]) -> bytes:
    """Return the frame of a list of plain values."""
    body: bytes = msgpack.packb(items)
    if len(body) > MAX_FRAME:
        raise TransferError(f"a frame of {len(body)} bytes is larger than {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


def pack_padded(items: list[Any], at: int, alignment: int) -> bytes:
    """Return the frame of a list and as many zeros that what follows it is at a multiple of `alignment`, 256 at most.

    Parameters
    ----------
    items : list
        Plain values; the list that is sent has the zeros, which are bytes, as one more.
    at : int
        Where the frame begins.
    alignment : int
        See above.
    """
    body: bytes = msgpack.packb([*items, b""])
    missing = -(at + LENGTH_BYTES + len(body)) % alignment
    # the length of bytes that are few is the last byte of their head
    return _LENGTH.pack(len(body) + missing) + body[:-1] + bytes([missing]) + bytes(missing)


def frame_length(head: bytes | bytearray | memoryview, limit: int = MAX_FRAME) -> int:
    """Return the length that the first 4 bytes of a frame announce.

    Raises
    ------
    TransferError
        If it is larger than `limit`, as the bytes of a foreign protocol are.
    """
    length: int = _LENGTH.unpack_from(head)[0]
    if not 0 < length <= limit:
        raise TransferError(
            f"a frame announces {length} bytes (at most {limit}): not redist's protocol, or damaged"
        )
    return length


def unpack_body(body: bytes | bytearray | memoryview) -> list[Any]:
    """Return the list in the body of a frame.

    Raises
    ------
    SegmentCorrupt
        If the body is anything but one msgpack list of plain values.
    """
    try:
        items = msgpack.unpackb(body, raw=False, strict_map_key=True, ext_hook=_no_extension)
    except Exception as error:  # msgpack raises half a dozen types
        raise SegmentCorrupt(
            f"a frame of {len(body)} bytes is not msgpack: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(items, list) or not items:
        raise SegmentCorrupt("a frame holds no list")
    return items


class FrameParser:
    """Cuts a stream of bytes into frames.

    Parameters
    ----------
    limit : int
        Largest frame that is accepted.
    """

    limit: int

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Append received bytes."""
        self._buffer += data

    def next(self) -> list[Any] | None:
        """Return the next whole frame's list, None if more bytes are needed.

        Raises
        ------
        TransferError
            If the frame is too large; the stream cannot be read any further.
        SegmentCorrupt
            If the frame is not ours.
        """
        buffer = self._buffer
        if len(buffer) < LENGTH_BYTES:
            return None
        end = LENGTH_BYTES + frame_length(buffer, self.limit)
        if len(buffer) < end:
            return None
        body = bytes(memoryview(buffer)[LENGTH_BYTES:end])
        del buffer[:end]
        return unpack_body(body)

    def close(self) -> None:
        """Say that the stream ended.

        Raises
        ------
        TransferError
            If it ended inside a frame.
        """
        if self._buffer:
            raise TransferError(
                f"the connection ended inside a frame, {len(self._buffer)} bytes of it had come"
            )


def _no_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def error_fields(error: BaseException) -> list[str]:
    """Return class name and text of an error, to be sent in a frame."""
    return [type(error).__name__, str(error)]


def error_of(fields: object) -> RedistError | None:
    """Return the error that `error_fields` described (None for None); an unknown class becomes `TransferError`."""
    if fields is None:
        return None
    if (
        not isinstance(fields, list)
        or len(fields) != 2
        or not all(isinstance(field, str) for field in fields)
    ):
        return SegmentCorrupt(f"a frame describes an error wrongly: {fields!r:.100}")
    kind, text = fields
    return _ERRORS.get(kind, TransferError)(text)


_ERRORS: dict[str, type[RedistError]] = {
    kind.__name__: kind for kind in (SegmentError, SegmentCorrupt, SegmentGone, SegmentsFull, TransferError)
}
