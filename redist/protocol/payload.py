"""`dumps` and `loads`: any value to a payload of known size, and back.

====================================  ================================================================================
value                                 payload
====================================  ================================================================================
anything small                        inline: a bare pickle of at most `INLINE_LIMIT` bytes
numpy array                           stream of one flat column (`numpy_format`)
pyarrow table, batch, array; polars   stream of the table itself (`arrow`)
anything else, pandas included        stream of a pickle and its buffers (`pickle_format`)
====================================  ================================================================================

A stream is a valid Arrow IPC stream that any reader of Arrow opens; its buffers begin at multiples of 64.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

from redist.errors import DeserializationError, RedistError, SerializationError
from redist.imported import imported
from redist.protocol import arrow, numpy_format, pickle_format
from redist.protocol.futures import Collector, name_of
from redist.protocol.gathered import Gathered
from redist.protocol.header import BATCH_BYTES, read_metadata, schema_size
from redist.protocol.names import type_name
from redist.protocol.pickling import BufferSink, pickle_object
from redist.protocol.plain import is_plain
from redist.protocol.signing import open_signed, sign_blob
from redist.protocol.sizes import INLINE_LIMIT, OUT_OF_BAND

if TYPE_CHECKING:
    from mmap import mmap

    #: bytes, and where the stream begins and ends in them
    Place = tuple[bytes | mmap, int, int]

__all__ = ["Loader", "Payload", "dumps", "loads", "loads_inline"]

Pieces: TypeAlias = "list[bytes | memoryview] | list[bytes | memoryview | Gathered]"

_SCALAR_NAMES = {kind: kind.__name__ for kind in (int, float, bool, str, bytes, complex)} | {
    type(None): "NoneType"
}
_UNBOUNDED = frozenset({str, bytes})
_COPY_BY_NUMPY = 1 << 20


class Payload:
    """A serialized value, whose size is known before a byte of it is written.

    Parameters
    ----------
    pieces : sequence of bytes, memoryview or Gathered
        The payload's bytes; large pieces are the value's own memory.
    type : str
        Short name of the value's type, for people.
    contains : tuple of str
        Wire names of the Futures inside.
    inline : bytes, optional
        The pickle, if it is short enough to be kept inline; it is then the whole payload.
    """

    nbytes: int
    inline: bytes | None
    type: str
    contains: tuple[str, ...]

    __slots__ = ("_pieces", "contains", "inline", "nbytes", "type")

    def __init__(
        self,
        pieces: Sequence[bytes | memoryview | Gathered],
        type: str,  # noqa: A002 - the word that people read
        contains: tuple[str, ...] = (),
        inline: bytes | None = None,
    ) -> None:
        self._pieces = pieces
        self.type = type
        self.contains = contains
        self.inline = inline
        self.nbytes = sum(map(len, pieces)) if inline is None else len(inline)

    def __repr__(self) -> str:
        return f"<Payload of {self.type}, {self.nbytes} bytes{'' if self.inline is None else ', inline'}>"

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Return the payload's bytes in pieces, in order; large ones are the value's own memory, uncopied."""
        for piece in self._pieces:
            if isinstance(piece, Gathered):
                yield from piece.pieces()
            else:
                yield piece

    def write_into(self, buffer: memoryview) -> None:
        """Write the payload to the beginning of `buffer`, `nbytes` bytes.

        Raises
        ------
        ValueError
            If the buffer is shorter.
        """
        if buffer.nbytes < self.nbytes:
            raise ValueError(f"the buffer has {buffer.nbytes} bytes, the payload needs {self.nbytes}")
        if buffer.format != "B" or buffer.ndim != 1:
            buffer = buffer.cast("B")
        position = 0
        for piece in self._pieces:
            end = position + len(piece)
            if isinstance(piece, Gathered):
                piece.write_into(buffer[position:end])
            elif len(piece) >= _COPY_BY_NUMPY:
                _copy(buffer[position:end], piece)
            else:
                buffer[position:end] = piece
            position = end


