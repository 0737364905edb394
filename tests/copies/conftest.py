"""Clusters whose workers die, and whose workers may be made to believe that each is on a host of its own."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from redist import Client, LocalCluster
from redist.diagnostics.invariants import check
from redist.diagnostics.reading import Snapshot
from servers import ordinals, set_apart, wait_until

MakeCluster = Callable[..., LocalCluster]


def kill(cluster: LocalCluster, name: str) -> None:
    """Kill a worker for good, with all that lies on its host, and have the server know."""
    wire = cluster.endpoint.open()
    path = wire.call("HGET", f"{cluster.endpoint.prefix}caller:{ordinals(cluster)[name]}", "segments")
    wire.close()
    worker = cluster._launcher.workers.pop(name)  # type: ignore[union-attr]
    os.kill(worker.pid, signal.SIGKILL)
    assert worker._process is not None
    worker._process.wait()
    shutil.rmtree(path)
    expire(cluster, name)


def expire(cluster: LocalCluster, name: str) -> None:
    """Let the lease of a worker pass."""
    wire, prefix = cluster.endpoint.open(), cluster.endpoint.prefix
    ordinal = ordinals(cluster)[name]
    wire.call("HDEL", f"{prefix}meta", "quiet_until")
    wire.call("ZADD", f"{prefix}leases", 1, ordinal)
    wire.close()
    wait_until(lambda: name not in ordinals(cluster))


def names_of(client: Client, future: Any) -> set[str]:
    """Names of the workers that have a value."""
    by_address = {a: str(w["name"]) for a, w in client.scheduler_info()["workers"].items()}
    return {by_address[address] for address in client.who_has(future)[future.key] if address in by_address}


def doctor(cluster: LocalCluster) -> list[str]:
    """What is wrong once nothing is left to be done."""
    wire = cluster.endpoint.open()

    def execute(commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        return [wire.call(*command) for command in commands]

    until = time.monotonic() + 10.0  # heartbeats carry out what is left to be done
    try:
        while True:
            found = list(map(str, check(Snapshot(execute, cluster.endpoint.prefix), quiescent=True)))
            if not found or time.monotonic() > until:
                break
            time.sleep(0.02)
    finally:
        wire.close()
    return found


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """Makes clusters; at the end the doctor looks at them."""
    clusters: list[LocalCluster] = []

    def make(n: int, apart: bool | Sequence[str] = True, **options: Any) -> LocalCluster:
        cluster = LocalCluster(n_workers=n, threads_per_worker=1, **options)
        clusters.append(cluster)
        if apart:
            set_apart(cluster, None if apart is True else apart)
        return cluster

    yield make
    found = [line for cluster in clusters for line in doctor(cluster)]
    for cluster in clusters:
        cluster.close()
    assert not found
