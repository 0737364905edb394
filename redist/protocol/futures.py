"""Where the protocol meets Futures, whose class lives in a layer above.

The upper layer registers its class once. While one of our serializers runs in a thread, a `Collector` notes every Future
that is met, and the Future is reduced to its bare form; whoever stores the value declares the names. A Future that is
pickled at any other time goes by its own ``__reduce__``, which takes a hand-off.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "Collector",
    "FutureLike",
    "Reduce",
    "collect",
    "future_makers",
    "future_reducers",
    "is_future",
    "name_of",
    "register_future_type",
]


@runtime_checkable
class FutureLike(Protocol):
    """What the protocol knows of a Future: the wire name of its key."""

    @property
    def name(self) -> str:
        """The wire name of the Future's key."""
        ...


Reduce = Callable[[Any], tuple[Any, ...]]

#: class of Futures -> its bare reduction, which takes no hand-off
future_reducers: dict[type, Reduce] = {}
#: (module, name) of what makes a Future out of its wire name, as bare reductions in pickles name it
future_makers: set[tuple[str, str]] = set()
_types: tuple[type, ...] = ()


class _Running(threading.local):
    collector: Collector | None = None


_running = _Running()


class Collector:
    """Notes the names of the Futures that a serializer meets in this thread, while it is entered.

    Parameters
    ----------
    name_of : callable
        Gives the wire name of a Future; may raise to refuse it.
    instead : callable, optional
        The reduction to use for a Future instead of its registered bare one.
    """

    names: dict[str, None]

    __slots__ = ("_before", "_instead", "_name_of", "names")

    def __init__(self, name_of: Callable[[Any], str], instead: Reduce | None = None) -> None:
        self.names = {}
        self._name_of = name_of
        self._instead = instead
        self._before: Collector | None = None

    def __enter__(self) -> Collector:
        self._before = _running.collector
        _running.collector = self
        return self

    def __exit__(self, *exc_info: object) -> None:
        _running.collector = self._before

    def reduce(self, future: Any) -> tuple[Any, ...]:
        """Note `future` and return its bare reduction."""
        self.names[self._name_of(future)] = None
        if self._instead is not None:
            return self._instead(future)
        return _reducer_of(type(future))(future)


def register_future_type(cls: type, reduce: Reduce, make: Callable[[str], object] | None = None) -> None:
    """Make the protocol treat instances of `cls` as Futures.

    Parameters
    ----------
    cls : type
        A class with the attribute ``name``, the wire name of the key.
    reduce : callable
        Takes an instance, returns what ``__reduce__`` returns: its bare form, without a hand-off.
    make : callable, optional
        The function that the bare form calls with the wire name, so that names can be found in pickles.
    """
    global _types
    future_reducers[cls] = reduce
    if make is not None:
        future_makers.add((make.__module__, make.__qualname__))
    _types = tuple(future_reducers)


def is_future(obj: object) -> bool:
    """Return whether `obj` is an instance of a registered class, or of a subclass of one."""
    return isinstance(obj, _types)


def collect(future: Any) -> tuple[Any, ...] | None:
    """Return the bare reduction of `future` if a serializer of ours runs in this thread, and note the name; else None.

    A Future's ``__reduce__`` asks this first, so that Futures are also found when some object's own ``__reduce__`` pickles
    its parts.
    """
    collector = _running.collector
    return None if collector is None else collector.reduce(future)


def name_of(future: FutureLike) -> str:
    """Return the wire name of `future`."""
    return future.name


def _reducer_of(cls: type) -> Reduce:
    for base in cls.__mro__:
        reducer = future_reducers.get(base)
        if reducer is not None:
            return reducer
    raise TypeError(f"{cls.__name__} is no registered class of Futures")