def dumps(obj: Any, *, inline_limit: int = INLINE_LIMIT, name_of: Callable[[Any], str] = name_of) -> Payload:
    """Serialize a value.

    Parameters
    ----------
    obj : object
        Anything that plain pickle, cloudpickle or Arrow can serialize.
    inline_limit : int
        A pickle of at most so many bytes becomes an inline payload; with 0 every payload is a stream.
    name_of : callable
        Gives the wire name of a Future in it; may raise to refuse it.

    Raises
    ------
    SerializationError
        If the value cannot be serialized.
    """
    kind = type(obj)
    name = _SCALAR_NAMES.get(kind)
    if name is not None and (kind not in _UNBOUNDED or len(obj) <= inline_limit):
        data = sign_blob(b"value", pickle.dumps(obj, 5))
        if len(data) <= inline_limit:
            return Payload((data,), name, (), data)
    try:
        if inline_limit and name is None and is_plain(obj):
            data = sign_blob(b"value", pickle.dumps(obj, 5))
            if len(data) <= inline_limit:
                return Payload((data,), type_name(kind), (), data)
        return _dumps(obj, inline_limit, name_of)
    except (RedistError, MemoryError):
        raise
    except Exception as error:
        raise SerializationError(
            f"a value of the type {type_name(kind)} cannot be serialized: {type(error).__name__}: {error}"
        ) from error


def name_in(error: SerializationError, what: str, value: object) -> None:
    """Have an error of `dumps` say `what` of the user's it is that cannot be serialized, the `value`."""
    cause = error.__cause__
    why = str(error) if cause is None else f"{type(cause).__name__}: {cause}"
    error.args = (f"{what}, of the type {type_name(type(value))}, cannot be serialized: {why}",)


def loads_inline(data: bytes | memoryview) -> Any:
    """Return the value of an inline payload.

    Parameters
    ----------
    data : bytes
        `Payload.inline`.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the data is not signed with it.
    DeserializationError
        If the value cannot be loaded here.
    """
    pickled = open_signed(b"value", data)
    try:
        return pickle.loads(pickled)
    except (RedistError, MemoryError):
        raise
    except Exception as error:
        raise DeserializationError(
            f"the value cannot be loaded here: {type(error).__name__}: {error}"
        ) from error


def loads(buffer: memoryview, *, owner: object = None, writable: bool = False, copy: bool = False) -> Any:
    """Return the value of a payload that is a stream; its arrays view the buffer and keep it alive.

    Parameters
    ----------
    buffer : memoryview
        The payload; bytes after its end do not matter.
    owner : object, optional
        Kept alive as long as anything views the buffer. What the memoryview itself views is kept alive anyway.
    writable : bool
        Let the arrays be written to, which writes to the buffer. A read-only buffer is copied.
    copy : bool
        Copy the buffer first: the value is writable and does not keep the buffer.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the pickle in the payload is not signed with it.
    DeserializationError
        If the payload is damaged, cut off, or cannot be loaded here.
    """
    if buffer.format != "B" or buffer.ndim != 1:
        buffer = buffer.cast("B")
    if copy or (writable and buffer.readonly):
        buffer = _private(buffer)
    elif owner is not None:
        buffer = _owned(buffer, owner)
    if not writable and not copy:
        buffer = buffer.toreadonly()
    size = schema_size(buffer)
    head = bytes(buffer[: size + BATCH_BYTES])
    layout = numpy_format.known.get(head)
    if layout is not None:
        array = numpy_format.array_in(buffer, layout)
    else:
        schema = head[:size] if size else None
        metadata = None if schema is None else read_metadata(schema)
        if schema is None or metadata is None:
            raise DeserializationError(
                f"the payload of {len(buffer)} bytes is damaged or cut off: it begins with no schema"
            )
        mark = metadata.get(b"redist")
        if mark == pickle_format.MARK:
            return pickle_format.from_stream(schema, metadata, buffer, writable or copy)
        if mark != numpy_format.MARK:
            return arrow.from_stream(buffer)
        array = numpy_format.from_stream(schema, buffer)
    return array.copy() if (copy or writable) and not array.flags.writeable else array


