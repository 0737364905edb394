"""Nodes of Dask graphs: to bytes at the client, run with the values of their dependencies at the executor.

A node travels as a pickle of itself, the keys of its dependencies in the order in which their values come, and the small
literals that it refers to. What is large in it, and every Future, is taken out: the task is given it as it is given its
dependencies, so that a large literal that many nodes share is one payload.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from typing import Any, NamedTuple

from redist.errors import SerializationError
from redist.protocol.futures import Collector, is_future
from redist.protocol.payload import Payload, dumps, loads_inline
from redist.protocol.pickling import goes_by_value
from redist.protocol.signing import sign_blob
from redist.protocol.sizes import INLINE_LIMIT, buffer_size

__all__ = ["NodePacker", "NodeRunner", "PackedNode", "pack_node_arguments"]

#: What a node is that is not inline, though it is one pickle: a task unpacks it after it has what it is given.
_ANY = 1 << 40


class NodeRunner:
    """What a task of a graph calls.

    All nodes whose keys begin alike have one, so that a key has the same one in every graph.

    Parameters
    ----------
    label : str
        A short name for people.
    """

    def __init__(self, label: str) -> None:
        self.__name__ = label

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.__name__,)

    def __call__(self, packed: Any, *values: Any) -> Any:
        """Run the node in `packed`, with the values of its dependencies and what was taken out of it."""
        if type(packed) is bytes:
            _given.values = values
            try:
                packed = loads_inline(packed)
            finally:
                _given.values = ()
        node, keys, literals = packed
        return node({**dict(zip(keys, values)), **literals})


class _Values(threading.local):
    values: tuple[Any, ...] = ()


_given = _Values()


class _Given:
    """Stands in a pickled node for something that its task is given."""

    __slots__ = ("place",)

    def __init__(self, place: int) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return _value_at, (self.place,)


def _value_at(place: int) -> Any:
    return _given.values[place]


class PackedNode(NamedTuple):
    """A node that is ready to travel.

    Attributes
    ----------
    data : bytes or Payload
        For the first argument of `NodeRunner`; a payload has to be stored.
    given : list of object
        Futures and large objects, whose values come after those of the dependencies.
    hidden : tuple of str
        Wire names of the Futures inside of other objects; they stay Futures.
    """

    data: bytes | Payload
    given: list[Any]
    hidden: tuple[str, ...]


class NodePacker:
    """Packs the nodes of one graph.

    Parameters
    ----------
    name_of : callable
        Gives the wire name of a Future; may raise to refuse it.
    """

    def __init__(self, name_of: Callable[[Any], str]) -> None:
        self._name_of = name_of
        #: by identity: the object, kept so that it stays this one, and whether it is large
        self._large: dict[int, tuple[Any, bool]] = {}

    def pack(self, key: object, node: Any, keys: tuple[Any, ...], literals: Mapping[Any, Any]) -> PackedNode:
        """Pack a node that depends on `keys`, and on `literals` beside.

        Raises
        ------
        SerializationError
            If something in it cannot be serialized; the message names the node's key.
        """
        try:
            data = self._plain((node, keys, literals))
            if data is not None:
                return PackedNode(data, [], ())
            payload = self.dumps((node, keys, literals))
            if payload.inline is not None and not payload.contains:
                return PackedNode(payload.inline, [], ())
            given = _Taking(self, len(keys))
            bare = given.out_of(node)
            if not given.objects:
                return PackedNode(payload.inline or payload, [], payload.contains)
            payload = self.dumps((bare, keys, literals), inline_limit=_ANY)
            assert payload.inline is not None
            whole = payload.inline
            return PackedNode(
                whole if len(whole) <= INLINE_LIMIT else dumps(whole), given.objects, payload.contains
            )
        except SerializationError as error:
            why = error.__cause__ or error  # not the error itself: its type is the tuple's around the task
            raise SerializationError(f"the task {key!r} of the graph cannot be sent: {why}") from error

    def dumps(self, value: Any, inline_limit: int = INLINE_LIMIT) -> Payload:
        """Serialize a value, looking for Futures."""
        return dumps(value, inline_limit=inline_limit, name_of=self._name_of)

    def _plain(self, packed: Any) -> bytes | None:
        """Return the pickle if plain pickle makes a small one without a Future; nodes by the thousand are such."""
        collector = Collector(self._name_of)
        try:
            with collector:
                pickled = pickle.dumps(packed, 5)
        except Exception:
            return None  # what is wrong, if anything, is found by who tries harder
        if len(pickled) > INLINE_LIMIT or collector.names or goes_by_value([pickled]):
            return None
        data = sign_blob(b"value", pickled)
        return data if len(data) <= INLINE_LIMIT else None

    def is_large(self, obj: Any) -> bool:
        """Return whether `obj`, without a node in it, is too large to be inline."""
        known = self._large.get(id(obj))
        if known is None:
            large = buffer_size(obj) > INLINE_LIMIT or self.dumps(obj).inline is None
            known = self._large[id(obj)] = obj, large
        return known[1]


class _Taking:
    """Takes Futures and large objects out of one node."""

    def __init__(self, packer: NodePacker, before: int) -> None:
        from dask._task_spec import Alias, DataNode, GraphNode, Task, TaskRef

        self._packer = packer
        self._before = before
        self._task, self._data, self._node = Task, DataNode, GraphNode
        self._references = (Alias, TaskRef)
        self._places: dict[int, _Given] = {}
        self.objects: list[Any] = []

    def out_of(self, obj: Any, *, whole: bool = False) -> Any:
        """Return `obj` with stand-ins; with `whole` it may be taken as one, if nothing in it has to be."""
        kind = type(obj)
        if is_future(obj):
            return self._take(obj)
        if isinstance(obj, self._references):
            return obj
        if isinstance(obj, self._task):
            return self._out_of_task(obj)
        if isinstance(obj, self._data):
            value = self.out_of(obj.value, whole=True)
            return obj if value is obj.value else self._data(obj.key, value)
        if kind in (list, tuple, set, frozenset):
            new = self._out_of_all(obj)
            if new is not None:
                return kind(new)
        elif kind is dict:
            new = self._out_of_all(obj.values())
            if new is not None:
                return dict(zip(obj, new))
        elif buffer_size(obj) > INLINE_LIMIT:
            return self._take(obj)
        if whole and not self._holds_node(obj) and self._packer.is_large(obj):
            return self._take(obj)
        return obj

    def _out_of_all(self, items: Iterable[Any]) -> list[Any] | None:
        old = list(items)
        new = [self.out_of(item) for item in old]
        return None if all(map(_is, new, old)) else new

    def _out_of_task(self, task: Any) -> Any:
        args = tuple([self.out_of(arg, whole=True) for arg in task.args])
        kwargs = {name: self.out_of(arg, whole=True) for name, arg in task.kwargs.items()}
        func = self._take(task.func) if self._packer.is_large(task.func) else task.func
        if (
            func is task.func
            and all(map(_is, args, task.args))
            and all(map(_is, kwargs.values(), task.kwargs.values()))
        ):
            return task
        bare = copy(task)
        bare.func, bare.args, bare.kwargs = func, args, kwargs
        return bare

    def _holds_node(self, obj: Any) -> bool:
        kind = type(obj)
        if isinstance(obj, (self._node, *self._references)):
            return True
        if kind is dict:
            return any(map(self._holds_node, obj.values()))
        return kind in (list, tuple, set, frozenset) and any(map(self._holds_node, obj))

    def _take(self, obj: Any) -> _Given:
        given = self._places.get(id(obj))
        if given is None:
            given = self._places[id(obj)] = _Given(self._before + len(self.objects))
            self.objects.append(obj)
        return given


def _is(new: object, old: object) -> bool:
    return new is old


def pack_node_arguments(data: bytes | None, count: int) -> bytes:
    """Return the arguments of `NodeRunner` as `pack_arguments` would: `data`, or without it a value, and `count` values."""
    # Writable, as a read-only one adds an opcode that wants a buffer.
    values = [pickle.PickleBuffer(bytearray(1)) for _ in range(count + (data is None))]
    taken: list[pickle.PickleBuffer] = []
    return pickle.dumps(
        (tuple(values) if data is None else (data, *values), {}), 5, buffer_callback=taken.append
    )
