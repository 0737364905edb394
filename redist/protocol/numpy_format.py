"""Numpy arrays as Arrow IPC streams: one flat column with the array's memory.

The column has the primitive type of the array where Arrow has it (``bool`` is uint8, since Arrow's is bits; datetime64 and
timedelta64 of s, ms, us and ns are timestamps and durations), otherwise fixed-size binary of the item size. The schema's
metadata: ``redist`` is ``numpy``, ``order`` is ``C`` or ``F``, ``dtype`` the dtype's string or a structured dtype's field
list, ``shape`` the shape; and, of an array that repeats itself along an axis, ``stored`` the shape of what is in the
column, which is broadcast to ``shape``.
"""

from __future__ import annotations

import ast
import functools
import math
import pickle
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from redist.errors import DeserializationError
from redist.protocol.header import (
    BATCH_BYTES,
    END_OF_STREAM,
    ColumnType,
    SchemaTemplate,
    batch_message,
    read_batch_message,
    read_metadata,
)
from redist.protocol.sizes import GATHERED_FROM, padding

if TYPE_CHECKING:
    from mmap import mmap

    import numpy as np

    from redist.protocol.gathered import Gathered

    Array = np.ndarray[Any, np.dtype[Any]]
    Shape = tuple[int, ...]

__all__ = [
    "MARK",
    "Layout",
    "array_in",
    "from_stream",
    "is_plain",
    "known",
    "memory_of",
    "to_stream",
    "unrepeated",
]

MARK = b"numpy"

_INT, _FLOAT, _TIMESTAMP, _FIXED, _DURATION = 2, 3, 10, 15, 18
_UNITS = {"s": 0, "ms": 1, "us": 2, "ns": 3}
_KEYS = [b"dtype", b"shape", b"stored"]
_MOST_HEAD = 2048
_MOST_KNOWN = 512
#: by the first bytes of streams, schema and batch message: arrays of the same dtype and shape begin alike
known: dict[bytes, Layout] = {}


def to_stream(array: Array) -> list[bytes | memoryview | Gathered] | None:
    """Return the stream of an array in pieces, its memory uncopied; None if this format is unfit.

    It is unfit for objects, for dtypes that their description does not give back (with metadata or titles, or from
    other packages), and for items of no size.

    Parameters
    ----------
    array : numpy.ndarray
        Of exactly this class.
    """
    dtype, shape = array.dtype, array.shape
    if dtype.hasobject or dtype.metadata:
        return None
    stored = None
    if 0 in array.strides:
        base = unrepeated(array)
        if base.shape != shape:
            array, stored = base.copy(order="C"), base.shape
    order = 0
    flags = array.flags
    gathered = False
    if not flags.c_contiguous:
        if flags.f_contiguous:
            order = 1
        elif array.nbytes < GATHERED_FROM:
            array = array.copy()
        else:
            gathered = True
    schema = _schema(dtype, dtype.isalignedstruct, shape, stored, order)
    if schema is None:
        return None
    memory: memoryview | Gathered
    if gathered:
        from redist.protocol.gathered import Gathered

        memory = Gathered(array)
    else:
        memory = memory_of(array)
    head = schema + batch_message(array.size, memory.nbytes)
    return [head, memory, bytes(padding(memory.nbytes)) + END_OF_STREAM]


class Layout(NamedTuple):
    """What the head of a stream says: dtype, shape, stored shape, order, and where the memory begins and ends."""

    dtype: np.dtype[Any]
    shape: Shape
    stored: Shape
    order: Literal["C", "F"]
    start: int
    end: int


def from_stream(schema: bytes, buffer: memoryview) -> Array:
    """Return the array in a stream that `to_stream` made; it views `buffer`.

    Parameters
    ----------
    schema : bytes
        The schema message that `buffer` begins with.
    buffer : memoryview
        The stream, flat bytes.

    Raises
    ------
    DeserializationError
        If the stream is damaged.
    """
    dtype, shape, stored, order = _parse(schema)
    found = read_batch_message(buffer, len(schema))
    start = len(schema) + BATCH_BYTES
    if found is None:
        raise _damaged(len(buffer))
    rows, nbytes = found
    if rows != math.prod(stored) or nbytes != rows * dtype.itemsize:
        raise DeserializationError(
            f"the array's payload is damaged: {nbytes} bytes for the shape {stored} of {dtype}"
        )
    layout = Layout(dtype, shape, stored, order, start, start + nbytes)
    array = array_in(buffer, layout)
    if start <= _MOST_HEAD:
        if len(known) >= _MOST_KNOWN:
            known.clear()
        known[bytes(buffer[:start])] = layout
    return array


def array_in(buffer: memoryview | bytes | mmap, layout: Layout, at: int = 0) -> Array:
    """Return the array in the stream that begins `at` that byte; it views `buffer`."""
    import numpy as np

    dtype, shape, stored, order, start, end = layout
    if at + end > len(buffer):
        raise _damaged(len(buffer))
    if dtype.names is not None:
        dtype = deepcopy(dtype)  # its owner may rename the fields of an array in place
    try:
        array: Array = np.ndarray(stored, dtype, buffer, at + start, order=order)
        return array if stored == shape else np.broadcast_to(array, shape)
    except (ValueError, TypeError) as error:
        raise DeserializationError(
            f"the array's payload is damaged: no array of {dtype} has the shape {shape}: {error}"
        ) from error


def is_plain(layout: Layout) -> bool:
    """Tell whether the array in a stream is ``numpy.ndarray(layout.shape, layout.dtype, stream, layout.start)``."""
    return layout.order == "C" and layout.stored == layout.shape and layout.dtype.names is None


