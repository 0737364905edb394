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
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from redist import config
from redist.errors import NoScheduler, WorkerGone
from redist.protocol.whole import dump_whole
from redist.restarting import restart_workers
from redist.running import run
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation, Run
from redist.store import beside
from redist.store.keys import encode_key
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client

__all__ = [
    "UploadDirectory",
    "UploadFile",
    "WorkerPlugin",
    "checked",
    "import_file",
    "register",
    "unregister",
]


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


def _is_bytecode(path: str) -> bool:
    return path.endswith(".pyc")


class UploadDirectory(WorkerPlugin):
    """Brings a directory to every process that runs tasks; what is in it can be imported there.

    It lies in ``get_worker().local_directory`` under its own name, and takes the place of one of that name.

    Parameters
    ----------
    path : str
        The directory.
    restart_workers : bool
        Whether the processes that run tasks start anew, so that modules are imported again; what runs there runs again.
    update_path : bool
        Whether modules are found in the directory itself, too, and not only the directory as a package.
    skip_words : collection of str
        Files and directories of these names are left out.
    skip : collection of callables
        A file is left out for whose path one of them is true.
    mode : {'workers', 'all'}
        Accepted for Dask's sake: there are workers only.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such directory.
    NoScheduler
        If it is to go to a scheduler.

    Examples
    --------
    >>> client.register_plugin(UploadDirectory("src/mypackage"))  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        restart_workers: bool = False,
        update_path: bool = False,
        skip_words: Collection[str] = (".git", ".github", ".pytest_cache", "tests", "docs"),
        skip: Collection[Callable[[str], object]] = (_is_bytecode,),
        mode: str = "workers",
    ) -> None:
        if mode == "scheduler":
            raise NoScheduler("there is no scheduler process that a directory could go to")
        if mode not in ("all", "workers"):
            raise ValueError(f"mode is 'workers' or 'all', not {mode!r:.80}")
        directory = os.path.abspath(os.path.expanduser(path))
        self.path = os.path.basename(directory)
        self.restart_workers = restart_workers
        self.update_path = update_path
        self.mode = mode
        self.name = f"upload-directory-{self.path}"
        self.data = _zipped(directory, frozenset(skip_words), tuple(skip))

    def setup(self, worker: Any) -> None:
        """Write the directory into the worker's local one."""
        import io
        import shutil
        import zipfile

        base = worker.local_directory
        target = os.path.join(base, self.path)
        unfinished = f"{target}.{secrets.token_hex(4)}"
        with zipfile.ZipFile(io.BytesIO(self.data)) as archive:
            archive.extractall(unfinished)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)
        worker.find_modules_in(base)
        if self.update_path:
            worker.find_modules_in(target)


def _zipped(directory: str, words: frozenset[str], skip: tuple[Callable[[str], object], ...]) -> bytes:
    """Return the files of a directory as a zip."""
    import io
    import zipfile

    os.listdir(directory)  # says what is wrong with it
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for root, directories, files in os.walk(directory):
            directories[:] = sorted(set(directories) - words)
            for name in sorted(set(files) - words):
                path = os.path.join(root, name)
                if not any(unwanted(path) for unwanted in skip):
                    archive.write(path, os.path.relpath(path, directory))
    return buffer.getvalue()


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
    done = yield from _tell(client, _add, wire_name)
    if isinstance(plugin, UploadDirectory) and plugin.restart_workers:
        yield from _start_anew(client)
    return done


def _start_anew(client: Client) -> Operation[None]:
    """Have all processes that run tasks replaced."""
    addresses = yield Run(lambda: [peer.address for peer in client._peers.workers()])
    patience = seconds(config.get("client.restart-timeout"))
    became = yield from restart_workers(client, addresses, patience, raise_for_error=False)
    if late := [address for address, how in became.items() if how == "timed out"]:
        raise TimeoutError(
            f"the processes of these workers did not start again within {patience:g} s: {late}"
        )


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
