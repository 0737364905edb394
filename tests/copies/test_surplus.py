"""Copies above the wanted number go when memory is short, before anything goes to disk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from copies.conftest import MakeCluster, names_of
from redist import Client
from servers import wait_until

SIZE = 2_500_000  # of float64: 20 MB


def total(array: Any) -> float:
    return float(array[0])


@pytest.fixture
def rig(make_cluster: MakeCluster) -> Iterator[tuple[Client, str, str]]:
    cluster = make_cluster(2, memory_limit=200_000_000)
    with Client(cluster) as client:
        yield client, *cluster.workers


def spilled(client: Client, worker: str) -> int:
    metrics = next(w["metrics"] for w in client.scheduler_info()["workers"].values() if w["name"] == worker)
    return int(metrics.get("spilled_in_all", 0))


def press(client: Client, worker: str) -> list[Any]:
    """Have a worker hold more than it should have in memory."""
    return client.scatter([np.full(SIZE, i) for i in range(5)], workers=worker, hash=False)


def test_what_was_brought_for_tasks_goes(rig: tuple[Client, str, str]) -> None:
    client, first, second = rig
    futures = client.scatter([np.full(SIZE, i) for i in range(4)], workers=first, hash=False)
    assert client.gather(client.map(total, futures, workers=second)) == [0, 1, 2, 3]
    wait_until(lambda: all(len(names_of(client, future)) == 2 for future in futures))
    more = press(client, second)
    wait_until(lambda: any(names_of(client, future) == {first} for future in futures))
    assert spilled(client, second) == 0
    assert [int(array[0]) for array in client.gather(futures)] == [0, 1, 2, 3]
    del more


def test_wanted_copies_stay(rig: tuple[Client, str, str]) -> None:
    client, first, second = rig
    futures = client.scatter([np.full(SIZE, i) for i in range(4)], workers=first, hash=False, replicas=2)
    more = press(client, second)
    wait_until(lambda: spilled(client, second) > 0)
    assert all(len(names_of(client, future)) == 2 for future in futures)
    assert [int(array[0]) for array in client.gather(futures)] == [0, 1, 2, 3]
    del more
