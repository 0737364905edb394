"""What the tasks of actors run: making one, calling a method, reading an attribute.

The executor that runs them says at its start who keeps actors there (`redist_worker.actors`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

from redist.protocol import function_of
from redist.protocol.nodes import NodeRunner
from redist.protocol.signing import on_change

__all__ = ["Host", "NodeActor", "Raised", "Unready", "call", "host", "is_call", "make", "read", "set_host"]


class Host(Protocol):
    """Keeps the actors of an executor."""

    def make(self, name: str, cls: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an actor, and return what others know it by."""
        ...

    def call(
        self, name: str, token: str, method: str, call: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a method; `call` is the key of this call, which never runs twice."""
        ...

    def read(self, name: str, token: str, attribute: str) -> Any:
        """Read an attribute."""
        ...

    def task_name(self) -> str:
        """Return the wire name of the calling thread's task."""
        ...

    def own_method(self, name: str, token: str, method: str) -> Callable[..., Any] | None:
        """Return the actor's method if the calling thread runs a method of that very actor."""
        ...


class Raised:
    """The value of a call that raised. The call itself did not fail, so what was called after it runs.

    Parameters
    ----------
    error : bytes
        The packed error.
    """

    __slots__ = ("error",)

    def __init__(self, error: bytes) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return Raised, (self.error,)


class Unready:
    """Arguments of a call among which are Futures, which the call waits for: their failing must not fail it.

    Parameters
    ----------
    args, kwargs : tuple and dict
        The arguments.
    """

    __slots__ = ("args", "kwargs")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs

    def __reduce__(self) -> tuple[Any, ...]:
        return Unready, (self.args, self.kwargs)


class NodeActor(NodeRunner):
    """What a task of a graph calls that makes an actor."""

    def __call__(self, packed: Any, *values: Any) -> Any:
        """Make an actor of what the node in `packed` returns, under the key of the calling task."""
        assert _host is not None
        return _host.make(_host.task_name(), NodeRunner(self.__name__), (packed, *values), {})


_host: Host | None = None


def set_host(keeper: Host) -> None:
    """Make `keeper` the one who keeps the actors of this process."""
    global _host
    _host = keeper


def host() -> Host | None:
    """Return who keeps the actors of this process, None if it is no executor."""
    return _host


def make(name: str, cls: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Make the actor `name`."""
    assert _host is not None
    return _host.make(name, cls, args, kwargs)


def call(name: str, token: str, method: str, key: str, /, *args: Any, **kwargs: Any) -> Any:
    """Call a method of the actor `name`."""
    assert _host is not None
    if len(args) == 1 and type(args[0]) is Unready:
        from redist.current import default_client

        args, kwargs = default_client().gather([args[0].args, args[0].kwargs])
    return _host.call(name, token, method, key, args, kwargs)


def read(name: str, token: str, attribute: str, /) -> Any:
    """Read an attribute of the actor `name`."""
    assert _host is not None
    return _host.read(name, token, attribute)


def is_call(fn: str) -> bool:
    """Return whether a function, by its hash, is one of those that go to an actor."""
    return fn in _hashes()


@cache
def _hashes() -> frozenset[str]:
    return frozenset(function_of(one).hash for one in (call, read))


on_change.append(_hashes.cache_clear)

#: What these tasks raise is their value.
call.raises_as_value = read.raises_as_value = True  # type: ignore[attr-defined]
