"""Values move: to even out workers, and away from those that retire."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from copies.conftest import MakeCluster, kill, names_of
from redist import Client, LocalCluster
from redist.errors import NoWorkers
from redist.levelling import Load, level
from servers import ordinals, set_apart, wait_until

SIZE = 50_000


def held(client: Client) -> dict[str, int]:
    """How many values each worker has, by name."""
    info = client.scheduler_info()["workers"]
    return {info[address]["name"]: len(keys) for address, keys in client.has_what().items()}


# --- which -----------------------------------------------------------------------------------------------------------


def totals(loads: list[Load], moves: list[tuple[str, int, int]]) -> dict[int, int]:
    found = {load.worker: sum(load.sizes.values()) for load in loads}
    sizes = {key: size for load in loads for key, size in load.sizes.items()}
    for key, sender, receiver in moves:
        found[sender] -= sizes[key]
        found[receiver] += sizes[key]
    return found


def test_level() -> None:
    loads = [Load(1, {f"a{i}": 10 for i in range(100)}), Load(2, {}), Load(3, {"b": 10})]
    moves = level(loads)
    assert max(totals(loads, moves).values()) - min(totals(loads, moves).values()) <= 20
    assert len({key for key, _, _ in moves}) == len(moves)
    assert level(loads, ["a0"]) == [("a0", 1, 2)]


def test_level_leaves_what_cannot_be_better() -> None:
    assert level([]) == []
    assert level([Load(1, {"a": 100}), Load(2, {})]) == []
    assert level([Load(1, {"a": 100, "b": 1}), Load(2, {"a": 100})]) == []
    assert level([Load(1, {"a": 100, "b": 90}), Load(2, {})]) == [("b", 1, 2)]


# --- rebalance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [True, False])
def test_rebalance(make_cluster: MakeCluster, apart: bool) -> None:
    cluster = make_cluster(3, apart)
    first = next(iter(cluster.workers))
    with Client(cluster) as client:
        futures = client.scatter([np.full(SIZE, i) for i in range(30)], workers=first, hash=False)
        assert held(client)[first] == 30
        client.rebalance(futures[:2], workers=list(cluster.workers)[:2])
        assert sorted(held(client).values()) == [0, 2, 28]
        client.rebalance()
        assert sorted(held(client).values()) == [10, 10, 10]
        assert [int(array[0]) for array in client.gather(futures)] == list(range(30))
        wait_until(lambda: client.usage().nbytes == sum(client.nbytes(futures, summary=False).values()))


def test_a_sender_dies_in_the_middle(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(1, False)
    with Client(cluster) as client:
        futures = client.map(np.full, [SIZE] * 10, range(10))
        client.gather(futures)
        cluster.scale(3)
        set_apart(cluster)
        first, second, third = cluster.workers
        os.kill(cluster.workers[second].pid, signal.SIGSTOP)
        moving = threading.Thread(target=client.rebalance, kwargs={"timeout": 60})
        moving.start()
        wait_until(lambda: held(client)[third] > 0)
        kill(cluster, first)
        os.kill(cluster.workers[second].pid, signal.SIGCONT)
        moving.join(60)
        assert [int(array[0]) for array in client.gather(futures)] == list(range(10))


def test_a_receiver_dies_in_the_middle(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    first, second = cluster.workers
    with Client(cluster) as client:
        futures = client.scatter([np.full(SIZE, i) for i in range(10)], workers=first, hash=False)
        os.kill(cluster.workers[second].pid, signal.SIGSTOP)
        moving = threading.Thread(target=client.rebalance, kwargs={"timeout": 60})
        moving.start()
        wait_until(lambda: _coming(cluster))
        kill(cluster, second)
        moving.join(60)
        assert [int(array[0]) for array in client.gather(futures)] == list(range(10))
        assert held(client) == {first: 10}


def _coming(cluster: LocalCluster) -> int:
    wire = cluster.endpoint.open()
    try:
        count: int = wire.call("ZCARD", f"{cluster.endpoint.prefix}short")
        return count
    finally:
        wire.close()


def test_two_rebalance_at_once(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    first = next(iter(cluster.workers))
    with Client(cluster) as ada, Client(cluster, set_as_default=False) as bob:
        futures = ada.scatter([np.full(SIZE, i) for i in range(30)], workers=first, hash=False)
        threads = [threading.Thread(target=client.rebalance) for client in (ada, bob, ada, bob)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [int(array[0]) for array in ada.gather(futures)] == list(range(30))
        assert min(held(ada).values()) >= 5


# --- retire ----------------------------------------------------------------------------------------------------------


def test_retire_workers(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    first, second, third = cluster.workers
    with Client(cluster) as client:
        futures = client.scatter([np.full(SIZE, i) for i in range(9)], hash=False)
        address = next(a for a, w in client.scheduler_info()["workers"].items() if w["name"] == first)
        retired = client.retire_workers([address])
        assert list(retired) == [address]
        assert retired[address]["name"] == first
        assert set(ordinals(cluster)) == {second, third}
        client.retire_workers(names=second)
        wait_until(lambda: list(cluster.workers) == [third])
        assert [int(array[0]) for array in client.gather(futures)] == list(range(9))
        with pytest.raises(NoWorkers, match="no worker would be left"):
            client.retire_workers(names=[third])
        with pytest.raises(TypeError, match="say which workers"):
            client.retire_workers()
        assert client.retire_workers(["nobody"]) == {}
        assert client.submit(abs, -1).result(10) == 1
        cluster.scale(2)
        assert len(ordinals(cluster)) == 2


def test_a_retiring_worker_does_its_tasks(make_cluster: MakeCluster, tmp_path: Path) -> None:
    cluster = make_cluster(2)
    first, second = cluster.workers
    gate = tmp_path / "gate"

    def slow(path: str) -> np.ndarray:
        while not os.path.exists(path):
            time.sleep(0.005)
        return np.arange(SIZE)

    with Client(cluster) as client:
        future = client.submit(slow, str(gate), workers=first)
        wait_until(lambda: any(client.processing().values()))
        assert client.retire_workers(names=[first])
        assert {w["name"]: w["status"] for w in client.scheduler_info()["workers"].values()} == {
            first: "closing",
            second: "running",
        }
        others = client.map(abs, range(-5, 0))
        assert client.gather(others) == [5, 4, 3, 2, 1]
        gate.touch()
        assert future.result(20)[-1] == SIZE - 1
        wait_until(lambda: list(ordinals(cluster)) == [second], 20)
        assert names_of(client, future) == {second}


def test_retired_and_not_closed(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(2)
    first, second = cluster.workers
    with Client(cluster) as client:
        future = client.scatter(np.arange(SIZE), workers=first, hash=False)
        client.retire_workers(names=[first], close_workers=False)
        assert names_of(client, future) == {first, second}
        assert set(ordinals(cluster)) == {first, second}


@pytest.mark.parametrize("who", ["retiring", "receiving"])
def test_killed_while_retiring(make_cluster: MakeCluster, who: str) -> None:
    cluster = make_cluster(1, False)
    with Client(cluster) as client:
        futures = client.map(np.full, [SIZE] * 10, range(10))
        client.gather(futures)
        cluster.scale(3)
        set_apart(cluster)
        first, second, third = cluster.workers
        for name in (second, third):
            os.kill(cluster.workers[name].pid, signal.SIGSTOP)
        retiring = threading.Thread(target=client.retire_workers, kwargs={"names": [first], "timeout": 60})
        retiring.start()
        wait_until(lambda: _coming(cluster))
        kill(cluster, first if who == "retiring" else second)
        for name in cluster.workers:
            if name != first:
                os.kill(cluster.workers[name].pid, signal.SIGCONT)
        retiring.join(60)
        assert not retiring.is_alive()
        assert [int(array[0]) for array in client.gather(futures)] == list(range(10))
        wait_until(lambda: first not in ordinals(cluster))


def test_n_workers_retire(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    first = next(iter(cluster.workers))
    with Client(cluster) as client:
        future = client.scatter(np.arange(SIZE), workers=first, hash=False)
        client.retire_workers(n=2)
        assert list(ordinals(cluster)) == [first]
        assert names_of(client, future) == {first}


def test_in_a_loop(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(3)
    first = next(iter(cluster.workers))

    async def program() -> None:
        async with Client(cluster, asynchronous=True) as client:
            futures = await client.scatter([np.full(SIZE, i) for i in range(6)], workers=first, hash=False)
            await client.replicate(futures[0], n=2)
            assert len((await client.who_has(futures[0]))[futures[0].key]) == 2
            await client.rebalance()
            assert min(map(len, (await client.has_what()).values())) >= 1
            assert len(await client.retire_workers(names=[first])) == 1
            assert [int(array[0]) for array in await client.gather(futures)] == list(range(6))

    asyncio.run(program())
