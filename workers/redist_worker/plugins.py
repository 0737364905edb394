"""The plugins of an executor; see `redist.plugins`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redist.protocol.whole import load_whole
from redist.store.calls import Result
from redist.store.keys import decode_key
from redist.store.replies import HandOut
from redist_worker.orders import Loop

if TYPE_CHECKING:
    from redist.store.side import Side
    from redist_worker.local import Local

__all__ = ["Plugins"]

logger = logging.getLogger("redist.worker")

_FINISH = {"memory": "memory", "erred": "error"}


class Plugins:
    """Sets plugins up and tears them down, and tells them of tasks.

    Parameters
    ----------
    side : Side
        For reading.
    loop : Loop
        Runs coroutines.
    execute : callable
        Runs one task.

    Attributes
    ----------
    worker : Local
        What plugins see of their worker; set before any is added.
    """

    worker: Local

    def __init__(self, side: Side, loop: Loop, execute: Callable[[HandOut], tuple[Result, object]]) -> None:
        self._side = side
        self._loop = loop
        self._execute = execute
        self._lock = threading.RLock()
        self._numbers: dict[str, int] = {}
        self._failures: dict[str, BaseException] = {}
        #: what wants to know of tasks
        self._watching: tuple[Callable[..., Any], ...] = ()

    def add_all(self) -> None:
        """Set up what is registered; one that fails is logged, and the executor goes on without it."""
        found = self._side.pairs("plugins")
        for name in sorted(found, key=lambda name: _split(found[name])[0]):
            try:
                self.add(name)
            except BaseException:  # `sys.exit` too
                logger.exception("the plugin %r could not be set up", name)

    def add(self, name: str) -> None:
        """Set up the plugin that is registered under `name` now, if it is not."""
        with self._lock:  # whoever unregisters it meanwhile tells us afterwards
            data = self._side.field("plugins", name)
            if data is None:
                return
            number, pickled = _split(data)
            if self._numbers.get(name) == number:
                if name in self._failures:  # at the start, when nobody could be told
                    raise self._failures[name]
                return
            plugin = load_whole(pickled)
            if name in self.worker.plugins:
                try:
                    self.remove(name)
                except BaseException:
                    logger.exception("the plugin %r could not be torn down", name)
            self._numbers[name] = number
            self.worker.plugins[name] = plugin
            self._look()
            self._failures.pop(name, None)
            try:
                self._loop.complete(_call(plugin, "setup", self.worker))
            except BaseException as error:
                self._failures[name] = error
                raise

    def drop(self, name: str) -> None:
        """Tear a plugin down that was unregistered, unless it is one that was registered under its name since."""
        with self._lock:
            data = self._side.field("plugins", name)
            if data is None or _split(data)[0] != self._numbers.get(name):
                self.remove(name)

    def remove(self, name: str) -> None:
        """Tear a plugin down, if it is there."""
        with self._lock:
            plugin = self.worker.plugins.pop(name, None)
            self._look()
            if plugin is not None:
                self._loop.complete(_call(plugin, "teardown", self.worker))

    def remove_all(self) -> None:
        """Tear all down."""
        for name in list(self.worker.plugins):
            try:
                self.remove(name)
            except BaseException:
                logger.exception("the plugin %r could not be torn down", name)

    def _look(self) -> None:
        self._watching = tuple(
            plugin.transition
            for plugin in self.worker.plugins.values()
            if _defined_at(type(plugin), "transition") not in (None, "WorkerPlugin")
        )

    def execute(self, task: HandOut) -> tuple[Result, object]:
        """Run one task, and tell the plugins that want to know."""
        if not self._watching:
            return self._execute(task)
        key = decode_key(task.name)
        self._tell(key, "ready", "executing")
        result = self._execute(task)
        self._tell(key, "executing", _FINISH.get(result[0].status, "released"))
        return result

    def _tell(self, key: Any, start: str, finish: str) -> None:
        for transition in self._watching:
            try:
                transition(key, start, finish)
            except BaseException:  # the thread runs tasks
                logger.exception("a plugin failed at the transition of %r from %s to %s", key, start, finish)


def _split(data: bytes) -> tuple[int, bytes]:
    number, _, pickled = data.partition(b" ")
    return int(number), pickled


def _call(plugin: Any, method: str, worker: Local) -> Any:
    function = getattr(plugin, method, None)
    return None if function is None else function(worker=worker)


def _defined_at(kind: type, name: str) -> str | None:
    """Return the name of the class that has the method."""
    return next((base.__name__ for base in kind.__mro__ if name in vars(base)), None)
