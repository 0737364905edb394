"""Arguments of a call: to bytes at the client, back at the executor, with Futures and large values taken out.

Futures in plain containers become dependencies, large values are handed back to be stored as values of their own, and in
the pickle each is a *placeholder*: the one-byte opcode for an out-of-band buffer, in whose stead `unpack_arguments` gives
the value. So unpacking neither walks the structure nor calls Python code for it.

The data is a bare pickle of ``(args, kwargs)`` when the placeholders in it are the values 0, 1, 2, ... in order; otherwise
``i``, a count, the number of the value for each placeholder (all uint32, little endian), and the pickle.
"""

from __future__ import annotations

import copy
import pickle
import struct
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from redist.errors import DeserializationError, RedistError, SerializationError
from redist.protocol.futures import Collector, FutureLike, future_reducers, is_future, name_of
from redist.protocol.names import type_name
from redist.protocol.pickling import BufferSink, pickle_object
from redist.protocol.plain import CONTAINERS, NUMBERS, SCALARS, is_named, is_plain
from redist.protocol.sizes import INLINE_LIMIT, buffer_size

__all__ = ["Arguments", "pack_arguments", "unpack_arguments"]

_INDEXED = b"i"
# A container with more large items than this is stored as one value, not as one for each item.
_MANY = 32
_COUNT = struct.Struct("<I")


class Arguments(NamedTuple):
    """Packed arguments.

    Parameters
    ----------
    data : bytes
        For `pack_spec`.
    dependencies : tuple of str
        Wire names of the Futures in plain containers, each once. Their values, in this order, come first among the
        values that `unpack_arguments` wants.
    hidden : tuple of str
        Wire names of the Futures inside of other objects; they stay Futures.
    large : tuple of object
        Values above the inline limit, to be stored under keys of their own; those values come after the dependencies'.
    """

    data: bytes
    dependencies: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    large: tuple[Any, ...] = ()


def pack_arguments(
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dependency_of: Callable[[Any], str] = name_of,
    label: str = "the call",
) -> Arguments:
    """Pack the arguments of a call.

    Parameters
    ----------
    args, kwargs : tuple and mapping
        The arguments.
    dependency_of : callable
        Gives the wire name of a Future; may raise to refuse it.
    label : str
        What is called, for error messages.

    Raises
    ------
    SerializationError
        If an argument cannot be serialized; the message names it.
    """
    for arg in args if not kwargs else (*args, *kwargs.values()):
        kind = type(arg)
        if kind in NUMBERS or ((kind is str or kind is bytes) and len(arg) <= INLINE_LIMIT):
            continue
        break
    else:
        return Arguments(pickle.dumps((args, dict(kwargs)), 5))
    if not kwargs:
        flat = _pack_flat(args, dependency_of)
        if flat is not None:
            return flat
    return _pack(args, dict(kwargs), dependency_of, label)


