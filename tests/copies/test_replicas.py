"""A wanted number of copies: made, and kept when workers die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import numpy as np
import pytest

from copies.conftest import MakeCluster, kill, names_of
from redist import Client, LocalCluster, config
from redist.errors import NoWorkers
from redist.memory.pool import POOL_FILE
from servers import ordinals, wait_until

SIZE = 50_000  # of float64: above what lies in the server


def hold(cluster: LocalCluster, name: str) -> Any:
    """Stop the process of a worker; returns what lets it go on."""
    pid = cluster.workers[name].pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("apart", [True, False])
def test_scattered_with_replicas(make_cluster: MakeCluster, apart: bool) -> None:
    cluster = make_cluster(3, apart)
    with Client(cluster) as client:
        futures = client.scatter({f"x{i}": np.full(SIZE, i) for i in range(10)}, replicas=2)
        assert all(len(names_of(client, future)) == 2 for future in futures.values())
        has = [key for keys in client.has_what().values() for key in keys]
        assert len(has) == 20
        assert sum(client.nbytes(summary=False).values()) * 2 == client.usage().nbytes
        for name in list(cluster.workers)[:2]:
            kill(cluster, name)
            wait_until(
                lambda: all(
                    len(names_of(client, f)) == min(2, len(cluster.workers)) for f in futures.values()
                )
            )
        assert [int(array[0]) for array in client.gather(list(futures.values()))] == list(range(10))


def test_hosts_come_before_workers(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, ["a", "a", "b", "b"])
    first = next(iter(cluster.workers))
    with Client(cluster) as client:
        futures = client.scatter([np.full(SIZE, i) for i in range(4)], workers=first, replicas=2)
        others = set(list(cluster.workers)[2:])
        assert all(names_of(client, future) & others for future in futures)


def test_replicate(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4)
    first, second, *_ = cluster.workers
    with Client(cluster) as client:
        futures = client.scatter([np.full(SIZE, i) for i in range(3)], workers=first, hash=False)
        client.replicate(futures[0])
        assert names_of(client, futures[0]) == set(cluster.workers)
        client.replicate(futures[1], workers=[first, second])
        assert names_of(client, futures[1]) == {first, second}
        client.replicate(futures[2], n=3, branching_factor=1)
        assert len(names_of(client, futures[2])) == 3
        # Of what is not finished, too, and of what the server has.
        task = client.submit(np.arange, SIZE)
        small = client.submit(abs, -1)
        client.replicate([task, small], n=2)
        assert len(names_of(client, task)) == 2
        assert names_of(client, small) == set()
        with pytest.raises(NoWorkers):
            client.replicate(task, workers=["nobody"])
        with pytest.raises(ValueError, match="n cannot be less than 1"):
            client.replicate(task, n=0)
        kill(cluster, second)
        wait_until(lambda: len(names_of(client, futures[1])) == 2)


def test_more_than_there_are_workers(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1)
    with Client(cluster) as client:
        future = client.scatter(np.arange(SIZE), replicas=2)
        assert len(names_of(client, future)) == 1
        cluster.scale(2)
        wait_until(lambda: len(names_of(client, future)) == 2, 60)


def test_published_with_replicas(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    first = next(iter(cluster.workers))
    with Client(cluster) as ada, Client(cluster, set_as_default=False) as bob:
        part = ada.scatter(np.arange(SIZE), workers=first, hash=False)
        later = ada.submit(np.ones, SIZE)
        ada.publish_dataset([part, later], name="parts", replicas=2)
        ada.publish_dataset(np.zeros(SIZE), name="zeros", replicas=3)
        del part, later
        parts = bob.get_dataset("parts")
        wait_until(lambda: all(len(names_of(bob, future)) == 2 for future in parts))
        kill(cluster, first)
        wait_until(lambda: all(len(names_of(bob, future)) == 2 for future in parts))
        assert bob.get_dataset("zeros").sum() == 0
        for name in ("parts", "zeros"):
            bob.unpublish_dataset(name)


def test_a_recomputed_value_has_its_copies_again(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    with Client(cluster) as client:
        future = client.submit(np.arange, SIZE)
        client.replicate(future, n=2)
        holders = names_of(client, future)
        for name in holders:  # before anybody notices
            os.kill(cluster._launcher.workers[name].pid, signal.SIGSTOP)  # type: ignore[union-attr]
        for name in holders:
            kill(cluster, name)
        cluster.scale(3)
        wait_until(lambda: len(names_of(client, future)) == 2, 60)
        assert future.result(10)[-1] == SIZE - 1


@pytest.mark.parametrize("who", ["source", "receiver"])
def test_killed_while_copying(make_cluster: MakeCluster, who: str) -> None:
    cluster = make_cluster(4)
    source = next(iter(cluster.workers))
    with Client(cluster) as client:
        future = client.scatter(np.arange(SIZE), workers=source, hash=False)
        client.replicate(future, n=2)
        # The first to copy cannot: it stands still, and dies when it was asked.
        second = (names_of(client, future) - {source}).pop()
        held = second if who == "receiver" else source
        victim = held if who == "receiver" else second
        hold(cluster, held)
        ask = threading.Thread(target=lambda: client.replicate(future, n=3, timeout=60))
        ask.start()
        kill(cluster, victim)
        if who == "source":
            os.kill(cluster.workers[held].pid, signal.SIGCONT)
        ask.join(60)
        wait_until(lambda: len(names_of(client, future)) == 3, 60)
        assert future.result(10)[-1] == SIZE - 1


_ASKS = """
import os, sys
from redist import Client
client = Client(sys.argv[1])
future = client.submit(abs, -1)
future.result()
print("ready", flush=True)
client.replicate([sys.argv[2]], n=3)
"""


def test_killed_client(make_cluster: MakeCluster) -> None:
    """What a client asked for goes on without it."""
    cluster = make_cluster(3)
    with Client(cluster) as client:
        future = client.scatter(np.arange(SIZE), hash=False, workers=next(iter(cluster.workers)))
        let_go = [hold(cluster, name) for name in list(cluster.workers)[1:]]
        address = cluster.scheduler_address
        with subprocess.Popen(
            [sys.executable, "-c", _ASKS, address, future.key], stdout=subprocess.PIPE
        ) as other:
            wait_until(lambda: _wanted(cluster, future.name) == "3")
            other.kill()
        for go_on in let_go:
            go_on()
        wait_until(lambda: len(names_of(client, future)) == 3, 30)


def _wanted(cluster: LocalCluster, name: str) -> str | None:
    wire = cluster.endpoint.open()
    try:
        value = wire.call("HGET", f"{cluster.endpoint.prefix}key:{name}", "copies")
        return None if value is None else value.decode()
    finally:
        wire.close()


def test_two_clients_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4)
    with Client(cluster) as ada, Client(cluster, set_as_default=False) as bob:
        futures = ada.scatter([np.full(SIZE, i) for i in range(20)], hash=False)
        keys = [future.key for future in futures]
        threads = [
            threading.Thread(target=client.replicate, args=(keys,), kwargs={"n": n})
            for client, n in ((ada, 2), (bob, 3), (ada, 4), (bob, 2))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        client_number = {int(_wanted(cluster, f.name) or 1) for f in futures}
        assert client_number <= {2, 3, 4}
        for future in futures:
            wait_until(lambda f=future: len(names_of(ada, f)) >= int(_wanted(cluster, f.name) or 1))


def test_a_full_worker_is_passed_over(make_cluster: MakeCluster) -> None:
    never = dict.fromkeys(("target", "spill", "pause"), False)
    with config.set({f"worker.memory.{name}": value for name, value in {**never, "wait": 0}.items()}):
        cluster = make_cluster(3, memory_limit=8 << 20)
    first, second, third = cluster.workers
    with Client(cluster) as client:
        filler = client.scatter(np.zeros(900_000), workers=second, hash=False)
        futures = client.scatter(
            [np.full(200_000, i) for i in range(3)], workers=first, hash=False, replicas=2
        )
        assert all(names_of(client, future) == {first, third} for future in futures)
        del filler


def test_workers_of_a_host_share_what_is_broadcast(make_cluster: MakeCluster) -> None:
    """The memory that files of all workers take is that of the value, whoever has read it."""
    cluster = make_cluster(4, False)
    with Client(cluster) as client:
        paths = [peer.segments for peer in client._peers.workers()]

        def used() -> int:
            """Pages of payload files; of arenas and tables there are a few beside, and what is ready for the next value."""
            entries = [entry for path in paths for entry in os.scandir(path)]
            found = [entry.stat() for entry in entries if not entry.name.startswith(POOL_FILE)]
            return sum(512 * stat.st_blocks for stat in found if stat.st_blocks > 10_000)

        value = np.arange(12_500_000)  # 100 MB
        future = client.scatter(value, broadcast=True)
        for name in cluster.workers:
            assert client.submit(np.sum, future, workers=name, pure=False).result(20) == value.sum()
        assert value.nbytes <= used() < 1.01 * value.nbytes
        assert client.usage().nbytes == pytest.approx(value.nbytes, rel=0.01)
        assert len(names_of(client, future)) == 1


def test_broadcast_is_one_copy_a_host(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(4, ["a", "a", "b", "c"])
    with Client(cluster) as client:
        assert len(names_of(client, client.scatter(np.arange(SIZE), broadcast=True))) == 3
        assert len(names_of(client, client.scatter(np.zeros(SIZE), broadcast=2))) == 2
    cluster = make_cluster(2, False)
    with Client(cluster) as client:
        assert len(names_of(client, client.scatter(np.arange(SIZE), broadcast=True))) == 1
    assert len(ordinals(cluster)) == 2
