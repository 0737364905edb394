"""`restart_workers`: the processes of some workers are new, what they ran runs again, and what was computed stays."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from redist import Client, Event, LocalCluster
from redist.errors import ActorLost, WorkerGone
from servers import wait_until


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


def worker_of(client: Client, number: int) -> tuple[str, str]:
    """Address and name of a worker."""
    address, worker = list(client.scheduler_info()["workers"].items())[number]
    return address, worker["name"]


def once(path: str) -> str:
    """Wait for ever the first time, return the second."""
    if os.path.exists(path):
        return "again"
    Path(path).touch()
    Event("never").wait()
    return "first"


class Counter:
    n = 0

    def increment(self) -> int:
        self.n += 1
        return self.n


def test_simple(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        (first, name), (second, _) = worker_of(client, 0), worker_of(client, 1)
        before = client.run(os.getpid)
        kept = client.submit(bytes, 100_000, workers=first)
        kept.result()
        assert client.restart_workers([name]) == {name: "OK"}
        after = client.run(os.getpid)
        assert after[first] != before[first]
        assert after[second] == before[second]
        assert client.who_has(kept) == {kept.key: (first,)}
        assert client.restart_workers([first, second], timeout="30 s") == {first: "OK", second: "OK"}
        assert client.run(os.getpid)[second] != before[second]
        assert len(kept.result()) == 100_000


def test_what_runs_there_runs_again_and_is_not_blamed(own_cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(own_cluster) as client:
        address, _ = worker_of(client, 0)
        for i in range(5):  # more often than a task may kill its process
            path = tmp_path / str(i)
            future = client.submit(once, str(path), workers=address)
            wait_until(path.exists, what="the task runs")
            client.restart_workers([address])
            assert future.result(20) == "again"
        actor = client.submit(Counter, actor=True, workers=address).result()
        assert actor.increment().result() == 1
        client.restart_workers([address])
        with pytest.raises(ActorLost):
            actor.increment().result()


def test_who_is_not_there(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        address, _ = worker_of(client, 0)
        with pytest.raises(WorkerGone, match="no worker 'elsewhere'"):
            client.restart_workers(["elsewhere", address])
        found: Any = client.restart_workers(["elsewhere", address], raise_for_error=False)
        assert found == {"elsewhere": "removed", address: "OK"}
        assert client.restart_workers([]) == {}
        with pytest.raises(TimeoutError, match=r"not start again within 0 s: \['tcp"):
            client.restart_workers([address], timeout=0)
        assert client.restart_workers([address], timeout=0, raise_for_error=False) == {address: "timed out"}
        wait_until(lambda: client.submit(sum, [1], workers=address, pure=False).result(20) == 1)


def test_asynchronous(own_cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(own_cluster, asynchronous=True) as client:
            before = await client.run(os.getpid)
            assert await client.restart_workers(list(before)) == dict.fromkeys(before, "OK")
            after = await client.run(os.getpid)
            assert not set(after.values()) & set(before.values())
            assert await client.submit(sum, [1, 2]) == 3

    asyncio.run(main())


def test_in_a_task(own_cluster: LocalCluster) -> None:
    def renew(address: str) -> Any:
        from redist import get_client

        return get_client().restart_workers([address])

    with Client(own_cluster) as client:
        (first, _), (second, _) = worker_of(client, 0), worker_of(client, 1)
        assert client.submit(renew, second, workers=first).result(30) == {second: "OK"}


def test_a_restart_that_waits_for_no_worker(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        assert client.submit(abs, -1).result(20) == 1
        pids = [worker["pid"] for worker in client.scheduler_info()["workers"].values()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            held = client.scatter(1)
            assert client.restart(timeout=5, wait_for_workers=False) is None
            assert held.cancelled()
            with pytest.raises(TimeoutError, match="workers are here"):
                client.restart(timeout=1)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        client.wait_for_workers(len(pids), timeout=20)
        assert client.submit(abs, -2).result(20) == 2


def test_a_restart_is_over_when_every_process_is_new(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        for _ in range(3):
            before = client.run(os.getpid)
            client.restart()
            after = client.run(os.getpid)
            assert after.keys() == before.keys()
            assert set(after.values()).isdisjoint(before.values())
