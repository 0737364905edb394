"""What a task can ask of the worker that it runs on."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from redist.current import get_client
from redist.memory.task_files import make_task_directory, remove_task_directory
from redist.session.wakeup import frames
from redist.store.keys import Key, decode_key
from redist.submitting import priority_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
    from types import FrameType

    from redist.client import Client
    from redist.session.thread_driver import ThreadDriver
    from redist_worker.executor import Options
    from redist_worker.output import Output
    from redist_worker.plugins import Plugins
    from redist_worker.runner import Runner
    from redist_worker.tasks import Tasks

__all__ = ["Local", "get_local", "get_worker", "rejoin", "secede", "set_local", "worker_client"]

_TASKS = os.path.join(os.path.dirname(__file__), "tasks.py")
_local: Local | None = None


class Local:
    """The worker, as a task sees it.

    Attributes
    ----------
    address, name, id : str
        Address of the data server, name, and the worker's ordinal as text.
    executor : str
        Name of the executor that runs the task.
    nthreads : int
        How many tasks that runs at a time.
    plugins : dict
        The plugins that are set up, by name.
    """

    address: str
    name: str
    id: str
    executor: str
    nthreads: int
    plugins: dict[str, Any]

    def __init__(
        self,
        options: Options,
        driver: ThreadDriver,
        runner: Runner,
        plugin_room: Plugins | None = None,
        tasks: Tasks | None = None,
        output: Output | None = None,
    ) -> None:
        self.address = options.address
        self.name = options.worker_name
        self.id = str(options.worker)
        self.executor = options.name
        self.nthreads = options.threads
        self._options = options
        #: The executor's session; what a task's client runs on.
        self.driver = driver
        self._runner = runner
        self._tasks = tasks
        #: What goes to clients; internal.
        self.output = output
        self.plugins = {}
        #: Where plugins are set up and torn down; internal.
        self.plugin_room = plugin_room
        self._lock = threading.Lock()
        self._directory: str | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} at {self.address}, executor {self.executor!r}>"

    @property
    def local_directory(self) -> str:
        """A directory for files of tasks, made when it is first asked for and removed with the executor."""
        with self._lock:
            if self._directory is None:
                self._directory = make_task_directory(
                    self.segments, directories_of(self.executor, os.getpid())
                )
            return self._directory

    @property
    def segments(self) -> str:
        """The directory of the worker's payloads."""
        return self._options.segments

    @property
    def status(self) -> str:
        """``running``: what can be asked here runs."""
        return "running"

    @property
    def pid(self) -> int:
        """The executor's process id."""
        return os.getpid()

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function; if it has an argument ``dask_worker`` it is given this worker."""
        import inspect

        try:
            takes = "dask_worker" in inspect.signature(function).parameters
        except (TypeError, ValueError):  # of C
            takes = False
        if takes:
            kwargs = {**kwargs, "dask_worker": self}
        return function(*args, **kwargs)

    async def upload_file(self, filename: str, data: str | bytes, load: bool = True) -> dict[str, Any]:
        """Write a file into `local_directory`, where modules are found from then on; with `load` import it."""
        from redist.plugins import import_file

        content = data.encode() if isinstance(data, str) else data
        path = os.path.join(self.local_directory, os.path.basename(filename))
        unfinished = f"{path}.{os.getpid()}-{threading.get_ident()}"
        with open(unfinished, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
        self.find_modules_in(self.local_directory)
        if load:
            import_file(path)
        if self._tasks is not None:
            self._tasks.forget_functions()
        return {"status": "OK", "nbytes": len(content)}

    def find_modules_in(self, directory: str) -> None:
        """Have modules found in a directory whose files have changed."""
        import importlib

        if directory not in sys.path:
            sys.path.insert(0, directory)
        importlib.invalidate_caches()
        if self._tasks is not None:
            self._tasks.forget_functions()

    @property
    def data(self) -> Mapping[Key, Any]:
        """What the worker has in its files, by key; values are read when they are asked for. Small ones lie in Redis."""
        from redist_worker.held import Held

        return Held(self.address)

    def get_current_task(self) -> Key:
        """Return the key of the task that the calling thread runs.

        Raises
        ------
        ValueError
            If it runs none: in a thread that the task started, or a function of `Client.run`.
        """
        return decode_key(self._current_name())

    def get_current_priority(self) -> float:
        """Return the priority that the task of the calling thread was submitted with, for what it submits itself.

        Tasks that a task submits have priority 0 unless they are given one, as in Dask.

        Raises
        ------
        ValueError
            If the thread runs none.
        """
        text = get_client()._peers.field(f"key:{self._current_name()}", "prio")
        return priority_of(float(text or 0))

    def _current_name(self) -> str:
        thread = self._runner.places.current()
        if thread is None or thread.task is None:
            raise ValueError("this thread runs no task")
        return thread.task.name

    def call_stacks(self, names: Iterable[str] | None = None) -> dict[str, list[str]]:
        """Return what each running task does now: wire name -> a text for each frame, the outermost first."""
        executing = self._runner.executing()
        tops = frames()
        return {
            name: _described(tops[thread])
            for name, thread in executing.items()
            if thread in tops and (names is None or name in names)
        }

    def log_event(self, topic: str | Collection[str], msg: Any) -> None:
        """Log plain data under a topic, or several; see `Client.log_event`. Does not wait."""
        from redist.events import event_call

        self.driver.post(event_call(topic, msg))

    def close(self) -> None:
        """Remove what tasks left in `local_directory`."""
        with self._lock:
            if self._directory is not None:
                remove_task_directory(self.segments, self._directory)
                self._directory = None


def directories_of(executor: str, pid: int) -> str:
    """Return what the names of the directories begin with that an executor makes for files of tasks."""
    return f"redist-{executor}-{pid}-"


def _described(top: FrameType | None) -> list[str]:
    """Return the frames of a task as text, without those that called it."""
    import traceback

    stack = traceback.extract_stack(top)
    ours = [i for i, frame in enumerate(stack) if frame.filename == _TASKS]
    return [
        f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n\t{frame.line or ""}'
        for frame in stack[ours[-1] + 1 if ours and ours[-1] + 1 < len(stack) else 0 :]
    ]


def set_local(local: Local) -> None:
    """Make `local` the worker of this process."""
    global _local
    _local = local


def get_local() -> Local | None:
    """Return the worker of this process, None if it runs no tasks."""
    return _local


def get_worker() -> Local:
    """Return the worker that runs the calling task.

    Raises
    ------
    ValueError
        Outside of a worker's executor.
    """
    if _local is None:
        raise ValueError("get_worker() works inside tasks only: this process is no executor")
    return _local


def secede() -> None:
    """Free the calling task's place for another one; the task goes on beside the executor's other threads.

    Raises
    ------
    ValueError
        Outside of a task.
    """
    get_worker()._runner.places.secede()


def rejoin() -> None:
    """Take a place again after `secede`, waiting until one is free.

    Raises
    ------
    ValueError
        Outside of a task.
    """
    get_worker()._runner.places.rejoin()


@contextlib.contextmanager
def worker_client(timeout: float | str | None = None, separate_thread: bool = True) -> Iterator[Client]:
    """Return a context with the client of the calling task, which has no place meanwhile.

    Parameters
    ----------
    timeout : float or str, optional
        Accepted for Dask's sake: the client is connected already.
    separate_thread : bool
        Whether the task secedes. (One that waits gives its place up by itself, too.)

    Raises
    ------
    ValueError
        Outside of a worker's executor.
    """
    places = get_worker()._runner.places
    thread = places.current()
    secedes = separate_thread and thread is not None and not thread.seceded
    if secedes:
        places.secede()
    try:
        yield get_client(timeout=timeout)
    finally:
        if secedes:
            places.rejoin()
