"""kill -9 of each kind of process while a client's graph runs: the result is the one of an undisturbed run."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np

from redist import Client, Future, LocalCluster
from redist.store.server import EmbeddedServer
from servers import wait_until

PARTS, SIZE = 40, 10_000


def part(i: int) -> Any:
    time.sleep(0.02)
    return np.full(SIZE, i)


def total(*parts: Any) -> int:
    return int(sum(part.sum() for part in parts))


def run_graph(client: Client) -> Future[int]:
    """Start a graph of three levels, and return when it is running."""
    parts = client.map(part, range(PARTS), pure=False)
    totals = [client.submit(total, *parts[i : i + 8], pure=False) for i in range(0, PARTS, 8)]
    whole = client.submit(sum, totals, pure=False)
    wait_until(lambda: any(future.done() for future in parts))
    assert not whole.done()
    return whole


RESULT = sum(range(PARTS)) * SIZE


def test_the_server_with_a_log(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "server", persistent=True) as server:
        with LocalCluster(n_workers=2, threads_per_worker=1, address=server.url) as cluster:
            with Client(cluster) as client:
                kept = client.scatter(np.arange(SIZE))
                whole = run_graph(client)
                os.kill(server.pid, signal.SIGKILL)
                server.stop()
                server.start()
                assert whole.result(40) == RESULT
                assert kept.result(20)[-1] == SIZE - 1
                assert client.submit(part, 1).result(20)[0] == 1


def test_workers_and_executors(cluster: LocalCluster, client: Client) -> None:
    whole = run_graph(client)
    os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)
    assert whole.result(40) == RESULT
    client.wait_for_workers(2, 20)
    whole = run_graph(client)
    os.kill(client.submit(os.getpid, priority=1, pure=False).result(20), signal.SIGKILL)
    assert whole.result(40) == RESULT
