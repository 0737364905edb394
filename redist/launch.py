"""Worker processes of this host: started, watched, started again when they die, and stopped.

`LocalCluster` runs a `Launcher` in a thread, ``scripts/launch_workers.py`` in the foreground. A worker keeps its name when
it is started again, so that it finds the payloads of its dead predecessor. Workers are in process sessions of their own, so
that Ctrl-C does not reach them, and watch a pipe of this process, so that they end with it however it ends.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from redist.ends import HOPELESS, RETIRED
from redist.store.guard import pidfd, wait_for_end

__all__ = ["Launcher", "WorkerProcess", "WorkerSettings", "import_path", "log_level"]

#: A worker that dies is started again at once, then after pauses that double, in seconds.
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
#: A worker that lived so long before it died begins again with no pause, in seconds.
STABLE = 60.0
#: How often processes are looked at where the kernel cannot tell of their end, in seconds.
_LOOK = 0.1
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@dataclass(slots=True)
class WorkerSettings:
    """What all workers of a launcher are told.

    Attributes
    ----------
    url : str
        Address of the server, without passwords; those are in `environment`.
    namespace : str
        Namespace of the keys.
    executors, threads : int
        Executor processes of a worker, and threads of an executor.
    memory_limit : str
        Most memory for payloads and executors; ``'0'`` for no limit.
    spill_dir : str
        Where payloads lie on disk; empty for a temporary directory.
    max_spill : str
        Most bytes on disk, ``'0'`` for what the disk has; empty for what is configured.
    resources : str
        ``GPU=1,MEM=2.5``.
    host, port : str and int
        Where a worker serves its data to other hosts; a port is for one worker only.
    segments : str
        Where payloads lie; empty: as configured.
    connect_timeout : str
        How long a worker waits for the server; empty: as configured.
    grace : float
        Seconds that tasks get to finish when a worker is stopped.
    log_level : str
        Level of a worker's log, which goes to this process's standard error.
    echo : bool
        Whether what tasks print also goes to this process's output, not only to the clients.
    environment : mapping of str
        Variables for the workers, beside this process's own.
    """

    url: str
    namespace: str = "default"
    executors: int = 1
    threads: int = 1
    memory_limit: str = "0"
    spill_dir: str = ""
    max_spill: str = ""
    resources: str = ""
    host: str = ""
    port: int = 0
    segments: str = ""
    connect_timeout: str = ""
    grace: float = 5.0
    log_level: str = "WARNING"
    echo: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, name: str, parent_fd: int) -> list[str]:
        """Return the command line of the worker `name`."""
        options = {
            "namespace": self.namespace,
            "name": name,
            "executors": self.executors,
            "threads": self.threads,
            "memory-limit": self.memory_limit,
            "spill-dir": self.spill_dir,
            "max-spill": self.max_spill,
            "resources": self.resources,
            "host": self.host,
            "port": self.port,
            "segments": self.segments,
            "connect-timeout": self.connect_timeout,
            "grace": f"{self.grace:g}",
            "log-level": self.log_level,
            "die-with-parent": parent_fd,
        }
        given = [f"--{option}={value}" for option, value in options.items() if value != ""]
        if not self.echo:
            given.append("--no-echo")
        # -P: the import path is this process's, see `import_path`.
        return [sys.executable, "-P", "-m", "redist_worker", self.url, *given]


def log_level(given: int | str) -> str:
    """Return the name of a level as workers take it; a number between two is the upper one, False the default.

    Raises
    ------
    ValueError
        If it is the name of none.
    """
    names = logging.getLevelNamesMapping()
    if isinstance(given, str) and given.upper() not in names:
        raise ValueError(f"{given!r} is no level of logs; there are: {', '.join(_LEVELS)}")
    number = names[given.upper()] if isinstance(given, str) else given
    if number is True or not number:
        return "WARNING"
    return next((name for name in _LEVELS if names[name] >= number), _LEVELS[-1])


@dataclass(slots=True)
class WorkerProcess:
    """One worker of this host.

    Attributes
    ----------
    name : str
        Its name.
    pid : int
        Its process id, 0 while it waits to be started again.
    last_pid : int
        Id of its process, also when that has ended.
    restarts : int
        How often it was started again.
    status : int or None
        How its last process ended, as `subprocess.Popen.returncode`; None if none has.
    """

    name: str
    pid: int = 0
    last_pid: int = 0
    restarts: int = 0
    status: int | None = None
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _pidfd: int = field(default=-1, repr=False)
    _started: float = field(default=0.0, repr=False)
    _pause: float = field(default=0.0, repr=False)
    _due: float | None = field(default=None, repr=False)

    @property
    def running(self) -> bool:
        """Whether it has a process."""
        return self.pid != 0

    @property
    def hopeless(self) -> bool:
        """Whether it has ended for good."""
        return self.pid == 0 and self._due is None and self.status is not None

    def describe_end(self) -> str:
        """Return how its last process ended, in words."""
        if self.status is None:
            return "has not ended"
        if self.status >= 0:
            return f"ended with exit code {self.status}"
        try:
            return f"was ended by {signal.Signals(-self.status).name}"
        except ValueError:
            return f"was ended by signal {-self.status}"


class Launcher:
    """The worker processes that this process has started.

    All methods may be called from any thread; `watch` by one at a time.

    Parameters
    ----------
    settings : WorkerSettings
        What the workers are told.
    restart : bool
        Start workers that die again.
    report : callable, optional
        Takes (name, text) when a worker was started, has ended, or is started again.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        restart: bool = True,
        report: Callable[[WorkerProcess, str], None] | None = None,
    ) -> None:
        self.settings = settings
        self.restart = restart
        self.workers: dict[str, WorkerProcess] = {}
        self._report = report or (lambda worker, text: None)
        self._lock = threading.RLock()
        self._owner = os.getpid()
        self._closed = False
        self._watching = False
        # Workers hold the reading end; the kernel closes the other when this process ends.
        self._alive_reader, self._alive = os.pipe()
        self._wake_reader, self._wake_writer = os.pipe()
        _launchers.add(self)

    # --- starting and stopping --------------------------------------------------------------------------------------

    def add(self, names: Iterable[str]) -> None:
        """Start workers of these names.

        Raises
        ------
        ValueError
            If there is one of that name.
        RuntimeError
            If the launcher is closed.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("no workers are started any more: the launcher is closed")
            for name in names:
                if name in self.workers:
                    raise ValueError(f"there is a worker {name!r} already")
                worker = self.workers[name] = WorkerProcess(name)
                self._start(worker)
        self.wake()

    def _start(self, worker: WorkerProcess) -> None:
        settings = self.settings
        environment = {**os.environ, **settings.environment}
        environment["PYTHONPATH"] = import_path()
        worker._process = process = subprocess.Popen(
            settings.command(worker.name, self._alive_reader),
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=(self._alive_reader,),
            start_new_session=True,
        )
        worker.pid = worker.last_pid = process.pid
        worker._started = time.monotonic()
        worker._due = None
        worker._pidfd = pidfd(process.pid)
        self._report(worker, "started" if worker.status is None else "started again")

    def remove(self, names: Iterable[str], timeout: float = 10.0) -> None:
        """Stop workers of these names in good order; kill those that have not ended after `timeout` seconds."""
        with self._lock:
            leaving = [worker for name in names if (worker := self.workers.pop(name, None)) is not None]
        self._stop(leaving, timeout)
        self.wake()

    def close(self, timeout: float = 10.0, *, abandon: bool = False) -> bool:
        """Stop all workers, kill those that have not ended after `timeout` seconds. Returns whether none was killed.

        In a forked child nothing happens.

        Parameters
        ----------
        timeout : float
            Seconds.
        abandon : bool
            Their server ends, too: they hand nothing over to others, and do not complain of that.
        """
        if os.getpid() != self._owner:
            return True
        with self._lock:
            if self._closed:
                return True
            self._closed = True
            workers = list(self.workers.values())
        clean = self._stop(workers, timeout, abandon=abandon)
        self.wake()
        with self._lock:
            self._close_pipes()
            if not self._watching:
                self._close_reader()
        return clean

    def _stop(self, workers: list[WorkerProcess], timeout: float, *, abandon: bool = False) -> bool:
        clean = True
        processes = [worker._process for worker in workers if worker._process is not None]
        for process in processes:
            process.terminate()
        if abandon and self._alive >= 0:
            os.close(self._alive)
            self._alive = -1
        deadline = time.monotonic() + timeout
        for process in processes:
            wait_for_end(process.pid, deadline - time.monotonic())
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                clean = False
                process.kill()
                process.wait()
        with self._lock:
            for worker in workers:
                self._ended(worker)
                worker._due = None
                clean = clean and not (worker.status or 0) < 0
        return clean

    def signal(self, signum: int) -> None:
        """Send a signal to all workers."""
        with self._lock:
            for worker in self.workers.values():
                if worker._process is not None:
                    worker._process.send_signal(signum)

    # --- watching ---------------------------------------------------------------------------------------------------

    def watch(self, timeout: float | None = None) -> bool:
        """Wait until a worker ends, workers are added or removed, or one is due, and do what there is to do.

        Returns
        -------
        bool
            False when the launcher is closed.
        """
        poll = select.poll()
        with self._lock:
            if self._closed:
                return False
            self._watching = True
            poll.register(self._wake_reader, select.POLLIN)
            deaf = False
            dues = [] if timeout is None else [time.monotonic() + timeout]
            for worker in self.workers.values():
                if worker._pidfd >= 0:
                    poll.register(worker._pidfd, select.POLLIN)
                deaf = deaf or (worker.running and worker._pidfd < 0)
                if worker._due is not None:
                    dues.append(worker._due)
        if deaf:
            dues.append(time.monotonic() + _LOOK)
        wait = None if not dues else max(0.0, min(dues) - time.monotonic()) * 1000
        ready = {fd for fd, _ in poll.poll(wait)}
        with self._lock:
            self._watching = False
            if self._is_closed():
                self._close_reader()
                return False
            if self._wake_reader in ready:
                os.read(self._wake_reader, 4096)
            now = time.monotonic()
            for worker in list(self.workers.values()):
                if worker._process is not None and worker._process.poll() is not None:
                    self._died(worker, now)
                if worker._due is not None and worker._due <= now:
                    self._start(worker)
                    worker.restarts += 1
        return True

    def _is_closed(self) -> bool:
        return self._closed

    def _died(self, worker: WorkerProcess, now: float) -> None:
        lived = now - worker._started
        self._ended(worker)
        if worker.status == RETIRED:
            del self.workers[worker.name]
            worker.status = 0
            self._report(worker, "has retired")
            return
        if not self.restart or worker.status in HOPELESS:
            self._report(worker, worker.describe_end())
            return
        pause = 0.0 if lived >= STABLE else worker._pause
        worker._pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
        worker._due = now + pause
        self._report(worker, f"{worker.describe_end()} after {lived:.1f} s; starts again in {pause:g} s")

    def _ended(self, worker: WorkerProcess) -> None:
        if worker._process is not None:
            worker.status = worker._process.returncode
            worker._process = None
        worker.pid = 0
        if worker._pidfd >= 0:
            os.close(worker._pidfd)
            worker._pidfd = -1

    def wake(self) -> None:
        """Have `watch` return; may be called by a signal handler."""
        try:
            if self._wake_writer >= 0:
                os.write(self._wake_writer, b"x")
        except BrokenPipeError:  # nobody watches any more
            pass

    def _close_pipes(self) -> None:
        for fd in (self._alive_reader, self._alive, self._wake_writer):
            if fd >= 0:
                os.close(fd)
        self._alive_reader = self._alive = self._wake_writer = -1

    def _close_reader(self) -> None:
        if self._wake_reader >= 0:
            os.close(self._wake_reader)
            self._wake_reader = -1

    def __del__(self) -> None:
        self._close_reader()
        self._close_pipes()

    def forget(self) -> None:
        """In a forked child: let go of the pipe, so that the workers still end with this process's parent."""
        self._lock = threading.RLock()
        self._closed = True
        self._close_pipes()
        for worker in self.workers.values():
            if worker._process is not None:
                worker._process.returncode = 0
            self._ended(worker)


_launchers: weakref.WeakSet[Launcher] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for launcher in list(_launchers):
        launcher.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)


def import_path() -> str:
    """Return a PYTHONPATH with which a child finds the modules that this process finds."""
    usual = (os.path.join(sys.prefix, "lib"), os.path.join(sys.base_prefix, "lib"))
    entries = [entry or os.getcwd() for entry in sys.path]
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in [*entries, *given] if entry and not entry.startswith(usual)]
    return os.pathsep.join(dict.fromkeys(kept))