def _damaged(size: int) -> DeserializationError:
    return DeserializationError(f"the array's payload is damaged or cut off at {size} bytes")


def unrepeated(array: Any) -> Any:
    """Return the part of an array that broadcasting gives the whole of: a repeated axis keeps its first item."""
    return array[tuple([slice(0, 1) if step == 0 else slice(None) for step in array.strides])]


def memory_of(array: Any) -> memoryview:
    """Return the memory of a contiguous array as flat bytes."""
    try:
        return pickle.PickleBuffer(array).raw()
    except (ValueError, BufferError):  # datetimes are not exported as buffers
        flat = array if array.flags.c_contiguous else array.T
        memory: memoryview = flat.reshape(-1).view("u1").data
        return memory


def _text(shape: Shape) -> bytes:
    return b"[" + ",".join(map(str, shape)).encode() + b"]"


def _shape(text: bytes) -> Shape:
    inner = text[1:-1]
    if text != b"[" + inner + b"]":
        raise ValueError(text)
    return tuple(map(int, inner.split(b","))) if inner else ()


@functools.lru_cache(maxsize=1024)
def _schema(
    dtype: np.dtype[Any], aligned: bool, shape: Shape, stored: Shape | None, order: int
) -> bytes | None:
    """Return a schema message, or None if this format is unfit for the dtype (`aligned` is no part of its equality)."""
    described = _described(dtype)
    if described is None:
        return None
    templates, description = described
    return templates[order].message([description, _text(shape), b"" if stored is None else _text(stored)])


def _described(dtype: np.dtype[Any]) -> tuple[tuple[SchemaTemplate, SchemaTemplate], bytes] | None:
    """Return templates (C and Fortran order) and description of a dtype, or None if this format is unfit for it."""
    if dtype.hasobject or not dtype.itemsize:
        return None
    text = repr(_description(dtype)) if dtype.names is not None else dtype.str
    try:
        again = _dtype(text)
    except DeserializationError:
        return None
    if (
        again != dtype
        or again.isalignedstruct != dtype.isalignedstruct
        or dtype.metadata
        or again.str != dtype.str
    ):
        return None
    return _templates(_column(dtype)), text.encode()


def _description(dtype: np.dtype[Any]) -> Any:
    """Return a structured dtype as literals: names, formats, offsets, item size, alignment."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        return (_description(base), shape)
    if dtype.names is None:
        return dtype.str
    fields = dtype.fields
    assert fields is not None
    return {
        "names": list(dtype.names),
        "formats": [_description(fields[name][0]) for name in dtype.names],
        "offsets": [int(fields[name][1]) for name in dtype.names],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def _from_description(description: Any) -> np.dtype[Any]:
    import numpy as np

    if isinstance(description, tuple):
        base, shape = description
        return np.dtype((_from_description(base), shape))
    if isinstance(description, str):
        return np.dtype(description)
    formats = [_from_description(form) for form in description["formats"]]
    fields: Any = {key: description[key] for key in ("names", "offsets", "itemsize")}
    fields["formats"] = formats
    dtype: np.dtype[Any] = np.dtype(fields, align=description["aligned"])
    return dtype


@functools.lru_cache(maxsize=256)
def _dtype(text: str) -> np.dtype[Any]:
    try:
        return _from_description(ast.literal_eval(text) if text.startswith("{") else text)
    except Exception as error:
        raise DeserializationError(f"the array's dtype {text[:100]!r} is damaged or unknown here") from error


def _column(dtype: np.dtype[Any]) -> ColumnType:
    kind = dtype.kind
    size = dtype.itemsize
    if dtype.isnative:
        if kind in "iu" or kind == "b":
            return ColumnType(_INT, 8 * size, "i", int(kind == "i"))
        if kind == "f" and size <= 8:
            return ColumnType(_FLOAT, {2: 0, 4: 1, 8: 2}[size], "h")
        if kind in "mM":
            import numpy as np

            unit, count = np.datetime_data(dtype)
            if unit in _UNITS and count == 1:
                return ColumnType(_TIMESTAMP if kind == "M" else _DURATION, _UNITS[unit], "h")
    return ColumnType(_FIXED, size)


@functools.lru_cache(maxsize=256)
def _templates(column: ColumnType) -> tuple[SchemaTemplate, SchemaTemplate]:
    mark = (b"redist", MARK)
    return SchemaTemplate(column, [mark, (b"order", b"C")], _KEYS), SchemaTemplate(
        column, [mark, (b"order", b"F")], _KEYS
    )


@functools.lru_cache(maxsize=256)
def _parse(schema: bytes) -> tuple[np.dtype[Any], Shape, Shape, Literal["C", "F"]]:
    """Return dtype, shape, stored shape and order of a schema message."""
    metadata = read_metadata(schema) or {}
    try:
        description, shape_text, stored_text = (metadata[key] for key in _KEYS)
        dtype = _dtype(description.decode())
        # Of objects (or anything else with addresses in it) the bytes would be taken for addresses of this process.
        described = _described(dtype)
        if described is None or described[1] != description:
            raise DeserializationError(f"a payload holds no array of the dtype {str(dtype)[:100]!r}")
        order: Literal["C", "F"] = "F" if metadata[b"order"] == b"F" else "C"
        shape = _shape(shape_text)
        stored = _shape(stored_text) if stored_text else shape
        template = described[0][order == "F"]
        intact = template.message([description, shape_text, stored_text]) == schema
    except (KeyError, ValueError):
        intact = False
    if not intact:
        raise DeserializationError("the array's schema message is damaged, or of another version")
    return dtype, shape, stored, order
