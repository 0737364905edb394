"""How big things are: the limits of the protocol, exact cheap sizes, and Dask's estimates for all the rest."""

from __future__ import annotations

import sys
from typing import Any

__all__ = [
    "ALIGNMENT",
    "GATHERED_FROM",
    "INLINE_LIMIT",
    "OUT_OF_BAND",
    "buffer_size",
    "format_bytes",
    "padding",
    "sizeof",
]

INLINE_LIMIT = 4096
"""Longest pickle, in bytes, that is kept in Redis itself; what is longer is a payload."""

OUT_OF_BAND = 64 * 1024
"""Shortest buffer, in bytes, that leaves its pickle and gets a record batch of its own."""

GATHERED_FROM = 1024 * 1024
"""Shorter arrays, in bytes, that are not contiguous are copied first: that is quicker."""

ALIGNMENT = 64
"""Every buffer of a payload begins at a multiple of this."""

_FIXED = {int: 28, float: 24, bool: 28, type(None): 16, complex: 32}


def padding(nbytes: int) -> int:
    """Return how many zeros fill `nbytes` up to the next multiple of `ALIGNMENT`."""
    return -nbytes % ALIGNMENT


def buffer_size(obj: object) -> int:
    """Return the bytes that `obj` holds in flat buffers, as far as that is known in a microsecond or so; else 0.

    Looks at the object alone, not at what it refers to, and imports nothing: an object of a library that is not imported
    cannot be here.

    Parameters
    ----------
    obj : object
        Anything.
    """
    kind = type(obj)
    if kind is bytes or kind is bytearray or kind is str:
        return len(obj)  # type: ignore[arg-type]
    if kind is memoryview:
        return obj.nbytes  # type: ignore[attr-defined, no-any-return]
    if hasattr(kind, "__dask_graph__"):  # its nbytes are those of the result, which does not exist yet
        return 0
    root = kind.__module__.partition(".")[0]
    try:
        if root == "pandas":
            usage: Any = getattr(obj, "memory_usage", None)
            if usage is not None:
                return int(usage(deep=False).sum() if hasattr(kind, "iterrows") else usage(deep=False))
        elif root == "polars":
            return int(obj.estimated_size())  # type: ignore[attr-defined]
        elif root == "scipy":
            return buffer_size(getattr(obj, "data", None))
        return int(getattr(obj, "nbytes", 0))
    except Exception:  # a property or method of somebody else's; a size is only a hint
        return 0


def sizeof(obj: object) -> int:
    """Return about how many bytes `obj` takes in memory, as `dask.sizeof` estimates it.

    Parameters
    ----------
    obj : object
        Anything.
    """
    kind = type(obj)
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed
    if kind is bytes or kind is str or kind is bytearray:
        return sys.getsizeof(obj)
    from dask.sizeof import sizeof as dask_sizeof

    return int(dask_sizeof(obj))


def format_bytes(nbytes: int) -> str:
    """Return `nbytes` for people, such as ``1.21 GiB``.

    Parameters
    ----------
    nbytes : int
        A number of bytes.
    """
    from dask.utils import format_bytes as dask_format_bytes

    return str(dask_format_bytes(nbytes))
