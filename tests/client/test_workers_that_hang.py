"""Workers that are stopped, or dead and not given up yet: who stores a value goes elsewhere, or is told which it is."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import redist
from redist import Client, LocalCluster
from redist.diagnostics.memory import read_memory
from redist.errors import TransferError
from redist.memory import broker_client
from redist.memory.broker_client import BrokerClient
from redist.memory.patience import patience
from redist.store.side import Side
from servers import wait_until

#: s until a call must have ended: less than a reservation is waited for
LONGEST = 40.0


@contextmanager
def running(workers: int, lease: str, **options: Any) -> Iterator[tuple[LocalCluster, Client]]:
    with (
        redist.config.set({"worker.lease": lease}),
        LocalCluster(n_workers=workers, threads_per_worker=1, restart=False, **options) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield cluster, client


@contextmanager
def stopped(cluster: LocalCluster, *, whole: bool = False) -> Iterator[None]:
    """The first worker is stopped meanwhile, or it and the processes that run its tasks."""
    worker = psutil.Process(next(iter(cluster.workers.values())).pid)
    processes = [worker, *(worker.children(recursive=True) if whole else ())]
    for process in processes:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            if process.is_running():
                os.kill(process.pid, signal.SIGCONT)


def soon(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call it, and have it end in time."""
    with ThreadPoolExecutor() as pool:
        return pool.submit(function, *args, **options).result(LONGEST)


def test_a_value_goes_to_another_worker_as_soon_as_one_is_given_up() -> None:
    with running(2, "2 s") as (cluster, client), stopped(cluster):
        # in turn: one of two is meant for the one that is stopped
        futures = [
            soon(client.scatter, {f"s{i}": np.full(100_000, i)}, timeout=LONGEST)[f"s{i}"] for i in range(2)
        ]
        assert [int(value[0]) for value in client.gather(futures)] == [0, 1]
        assert soon(lambda: client.submit(len, bytes(300_000)).result()) == 300_000
        del futures


def test_values_in_parts_go_to_another_worker_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one part is made known the next is written."""
    monkeypatch.setattr("redist.scattering._PART", 1)
    with running(2, "2 s") as (cluster, client), stopped(cluster):
        futures = soon(client.scatter, [np.full(100_000, i) for i in range(4)], timeout=LONGEST)
        assert [int(value[0]) for value in client.gather(futures)] == [0, 1, 2, 3]
        del futures


@pytest.mark.parametrize("size", [5_000, 100_000], ids=["small", "large"])
@pytest.mark.parametrize("afar", [False, True], ids=["on this host", "on another host"])
def test_a_stopped_worker_is_waited_for_as_long_as_the_caller_says(
    monkeypatch: pytest.MonkeyPatch, afar: bool, size: int
) -> None:
    if afar:
        monkeypatch.setattr("redist.peers.same_host", lambda segments, hostid: False)
    with running(1, "300 s") as (cluster, client):
        with stopped(cluster):
            said = r"^worker 'local-0' .*did not answer .*; 's' was not stored: start a worker, or try again"
            with pytest.raises(TransferError, match=said):
                soon(client.scatter, {"s": bytes(size)}, timeout=1)
            words = r"did not answer .*'s' and 2 more were not stored"
            with pytest.raises(TransferError, match=words):
                soon(client.scatter, {key: bytes(size) for key in ("s", "t", "u")}, timeout=1)
        # it goes on, and nothing is left of what it was asked for
        future = soon(client.scatter, {"s": bytes(size)}, timeout=LONGEST)["s"]
        assert len(future.result(LONGEST)) == size
        del future
        wait_until(
            lambda: client.memory().total.granted == 0 and not client.who_has(), what="nothing is left"
        )


def test_a_dead_worker_is_waited_for_and_named() -> None:
    with running(1, "300 s") as (cluster, client):
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
        said = r"^worker 'local-0' cannot be reached \(Connection refused\): it has died, .*; 'q' was not stored: start"
        with pytest.raises(TransferError, match=said):
            soon(client.scatter, {"q": [1] * 100_000}, timeout=0.5)
        with ThreadPoolExecutor() as pool:
            began = threading.Event()
            client._peers.forget, forget = lambda: (began.set(), forget())[1], client._peers.forget  # type: ignore[method-assign]
            stored = pool.submit(client.scatter, {"q": [1] * 100_000}, timeout=LONGEST)
            assert began.wait(LONGEST)  # it was refused once
            cluster.scale(2)
            (future,) = stored.result(LONGEST).values()
            assert len(client.gather(future)) == 100_000
            del future, stored


def test_a_worker_that_does_not_read_is_waited_for_as_long_as_the_caller_says(tmp_path: Path) -> None:
    """Neither what it is sent has room, nor does it accept any more."""
    address = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(0)
        with BrokerClient(address) as client:
            headers = [broker_client.header_for(f"{i:0200}", 1, bytes_payload()) for i in range(20_000)]
            with pytest.raises(TransferError, match=r"the worker did not read within 0\.1 s"):
                soon(in_patience, client.reserve, headers)
            kept = []
            with pytest.raises(TransferError, match="cannot be reached"):
                for _ in range(10):
                    kept.append(soon(in_patience, client._connect))  # noqa: PERF401 - they stay open when it raises


def bytes_payload() -> Any:
    from redist.protocol import dumps

    return dumps(bytes(100_000), inline_limit=0)


def in_patience(function: Callable[..., Any], *args: Any) -> Any:
    with patience(0.1, lambda: None):
        return function(*args)


def never_given_up(cluster: LocalCluster) -> None:
    wire = cluster.endpoint.open()
    wire.call("HSET", f"{cluster.endpoint.prefix}meta", "quiet_until", 1 << 50)
    wire.close()


def why_late(client: Client) -> str:
    future = client.submit(abs, -1, key="late")
    try:
        with pytest.raises(TimeoutError) as caught:
            future.result(0.05)
        return str(caught.value)
    finally:
        future.release()


def test_a_result_that_comes_late_since_the_worker_is_not_heard_of_says_so() -> None:
    with running(1, "2 s") as (cluster, client):
        never_given_up(cluster)
        with stopped(cluster, whole=True), closing(Side(cluster.endpoint)) as side:
            said: list[str] = []

            def last() -> str:
                said.append(why_late(client))
                return said[-1]

            wait_until(lambda: "its lease has run out" in last())
            assert said[-1].startswith("'late' did not finish in time (worker local-0 was not heard of for ")
            (worker,) = client.memory().workers
            assert worker.status == "late"
            assert "late" in str(read_memory(side))
        wait_until(lambda: client.memory().workers[0].status == "running")


def test_a_result_that_comes_late_since_workers_are_paused_says_so() -> None:
    settings = {
        "worker.memory.pause": 0.01,
        "worker.memory.longest-pause": "1 h",
        "worker.memory.terminate": False,
    }
    with (
        redist.config.set(settings),
        pytest.warns(UserWarning, match="is less than a worker's own processes need"),
        running(2, "300 s", memory_limit="100 MB") as (_, client),
    ):
        wait_until(lambda: {worker.status for worker in client.memory().workers} == {"paused"})
        words = r"\(worker local-\d is paused: memory [\d.]+ MiB of 95\.4 MiB; nor does 1 more take tasks\)$"
        wait_until(lambda: "is paused" in why_late(client))
        with pytest.raises(TimeoutError, match=words):
            client.submit(abs, -2).result(0.05)
