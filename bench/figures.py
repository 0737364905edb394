"""What is measured. A figure runs on a started system and gives numbers by name; a larger run repeats it in rounds."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from bench.systems import System, Unsupported, inc

Numbers = dict[str, float]

TASKS = 10_000
CHAIN = 1_000
CHUNKS = 5_000
# The same for all but the slowest, for which 100,000 lives would take minutes a round; a rate hardly depends on it.
LIFE = {"redist": 100_000, "ProcessPoolExecutor": 100_000, "ray": 10_000, "dask.distributed": 10_000}


def tasks(system: System) -> Numbers:
    """Trivial tasks a second, map and wait, ``pure=False``."""
    return {"tasks a second, pure=False": _tasks(system, False)}


def tasks_pure(system: System) -> Numbers:
    """Trivial tasks a second, map and wait, ``pure=True``."""
    return {"tasks a second, pure=True": _tasks(system, True)}


def _tasks(system: System, pure: bool) -> float:
    n = TASKS
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
    began = time.perf_counter()
    system.chain(CHAIN)
    return {"chain, links a second": CHAIN / (time.perf_counter() - began)}


def gather(system: System) -> Numbers:
    """Small results gathered a second, all of them finished, and released until gone."""
    n = TASKS
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


def graph(system: System) -> Numbers:
    """A Dask graph: sum of an array of 5,000 chunks, 6,669 tasks after Dask's optimization, planned by Dask each time."""
    if system.name not in ("redist", "dask.distributed"):
        raise Unsupported
    import dask.array as da

    client: Any = system.client  # type: ignore[attr-defined]
    client.compute(da.ones(16, chunks=1).sum()).result()  # imports
    began = time.perf_counter()
    assert client.compute(da.ones(CHUNKS, chunks=1).sum()).result() == CHUNKS
    return {"array sum of 5,000 chunks, s": time.perf_counter() - began}


def awaited(system: System) -> Numbers:
    """Submit to result, awaited in one loop: median and 99th percentile in ms."""
    if system.name != "redist":
        raise Unsupported
    import asyncio

    from redist import Client

    address: Any = system.client.cluster.endpoint  # type: ignore[attr-defined]

    async def measure() -> list[float]:
        times = []
        async with Client(address, asynchronous=True) as client:
            for i in range(1_000):
                began = time.perf_counter()
                await client.submit(inc, i, pure=False)
                times.append((time.perf_counter() - began) * 1e3)
        return times

    times = asyncio.run(measure())
    return {
        "submit to result, awaited, median ms": statistics.median(times),
        "submit to result, awaited, p99 ms": statistics.quantiles(times, n=100)[98],
    }


def memory(system: System) -> Numbers:
    """Server bytes a finished small key, and CPU of a known million compared with ten thousand."""
    if system.name != "redist":
        raise Unsupported
    client: Any = system.client  # type: ignore[attr-defined]
    n = 100_000
    before = _server_info(client, "memory")["used_memory"]
    futures = system.map_wait(n, False)
    used = _server_info(client, "memory")["used_memory"] - before
    del futures
    until_gone(system)
    return {"server bytes a finished small key": used / n}


def known(system: System) -> Numbers:
    """Time of a task, of the server and from map to wait, with 1,000,000 keys known, relative to 10,000."""
    if system.name != "redist":
        raise Unsupported
    client: Any = system.client  # type: ignore[attr-defined]

    def cost() -> tuple[float, float]:
        server, wall = [], []
        for _ in range(3):
            before, began = (
                _server_info(client, "commandstats")["cmdstat_evalsha"]["usec"],
                time.perf_counter(),
            )
            held = system.map_wait(10_000, False)
            wall.append(time.perf_counter() - began)
            server.append(_server_info(client, "commandstats")["cmdstat_evalsha"]["usec"] - before)
            del held
        return statistics.median(server), statistics.median(wall)

    few = system.map_wait(10_000, False)
    first = cost()
    many = [system.map_wait(100_000, False) for _ in range(10)]
    second = cost()
    del few, many
    until_gone(system)
    return {
        "server time of a task, 1,000,000 keys known to 10,000": second[0] / first[0],
        "cost of a task, 1,000,000 keys known to 10,000": second[1] / first[1],
    }


def freed(system: System) -> Numbers:
    """Deleting the Future of a 1 MB payload until its file is gone: median ms."""
    if system.name != "redist":
        raise Unsupported
    import numpy as np

    client: Any = system.client  # type: ignore[attr-defined]
    times = []
    for _ in range(100):
        future = client.scatter(np.zeros(1 << 17), hash=False)
        (directory,) = {
            w["local_directory"] for w in client.scheduler_info()["workers"].values() if _files(w)
        }
        began = time.perf_counter()
        del future
        while _files({"local_directory": directory}):
            if time.perf_counter() - began > 10:
                raise TimeoutError("the payload's file is still there")
        times.append((time.perf_counter() - began) * 1e3)
    return {"del until 1 MB is free, median ms": statistics.median(times)}


def _files(worker: dict[str, Any]) -> list[str]:
    return [name for name in os.listdir(worker["local_directory"]) if "." in name and len(name) > 32]


def idle(system: System) -> Numbers:
    """CPU of an idle cluster of two workers and its client, per cent of a core."""
    if system.name != "redist":
        raise Unsupported
    import psutil

    def spent() -> float:
        total = 0.0
        own = psutil.Process()
        for process in (own, *own.children(recursive=True)):
            times = process.cpu_times()
            total += times.user + times.system
        return total

    before = spent()
    time.sleep(10)
    return {"CPU of an idle cluster, per cent of a core": (spent() - before) * 10}


def start(system: System) -> Numbers:
    """Interpreter start to first result and clean exit, with two workers: s."""
    programs = {
        "redist": (
            "from redist import Client\n"
            "with Client(n_workers=2, threads_per_worker=1) as c: c.submit(abs, -1).result()"
        ),
        "dask.distributed": (
            "from distributed import Client\nif __name__ == '__main__':\n"
            " with Client(n_workers=2, threads_per_worker=1, dashboard_address=None) as c: c.submit(abs, -1).result()"
        ),
    }
    program = programs.get(system.name)
    if program is None:
        raise Unsupported
    times = []
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write(program)
        file.flush()
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, file.name], check=True, stderr=subprocess.DEVNULL)
            times.append(time.perf_counter() - began)
    return {"start to first result and exit, s": statistics.median(times)}


def _server_info(client: Any, section: str) -> dict[str, Any]:
    import redis

    path = client.cluster.endpoint.url.partition("://")[2].partition("?")[0]
    with redis.Redis(unix_socket_path=path, protocol=2) as server:
        info: dict[str, Any] = server.info(section)
        return info


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
    "graph": graph,
    "awaited": awaited,
    "memory": memory,
    "freed": freed,
    "idle": idle,
    "start": start,
    "known": known,
}
