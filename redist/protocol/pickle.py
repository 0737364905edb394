"""`dumps` and `loads` as `distributed.protocol.pickle` has them: plain pickle where that will do, cloudpickle where not."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

from redist.protocol.pickling import by_value_markers
from redist.protocol.reducers import reducer_of, register_imported, waiting

__all__ = ["dumps", "loads"]


class _Pickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        reducer = reducer_of(type(obj))
        return NotImplemented if reducer is None else reducer(obj, None)


def dumps(
    x: object,
    *,
    buffer_callback: Callable[[pickle.PickleBuffer], object] | None = None,
    protocol: int = pickle.HIGHEST_PROTOCOL,
) -> bytes:
    """Return the pickle of a value; functions and classes of ``__main__`` go along with it.

    Futures inside hold their keys until they are unpickled, or for 300 seconds; see `redist.Future`.

    Parameters
    ----------
    x : object
        Anything.
    buffer_callback : callable, optional
        Gets the large buffers, which are left out of the pickle then, as in `pickle.dumps`.
    protocol : int
        The pickle protocol; buffers need 5.
    """
    if waiting:
        register_imported()
    buffers: list[pickle.PickleBuffer] = []
    options: dict[str, Any] = {} if buffer_callback is None else {"buffer_callback": buffers.append}
    try:
        file = BytesIO()
        pickler = pickle.Pickler if protocol < 5 else _Pickler
        pickler(file, protocol, **options).dump(x)
        data = file.getvalue()
        by_value = any(marker in data for marker in by_value_markers())
    except (RecursionError, MemoryError):
        raise
    except Exception:  # what plain pickle refuses; cloudpickle's error is the clearer one
        by_value = True
    if by_value:
        import cloudpickle

        buffers.clear()
        data = cloudpickle.dumps(x, protocol, **options)
    if buffer_callback is not None:
        for buffer in buffers:
            buffer_callback(buffer)
    return data


def loads(x: bytes | memoryview, *, buffers: Iterable[Any] = ()) -> Any:
    """Return the value of a pickle, with the buffers that were left out of it, in their order."""
    return pickle.loads(x, buffers=list(buffers))
