"""Better reductions than the objects' own, for the pickler: large buffers leave the pickle uncopied.

Reducers are looked up by exact class. Those of a library are registered once that library is imported: before that, no
object of it can be met.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable
from typing import Any

from redist.imported import imported
from redist.protocol.sizes import OUT_OF_BAND

__all__ = ["Reducer", "reducer_of", "register", "register_imported", "waiting"]

Reducer = Callable[[Any, Any], Any]
"""Takes an object and the `BufferSink`, if there is one, that takes large buffers.

Returns what ``__reduce__`` returns, or NotImplemented for the object's own reduction.
"""


def _reduce_memoryview(view: memoryview, sink: Any) -> Any:
    if not (view.c_contiguous and _can_be_cast(view)):
        import numpy as np

        return memoryview, (np.asarray(view),)
    if sink is not None and view.readonly and view.nbytes >= OUT_OF_BAND:
        return _memoryview, (sink.stand_in(view.cast("B")), view.format, view.shape)
    return _memoryview, (pickle.PickleBuffer(view), view.format, view.shape)


def _can_be_cast(view: memoryview) -> bool:
    """Return whether bytes can be cast to the format and shape: not to big-endian numbers, structures, or to no items."""
    try:
        memoryview(b"").cast(view.format)  # type: ignore[call-overload]
    except ValueError:
        return False
    return view.ndim == 1 or view.nbytes > 0


def _memoryview(buffer: Any, form: Any, shape: Any) -> memoryview:
    view = memoryview(buffer).cast("B")
    if len(shape) == 1:  # also of no items, which is no shape to be cast to
        return view if form == "B" else view.cast(form)
    return view.cast(form, shape)


_reducers: dict[type, Reducer] = {memoryview: _reduce_memoryview}
#: libraries that were not imported when `register_imported` looked last
waiting = ["numpy", "pandas", "pyarrow", "polars", "torch"]

#: the reducer for instances of exactly a class, or None
reducer_of = _reducers.get


def register(cls: type, reducer: Reducer) -> None:
    """Have instances of exactly `cls` reduced by `reducer`, instead of ours if there is one."""
    register_imported()
    _reducers[cls] = reducer


def register_imported() -> None:
    """Add the reducers of the libraries that were imported since the last call."""
    for library in tuple(waiting):
        if imported(library) is None:
            continue
        _reducers.update(_load(library))
        with contextlib.suppress(ValueError):  # another thread did the same
            waiting.remove(library)


def _load(library: str) -> dict[type, Reducer]:
    if library == "numpy":
        from redist.protocol.reducers_numpy import reducers
    elif library == "pandas":
        from redist.protocol.reducers_pandas import reducers
    elif library == "polars":
        from redist.protocol.reducers_polars import reducers
    elif library == "torch":
        from redist.protocol.reducers_torch import reducers
    else:
        from redist.protocol.reducers_arrow import reducers
    return reducers()
