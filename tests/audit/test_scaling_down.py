"""Workers that are stopped in good order leave their payloads to others."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from redist import Client, LocalCluster, wait
from servers import wait_until


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


def test_sole_copies_outlive_their_worker(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        leaving = list(cluster.workers)[-1]
        scattered = client.scatter([np.full(50_000, i) for i in range(5)], workers=leaving, hash=False)
        computed = client.submit(np.arange, 70_000, workers=leaving, allow_other_workers=True)
        wait([*scattered, computed])
        cluster.scale(1)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        assert [int(array[-1]) for array in client.gather(scattered)] == list(range(5))
        assert computed.result(10)[-1] == 69_999
        assert all(len(holders) == 1 for holders in client.who_has().values())
        del scattered, computed


def test_all_that_stop_at_once_do_not_wait_for_each_other() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        futures = client.scatter([np.full(50_000, i) for i in range(4)], hash=False)
        began = time.monotonic()
        cluster.close()
        assert time.monotonic() - began < 3
        del futures
