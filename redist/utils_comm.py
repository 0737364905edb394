"""`pack_data` and `unpack_remotedata`, as in `distributed.utils_comm`: Futures out of nested data, values into it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redist.future import Future
from redist.imported import imported
from redist.protocol.plain import is_named

__all__ = ["pack_data", "unpack_remotedata"]


def pack_data(o: Any, d: Mapping[Any, Any], key_types: type | tuple[type, ...] = object) -> Any:
    """Return nested data with values in the place of keys.

    Parameters
    ----------
    o : object
        Tuples, lists, sets and dicts of keys and of anything else.
    d : mapping
        Values by key.
    key_types : type or tuple of types
        What a key can be.

    Examples
    --------
    >>> pack_data({"a": ["x"], "b": "y"}, {"x": 1})
    {'a': [1], 'b': 'y'}
    """
    kind = type(o)
    if isinstance(o, key_types):
        try:
            if o in d:
                return d[o]
        except TypeError:  # not hashable: no key
            pass
    if kind in (tuple, list, set, frozenset):
        return kind(pack_data(item, d, key_types) for item in o)
    if is_named(o):
        return tuple.__new__(kind, [pack_data(item, d, key_types) for item in o])
    if kind is dict:
        return {key: pack_data(item, d, key_types) for key, item in o.items()}
    return o


def unpack_remotedata(o: Any, byte_keys: bool = False) -> tuple[Any, set[Any]]:
    """Return nested data with keys in the place of Futures, and the Futures.

    Parameters
    ----------
    o : object
        Tuples, lists, sets and dicts of Futures, of Dask's ``TaskRef``, and of anything else.
    byte_keys : bool
        Put the text of a key in its place if it is none.

    Returns
    -------
    data, futures
        The data, and the set of what was found in it.
    """
    spec: Any = imported("dask._task_spec")
    kinds = (Future,) if spec is None else (Future, spec.TaskRef)
    found: set[Any] = set()

    def unpack(item: Any) -> Any:
        if isinstance(item, kinds):
            found.add(item)
            return str(item.key) if byte_keys else item.key
        kind = type(item)
        if kind in (tuple, list, set, frozenset):
            return kind([unpack(each) for each in item])
        if is_named(item):
            return tuple.__new__(kind, [unpack(each) for each in item])
        if kind is dict:
            return {key: unpack(each) for key, each in item.items()}
        return item

    return unpack(o), found
