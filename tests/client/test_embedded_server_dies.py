"""The server of a local cluster is killed: nobody can start it again, so nobody waits for it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, LocalCluster
from redist.errors import ConnectionLost, RedistError

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


def test_the_cluster_was_closed_before_the_client(caplog: pytest.LogCaptureFixture) -> None:
    with LocalCluster(n_workers=0) as cluster:
        client = Client(cluster)
        waited_for = client.submit(abs, -1)
    with pytest.raises(ConnectionLost, match="the embedded server was stopped; all that it held is gone"):
        waited_for.result(30)
    client.close()
    assert "trying again" not in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_nothing_is_left_of_a_start_that_failed(
    asynchronous: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drivers: list[Any] = []
    adopt = Client._adopt
    monkeypatch.setattr(
        Client, "_adopt", lambda self, driver, where: drivers.append(driver) or adopt(self, driver, where)
    )

    async def start() -> None:
        await Client(n_workers=1, resources={"9": 1}, asynchronous=True)

    with pytest.raises(RedistError, match="ended with exit code 2 at its start"):
        asyncio.run(start()) if asynchronous else Client(n_workers=1, resources={"9": 1})
    (driver,) = drivers
    assert driver.closed
    assert f"redist-{driver.session.name}" not in {thread.name for thread in threading.enumerate()}
    assert "trying again" not in caplog.text
