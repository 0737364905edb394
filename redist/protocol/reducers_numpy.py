"""Reducers for numpy: dtypes that numpy itself would copy into the pickle, masked arrays, arrays of str objects."""

from __future__ import annotations

from typing import Any

import numpy as np

from redist.protocol.gathered import Gathered
from redist.protocol.numpy_format import memory_of, unrepeated
from redist.protocol.pickle_format import loading
from redist.protocol.reducers import Reducer
from redist.protocol.sizes import GATHERED_FROM, OUT_OF_BAND

__all__ = ["reducers"]

_MANY_STRINGS = 2048
_SAMPLE = 256


def reducers() -> dict[type, Reducer]:
    """Return the reducers by class."""
    return {np.ndarray: _reduce_array, np.memmap: _reduce_memmap, np.ma.MaskedArray: _reduce_masked}


def _reduce_array(array: Any, sink: Any) -> Any:
    dtype = array.dtype
    if dtype.hasobject:
        return _reduce_strings(array) if dtype.kind == "O" and array.size >= _MANY_STRINGS else NotImplemented
    flags = array.flags
    if array.nbytes < OUT_OF_BAND:
        # numpy would make the byte order of strided arrays and of datetimes native, and what is read-only so for ever.
        if dtype.kind in "mM" and not dtype.isnative:
            return _view, (array.view(f"{dtype.byteorder}i8"), dtype)
        if flags.forc and flags.writeable:
            return NotImplemented
        return array.copy(order="K" if flags.forc else "C").__reduce_ex__(5)
    if 0 in array.strides:
        base = unrepeated(array)
        if base.shape != array.shape:
            return _repeated, (base.copy(order="C"), array.shape)
    if not flags.forc:
        if sink is not None and array.nbytes >= GATHERED_FROM:
            return _array, (sink.stand_in(Gathered(array)), dtype, array.shape, "C")
        array = array.copy()
    elif not flags.writeable:
        if sink is None:
            array = array.copy(order="K")
        else:
            order = "C" if flags.c_contiguous else "F"
            return _array, (sink.stand_in(memory_of(array)), dtype, array.shape, order)
    if dtype.kind in "mM":  # numpy refuses a buffer of these
        return _view, (array.view("i8"), dtype)
    return array.__reduce_ex__(5)


def _repeated(base: Any, shape: tuple[int, ...]) -> Any:
    array = np.broadcast_to(base, shape)
    return array.copy() if loading.writable else array


def _array(buffer: Any, dtype: Any, shape: tuple[int, ...], order: Any) -> Any:
    return np.ndarray(shape, dtype, buffer, order=order)


def _reduce_memmap(array: Any, sink: Any) -> Any:
    array = np.asarray(array).view(np.ndarray)
    reduced = _reduce_array(array, sink)
    return array.__reduce_ex__(5) if reduced is NotImplemented else reduced


def _reduce_masked(array: Any, _sink: Any) -> Any:
    state = {key: value for key, value in vars(array).items() if key not in _MASKED_STATE}
    mask = array._mask
    return _masked, (
        array._data,
        mask if mask is not np.ma.nomask else None,
        array._fill_value,
        array._hardmask,
        state,
    )


_MASKED_STATE = frozenset({"_mask", "_fill_value", "_hardmask", "_sharedmask", "_isfield"})


def _masked(data: Any, mask: Any, fill_value: Any, hard: bool, state: dict[str, Any]) -> Any:
    array: Any = np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask, copy=False, hard_mask=hard)
    vars(array).update(state, _fill_value=fill_value)
    return array


def _view(array: Any, dtype: Any) -> Any:
    return array.view(dtype)


def _reduce_strings(array: Any) -> Any:
    """Reduce an array that holds nothing but str and None as one long string with offsets."""
    order = "C"
    if not array.flags.c_contiguous:
        if not array.flags.f_contiguous:
            return NotImplemented
        order = "F"
    flat = array.reshape(-1, order=order)
    sample = flat[:_SAMPLE].tolist()
    # Objects that are shared are better off in a pickle, which keeps them shared.
    if not set(map(type, sample)) <= _STRINGS or 2 * len(set(map(id, sample))) < len(sample):
        return NotImplemented
    if not set(map(type, flat.tolist())) <= _STRINGS:
        return NotImplemented
    import pyarrow as pa

    try:
        strings = pa.array(flat, pa.large_string(), from_pandas=False)
    except (pa.ArrowException, UnicodeError):  # a lone surrogate
        return NotImplemented
    return _strings, (strings, array.shape, order)


_STRINGS = {str, type(None)}


def _strings(strings: Any, shape: tuple[int, ...], order: Any) -> Any:
    return strings.to_numpy(zero_copy_only=False).reshape(shape, order=order)
