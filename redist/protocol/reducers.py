"""Better reductions than the objects' own, for the pickler: large buffers leave the pickle uncopied.

Reducers are looked up by exact class, and registered for a library only once that library is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["reducer_of", "register_imported"]

Reducer = Callable[[Any], Any]
_reducers: dict[type, Reducer] = {}
_seen: set[str] = set()


def reducer_of(kind: type) -> Reducer | None:
    """Return the reducer for instances of exactly `kind`, or None."""
    return _reducers.get(kind)


def register_imported() -> None:
    """Add the reducers of the libraries that were imported since the last call."""
