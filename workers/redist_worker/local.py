"""What a task can ask of the worker that it runs on."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import TYPE_CHECKING, Any

from redist.session.wakeup import frames

if TYPE_CHECKING:
    import tempfile
    from collections.abc import Collection, Iterable
    from types import FrameType

    from redist.session.thread_driver import ThreadDriver
    from redist_worker.executor import Options
    from redist_worker.runner import Runner

__all__ = ["Local", "get_worker", "rejoin", "secede", "set_local"]

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
    """

    address: str
    name: str
    id: str
    executor: str
    nthreads: int

    def __init__(self, options: Options, driver: ThreadDriver, runner: Runner) -> None:
        self.address = options.address
        self.name = options.worker_name
        self.id = str(options.worker)
        self.executor = options.name
        self.nthreads = options.threads
        self._options = options
        #: The executor's session; what a task's client runs on.
        self.driver = driver
        self._runner = runner
        self._lock = threading.Lock()
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"<Worker {self.name!r} at {self.address}, executor {self.executor!r}>"

    @property
    def local_directory(self) -> str:
        """A directory for files of tasks, made when it is first asked for and removed with the executor."""
        with self._lock:
            if self._directory is None:
                import tempfile

                self._directory = tempfile.TemporaryDirectory(prefix=f"redist-{self.executor}-")
            return self._directory.name

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
        with self._lock, contextlib.suppress(OSError):
            if self._directory is not None:
                self._directory.cleanup()
                self._directory = None


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
