"""Dask's choice of a scheduler: while there is a client, ``x.compute()`` and ``x.persist()`` mean the current one.

Dask looks for its scheduler in its configuration, and for the way to shuffle, which by itself would go through files of one
host. What stands there for us is false while no client is current, and then Dask chooses as if it were not there. Dask is
not imported for this: if it comes later, it is told then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

from redist.errors import NoClientError
from redist.imported import imported

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["CurrentClient", "offer", "withdraw"]

_CONFIG = "dask.config"
_ABSENT: Any = object()


class CurrentClient:
    """The client that is current when Dask asks; Dask knows it by its class's name and its ``get``."""

    def __init__(self) -> None:
        self.current: Callable[[], Client | None] = _nobody

    def __bool__(self) -> bool:
        return self.current() is not None

    def __reduce__(self) -> tuple[Any, ...]:
        return _the_one, ()  # Dask's configuration travels to other processes

    def __repr__(self) -> str:
        return f"<redist's current client: {self.current()}>"

    @property
    def _client(self) -> Client:
        client = self.current()
        if client is None:
            raise NoClientError("there is no client any more: start one with redist.Client()")
        return client

    @property
    def asynchronous(self) -> bool:
        """Whether it has to be awaited; then Dask refuses to compute with it."""
        return self._client.asynchronous

    def get(self, dsk: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute `keys` of a graph; see `Client.get`."""
        return self._client.get(dsk, keys, **kwargs)

    def persist(self, collections: Any, **kwargs: Any) -> Any:
        """Start the computation of collections; see `Client.persist`."""
        return self._client.persist(collections, **kwargs)


class _Shuffle(str):
    """How to shuffle while a client is current."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return bool(_current)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Shuffle, (str(self),)


def _nobody() -> None:
    return None


_current = CurrentClient()
_SETTINGS: dict[str, Any] = {"scheduler": _current, "dataframe.shuffle.method": _Shuffle("tasks")}
#: What was set before, of what we have set.
_before: dict[str, Any] = {}


def _the_one() -> CurrentClient:
    return _current


def offer(current: Callable[[], Client | None]) -> None:
    """Have Dask compute with the client that `current` returns, whenever it returns one."""
    _current.current = current
    config = imported(_CONFIG)  # None while it is being imported, by whoever has our finder called
    if config is not None:
        _set(config)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def withdraw() -> None:
    """Give the settings back as they were before, unless somebody else has set them meanwhile."""
    _current.current = _nobody
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _AfterImport)]
    config = imported(_CONFIG)
    if config is None:
        return
    for name, before in _before.items():
        if config.get(name, None) is _SETTINGS[name]:
            config.set({name: before})
    _before.clear()


def _set(config: ModuleType) -> None:
    for name, value in _SETTINGS.items():
        before = config.get(name, None)
        # Whoever starts a client means it; how to shuffle may be somebody's choice.
        if before is not value and (value is _current or not before):
            _before[name] = before
            config.set({name: value})


class _AfterImport:
    """Stands first among the finders of modules until Dask's configuration is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find that one module, to be told when it is there."""
        if name != _CONFIG:
            return None
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            run: Callable[[ModuleType], object] = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                run(module)
                if _current.current is not _nobody:
                    _set(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader, made for it
        return spec
