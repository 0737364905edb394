"""Functions: serialized once, known by the hash of what was serialized."""

from __future__ import annotations

import hashlib
import inspect
import pickle
import types
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from redist.errors import DeserializationError, RedistError, SerializationError
from redist.protocol.codes import Files, split, using
from redist.protocol.futures import Collector, name_of
from redist.protocol.names import function_label, type_name
from redist.protocol.pickling import pickle_object
from redist.protocol.signing import on_change, open_signed, sign_blob

__all__ = ["Function", "function_of", "load_function", "may_hold_futures"]

# Only what cannot change under our hands is known by identity; a callable object may have new attributes next time.
_IMMUTABLE = (types.FunctionType, types.BuiltinFunctionType, type)
_cache: dict[int, tuple[weakref.ref[Any], Function]] = {}
on_change.append(_cache.clear)


class Function:
    """A serialized function.

    Parameters
    ----------
    pickled : sequence of bytes or memoryview
        Its pickle, in pieces.
    label : str
        A short name for people.
    contains : tuple of str
        Wire names of the Futures that it holds, in a closure for example.
    trailer : bytes
        What follows the pickle and is no part of its hash.
    """

    #: 24 hexadecimal digits of the pickle's hash
    hash: str
    #: what is stored and given to `load_function`: the pickle, signed when there is a secret
    data: bytes
    label: str
    contains: tuple[str, ...]
    #: beginning of the hash of a pure call's key
    token: bytes
    #: beginning of a call's key
    stem: str

    __slots__ = ("contains", "data", "hash", "label", "stem", "token")

    def __init__(
        self,
        pickled: Sequence[bytes | memoryview],
        label: str,
        contains: tuple[str, ...] = (),
        trailer: bytes = b"",
    ) -> None:
        self.hash = _hash(*pickled)
        self.data = sign_blob(b"function", b"".join((*pickled, trailer)))  # once: a closure may be large
        self.label = label
        self.contains = contains
        self.token = self.hash.encode()
        self.stem = label + "-"

    @property
    def nbytes(self) -> int:
        """Size of `data`."""
        return len(self.data)

    def __repr__(self) -> str:
        return f"<Function {self.label} {self.hash}, {self.nbytes} bytes>"


def function_of(function: Callable[..., Any], name_of: Callable[[Any], str] = name_of) -> Function:
    """Return the serialized form of `function`; plain functions and classes are remembered as long as they live.

    By value for what is defined in ``__main__`` or in a module registered with ``cloudpickle.register_pickle_by_value``,
    and for lambdas and closures; by reference otherwise.

    Parameters
    ----------
    function : callable
        Anything callable.
    name_of : callable
        Gives the wire name of a Future in its closure; may raise to refuse it.

    Raises
    ------
    TypeError
        If it is not callable.
    SerializationError
        If it, or something in its closure, cannot be serialized, or it is a generator function.
    """
    identity = id(function)
    known = _cache.get(identity)
    if known is not None and known[0]() is function:
        return known[1]
    if not callable(function):
        raise TypeError(f"a task needs a callable, not {type_name(type(function))}: {function!r:.80}")
    label = function_label(function)
    _refuse_generators(function, label)
    collector = Collector(name_of)
    files = Files()
    try:
        chunks = pickle_object(function, collector, files=files).chunks
    except RedistError:
        raise
    except Exception as error:
        raise SerializationError(f"the function {label} cannot be serialized: {error}") from error
    made = Function(chunks, label, tuple(collector.names), files.trailer())
    if isinstance(function, _IMMUTABLE) and not made.contains:
        try:
            reference = weakref.ref(function, lambda _, identity=identity: _forget(identity))  # type: ignore[misc]
        except TypeError:
            return made
        _cache[identity] = (reference, made)
    return made


def _refuse_generators(function: Any, label: str) -> None:
    for given in (function, type(function).__call__):
        if inspect.isgeneratorfunction(given) or inspect.isasyncgenfunction(given):
            raise SerializationError(
                f"{label} is a generator function: calling it makes a generator, which cannot leave the process that runs "
                "it; return a list, or submit a function that goes over it"
            )


def load_function(data: bytes | memoryview, expected_hash: str | None = None) -> Callable[..., Any]:
    """Return the function of `Function.data`.

    Parameters
    ----------
    data : bytes
        As it was stored.
    expected_hash : str, optional
        `Function.hash`, to be sure that it is the function that the task names.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the data is not signed with it.
    DeserializationError
        If it cannot be loaded here, or is another function than expected.
    """
    pickled, files = split(open_signed(b"function", data))
    if expected_hash is not None and _hash(pickled) != expected_hash:
        raise DeserializationError(f"the stored function is not the one with the hash {expected_hash}")
    try:
        with using(files):
            return pickle.loads(pickled)  # type: ignore[no-any-return]
    except RedistError:
        raise
    except Exception as error:
        raise DeserializationError(
            f"the task's function cannot be loaded here: {type(error).__name__}: {error}"
        ) from error


def may_hold_futures(data: bytes) -> bool:
    """Return whether loading `Function.data` may make Futures: their class or what rebuilds them is named in it."""
    return b"redist.future" in data


def _hash(*pieces: bytes | memoryview) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def _forget(identity: int) -> None:
    known = _cache.get(identity)
    if known is not None and known[0]() is None:  # the identity may belong to a newer function already
        del _cache[identity]