def unpack_arguments(
    data: bytes | memoryview, values: Sequence[Any] = ()
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a call, with `values` in the place of Futures and large arguments.

    Only for data that `unpack_spec` let through: it is unpickled.

    Parameters
    ----------
    data : bytes
        `Arguments.data`.
    values : sequence
        The values of the dependencies, then the large values.

    Raises
    ------
    DeserializationError
        If an argument cannot be loaded here, or there are too few values.
    """
    try:
        if data[:1] == _INDEXED:
            (count,) = _COUNT.unpack_from(data, 1)
            indices = struct.unpack_from(f"<{count}I", data, 5)
            values = [values[index] for index in indices]
            data = data[5 + 4 * count :]
        return pickle.loads(data, buffers=values)  # type: ignore[no-any-return]
    except RedistError:
        raise
    except Exception as error:
        raise DeserializationError(
            f"the task's arguments cannot be loaded here: {type(error).__name__}: {error}"
        ) from error


class _Placeholders(BufferSink):
    """Takes placeholders in the order in which the pickler meets them, and leaves buffers in the pickle."""

    takes_buffers = False

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.order: list[int] = []
        self.alive: list[pickle.PickleBuffer] = []

    def make(self, number: int) -> pickle.PickleBuffer:
        placeholder = pickle.PickleBuffer(
            bytearray(1)
        )  # writable: a read-only one adds an opcode that wants a buffer
        self.numbers[id(placeholder)] = number
        self.alive.append(placeholder)
        return placeholder

    def reset(self) -> None:
        self.order = []

    def __call__(self, buffer: pickle.PickleBuffer) -> bool:
        number = self.numbers.get(id(buffer))
        if number is None:
            return True
        self.order.append(number)
        return False


class _Extraction:
    """Takes Futures and large values out of plain containers; containers without any stay the very objects."""

    def __init__(self, dependency_of: Callable[[Any], str]) -> None:
        self.dependency_of = dependency_of
        self.placeholders = _Placeholders()
        self.dependencies: dict[str, int] = {}
        self.large: list[Any] = []
        #: whether there is anything that plain pickle must not be trusted with
        self.opaque = False
        self._large_numbers: dict[int, int] = {}
        self._done: dict[int, Any] = {}

    def replace(self, obj: Any) -> Any:
        """Return `obj` with placeholders in it."""
        kind = type(obj)
        if kind in NUMBERS:
            return obj
        if kind in CONTAINERS:
            return self._container(obj, kind) if obj else obj
        if is_future(obj):
            return self._future(obj)
        if kind in _DICTS or is_named(obj):
            return self._unusual(obj, kind)
        if buffer_size(obj) > INLINE_LIMIT:
            return self.take(obj)
        if not self.opaque and not is_plain(obj):
            self.opaque = True
        return obj

    def take(self, obj: Any) -> pickle.PickleBuffer:
        """Return a placeholder for `obj`, which becomes a value of its own."""
        number = self._large_numbers.get(id(obj))
        if number is None:
            number = self._large_numbers[id(obj)] = -1 - len(
                self.large
            )  # after the dependencies, once all are known
            self.large.append(obj)
        return self.placeholders.make(number)

    def _future(self, future: FutureLike) -> pickle.PickleBuffer:
        name = self.dependency_of(future)
        return self.placeholders.make(self.dependencies.setdefault(name, len(self.dependencies)))

    def _container(self, obj: Any, kind: type) -> Any:
        identity = id(obj)
        known = self._done.get(identity)
        if known is not None:
            if known is _ACTIVE:  # a container inside of itself: what refers back refers to its copy
                known = self._done[identity] = kind() if kind is list or kind is dict else obj
            return known
        self._done[identity] = _ACTIVE
        items = obj.values() if kind is dict else obj
        kinds = set(map(type, items))
        if kinds <= SCALARS and (kind is not dict or set(map(type, obj)) <= SCALARS):
            result = self.take(obj) if _scalars_size(items, kinds) > INLINE_LIMIT else obj
        elif _holds_many_large(items) and not _holds_future(obj):
            result = self.take(obj)
        else:
            if kind is dict and not self.opaque and not all(map(is_plain, obj)):
                self.opaque = True
            result = self._items(obj, kind, identity)
        self._done[identity] = result
        return result

    def _unusual(self, obj: Any, kind: type) -> Any:
        """Replace what is in a namedtuple, or in a dict of another kind; it stays of its kind."""
        self.opaque = True
        items = list(obj.values()) if kind in _DICTS else obj
        if not _holds_future(obj):
            return obj
        replaced = [self.replace(item) for item in items]
        if kind not in _DICTS:
            return tuple.__new__(kind, replaced)
        result = copy.copy(obj)
        result.update(zip(obj, replaced))
        return result

    def _items(self, obj: Any, kind: type, identity: int) -> Any:
        items = obj.values() if kind is dict else obj
        replaced = [self.replace(item) for item in items]
        made = self._done[identity]
        if made is _ACTIVE or made is obj:
            if all(new is old for new, old in zip(replaced, items)):
                return obj
            return dict(zip(obj, replaced)) if kind is dict else kind(replaced)
        if kind is dict:
            made.update(zip(obj, replaced))
        else:
            made.extend(replaced)
        return made


_ACTIVE = object()
#: Dicts of other kinds in which Futures are found, too.
_DICTS = (OrderedDict, defaultdict)


def _holds_many_large(items: Any) -> bool:
    return len(items) > _MANY and sum(buffer_size(item) > INLINE_LIMIT for item in items) > _MANY


def _holds_future(container: Any) -> bool:
    seen = {id(container)}
    todo = [container]
    while todo:
        here = todo.pop()
        for item in here.values() if isinstance(here, dict) else here:
            if type(item) in CONTAINERS or type(item) in _DICTS or is_named(item):
                if id(item) not in seen:
                    seen.add(id(item))
                    todo.append(item)
            elif is_future(item):
                return True
    return False


def _scalars_size(items: Any, kinds: set[type]) -> int:
    size = 8 * len(items)
    if str in kinds or bytes in kinds:
        size += sum(len(item) for item in items if type(item) is str or type(item) is bytes)
    return size


def _pack_flat(args: tuple[Any, ...], dependency_of: Callable[[Any], str]) -> Arguments | None:
    """Pack arguments that are small scalars and Futures, the links of chains; None if there is anything else."""
    names: dict[str, int] = {}
    order: list[int] = []
    replaced: list[Any] = []
    for arg in args:
        kind = type(arg)
        if kind in future_reducers:
            order.append(names.setdefault(dependency_of(arg), len(names)))
            replaced.append(pickle.PickleBuffer(bytearray(1)))
        elif kind in NUMBERS or ((kind is str or kind is bytes) and len(arg) <= INLINE_LIMIT):
            replaced.append(arg)
        else:
            return None
    met: list[pickle.PickleBuffer] = []
    data = pickle.dumps((tuple(replaced), {}), 5, buffer_callback=met.append)
    return Arguments(_indexed(data, order, len(names)), tuple(names))


def _indexed(data: bytes, order: list[int], count: int) -> bytes:
    if len(order) == count and order == list(range(count)):
        return data
    return _INDEXED + _COUNT.pack(len(order)) + struct.pack(f"<{len(order)}I", *order) + data


def _pack(
    args: tuple[Any, ...], kwargs: dict[str, Any], dependency_of: Callable[[Any], str], label: str
) -> Arguments:
    extraction = _Extraction(dependency_of)
    new_args = [extraction.replace(arg) for arg in args]
    new_kwargs = {key: extraction.replace(value) for key, value in kwargs.items()}
    arguments = _pickle(extraction, new_args, new_kwargs, label)
    if len(arguments.data) <= INLINE_LIMIT:
        return arguments
    # Something opaque is large: whole arguments that hold no placeholder become values of their own.
    again = False
    for place, old, new in _places(args, kwargs, new_args, new_kwargs):
        if new is old and type(old) not in NUMBERS and _pickled_size(old, dependency_of) > INLINE_LIMIT:
            taken = extraction.take(old)
            again = True
            if isinstance(place, int):
                new_args[place] = taken
            else:
                new_kwargs[place] = taken
    return _pickle(extraction, new_args, new_kwargs, label) if again else arguments


def _pickle(extraction: _Extraction, args: list[Any], kwargs: dict[str, Any], label: str) -> Arguments:
    placeholders = extraction.placeholders
    placeholders.reset()
    collector = Collector(extraction.dependency_of)
    try:
        if extraction.opaque:
            data = b"".join(pickle_object((tuple(args), kwargs), collector, placeholders).chunks)
        else:
            data = pickle.dumps((tuple(args), kwargs), 5, buffer_callback=placeholders)
    except RedistError:
        raise
    except Exception as error:
        raise _refusal(extraction, args, kwargs, label, error) from error
    first_large = len(extraction.dependencies)
    order = [number if number >= 0 else first_large - 1 - number for number in placeholders.order]
    data = _indexed(data, order, first_large + len(extraction.large))
    hidden = tuple(name for name in collector.names if name not in extraction.dependencies)
    return Arguments(data, tuple(extraction.dependencies), hidden, tuple(extraction.large))


def _places(
    args: tuple[Any, ...], kwargs: dict[str, Any], new_args: list[Any], new_kwargs: dict[str, Any]
) -> list[tuple[int | str, Any, Any]]:
    places: list[tuple[int | str, Any, Any]] = [(i, old, new_args[i]) for i, old in enumerate(args)]
    return places + [(key, old, new_kwargs[key]) for key, old in kwargs.items()]


def _pickled_size(obj: Any, dependency_of: Callable[[Any], str]) -> int:
    return pickle_object(obj, Collector(dependency_of)).nbytes


def _refusal(
    extraction: _Extraction, args: list[Any], kwargs: dict[str, Any], label: str, error: Exception
) -> SerializationError:
    """Return the error that names the argument at fault."""
    named: list[tuple[str, Any]] = [(f"argument {i + 1}", arg) for i, arg in enumerate(args)]
    named += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    for name, value in named:
        try:
            pickle_object(value, Collector(extraction.dependency_of), extraction.placeholders)
        except Exception as cause:
            kind = type_name(type(value))
            return SerializationError(f"{name} of {label} ({kind}) cannot be serialized: {cause}")
    return SerializationError(f"the arguments of {label} cannot be serialized: {error}")
