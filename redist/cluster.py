"""`LocalCluster`: a server and workers on this machine, started in one line and gone with this process."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from redist import config
from redist.adaptive import Adaptive
from redist.cluster_end import STOP_TIMEOUT, end
from redist.dask_options import check_cluster_options, check_flags
from redist.errors import RedistError
from redist.launch import Launcher, WorkerProcess, WorkerSettings, log_level
from redist.memory.amounts import parse_bytes
from redist.memory.places import check_spill
from redist.sizing import check_limit, limit, server_limit, shape
from redist.store.connect import Endpoint, endpoint
from redist.store.keys import check_namespace
from redist.store.scripts import load
from redist.store.server import EmbeddedServer
from redist.store.wire import Wire, pack_command
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["LocalCluster"]

logger = logging.getLogger("redist.cluster")

#: Longest time between two looks at what has registered, should a message be lost, in seconds.
_LOOK = 0.25
#: s that `scale` waits for workers that are about to register, or to end
_SETTLES = 5.0


class LocalCluster:
    """Workers on this machine, and a server for them.

    Everything ends with this process, however it ends, and leaves nothing behind.

    Parameters
    ----------
    n_workers : int, optional
        How many workers; default: with `threads_per_worker`, as many as fill the cores.
    threads_per_worker : int, optional
        Threads of each.
    memory_limit : int, float, str or None
        Most memory of each worker, payloads and executors, by default as configured: bytes, a fraction of the machine's
        memory, or text as ``'4GiB'``; ``'auto'`` is a share of the machine's by its threads, 0 no limit. Near it payloads
        go to disk, see the settings ``worker.memory``.
    address : str, optional
        A server that runs already; default: one is started (`redist.store.server.EmbeddedServer`).
    name : str, optional
        Name of the cluster, with which its workers' names begin.
    namespace : str, optional
        Namespace of the keys.
    executors_per_worker : int
        Executor processes of each worker, with `threads_per_worker` threads each.
    resources : mapping of str to float, optional
        What tasks can ask each worker for, as ``{'GPU': 1}``.
    spill_dir : path, optional
        Where workers keep payloads on disk, made if it is missing; default: as configured, a temporary directory.
    max_spill : int or str, optional
        Most bytes on disk of each worker, or text as ``'100GiB'``; default: as configured, what the disk has.
    host : str, optional
        Address at which workers serve their data to other hosts.
    directory : path, optional
        Where the server keeps its data; it then survives this process.
    maxmemory : int, float or str, optional
        Bytes at which the server is full, a fraction of the memory, or text such as ``2GiB``; default: a quarter of it.
    restart : bool
        Start workers that die again.
    silence_logs : int or str
        Level of the workers' logs, which go to standard error.
    asynchronous : bool
        Start with ``await cluster`` or ``async with``, not at once.
    timeout : float or str, optional
        Seconds in which all workers must be there.
    wait : bool
        False returns when the processes were started; see `wait_ready`.
    processes, protocol, scheduler_port, security : object
        Taken for Dask's sake where they ask for what is so anyway: ``processes=True``, ``protocol='tcp'``, any
        port (0), no security; else refused with what to do.
    dashboard_address, diagnostics_port, loop : object
        Taken for Dask's sake; there is no dashboard, and no loop in another thread.

    Raises
    ------
    RedistError
        If a worker ends while it starts, or not all are there in time.
    NotOffered
        If `processes`, `protocol`, `scheduler_port` or `security` ask for what there is not.
    SegmentError
        If `spill_dir` cannot be used.
    ConfigurationError
        If `memory_limit` has no room for any value, or a setting of ``worker.memory`` is none.

    Attributes
    ----------
    endpoint : Endpoint
        Where the server is.
    server : EmbeddedServer or None
        The server, unless `address` was given.

    Examples
    --------
    >>> with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
    ...     len(cluster.workers)
    2
    """

    endpoint: Endpoint
    name: str
    asynchronous: bool
    #: There is no dashboard yet.
    dashboard_link: None = None

    def __init__(
        self,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        memory_limit: int | float | str | None = None,
        address: str | None = None,
        name: str | None = None,
        *,
        namespace: str | None = None,
        executors_per_worker: int = 1,
        resources: Mapping[str, float] | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        max_spill: int | str | None = None,
        host: str | None = None,
        directory: str | os.PathLike[str] | None = None,
        maxmemory: int | float | str | None = None,
        restart: bool = True,
        silence_logs: int | str = logging.WARNING,
        asynchronous: bool = False,
        timeout: float | str | None = None,
        wait: bool = True,
        processes: bool | None = None,
        protocol: str | None = None,
        scheduler_port: int | None = 0,
        security: object = None,
        dashboard_address: object = None,
        diagnostics_port: object = None,
        loop: object = None,
    ) -> None:
        check_cluster_options(
            processes, protocol, scheduler_port, security, dashboard_address, diagnostics_port, loop
        )
        check_flags(asynchronous=asynchronous)
        if not isinstance(host, str | None):
            raise TypeError(f"host is a name or an address, not {host!r:.80}")
        if n_workers is None and threads_per_worker is None:
            n_workers = config.get("local-cluster.n-workers")
            threads_per_worker = config.get("local-cluster.threads-per-worker")
        workers, threads = shape(n_workers, threads_per_worker, executors_per_worker)
        if address is not None and (directory is not None or maxmemory is not None):
            raise ValueError(
                "directory and maxmemory are of a server that is started here; do not give an address as well"
            )
        if namespace is not None:
            check_namespace(namespace)
        place = os.fspath(spill_dir or "")
        if place or config.get("worker.spill-dir"):
            check_spill(place or config.get("worker.spill-dir"))
        self.name = name or ("local" if address is None else f"{_hostname()}-{os.getpid()}")
        self.asynchronous = asynchronous
        self.timeout = seconds(config.get("local-cluster.timeout") if timeout is None else timeout) or 0.0
        self.threads_per_worker = threads
        self._settings = WorkerSettings(
            "",
            executors=executors_per_worker,
            threads=threads,
            memory_limit=limit(
                config.get("local-cluster.memory-limit") if memory_limit is None else memory_limit,
                threads * executors_per_worker,
            ),
            spill_dir=place,
            max_spill="" if max_spill is None else str(parse_bytes(str(max_spill))),
            resources=",".join(f"{key}={value:g}" for key, value in (resources or {}).items()),
            host=host or "",
            grace=0.0,
            log_level=log_level(silence_logs),
            echo=False,
        )
        check_limit(str(self._settings.memory_limit), executors_per_worker)
        self._n_workers = workers
        self._next = 0
        self._restart = restart
        self._address, self._namespace = address, namespace
        self.server: EmbeddedServer | None = None
        if address is None:
            self.server = EmbeddedServer(directory=directory, maxmemory=server_limit(maxmemory))
        else:
            self.endpoint = endpoint(address, namespace)
        self._adaptive: Adaptive | None = None
        self._adaptive_options: dict[str, Any] = {}
        self._launcher: Launcher | None = None
        self._finalizer: weakref.finalize[..., Any] | None = None
        if not asynchronous:
            self._start()
            if wait:
                self.wait_ready()

    # --- start ------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start the server and the workers, without waiting for either."""
        if self._launcher is not None:
            return
        if self.server is not None:
            self.server.start(wait=False)
            self.endpoint = endpoint(self.server.url, self._namespace)
        settings = self._settings
        settings.url, settings.namespace = self.endpoint.url, self.endpoint.namespace
        settings.environment = {**config.as_environment(), **self.endpoint.secrets()}
        self._launcher = launcher = Launcher(settings, restart=self._restart, report=_report)
        self._finalizer = weakref.finalize(self, end, launcher, self.server, self.endpoint)
        self._add(self._n_workers)
        threading.Thread(target=_watch, args=(launcher,), name="redist-launcher", daemon=True).start()

    def _add(self, count: int) -> None:
        names = [f"{self.name}-{self._next + i}" for i in range(count)]
        self._next += count
        self._running().add(names)

    def _running(self) -> Launcher:
        if self._launcher is None or self.status == "closed":
            raise RuntimeError(f"the cluster {self.name!r} is {self.status}")
        return self._launcher

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the server answers and every worker has registered with all its executors.

        Raises
        ------
        RedistError
            If a worker ends instead, or not all are there in time. The cluster is closed then.
        """
        try:
            if self.server is not None:
                self.server.wait_ready()
                self._prepare_puts()
            self._wait_for_workers(self.timeout if timeout is None else timeout)
        except BaseException:
            self.close()
            raise

    def _wait_for_workers(self, timeout: float) -> None:
        """Wait for registrations, which are published, and for the end of a worker, whichever comes first."""
        launcher = self._running()
        deadline = time.monotonic() + timeout
        with closing(self._looks(deadline, timeout, check=self.server is None)) as looks:
            for wire in looks:
                missing = self._missing(wire, list(launcher.workers.values()))
                if not missing:
                    return
                for worker in launcher.workers.values():
                    if worker.name in missing and (worker.hopeless or worker.restarts > 1):
                        raise RedistError(
                            f"the worker {worker.name} {worker.describe_end()} at its start; its log says why"
                        )
                if time.monotonic() > deadline:
                    raise RedistError(f"workers not there within {timeout:g} s: {', '.join(missing)}")

    def _prepare_puts(self) -> None:
        """Do what the first `scatter` would have to wait for while the workers start, which takes longer."""
        import redist.memory.broker_client  # noqa: F401

        with closing(self.endpoint.open(self.timeout)) as wire:
            for name in ("place", "commit"):
                wire.call("SCRIPT", "LOAD", load(name).text)

    def _looks(self, deadline: float, timeout: float, *, check: bool = False) -> Generator[Wire, None, None]:
        """Yield a connection to ask now, and again whenever something may have registered, at the `deadline` at last."""
        told, asked = self.endpoint.open(timeout), self.endpoint.open(timeout)
        try:
            if check:
                self.endpoint.check(asked)
            told.send(pack_command((self.endpoint.subscribe, f"{self.endpoint.prefix}all")))
            while True:
                yield asked
                told.receive(min(_LOOK, max(0.0, deadline - time.monotonic())))
                for _ in told.replies():
                    pass
        finally:
            told.close()
            asked.close()

    def _missing(self, wire: Any, workers: list[WorkerProcess]) -> list[str]:
        """Return the names of the workers that have not registered, or miss executors."""
        ordinals = self._registered(wire)
        executors = f"{self.endpoint.prefix}executors:"
        return [
            worker.name
            for worker in workers
            if worker.name not in ordinals
            or wire.call("SCARD", f"{executors}{ordinals[worker.name]}") < self._settings.executors
        ]

    def _registered(self, wire: Any) -> dict[str, str]:
        """Return the ordinals of the registered workers by name."""
        flat = wire.call("HGETALL", f"{self.endpoint.prefix}workers")
        return {name.decode(): ordinal.decode() for ordinal, name in zip(flat[::2], flat[1::2])}

    # --- what there is ----------------------------------------------------------------------------------------------

    @property
    def status(self) -> str:
        """``'created'``, ``'running'``, ``'failed'`` (its server ended by itself) or ``'closed'``."""
        if self._finalizer is None:
            return "created"
        if self.server is not None and self.server.why_ended():
            return "failed"
        return "running" if self._finalizer.alive else "closed"

    @property
    def scheduler_address(self) -> str:
        """Address for clients, with password and namespace; there is no scheduler, it is the server's."""
        return self.endpoint.address.url(secrets=True)

    @property
    def threads(self) -> int:
        """How many tasks a worker runs at a time."""
        return self._settings.executors * self.threads_per_worker

    @property
    def workers(self) -> dict[str, WorkerProcess]:
        """The worker processes by name."""
        return dict(self._launcher.workers) if self._launcher is not None else {}

    def get_client(self, **options: Any) -> Client:
        """Return a new client of this cluster."""
        from redist.client import Client

        return Client(self, **options)

    def __repr__(self) -> str:
        where = self.endpoint.url if hasattr(self, "endpoint") else "not started"
        n = len(self.workers)
        threads = n * self.threads
        return (
            f"LocalCluster({self.name!r}, {where!r}, workers={n}, threads={threads}, status={self.status!r})"
        )

    def _repr_html_(self) -> str:
        from redist.markup import page, table

        facts = [
            ("Server", self.endpoint.url if hasattr(self, "endpoint") else "not started"),
            ("Namespace", self.endpoint.namespace if hasattr(self, "endpoint") else ""),
            ("Workers", len(self.workers)),
            ("Threads", len(self.workers) * self.threads),
            ("Status", self.status),
        ]
        rows = [(w.name, w.pid or "starts again", w.restarts) for w in self.workers.values()]
        return page("LocalCluster", self.name, facts, table(("Name", "Process", "Restarts"), rows))

    # --- change and end ---------------------------------------------------------------------------------------------

    def scale(self, n: int = 0, memory: int | float | str | None = None, cores: int | None = None) -> None:
        """Start or stop workers until there are `n`, or as many as `memory` or `cores` need; the newest go first.

        Returns when they are there; of an asynchronous cluster, when their processes were started.

        Parameters
        ----------
        n : int
            How many workers.
        memory : int or str, optional
            How much memory they have together, in bytes or as ``"4GiB"``; needs workers with a `memory_limit`.
        cores : int, optional
            How many threads they have together.

        Raises
        ------
        RedistError
            If new workers do not start.
        TypeError
            If `n` is no whole number.
        """
        if isinstance(n, bool) or not hasattr(n, "__index__"):
            raise TypeError(
                f"scale takes how many workers, a whole number from 0, not {type(n).__name__} {n!r:.80}"
            )
        if memory is not None:
            wanted = parse_bytes(memory) if isinstance(memory, str) else memory
            n = max(n, math.ceil(wanted / self._memory_of_each()))
        if cores is not None:
            n = max(n, math.ceil(cores / self.threads))
        if n < 0:
            raise ValueError(f"{n} workers: a number from 0")
        names = list(self._running().workers if self.asynchronous else self._settled())
        if n < len(names):
            self.stop_workers(reversed(names[n:]))
        elif n > len(names):
            self.start_workers(n - len(names))
            if not self.asynchronous:
                self._wait_for_workers(self.timeout)

    def _settled(self) -> dict[str, WorkerProcess]:
        """Return the workers, once each is registered or has ended: what retired is forgotten before its process ends."""
        launcher = self._running()
        deadline = time.monotonic() + _SETTLES
        with suppress(RedistError), closing(self._looks(deadline, self.timeout)) as looks:
            for wire in looks:
                registered = self._registered(wire)
                unclear = [w for w in self.workers.values() if w.name not in registered and not w.hopeless]
                if not unclear or time.monotonic() > deadline:
                    break
        return launcher.workers

    def _memory_of_each(self) -> int:
        each = int(self._settings.memory_limit) if self._settings.memory_limit.isdigit() else 0
        if not each:
            raise ValueError("memory: the workers have no memory_limit in bytes; say how many workers")
        return each

    def start_workers(self, count: int) -> None:
        """Start so many more workers, without waiting for them."""
        self._add(count)

    def stop_workers(self, names: Iterable[str]) -> None:
        """Stop workers of these names in good order: others take over what they have."""
        self._running().remove(names, STOP_TIMEOUT)

    def adapt(
        self,
        Adaptive: Callable[..., Adaptive] = Adaptive,
        minimum: float = 0,
        maximum: float = math.inf,
        minimum_cores: int | None = None,
        maximum_cores: int | None = None,
        minimum_memory: str | None = None,
        maximum_memory: str | None = None,
        **kwargs: Any,
    ) -> Adaptive:
        """Start and stop workers by themselves from now on, as there is work for them.

        Parameters
        ----------
        Adaptive : callable
            Class that does so.
        minimum, maximum : int
            Least and most workers; infinite: the setting ``adaptive.maximum``, as many as fill the cores.
        minimum_cores, maximum_cores, minimum_memory, maximum_memory : int or str, optional
            The same by their threads, or their memory; for that the workers need a `memory_limit`.
        **kwargs
            ``interval``, ``wait_count``, ``target_duration``: see `redist.adaptive.Adaptive`. What is not given stays as in
            the call before.

        Returns
        -------
        Adaptive
            Its ``stop()`` ends it, as closing the cluster does.
        """
        self._running()
        least = [minimum, minimum_cores and minimum_cores / self.threads]
        most = [maximum, maximum_cores and maximum_cores // self.threads]
        if minimum_memory is not None:
            least.append(parse_bytes(minimum_memory) / self._memory_of_each())
        if maximum_memory is not None:
            most.append(parse_bytes(maximum_memory) // self._memory_of_each())
        low = math.ceil(max(bound for bound in least if bound is not None))
        high = min(bound for bound in most if bound is not None)
        options = {
            **self._adaptive_options,
            **kwargs,
            "minimum": low or None,
            "maximum": None if high == math.inf else high,
        }
        adaptive = Adaptive(self, **options)
        if self._adaptive is not None:
            self._adaptive.stop("adapt() was called again")
        self._adaptive, self._adaptive_options = adaptive, options
        return adaptive

    def wait_for_workers(self, n_workers: int, timeout: float | None = None) -> Any:
        """Wait until this cluster has `n_workers`, all registered; awaitable where the cluster is asynchronous.

        Raises
        ------
        TimeoutError
            If they are not there within `timeout` seconds.
        """
        if isinstance(n_workers, bool) or not isinstance(n_workers, int) or n_workers < 1:
            raise ValueError(f"n_workers={n_workers!r}: a whole number from 1")
        if self.asynchronous:
            import asyncio

            return asyncio.to_thread(self._wait_for, n_workers, timeout)
        self._wait_for(n_workers, timeout)
        return None

    def _wait_for(self, count: int, timeout: float | None) -> None:
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with closing(self._looks(deadline, self.timeout)) as looks:
            for wire in looks:
                workers = list(self._running().workers.values())
                there = len(workers) - len(self._missing(wire, workers))
                if there >= count:
                    return
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{there} of {count} workers are there after {timeout:g} s")

    def close(self, timeout: float | None = None) -> Any:
        """Stop the workers and the server; awaitable where the cluster is asynchronous.

        Parameters
        ----------
        timeout : float, optional
            Seconds after which what has not ended is killed; default 10.
        """
        if self.asynchronous:
            return self._close_in_thread(timeout)
        self._close(timeout)
        return None

    def _close(self, timeout: float | None) -> None:
        if self._adaptive is not None:
            self._adaptive.stop("the cluster is closed")
        if self._launcher is not None and timeout is not None and self.status == "running":
            self._launcher.close(timeout, abandon=self.server is not None)
        if self._finalizer is not None:
            self._finalizer()

    async def _close_in_thread(self, timeout: float | None) -> None:
        import asyncio

        await asyncio.to_thread(self._close, timeout)

    def __enter__(self) -> LocalCluster:
        if self.asynchronous:
            raise TypeError("this cluster is asynchronous: use 'async with'")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(None)

    def __await__(self) -> Generator[Any, None, LocalCluster]:
        return self._start_in_thread().__await__()

    async def _start_in_thread(self) -> LocalCluster:
        import asyncio

        def start() -> None:
            self._start()
            try:
                if self.server is not None:
                    self.server.wait_ready()
                    self._prepare_puts()
                self._wait_for_workers(self.timeout)
            except BaseException:
                self._close(None)
                raise

        await asyncio.to_thread(start)
        return self

    async def __aenter__(self) -> LocalCluster:
        return await self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close_in_thread(None)


def _watch(launcher: Launcher) -> None:
    while launcher.watch():
        pass


def _report(worker: WorkerProcess, text: str) -> None:
    level = logging.WARNING if worker.status is not None and worker.status != 0 else logging.INFO
    logger.log(level, "worker %s %s", worker.name, text)


def _hostname() -> str:
    import socket

    return socket.gethostname()
