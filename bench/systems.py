"""The systems that are compared, each with the same few verbs.

A system that is not installed is left out of the run; what a system has no equivalent for raises `Unsupported`.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Unsupported(Exception):
    """The system has no equivalent of this figure."""


def inc(x: int) -> int:
    """Return x + 1: the trivial task."""
    return x + 1


def doubles(mib: int) -> Any:
    """Return `mib` MiB of doubles."""
    import numpy as np

    return np.ones(mib << 17)


def total(array: Any) -> float:
    """Return the sum of an array: a task that reads all of it."""
    return float(array.sum())


class System(Protocol):
    """One system under test, with two worker processes of one thread."""

    name: str

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def map_wait(self, n: int, pure: bool) -> list[Any]: ...
    def round_trip(self, x: int) -> int: ...
    def chain(self, n: int) -> int: ...
    def gather(self, futures: list[Any]) -> list[Any]: ...
    def put(self, value: Any) -> Any: ...
    def get(self, reference: Any) -> Any: ...
    def make(self, mib: int, place: int) -> Any: ...
    def total(self, reference: Any, place: int) -> float: ...


class _WithClient:
    """What redist and dask.distributed are asked in the same words."""

    client: Any
    #: the workers' addresses
    places: list[str]

    def round_trip(self, x: int) -> int:
        return int(self.client.submit(inc, x, pure=False).result())

    def chain(self, n: int) -> int:
        future = self.client.submit(inc, 0, pure=False)
        for _ in range(n - 1):
            future = self.client.submit(inc, future, pure=False)
        return int(future.result())

    def gather(self, futures: list[Any]) -> list[Any]:
        return list(self.client.gather(futures))

    def put(self, value: Any) -> Any:
        return self.client.scatter(value, hash=False, direct=True)

    def get(self, reference: Any) -> Any:
        return self.client.gather(reference, direct=True)

    def ask_for_places(self) -> None:
        """Find out where tasks may be sent, once: to ask is no part of what is measured."""
        self.places = sorted(self.client.scheduler_info()["workers"])

    def make(self, mib: int, place: int) -> Any:
        future = self.client.submit(doubles, mib, workers=[self.places[place]], pure=False)
        self.wait([future])
        return future

    def total(self, reference: Any, place: int) -> float:
        return float(self.client.submit(total, reference, workers=[self.places[place]], pure=False).result())

    def wait(self, futures: list[Any]) -> None:
        raise NotImplementedError


class Redist(_WithClient):
    """redist on its embedded server."""

    name = "redist"

    def start(self) -> None:
        from redist import Client

        self.client = Client(n_workers=2, threads_per_worker=1)
        self.gather(self.map_wait(200, False))
        self.ask_for_places()

    def stop(self) -> None:
        self.client.close()

    def map_wait(self, n: int, pure: bool) -> list[Any]:
        futures: list[Any] = self.client.map(inc, range(n), pure=pure)
        self.wait(futures)
        return futures

    def wait(self, futures: list[Any]) -> None:
        from redist import wait

        wait(futures)


class Dask(_WithClient):
    """dask.distributed's LocalCluster with worker processes."""

    name = "dask.distributed"

    def start(self) -> None:
        import distributed

        client: Any = distributed.Client
        self.client = client(n_workers=2, threads_per_worker=1, dashboard_address=None)
        self.gather(self.map_wait(200, False))
        self.ask_for_places()

    def stop(self) -> None:
        self.client.close()
        self.client.cluster.close()

    def map_wait(self, n: int, pure: bool) -> list[Any]:
        futures = self.client.map(inc, range(n), pure=pure)
        self.wait(futures)
        return list(futures)

    def wait(self, futures: list[Any]) -> None:
        import distributed

        wait: Any = distributed.wait
        wait(futures)


class Ray:
    """Ray with two CPUs."""

    name = "ray"

    def start(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        self.ray = ray
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        self.inc = ray.remote(inc)
        self.sum = ray.remote(total)
        self.gather(self.map_wait(200, False))

    def stop(self) -> None:
        self.ray.shutdown()

    def map_wait(self, n: int, pure: bool) -> list[Any]:
        if pure:
            raise Unsupported
        refs = [self.inc.remote(i) for i in range(n)]
        self.ray.wait(refs, num_returns=n)
        return refs

    def round_trip(self, x: int) -> int:
        return int(self.ray.get(self.inc.remote(x)))

    def chain(self, n: int) -> int:
        ref = self.inc.remote(0)
        for _ in range(n - 1):
            ref = self.inc.remote(ref)
        return int(self.ray.get(ref))

    def gather(self, futures: list[Any]) -> list[Any]:
        return list(self.ray.get(futures))

    def put(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.ray.put(item) for item in value]
        return self.ray.put(value)

    def get(self, reference: Any) -> Any:
        return self.ray.get(reference)

    def make(self, mib: int, place: int) -> Any:
        reference = self.ray.remote(doubles).remote(mib)
        self.ray.wait([reference], fetch_local=False)
        return reference

    def total(self, reference: Any, place: int) -> float:
        return float(self.ray.get(self.sum.remote(reference)))


class Pool:
    """concurrent.futures.ProcessPoolExecutor."""

    name = "ProcessPoolExecutor"

    def start(self) -> None:
        self.pool = concurrent.futures.ProcessPoolExecutor(2)
        self.gather(self.map_wait(200, False))

    def stop(self) -> None:
        self.pool.shutdown()

    def map_wait(self, n: int, pure: bool) -> list[Any]:
        if pure:
            raise Unsupported
        futures = [self.pool.submit(inc, i) for i in range(n)]
        concurrent.futures.wait(futures)
        return futures

    def round_trip(self, x: int) -> int:
        return self.pool.submit(inc, x).result()

    def chain(self, n: int) -> int:
        raise Unsupported

    def gather(self, futures: Iterable[Any]) -> list[Any]:
        return [future.result() for future in futures]

    def put(self, value: Any) -> Any:
        raise Unsupported

    get = put

    def make(self, mib: int, place: int) -> Any:
        raise Unsupported

    def total(self, reference: Any, place: int) -> float:
        raise Unsupported


SYSTEMS: dict[str, Callable[[], System]] = {
    "redist": Redist,
    "dask": Dask,
    "ray": Ray,
    "pool": Pool,
}
"""Command-line names of the systems, in the order in which each round runs them."""
