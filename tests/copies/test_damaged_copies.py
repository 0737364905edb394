"""Copies that are damaged or gone: found by who reads them, also from other hosts, and made again from another one."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from copies.conftest import MakeCluster, names_of
from redist import Client, LocalCluster, wait
from redist.errors import DataLost
from redist.memory.headers import path_of
from servers import ordinals, wait_until

SIZE = 50_000  # of float64: above what lies in the server


def path_on(cluster: LocalCluster, worker: str, key: str) -> str:
    """Return the path of the file that a worker has of a key."""
    wire, prefix = cluster.endpoint.open(), cluster.endpoint.prefix
    ordinal = ordinals(cluster)[worker]
    segments = wire.call("HGET", f"{prefix}caller:{ordinal}", "segments").decode()
    attempt = wire.call("HGET", f"{prefix}key:{key}", f"w:{ordinal}")
    wire.close()
    return path_of(segments, key, int(attempt))


def cut_off(path: str) -> None:
    os.truncate(path, 4096)


def is_whole(path: str, nbytes: int) -> bool:
    return os.path.exists(path) and os.path.getsize(path) == nbytes


@pytest.mark.parametrize("damage", [os.unlink, cut_off])
@pytest.mark.parametrize("apart", [False, True])
def test_another_copy_is_read(make_cluster: MakeCluster, damage: Callable[[str], None], apart: bool) -> None:
    """And the number of copies that are wanted is made up again."""
    cluster = make_cluster(2, apart)
    with Client(cluster) as client:
        future = client.scatter({"x": np.full(SIZE, 7.0)}, replicas=2)["x"]
        for name in cluster.workers:
            wait_until(lambda: len(names_of(client, future)) == 2)
            path = path_on(cluster, name, "x")
            whole = os.path.getsize(path)
            damage(path)
            assert client.submit(np.sum, future, workers=[name], pure=False).result(30) == 7 * SIZE
            wait_until(partial(is_whole, path, whole), what="it is whole again")
        wait_until(lambda: len(names_of(client, future)) == 2)
        assert future.result()[-1] == 7


@pytest.mark.parametrize("damage", [os.unlink, cut_off])
@pytest.mark.parametrize("by_task", [False, True])
def test_the_only_copy_is_on_another_host(
    make_cluster: MakeCluster, damage: Callable[[str], None], by_task: bool
) -> None:
    cluster = make_cluster(2)
    one, two = cluster.workers
    with Client(cluster) as client:
        made = client.submit(np.full, SIZE, 7.0, key="made", workers=[one])
        scattered = client.scatter({"scattered": np.full(SIZE, 7.0)}, workers=[one])["scattered"]
        wait(made)
        paths = [path_on(cluster, one, key) for key in ("made", "scattered")]
        for path in paths:
            damage(path)
        if by_task:
            assert client.submit(np.sum, made, workers=[two], pure=False).result(30) == 7 * SIZE
            with pytest.raises(DataLost, match=f"scattered is lost.*{paths[1]}"):
                client.submit(np.sum, scattered, workers=[two], pure=False).result(30)
        assert made.result(30)[-1] == 7
        with pytest.raises(DataLost, match=f"scattered is lost.*{paths[1]}"):
            scattered.result(30)
