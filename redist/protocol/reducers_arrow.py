"""Reducers for pyarrow: a slice is pickled without what it was cut from, which pyarrow would bring along.

A scalar is pickled as an array of one: pyarrow takes it through Python, which has not all that Arrow has (nanoseconds, years
past 9999, unions).
"""

from __future__ import annotations

import pickle
from typing import Any

from redist.protocol.reducers import Reducer
from redist.protocol.sizes import OUT_OF_BAND

__all__ = ["reducers"]


def reducers() -> dict[type, Reducer]:
    """Return the reducers by class: one for every class of arrays, and one for every class of scalars."""
    import pyarrow as pa

    classes: dict[type, Reducer] = {}
    for base, reducer in (pa.Array, _reduce_array), (pa.Scalar, _reduce_scalar):
        todo: list[type] = [base]
        while todo:
            kind = todo.pop()
            classes[kind] = reducer
            todo += kind.__subclasses__()
    return classes


def _reduce_array(array: Any, _sink: Any) -> Any:
    try:
        wasted = array.get_total_buffer_size() - array.nbytes
    except Exception:  # a type whose size pyarrow cannot tell
        return NotImplemented
    if wasted < OUT_OF_BAND // 16 or wasted < array.nbytes:
        return NotImplemented
    import pyarrow as pa

    from redist.protocol.arrow import is_foreign

    if is_foreign(array.type):
        return NotImplemented
    batch = pa.RecordBatch.from_arrays([array], ["data"])
    sink = pa.BufferOutputStream()
    try:
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
    except (pa.ArrowException, NotImplementedError):
        return NotImplemented
    return _array, (pickle.PickleBuffer(sink.getvalue()),)


def _reduce_scalar(scalar: Any, _sink: Any) -> Any:
    import pyarrow as pa

    if scalar is pa.NA:  # there is one
        return NotImplemented
    try:
        return _scalar, (pa.repeat(scalar, 1),)
    except (pa.ArrowException, NotImplementedError):
        return NotImplemented


def _scalar(array: Any) -> Any:
    return array[0]


def _array(stream: Any) -> Any:
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(stream)) as reader:
        return reader.read_next_batch().column(0)
