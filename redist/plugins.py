"""Plugins: objects whose methods are called in the processes that run tasks, in those of now and in those that start later.

A plugin lies in Redis under its name, with a number. An executor that starts sets up all of them before it takes a task;
those that run already are told through `redist.running`, and look up the plugin themselves. Who has set up that number does
nothing.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redist.errors import NoScheduler, WorkerGone
from redist.protocol.whole import dump_whole
from redist.running import run
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation
from redist.store import beside
from redist.store.keys import encode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["UploadFile", "WorkerPlugin", "checked", "import_file", "register", "unregister"]


class WorkerPlugin:
    """Base of plugins; each method is called with the executor's worker, as `get_worker` gives it.

    Attributes
    ----------
    idempotent : bool
        Whether one that is registered under the name already stays; otherwise it is torn down and replaced.
    name : str
        Name to register it under, if it has such an attribute.
    """

    idempotent: bool = False

    def setup(self, worker: Any) -> Any:
        """Prepare the process; may be a coroutine function. Tasks run when it has returned."""

    def teardown(self, worker: Any) -> Any:
        """Undo that: the plugin is unregistered or replaced, or the process ends in good order."""

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Take note of a task: from ``ready`` to ``executing``, and from there to ``memory``, ``error`` or ``released``."""


class UploadFile(WorkerPlugin):
    """Brings a file to every process that runs tasks.

    Parameters
    ----------
    filepath : str
        The file.
    load : bool
        Whether a module is imported, again if it was.
    """

    name = "upload_file"

    def __init__(self, filepath: str, load: bool = True) -> None:
        self.filename = os.path.basename(filepath)
        self.load = load
        with open(filepath, "rb") as file:
            self.data = file.read()

    async def setup(self, worker: Any) -> None:
        """Write the file into the worker's local directory, which modules are found in."""
        await worker.upload_file(self.filename, self.data, load=self.load)


class Setup(WorkerPlugin):
    """Calls a function at the start; see `Client.register_worker_callbacks`."""

    def __init__(self, function: Callable[..., Any] | None) -> None:
        if function is not None and not callable(function):
            raise TypeError(f"setup is a function, not {type(function).__name__}: {function!r:.80}")
        self._function = function

    def setup(self, worker: Any) -> Any:
        """Call the function."""
        return None if self._function is None else worker.call(self._function)


# --- client ---------------------------------------------------------------------------------------------------------


def checked(plugin: Any, name: str | None) -> str:
    """Return the name to register a plugin under.

    Raises
    ------
    NoScheduler
        If it is one of a scheduler or a nanny.
    TypeError
        If it is none.
    """
    if isinstance(plugin, type):
        raise TypeError(f"register an instance of {plugin.__name__}, not the class")
    bases = {base.__name__ for base in type(plugin).__mro__}
    if "SchedulerPlugin" in bases:
        raise NoScheduler(
            "there is no scheduler process, and so no SchedulerPlugin: a WorkerPlugin runs where tasks run, and "
            "subscribe_topic() tells this client what is logged"
        )
    if "NannyPlugin" in bases:
        raise NoScheduler(
            "there is no nanny, and so no NannyPlugin: a WorkerPlugin prepares every process before it runs tasks"
        )
    if "WorkerPlugin" not in bases:
        raise TypeError(f"a plugin inherits from redist.WorkerPlugin, which {type(plugin).__name__} does not")
    chosen = name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{secrets.token_hex(8)}"
    if not isinstance(chosen, str):
        raise TypeError(f"a plugin's name is a str, not {chosen!r:.80}")
    return chosen


def register(client: Client, plugin: Any, name: str) -> Operation[dict[str, dict[str, str]]]:
    """Have a plugin set up in all executors."""
    wire_name = encode_key(name, "plugin's name")
    data = dump_whole(plugin)
    once = bool(getattr(plugin, "idempotent", False))
    reply = yield Ask(beside.put_plugin(wire_name, data, once=once))
    if not int(reply[2]):
        return {}
    return (yield from _tell(client, _add, wire_name))


def unregister(client: Client, name: str) -> Operation[dict[str, dict[str, str]]]:
    """Have a plugin torn down in all executors."""
    wire_name = encode_key(name, "plugin's name")
    try:
        yield Ask(beside.drop_plugin(wire_name))
    except Refused:
        raise ValueError(f"no worker plugin {name!r} is registered") from None
    return (yield from _tell(client, _remove, wire_name))


def _tell(client: Client, function: Callable[..., Any], name: str) -> Operation[dict[str, dict[str, str]]]:
    results = (yield from run(client, function, (name,), {}, on_error="return")) or {}
    for result in results.values():
        # Who ended meanwhile has a successor, which looks for itself.
        if isinstance(result, BaseException) and not isinstance(result, WorkerGone):
            raise result
    return {key: {"status": "OK"} for key, result in results.items() if not isinstance(result, WorkerGone)}


def _add(name: str, dask_worker: Any) -> None:
    dask_worker.plugin_room.add(name)


def _remove(name: str, dask_worker: Any) -> None:
    dask_worker.plugin_room.drop(name)


# --- executor -------------------------------------------------------------------------------------------------------


def import_file(path: str) -> list[Any]:
    """Make a Python file, or what is in a zip or egg, importable; import it, anew if it was, and return the modules."""
    import pkgutil
    import zipimport

    directory, filename = os.path.split(path)
    stem, extension = os.path.splitext(filename)
    if extension == ".py":
        where, names = directory, [stem]
        # Only the second and the size would tell that the file is another one.
        cached = importlib.util.cache_from_source(path)
        if os.path.exists(cached):
            os.unlink(cached)
    elif extension in (".egg", ".zip", ".pyz"):
        where = path
        sys.path_importer_cache.pop(path, None)
        directories: dict[str, Any] = getattr(zipimport, "_zip_directory_cache", {})
        directories.pop(path, None)
        names = []
    else:
        return []
    if where not in sys.path:
        sys.path.insert(0, where)
    importlib.invalidate_caches()
    if where is path:
        names = [module.name for module in pkgutil.iter_modules([path])]
    return [
        importlib.reload(sys.modules[name]) if name in sys.modules else importlib.import_module(name)
        for name in names
    ]
