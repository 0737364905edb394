"""`LocalCluster.adapt`: workers come with work and go without, and nothing is lost with them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Adaptive, Client, Event, LocalCluster
from servers import wait_until

QUICK: dict[str, Any] = {"interval": "50 ms", "wait_count": 2}


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def gate(client: Client) -> Iterator[Event]:
    """Tasks wait for it."""
    gate = Event("gate")
    yield gate
    gate.set()
    gate.clear()


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


def wait_in_a_task(i: int) -> int:
    Event("gate").wait()
    return i


def held(path: str) -> bool:
    """Run until the file is there: a task that waits, but for no other, and so keeps its thread."""
    threading.Event()
    while not Path(path).exists():
        threading.Event().wait(0.01)
    return True


class Counter:
    n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


def test_simple(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    adaptive = cluster.adapt(minimum=1, maximum=3, **QUICK)
    assert isinstance(adaptive, Adaptive)
    assert adaptive.state == "running"
    assert "1 to 3 workers, running" in repr(adaptive)
    futures = client.map(held, [str(tmp_path / "go")] * 10, pure=False)
    wait_until(lambda: len(client.scheduler_info()["workers"]) == 3, 30, "there are as many as there may be")
    (tmp_path / "go").touch()
    assert client.gather(futures) == [True] * 10
    wait_until(lambda: len(cluster.workers) == 1, 30, "what has nothing to do goes")
    assert {what["status"] for _, what in adaptive.log} == {"up", "down"}
    adaptive.stop()
    assert adaptive.state == "stopped"
    cluster.scale(2)
    assert len(cluster.workers) == 2


def test_none_and_back(cluster: LocalCluster, client: Client) -> None:
    cluster.adapt(minimum=0, maximum=2, **QUICK)
    wait_until(lambda: not client.scheduler_info()["workers"], 30, "nobody is needed")
    assert client.submit(sum, [1, 2]).result(30) == 3


def test_no_more_workers_than_tasks(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    adaptive = cluster.adapt(interval=0, maximum=8)
    assert adaptive.state == "inactive"
    futures = client.map(held, [str(tmp_path / "go")] * 3, pure=False)
    wait_until(lambda: adaptive._look().processing == 1)
    adaptive.adapt()
    assert len(cluster.workers) == 3
    adaptive.adapt()
    assert len(cluster.workers) == 3
    (tmp_path / "go").touch()
    client.gather(futures)


def test_what_is_done_soon_needs_no_more(cluster: LocalCluster, client: Client, tmp_path: Path) -> None:
    """Where the workers that there are run in time what is queued, there are no further ones."""
    adaptive = cluster.adapt(interval=0, maximum=8, target_duration="1 h")
    adaptive.adapt()
    client.gather(client.map(str, range(50)))
    futures = client.map(held, [str(tmp_path / "go")] * 5, pure=False)
    wait_until(lambda: adaptive._look().queued == 4)
    assert adaptive.target() == 1
    adaptive.target()  # nothing was handed out meanwhile
    assert adaptive.target() == 5
    (tmp_path / "go").touch()
    client.gather(futures)


def test_workers_that_are_needed_stay(cluster: LocalCluster, client: Client, gate: Event) -> None:
    """One runs a task that waits, one has an actor, and the last one has all the data."""
    cluster.scale(4)
    names = list(cluster.workers)
    waits = client.submit(wait_in_a_task, 1, workers=names[1])
    actor = client.submit(Counter, actor=True, workers=names[2]).result()
    array = client.submit(np.arange, 100_000, workers=names[3], allow_other_workers=True)
    array.result()
    adaptive = cluster.adapt(minimum=0, **QUICK)
    wait_until(lambda: len(cluster.workers) == 2, 30, "two have nothing to do")
    assert list(cluster.workers) == names[1:3]
    gate.set()
    assert waits.result(30) == 1
    wait_until(lambda: list(cluster.workers) == [names[2]], 30, "the task's goes")
    assert actor.increment().result(10) == 1
    del actor
    wait_until(lambda: adaptive._look().workers[names[2]].busy is False, 30, "the actor has gone")
    looks = len(adaptive._rests)
    assert looks <= 1
    assert array.result(10)[-1] == 99_999  # somebody took it over
    del array
    wait_until(lambda: not cluster.workers, 30, "nobody is needed")


def test_the_bytes_in_memory_need_workers() -> None:
    from redist import config

    never = dict.fromkeys(("target", "spill", "pause", "terminate"), False)
    with (
        config.set({f"worker.memory.{name}": value for name, value in never.items()}),
        LocalCluster(n_workers=2, threads_per_worker=1, memory_limit="3MB") as cluster,
        Client(cluster) as client,
    ):
        kept = client.scatter([np.full(250_000, i) for i in range(2)], hash=False)
        assert cluster.adapt(minimum_memory="4 MB", maximum_memory="10 MB", interval="1 m").maximum == 3
        adaptive = cluster.adapt(interval=0, wait_count=1)
        assert adaptive.minimum == 0
        wait_until(lambda: sum(w.nbytes for w in adaptive._look().workers.values()) > 4e6)
        beats = {w.beat for w in adaptive._look().workers.values()}
        adaptive.adapt()
        wait_until(lambda: not beats & {w.beat for w in adaptive._look().workers.values()})
        adaptive.adapt()
        assert len(cluster.workers) == 2
        del kept


def test_again_and_the_end(cluster: LocalCluster) -> None:
    first = cluster.adapt(minimum=1, maximum=5, interval="1 m")
    second = cluster.adapt(maximum_cores=6)
    assert first.state == "stopped"
    assert (second.minimum, second.maximum, second.interval) == (0, 6, 60)
    third = cluster.adapt(minimum_cores=2, maximum=6, maximum_cores=4)
    assert (third.minimum, third.maximum) == (2, 4)
    assert third.state == "running"
    cluster.close()
    assert third.state == "stopped"
    with pytest.raises(RuntimeError, match="is closed"):
        cluster.adapt()


def test_memory_needs_workers_with_a_limit() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=1, memory_limit=0) as cluster:
        with pytest.raises(ValueError, match="memory_limit"):
            cluster.adapt(maximum_memory="1 GiB")


def test_settings_and_arguments(cluster: LocalCluster) -> None:
    from redist import config

    with config.set({"adaptive.minimum": 1, "adaptive.maximum": 7, "adaptive.interval": "5 m"}):
        adaptive = cluster.adapt()
    assert (adaptive.minimum, adaptive.maximum, adaptive.interval) == (1, 7, 300)
    assert (adaptive.wait_count, adaptive.target_duration) == (3, 5)
    for wrong in ({"minimum": -1}, {"maximum": 1.5}, {"minimum": 3, "maximum": 2}, {"wait_count": "x"}):
        with pytest.raises(ValueError, match=r"(maximum|minimum|wait_count)="):
            cluster.adapt(**wrong)
    with pytest.raises(TypeError, match="minimun"):
        cluster.adapt(minimun=1)
    adaptive.close()


def test_a_target_of_ones_own(cluster: LocalCluster) -> None:
    class Two(Adaptive):
        def target(self) -> int:
            return 2

    cluster.adapt(Two, **QUICK, maximum=9)
    wait_until(lambda: len(cluster.workers) == 2)


def test_asynchronous(tmp_path: Path) -> None:
    async def main() -> None:
        async with LocalCluster(n_workers=0, threads_per_worker=1, asynchronous=True) as cluster:
            cluster.adapt(maximum=1, **QUICK)
            async with Client(cluster, asynchronous=True) as client:
                assert await client.submit(sum, [1, 2]) == 3

    asyncio.run(main())
