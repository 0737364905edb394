"""What is measured. A figure runs on a started system and gives numbers by name; a larger run repeats it in rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.systems import System, Unsupported

Numbers = dict[str, float]

# Slow peers get less work, so that a round stays within minutes; rates do not depend on it.
TASKS = {"redist": 10_000, "dask.distributed": 2_000, "ray": 5_000, "ProcessPoolExecutor": 10_000}
LIFE = {"redist": 100_000, "dask.distributed": 2_000, "ray": 10_000, "ProcessPoolExecutor": 20_000}
CHAIN = {"redist": 1_000, "dask.distributed": 300, "ray": 1_000}


def tasks(system: System) -> Numbers:
    """Trivial tasks a second, map and wait, ``pure=False``."""
    return {"tasks a second, pure=False": _tasks(system, False)}


def tasks_pure(system: System) -> Numbers:
    """Trivial tasks a second, map and wait, ``pure=True``."""
    return {"tasks a second, pure=True": _tasks(system, True)}


def _tasks(system: System, pure: bool) -> float:
    n = TASKS[system.name]
    began = time.perf_counter()
    futures = system.map_wait(n, pure)
    rate = n / (time.perf_counter() - began)
    del futures
    return rate


def life(system: System) -> Numbers:
    """Whole lives a second: map, wait, gather, release until the server knows no key."""
    n = LIFE[system.name]
    began = time.perf_counter()
    futures = system.map_wait(n, False)
    system.gather(futures)
    del futures
    until_gone(system)
    return {"whole lives a second": n / (time.perf_counter() - began)}


def latency(system: System) -> Numbers:
    """Submit to result, one at a time: median and 99th percentile in ms."""
    times = []
    for i in range(1_000):
        began = time.perf_counter()
        system.round_trip(i)
        times.append((time.perf_counter() - began) * 1e3)
    return {
        "submit to result, median ms": statistics.median(times),
        "submit to result, p99 ms": statistics.quantiles(times, n=100)[98],
    }


def chain(system: System) -> Numbers:
    """Links a second of a chain of dependent submits."""
    n = CHAIN.get(system.name)
    if n is None:
        raise Unsupported
    began = time.perf_counter()
    system.chain(n)
    return {"chain, links a second": n / (time.perf_counter() - began)}


def gather(system: System) -> Numbers:
    """Small results gathered a second, all of them finished, and released until gone."""
    n = TASKS[system.name]
    futures = system.map_wait(n, False)
    began = time.perf_counter()
    system.gather(futures)
    gathered = time.perf_counter()
    del futures
    until_gone(system)
    numbers = {"small results gathered a second": n / (gathered - began)}
    if system.name == "redist":
        numbers["released until gone, keys a second"] = n / (time.perf_counter() - gathered)
    return numbers


def until_gone(system: System) -> None:
    """Wait until the server of `system` knows no key any more; peers cannot tell and do not wait."""
    if system.name == "redist":
        client: Any = system.client  # type: ignore[attr-defined]
        deadline = time.monotonic() + 60
        while client.usage().keys:
            if time.monotonic() > deadline:
                raise TimeoutError("keys were not released within 60 s")


FIGURES: dict[str, Callable[[System], Numbers]] = {
    "tasks": tasks,
    "tasks-pure": tasks_pure,
    "latency": latency,
    "chain": chain,
    "gather": gather,
    "life": life,
}
