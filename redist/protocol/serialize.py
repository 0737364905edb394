"""Serialization that users extend and call themselves, under the names of `distributed.protocol`.

A class that is registered here goes into payloads, arguments and `serialize` by its two functions, its frames uncopied. The
names are Dask's; nothing has to be registered where values are loaded, since a payload says which function makes them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from redist.protocol.payload import dumps, loads, loads_inline
from redist.protocol.reducers import register

__all__ = [
    "Serialize",
    "dask_deserialize",
    "dask_serialize",
    "deserialize",
    "register_serialization",
    "serialize",
    "to_serialize",
]

Frame: TypeAlias = "bytes | bytearray | memoryview"


def register_serialization(
    cls: type,
    serialize: Callable[[Any], tuple[dict[str, Any], Sequence[Frame]]],
    deserialize: Callable[[dict[str, Any], list[Any]], Any],
) -> None:
    """Have instances of a class serialized by functions of yours, here, from now on.

    Parameters
    ----------
    cls : type
        The class; its subclasses are not meant.
    serialize : callable
        Takes an instance, returns a header (a dict of anything that pickle takes) and a list of frames (anything with a
        contiguous buffer). Large frames become buffers of the payload without being copied.
    deserialize : callable
        Takes header and frames, in their order, and returns the instance. A frame may be a read-only view of shared memory.
        It has to be importable where the value is loaded; one of ``__main__`` goes along with the value.

    Raises
    ------
    TypeError
        If `cls` is no class, or one of the functions cannot be called.
    """
    if not isinstance(cls, type):
        raise TypeError(f"the class to be registered is a class, not {cls!r:.80}")
    for function in (serialize, deserialize):
        if not callable(function):
            raise TypeError(f"{cls.__name__}: {function!r:.80} cannot be called")

    def reduce(obj: Any, _sink: Any) -> Any:
        header, frames = serialize(obj)
        return _load, (deserialize, header, [pickle.PickleBuffer(frame) for frame in frames])

    register(cls, reduce)


class _Registry:
    """Takes one of the two functions of a class; the class is registered when both are there."""

    def __init__(self) -> None:
        self.functions: dict[type, Callable[..., Any]] = {}

    def register(self, cls: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator for the function of `cls`.

        Parameters
        ----------
        cls : type
            The class; its subclasses are not meant.
        """

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            self.functions[cls] = function
            if cls in dask_serialize.functions and cls in dask_deserialize.functions:
                register_serialization(cls, dask_serialize.functions[cls], dask_deserialize.functions[cls])
            return function

        return decorate


#: `register_serialization` by decorators: ``@dask_serialize.register(Class)`` and ``@dask_deserialize.register(Class)``
dask_serialize = _Registry()
dask_deserialize = _Registry()


def _load(
    deserialize: Callable[[dict[str, Any], list[Any]], Any], header: dict[str, Any], frames: list[Any]
) -> Any:
    return deserialize(header, [frame if isinstance(frame, bytes) else memoryview(frame) for frame in frames])


def serialize(x: object) -> tuple[dict[str, Any], list[Frame]]:
    """Return a header and frames of any value, to be sent by means of your own; large buffers are the value's memory.

    Parameters
    ----------
    x : object
        Anything that can be scattered, or `to_serialize` of it.

    Returns
    -------
    header : dict
        Plain data: ``type``, ``inline`` and ``contains`` (keys of the Futures inside).
    frames : list of bytes or memoryview
        Pieces of a payload. Joined they are one, which any Arrow library reads unless it is inline.

    Raises
    ------
    SerializationError
        If the value cannot be serialized.
    """
    payload = dumps(x.data if isinstance(x, Serialize) else x)
    header = {"type": payload.type, "inline": payload.inline is not None, "contains": list(payload.contains)}
    return header, list(payload.chunks())


def deserialize(header: dict[str, Any], frames: Sequence[Frame]) -> Any:
    """Return the value of what `serialize` returned; its arrays view the frames if there is one frame only.

    Raises
    ------
    DeserializationError
        If it is damaged, or cannot be loaded here.
    """
    whole = memoryview(frames[0] if len(frames) == 1 else b"".join(frames))
    return loads_inline(whole) if header["inline"] else loads(whole)


class Serialize:
    """Marks a value that is to be serialized, as Dask's messages need it; here it only carries the value.

    Parameters
    ----------
    data : object
        The value.
    """

    def __init__(self, data: object) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"<Serialize: {self.data!r:.200}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Serialize) and bool(other.data == self.data)

    def __hash__(self) -> int:
        return hash(self.data)


to_serialize = Serialize
