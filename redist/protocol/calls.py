"""Many calls of one function at once, as `Client.map` makes them: key, spec and all in one go for the common case."""

from __future__ import annotations

import marshal
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

from redist.protocol.arguments import pack_arguments
from redist.protocol.functions import Function
from redist.protocol.futures import name_of
from redist.protocol.keys_of_calls import MARSHAL_FORMAT, key_of_call
from redist.protocol.plain import NUMBERS
from redist.protocol.sizes import INLINE_LIMIT
from redist.protocol.specs import pack_spec

__all__ = ["PackedCall", "pack_calls"]


class PackedCall(NamedTuple):
    """A call that is ready to be submitted; see `Arguments` for the last three."""

    key: str
    spec: bytes
    dependencies: tuple[str, ...]
    hidden: tuple[str, ...]
    large: tuple[Any, ...]


def pack_calls(
    function: Function,
    calls: Iterable[tuple[Any, ...]],
    kwargs: Mapping[str, Any] | None = None,
    *,
    pure: bool = True,
    flags: int = 0,
    dependency_of: Callable[[Any], str] = name_of,
) -> Iterator[PackedCall]:
    """Yield what `key_of_call`, `pack_arguments` and `pack_spec` make of each call.

    Parameters
    ----------
    function : Function
        What is called.
    calls : iterable of tuple
        The positional arguments of each call.
    kwargs : mapping, optional
        Keyword arguments of all of them.
    pure, flags, dependency_of
        As in those functions.

    Raises
    ------
    SerializationError
        If an argument cannot be serialized.
    """
    kwargs = kwargs or {}
    label, stem, token, fn_hash = function.label, function.stem, function.token, function.hash
    new, dump, written = tuple.__new__, pickle.dumps, marshal.dumps
    for args in calls:
        for arg in args if not kwargs else (args,):
            kind = type(arg)
            if kind in NUMBERS or ((kind is str or kind is bytes) and len(arg) <= INLINE_LIMIT):
                continue
            arguments = pack_arguments(args, kwargs, dependency_of=dependency_of, label=label)
            key = key_of_call(function, args, kwargs, pure, dependency_of=dependency_of)
            yield PackedCall(key, pack_spec(fn_hash, arguments.data, flags), *arguments[1:])
            break
        else:
            if pure and not kwargs:
                key = stem + blake2b(token + written(args, MARSHAL_FORMAT), digest_size=16).hexdigest()
            else:
                key = key_of_call(function, args, kwargs, pure)
            spec = pack_spec(fn_hash, dump((args, dict(kwargs)), 5), flags)
            yield new(PackedCall, (key, spec, (), (), ()))
