"""The server of a local cluster is killed: nobody can start it again, so nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, LocalCluster
from redist.errors import ConnectionLost

GONE = "embedded server ended by itself, with exit status 137; all that it held is gone"


def kill(cluster: LocalCluster) -> None:
    assert cluster.server is not None
    assert cluster.server.pid is not None
    os.kill(cluster.server.pid, signal.SIGKILL)


def test_calls_that_wait_and_later_ones() -> None:
    with Client(n_workers=1, threads_per_worker=1) as client:
        waited_for = client.submit(time.sleep, 60)
        assert client.cluster.status == "running"
        kill(client.cluster)
        calls: list[Callable[[], Any]] = [
            lambda: waited_for.result(30),
            lambda: client.submit(abs, -2).result(30),
            lambda: client.scatter(5),
            lambda: client.list_datasets(),
        ]
        for call in calls:
            with pytest.raises(ConnectionLost, match=GONE):
                call()
        assert client.cluster.status == "failed"
    assert client.cluster.status == "closed"


def test_an_asynchronous_client() -> None:
    async def main() -> None:
        async with Client(n_workers=1, threads_per_worker=1, asynchronous=True) as client:
            waited_for = client.submit(time.sleep, 60)
            kill(client.cluster)
            with pytest.raises(ConnectionLost, match=GONE):
                await asyncio.wait_for(waited_for.result(), 30)
            with pytest.raises(ConnectionLost, match=GONE):
                await client.scatter(5)

    asyncio.run(main())