class Loader:
    """Loads streams that lie together in read-only bytes: an array that begins as the one before it takes less time.

    Parameters
    ----------
    writable, copy : bool
        As for `loads`.
    """

    def __init__(self, *, writable: bool = False, copy: bool = False) -> None:
        self._writable = writable
        self._copy = copy
        self._private = writable or copy
        self._head = b""
        self._layout: numpy_format.Layout | None = None

    def load_all(self, places: Sequence[Place | None], values: list[tuple[bool, Any] | None]) -> None:
        """Fill the empty list `values`: (True, value) of each stream, None where there is none; raises what `loads` does.

        Then the stream that cannot be loaded is that of ``places[len(values)]``.
        """
        while len(values) < len(places):
            place = places[len(values)]
            values.append(None if place is None else (True, self.load(*place)))
            layout = self._layout
            if layout is not None and not self._private and numpy_format.is_plain(layout):
                self._load_alike(places, values, layout)

    def _load_alike(
        self, places: Sequence[Place | None], values: list[Any], layout: numpy_format.Layout
    ) -> None:
        """Go on with arrays of this layout, up to the first stream that begins in another way."""
        import numpy as np

        # all is written out: one more call takes as long as making the array
        array_at, append = np.ndarray, values.append
        head, size, least, shape, dtype = self._head, layout.start, layout.end, layout.shape, layout.dtype
        for place in islice(places, len(values), None):
            if place is None:
                return
            data, start, end = place
            if end - start < least or data[start : start + size] != head:
                return
            append((True, array_at(shape, dtype, data, start + size)))

    def load(self, data: bytes | mmap, start: int, end: int) -> Any:
        """Return the value of the stream from `start` to `end`; raises what `loads` does."""
        layout = self._layout
        if (
            layout is not None
            and data[start : start + layout.start] == self._head
            and layout.end <= end - start
        ):
            array = numpy_format.array_in(data, layout, start)
            return array.copy(layout.order) if self._private else array
        view = memoryview(data)[start:end]
        value = loads(view, writable=self._writable, copy=self._copy)
        head = bytes(view[: schema_size(view) + BATCH_BYTES])
        self._layout = numpy_format.known.get(head)
        self._head = head
        return value


def _dumps(obj: Any, inline_limit: int, name_of: Callable[[Any], str]) -> Payload:
    kind = type(obj)
    to_stream = _stream_of(obj, kind)
    if to_stream is not None and _size(obj) > inline_limit:
        pieces = to_stream(obj)
        if pieces is not None:
            return Payload(pieces, type_name(kind))
        to_stream = None
    if (kind is bytes or kind is bytearray) and len(obj) >= OUT_OF_BAND:
        obj = _Flat(obj)
    collector = Collector(name_of)
    sink = BufferSink()
    pickled = pickle_object(obj, collector, sink)
    contains = tuple(collector.names)
    if not sink.buffers and pickled.nbytes <= inline_limit:
        inline = sign_blob(b"value", b"".join(pickled.chunks))
        if len(inline) <= inline_limit:
            return Payload((inline,), type_name(kind), contains, inline)
    # Only now it is known that even the pickle of a small array or table is too long to be inline.
    pieces = None if to_stream is None else to_stream(obj)
    if pieces is None:
        pieces = pickle_format.to_stream(pickled, sink.buffers)
    return Payload(pieces, type_name(kind), contains)


def _stream_of(obj: Any, kind: type) -> Callable[[Any], Pieces | None] | None:
    """Return what makes a stream of the object itself, or None if it has to be pickled."""
    root = kind.__module__.partition(".")[0]
    if root == "numpy":
        import numpy as np

        return numpy_format.to_stream if kind is np.ndarray or kind is np.memmap else None
    if root in arrow.PACKAGES and arrow.has_stream(obj):
        return arrow.to_stream
    return None


def _size(obj: Any) -> int:
    try:
        return int(obj.estimated_size() if hasattr(obj, "estimated_size") else obj.nbytes)
    except Exception:  # pyarrow has types whose size it cannot tell
        return 0


class _Flat:
    """Bytes on their way: pickled as a buffer, unpickled as what they were."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self._data), (pickle.PickleBuffer(self._data),)


def _private(buffer: memoryview) -> memoryview:
    if len(buffer) < _COPY_BY_NUMPY:
        return memoryview(bytearray(buffer))
    import numpy as np

    # numpy's own memory is not zeroed first, and is copied without the interpreter's lock
    private = np.empty(len(buffer) + 63, np.uint8)
    start = -private.ctypes.data % 64
    private = private[start : start + len(buffer)]
    private[:] = np.frombuffer(buffer, np.uint8)
    return private.data


def _owned(buffer: memoryview, owner: object) -> memoryview:
    """Return a view of `buffer` that keeps `owner` alive."""
    # Made straight over the buffer: numpy's views skip bases that are plain arrays, but not this class.
    array = _owner_class()((len(buffer),), "u1", buffer)
    array.owner = owner
    view: memoryview = array.data
    return view


@functools.cache
def _owner_class() -> Any:
    import numpy as np

    class Owned(np.ndarray[Any, Any]):
        owner: object

    return Owned


def _copy(target: memoryview, source: bytes | memoryview) -> None:
    numpy: Any = imported("numpy")
    if numpy is None:
        target[:] = source
    else:  # without the interpreter's lock
        numpy.copyto(numpy.frombuffer(target, numpy.uint8), numpy.frombuffer(source, numpy.uint8))
