"""Whole objects in one blob: what is sent to a process rather than stored under a key.

Futures in one of them are taken over by whoever loads it, so that nothing has to be kept for it under a name.
"""

from __future__ import annotations

import pickle
from typing import Any

from redist.errors import DeserializationError, RedistError, SerializationError
from redist.protocol.futures import Collector, Reduce, name_of
from redist.protocol.pickling import pickle_object
from redist.protocol.signing import open_signed, sign_blob

__all__ = ["dump_whole", "load_whole"]

_KIND = b"message"


def dump_whole(obj: Any, hand_over: Reduce | None = None, *, what: str = "") -> bytes:
    """Return `obj` as bytes, signed if a secret is in force.

    Parameters
    ----------
    obj : object
        Anything that plain pickle or cloudpickle can serialize.
    hand_over : callable, optional
        Reduces a Future to what takes it over; without it a Future is reduced to its bare form.
    what : str
        What the error of it says that it is; default: its type.

    Raises
    ------
    SerializationError
        If it cannot be serialized.
    """
    try:
        pickled = pickle_object(obj, Collector(name_of, hand_over))
        return sign_blob(_KIND, b"".join(pickled.chunks))
    except (RedistError, MemoryError):
        raise
    except Exception as error:
        raise SerializationError(
            f"{what or type(obj).__name__} cannot be serialized: {type(error).__name__}: {error}"
        ) from error


def load_whole(data: bytes | memoryview) -> Any:
    """Return the object in what `dump_whole` made.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the data is not signed with it.
    DeserializationError
        If it cannot be loaded here.
    """
    pickled = open_signed(_KIND, data)
    try:
        return pickle.loads(pickled)
    except (RedistError, MemoryError):
        raise
    except Exception as error:
        raise DeserializationError(f"it cannot be loaded here: {type(error).__name__}: {error}") from error
