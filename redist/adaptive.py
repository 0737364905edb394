"""`Adaptive`: as many workers of a cluster as there is work for."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from redist import config
from redist.errors import RedistError
from redist.memory.machine import cores
from redist.store.side import Side
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.cluster import LocalCluster

__all__ = ["Adaptive"]

logger = logging.getLogger("redist.cluster")

#: Queues that one look counts; those of the highest priority come first.
_QUEUES = 256
_LOG = 1000
_SERVER_TIMEOUT = 5.0


class _Standing(NamedTuple):
    """What a look found of a worker: the moment of its last heartbeat, whether anything keeps it, and its bytes."""

    beat: str
    busy: bool
    keys: int
    nbytes: int
    limit: int


class _Load(NamedTuple):
    """What a look found: tasks in queues and with executors, how many were ever handed out, and the workers by name."""

    queued: int
    processing: int
    handed_out: int
    workers: dict[str, _Standing]


class Adaptive:
    """Starts workers of a cluster while tasks queue, and stops those that have nothing to do.

    Every `interval` it looks at the queues. There are to be no more workers than tasks for their threads; and no more than
    it takes to run in `target_duration` what is queued, as fast as the workers there run it now. A worker that for
    `wait_count` looks was one too many, ran nothing and has no actor is stopped, and others take over what it has in memory:
    the last one stays while anything is there.

    Parameters
    ----------
    cluster : LocalCluster
        The cluster.
    interval : float, str or timedelta, optional
        Time between looks; 0 looks only when `adapt` is called.
    minimum, maximum : int, optional
        Least and most workers; default: none, and as many as fill the cores.
    wait_count : int, optional
        How many looks in a row a worker is too many before it is stopped.
    target_duration : float, str or timedelta, optional
        How long what is queued may take.
    worker_key : object
        Accepted for Dask's sake.
    memory_ratio : float
        How many times the bytes in memory the limits of the remaining workers allow at least.

    Attributes
    ----------
    state : str
        ``'running'``, ``'stopped'``, or ``'inactive'`` where the interval is 0.
    log : deque
        Time and content of what it did: ``{'status': 'up', 'n': 3}``, ``{'status': 'down', 'workers': ['local-2']}``.

    Notes
    -----
    The defaults are the settings ``adaptive.*``. It ends with `stop`, when the cluster is closed, and when it is given up.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        interval: Any = None,
        minimum: int | None = None,
        maximum: int | float | None = None,
        wait_count: int | None = None,
        target_duration: Any = None,
        worker_key: Callable[[Any], Any] | None = None,
        **kwargs: Any,
    ) -> None:
        def chosen(given: Any, name: str) -> Any:
            return config.get(f"adaptive.{name}") if given is None else given

        if worker_key is not None and not callable(worker_key):
            raise TypeError(f"worker_key is a function, not {worker_key!r:.80}")
        self.cluster = cluster
        self.interval = seconds(chosen(interval, "interval")) or 0.0
        self.minimum: int = _whole("minimum", chosen(minimum, "minimum"))
        most = chosen(maximum, "maximum")
        if most is None:
            most = max(1, self.minimum, cores() // cluster.threads)
        self.maximum: int | float = most if most == math.inf else _whole("maximum", most)
        if self.maximum < self.minimum:
            raise ValueError(f"maximum={self.maximum!r} is less than minimum={self.minimum!r}")
        self.wait_count: int = _whole("wait_count", chosen(wait_count, "wait-count"))
        self.target_duration = seconds(chosen(target_duration, "target-duration")) or 0.0
        self._memory_ratio = float(kwargs.pop("memory_ratio", None) or 2)
        if kwargs:
            raise TypeError(f"Adaptive has no arguments {sorted(kwargs)}")
        self.close_counts: defaultdict[str, int] = defaultdict(int)
        self.log: deque[tuple[float, dict[str, Any]]] = deque(maxlen=_LOG)
        self.state = "running" if self.interval else "inactive"
        #: the heartbeat at which a worker was first found to have nothing to do, while it has nothing
        self._rests: dict[str, str] = {}
        self._last: tuple[float, int] | None = None
        self._load: _Load | None = None
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        if self.interval:
            threading.Thread(
                target=_look_again,
                args=(weakref.ref(self), self._stopped, self.interval),
                name="redist-adaptive",
                daemon=True,
            ).start()

    def stop(self, reason: str = "unknown") -> None:
        """Look no more; the workers stay as they are. Returns when the look that is on its way is over."""
        self._stopped.set()
        if os.getpid() != self._owner:
            return  # in a forked child nobody looks, and the lock may be held for ever
        with self._lock:
            if self.state == "running":
                self.state = "stopped"
                logger.info("adaptive scaling of %s has stopped: %s", self.cluster.name, reason)

    def close(self) -> None:
        """Stop."""
        self.stop("closed")

    def __del__(self) -> None:
        stopped = getattr(self, "_stopped", None)
        if stopped is not None:
            stopped.set()

    def __repr__(self) -> str:
        return f"<Adaptive: {self.cluster.name!r}, {self.minimum} to {self.maximum} workers, {self.state}>"

    # --- one look ---------------------------------------------------------------------------------------------------

    def adapt(self) -> None:
        """Look at the queues, and start or stop workers."""
        with self._lock:
            workers = list(self.cluster.workers)
            self._load = load = self._look()
            target = int(max(self.minimum, min(self.maximum, self.target())))
            self._load = None  # who asks for the target later wants that of then
            if target > len(workers):
                self.close_counts.clear()
                self._note({"status": "up", "n": target})
                self.scale_up(target)
                return
            surplus = self._surplus(load, workers, len(workers) - target)
            for name in [name for name in self.close_counts if name not in surplus]:
                del self.close_counts[name]
            for name in surplus:
                self.close_counts[name] += 1
            gone = [name for name in surplus if self.close_counts[name] >= self.wait_count]
            if gone:
                for name in gone:
                    del self.close_counts[name]
                self._note({"status": "down", "workers": gone})
                self.scale_down(gone)

    def _note(self, what: dict[str, Any]) -> None:
        self.log.append((time.time(), what))
        logger.info("adaptive scaling of %s: %s", self.cluster.name, what)

    def target(self) -> int:
        """Return how many workers there should be for what is queued and runs; may be overridden."""
        load = self._load or self._look()
        now, before = time.monotonic(), self._last
        self._last = now, load.handed_out
        tasks = load.queued + load.processing
        most = math.ceil(tasks / self.cluster.threads)
        workers = len(load.workers)
        if not (workers and load.queued and before and self.target_duration):
            return most
        rate = (load.handed_out - before[1]) / max(now - before[0], 1e-3)
        if rate <= 0:
            return most
        return min(most, max(1, math.ceil(workers * load.queued / rate / self.target_duration)))

    def scale_up(self, n: int) -> None:
        """Start workers until there are `n`, without waiting for them; may be overridden."""
        self.cluster.start_workers(n - len(self.cluster.workers))

    def scale_down(self, workers: Iterable[str]) -> None:
        """Stop workers of these names in good order; may be overridden."""
        self.cluster.stop_workers(workers)

    def _look(self) -> _Load:
        endpoint = self.cluster.endpoint
        prefix = endpoint.prefix
        side = Side(endpoint, _SERVER_TIMEOUT)
        with contextlib.closing(side):
            queues = side.command("ZRANGE", f"{prefix}queues", 0, _QUEUES - 1)
            queued = sum(side.command("LLEN", f"{prefix}queue:{name.decode()}") for name in queues)
            handed_out = int(side.field("meta", "attempt") or 0)
            processing, workers = 0, {}
            for ordinal, name in side.fields("workers").items():
                fields = side.fields(f"caller:{ordinal}")
                running = 0
                for executor in side.members(f"executors:{ordinal}"):
                    batches = side.fields(f"batches:{executor}").values()
                    running += sum(batch.count("\n") + 1 for batch in batches)
                processing += running
                try:
                    metrics = json.loads(fields.get("metrics") or "{}")
                except ValueError:
                    metrics = {}
                actors = sum(executor.get("actors", 0) for executor in metrics.get("executors", ()))
                workers[name] = _Standing(
                    fields.get("seen", ""),
                    running > 0 or actors > 0,
                    side.command("HLEN", f"{prefix}has:{ordinal}"),
                    int(metrics.get("managed", 0)),
                    int(fields.get("memory_limit") or 0),
                )
        return _Load(queued, processing, handed_out, workers)

    def _surplus(self, load: _Load, names: list[str], most: int) -> list[str]:
        """Return up to `most` of the cluster's workers `names` that can be stopped: those with the least data first."""
        rests, self._rests = self._rests, {}
        idle = []
        for name in names:
            worker = load.workers.get(name)
            if worker is None or worker.busy:
                continue
            # Only a heartbeat tells of actors: what was made before the worker was found idle shows with the next one.
            since = self._rests[name] = rests.get(name, worker.beat)
            if since != worker.beat:
                idle.append((worker.nbytes, worker.keys, name))
        remaining = dict(load.workers)
        nbytes = sum(worker.nbytes for worker in remaining.values())
        chosen: list[str] = []
        for _, keys, name in sorted(idle, key=lambda one: one[:2]):
            if len(chosen) >= most:
                break
            others = [worker.limit for other, worker in remaining.items() if other != name]
            if keys and not others:
                continue  # nobody could take it over
            if all(others) and sum(others) < self._memory_ratio * nbytes:
                continue
            del remaining[name]
            chosen.append(name)
        return chosen


def _look_again(ref: weakref.ref[Adaptive], stopped: threading.Event, interval: float) -> None:
    """Adapt every `interval` until it is stopped or gone."""
    while not stopped.wait(interval):
        adaptive = ref()
        if adaptive is None:
            return
        with adaptive._lock:
            if stopped.is_set():
                return
            if adaptive.cluster.status != "running":
                adaptive.stop("the cluster does not run")
                return
            try:
                adaptive.adapt()
            except RedistError as error:  # the server is away for a while
                logger.warning("adaptive scaling could not look at the cluster: %s", error)
            except Exception:
                logger.exception("adaptive scaling met an error and goes on")
        del adaptive


def _whole(what: str, number: Any) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{what}={number!r}: a whole number from 0")
    return number
