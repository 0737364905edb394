"""What plain pickle can do alone: values in which there is neither a Future nor a class, nor anything large.

Most arguments and results are of this kind, and a pickler with hooks costs ten times what they need.
"""

from __future__ import annotations

from typing import Any

from redist.protocol.sizes import INLINE_LIMIT

__all__ = ["CONTAINERS", "NUMBERS", "SCALARS", "is_named", "is_plain"]

NUMBERS = frozenset({int, float, bool, type(None), complex})
"""Exact types whose instances are always small."""

SCALARS = NUMBERS | {str, bytes}
"""Exact types without anything inside."""

CONTAINERS = frozenset({list, tuple, dict, set, frozenset})
"""Exact types whose items are looked at."""

_MANY = 64


def is_named(obj: Any) -> bool:
    """Return whether `obj` is a namedtuple."""
    return isinstance(obj, tuple) and hasattr(type(obj), "_fields")


def is_plain(obj: Any, depth: int = 3) -> bool:
    """Return whether `obj` is a scalar, a small numeric numpy object, or a small container of such things.

    Parameters
    ----------
    obj : object
        Anything.
    depth : int
        How many containers may be in each other.
    """
    kind = type(obj)
    if kind in NUMBERS:
        return True
    if kind is str or kind is bytes:
        return len(obj) <= INLINE_LIMIT
    if kind in CONTAINERS:
        if not depth or len(obj) > _MANY:
            return False
        for item in obj:
            if type(item) not in NUMBERS and not is_plain(item, depth - 1):
                return False
        if kind is dict:
            for item in obj.values():
                if type(item) not in NUMBERS and not is_plain(item, depth - 1):
                    return False
        return True
    if kind.__module__ == "numpy":
        return _is_plain_numpy(obj)
    return False


def _is_plain_numpy(obj: Any) -> bool:
    import numpy as np

    if type(obj) is np.ndarray:
        flags = obj.flags
        dtype = obj.dtype
        return (
            flags.forc
            and flags.writeable
            and obj.nbytes <= INLINE_LIMIT
            and dtype.isnative
            and not dtype.hasobject
        )
    return isinstance(obj, (np.number, np.bool))
