"""Which Futures are inside an inline value, found without loading it: nothing is imported, no code of its objects runs."""

from __future__ import annotations

import contextlib
import io
import pickle
from collections.abc import Callable
from typing import Any

from redist.errors import UnsignedPayload
from redist.protocol.futures import future_makers
from redist.protocol.signing import open_signed

__all__ = ["names_inside"]


def names_inside(data: bytes) -> tuple[str, ...]:
    """Return the wire names of the keys whose Futures are inside an inline payload.

    Parameters
    ----------
    data : bytes
        `Payload.inline`; one that is not signed as it should be holds none.
    """
    if not any(module.encode() in data for module, _ in future_makers):
        return ()
    try:
        reader = _Reader(io.BytesIO(open_signed(b"value", data)))
    except UnsignedPayload:
        return ()
    with contextlib.suppress(Exception):  # what stands in for an object cannot do all that the object can
        reader.load()
    return tuple(reader.names)


class _Anything(type):
    """What it makes is the class again: pickles treat what they have made by value as a class, an instance, a container."""

    def __call__(cls, *args: object, **kwargs: object) -> _Anything:
        return cls

    def __setitem__(cls, key: object, value: object) -> None:
        pass


class _StandIn(metaclass=_Anything):
    """Stands for whatever a pickle names and makes."""

    def __new__(cls, *args: object, **kwargs: object) -> type[_StandIn]:  # type: ignore[misc]  # on purpose, see above
        return cls

    @staticmethod
    def append(item: object) -> None:
        pass

    extend = update = add = __setstate__ = append


class _Reader(pickle.Unpickler):
    names: dict[str, None]

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.names = {}

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        return self._note if (module, name) in future_makers else _StandIn

    def _note(self, name: str) -> type[_StandIn]:
        self.names[name] = None
        return _StandIn
