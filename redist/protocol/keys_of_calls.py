"""Keys of calls: ``label-hash``, the same in every client for the same pure call.

The hash covers the function's token and the arguments. Plain scalars, Futures and containers of them are written down
exactly, types included, so that ``1``, ``1.0`` and ``True`` differ; Dask's `tokenize`, a hundred times slower, is asked
for everything else only.
"""

from __future__ import annotations

import itertools
import marshal
import os
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

from redist.errors import RedistError, SerializationError
from redist.protocol.functions import Function
from redist.protocol.futures import Collector, is_future, name_of
from redist.protocol.pickling import pickle_object
from redist.protocol.plain import SCALARS

__all__ = ["MARSHAL_FORMAT", "key_of_call"]

MARSHAL_FORMAT = 2
"""The version of marshal's format that says the same for equal values, whatever was interned or shared."""

_prefix = os.urandom(6).hex() + "-"
_next = itertools.count(1).__next__


def key_of_call(
    function: Function,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    pure: bool = True,
    *,
    dependency_of: Callable[[Any], str] = name_of,
) -> str:
    """Return the key of a call.

    Parameters
    ----------
    function : Function
        What is called.
    args, kwargs : tuple and mapping
        The arguments.
    pure : bool
        Whether the same function with the same arguments is the same task; otherwise every call gets a key of its own.
    dependency_of : callable
        Gives the wire name of a Future.
    """
    if not pure:
        return f"{function.stem}{_prefix}{_next()}"
    if not kwargs:
        for arg in args:
            if type(arg) not in SCALARS:
                break
        else:
            return (
                function.stem
                + blake2b(function.token + marshal.dumps(args, MARSHAL_FORMAT), digest_size=16).hexdigest()
            )
    try:
        call = tuple([arg if type(arg) in SCALARS else _canonical(arg, dependency_of) for arg in args])
        if kwargs:
            call = (call, _canonical(dict(kwargs), dependency_of))
    except RecursionError:
        raise SerializationError(
            f"the arguments of {function.stem[:-1]} are nested too deeply, or one contains itself"
        ) from None
    digest = blake2b(function.token, digest_size=16, person=b"keywords" if kwargs else b"positional")
    digest.update(marshal.dumps(call, MARSHAL_FORMAT))
    return function.stem + digest.hexdigest()


def _canonical(obj: Any, dependency_of: Callable[[Any], str]) -> Any:
    """Return plain data that marshal writes down, equal for equal arguments only.

    A scalar stands for itself, everything else is a tuple whose first item says what it is.
    """
    kind = type(obj)
    if kind in SCALARS:
        return obj
    if is_future(obj):
        return ("future", dependency_of(obj))
    if kind is tuple or kind is list:
        if set(map(type, obj)) <= SCALARS:
            return (kind.__name__, tuple(obj))
        return (kind.__name__, tuple([_canonical(item, dependency_of) for item in obj]))
    if kind is dict:
        # A task may look at the order of a dict, but two calls that differ in nothing else are one to their users.
        items = [
            (_canonical(key, dependency_of), _canonical(value, dependency_of)) for key, value in obj.items()
        ]
        return ("dict", tuple(sorted(items, key=_written)))
    if kind is set or kind is frozenset:
        return (kind.__name__, tuple(sorted([_canonical(item, dependency_of) for item in obj], key=_written)))
    if kind.__module__ == "numpy":
        array = _array(obj)
        if array is not None:
            return array
    from dask.base import tokenize

    try:
        # Else a Future inside of it would take a hand-off, and be another token each time.
        with Collector(dependency_of):
            return ("token", tokenize(obj))
    except RedistError:
        raise
    except Exception:  # masked arrays, with some versions of numpy: at worst the same call is another one
        return _pickled(obj, dependency_of)


def _pickled(obj: Any, dependency_of: Callable[[Any], str]) -> Any:
    from xxhash import xxh3_128

    digest = xxh3_128()
    for chunk in pickle_object(obj, Collector(dependency_of)).chunks:
        digest.update(chunk)
    return ("pickle", digest.digest())


def _array(obj: Any) -> Any:
    """Return plain data for a numpy array, without the third of a second that importing Dask takes; None if unfit."""
    import numpy as np
    from xxhash import xxh3_128_digest

    from redist.protocol.numpy_format import memory_of

    if type(obj) is not np.ndarray or obj.dtype.hasobject:
        return None
    array = np.ascontiguousarray(obj)
    return ("array", repr(obj.dtype), obj.shape, xxh3_128_digest(memory_of(array)))


def _written(canonical: Any) -> bytes:
    return marshal.dumps(canonical, MARSHAL_FORMAT)


def _after_fork() -> None:
    global _prefix
    _prefix = os.urandom(6).hex() + "-"


os.register_at_fork(after_in_child=_after_fork)
