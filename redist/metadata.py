"""Metadata: small values under names, for any client of the namespace; a list of names is a way into nested dicts.

A name has one msgpack value in Redis. Who sets something inside of it reads it, changes it, and has it stored if it still
is what was read.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import msgpack

from redist.session.lane import Refused
from redist.session.operations import Ask, Operation, Run
from redist.store import beside
from redist.store.keys import decode_key, encode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["ABSENT", "get", "pack_plain", "put", "unpack_plain"]

ABSENT: Any = object()


def pack_plain(value: Any, what: str) -> bytes:
    """Return plain data as msgpack.

    Raises
    ------
    TypeError
        If there is anything in it but None, bool, int, float, str, bytes, lists, tuples and dicts.
    """
    try:
        data: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(
            f"{what} is to be plain data that msgpack can pack, not {value!r:.80}: {error}"
        ) from None
    return data


def unpack_plain(data: bytes) -> Any:
    """Return plain data; lists come as tuples."""
    return msgpack.unpackb(data, use_list=False, strict_map_key=False)


def put(client: Client, path: list[Any], value: Any) -> Operation[None]:
    """Set the value at the end of `path`; dicts on the way are made, and take the place of what is none."""
    if not path:
        raise IndexError("set_metadata needs a key, or a list of at least one")
    name = _name(path[0])
    data = pack_plain(value, "the value")
    if len(path) == 1:
        yield Ask(beside.set_metadata(name, data))
        return
    while True:
        seen: bytes | None = yield Run(client._peers.field, ("metadata", name))
        tree = {} if seen is None else unpack_plain(seen)
        node = tree = tree if isinstance(tree, dict) else {}
        for key in path[1:-1]:
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node = node[key]
        node[path[-1]] = value
        try:
            yield Ask(beside.set_metadata(name, pack_plain(tree, "a key"), seen=seen or b""))
        except Refused:
            continue  # somebody else was faster
        return


def get(client: Client, path: list[Any], default: Any = ABSENT) -> Operation[Any]:
    """Return the value at the end of `path`, of an empty one everything."""
    try:
        if not path:
            found = yield Run(client._peers.pairs, ("metadata",))
            return {_key(name): unpack_plain(data) for name, data in found.items()}
        data: bytes | None = yield Run(client._peers.field, ("metadata", _name(path[0])))
        if data is None:
            raise KeyError(path[0])
        value = unpack_plain(data)
        for key in path[1:]:
            value = value[key]
        return value
    except KeyError:
        if default is ABSENT:
            raise
        return default


def _name(key: Any) -> str:
    """Return the name of a key of the outermost dict; a task's key is named as the task is."""
    return encode_key(key) if isinstance(key, str | tuple) else f"@{key!r}"


def _key(name: str) -> Any:
    return ast.literal_eval(name[1:]) if name.startswith("@") else decode_key(name)
