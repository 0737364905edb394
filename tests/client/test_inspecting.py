"""What can be asked of a cluster: versions, sizes, call stacks, who has what."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Client, LocalCluster, wait
from redist.usage import Usage
from servers import wait_until


@pytest.fixture
def go_on(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "go on"
    yield str(path)
    path.touch()


def until_there(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.01)


def addresses(client: Client) -> set[str]:
    return set(client.scheduler_info()["workers"])


def test_versions(client: Client) -> None:
    versions = client.get_versions(check=True, packages=["click", "no-such-package"])
    assert set(versions) == {"scheduler", "workers", "client"}
    assert set(versions["workers"]) == addresses(client)
    for found in (versions["client"], *versions["workers"].values()):
        assert found["packages"]["python"] == ".".join(map(str, sys.version_info))
        assert found["packages"]["numpy"] == np.__version__
        assert found["packages"]["click"]
        assert found["packages"]["no-such-package"] is None
        assert found["host"]["byteorder"] == sys.byteorder
    assert "valkey" in versions["scheduler"]["packages"]


def test_versions_that_differ(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0" if name == "numpy" else version(name))
    with pytest.raises(ValueError, match="numpy: 0 in this client"):
        client.get_versions(check=True)
    assert client.get_versions()["client"]["packages"]["numpy"] == "0"


def test_nbytes(client: Client, new_client: Callable[..., Client], go_on: str) -> None:
    other = new_client(set_as_default=False)
    x, y = client.map(np.zeros, [1000, 2000], key="zeros")
    small = client.submit(abs, -1, key=("small", 1))
    wait([x, y, small])
    running = client.submit(until_there, go_on, key="running")
    assert client.nbytes(summary=False) == {f.key: f.nbytes for f in (x, y, small)}
    assert other.nbytes() == {"zeros": x.nbytes + y.nbytes, "small": small.nbytes}
    assert client.nbytes([x.key, small], summary=False) == {x.key: x.nbytes, small.key: small.nbytes}
    assert client.nbytes(["running"], summary=False) == {"running": -1}
    with pytest.raises(KeyError, match="nobody"):
        client.nbytes(["nobody"])
    Path(go_on).touch()
    running.result()


def test_usage_tells_of_small_values_too(
    cluster: LocalCluster, client: Client, new_client: Callable[..., Client]
) -> None:
    """They lie in the server, not on workers; a value that lies in neither has no bytes."""
    other = new_client(set_as_default=False)
    assert client.usage() == Usage(0, 0, 0, dict.fromkeys(cluster.workers, 0))
    small, bad = client.scatter("a small value"), client.submit(divmod, 1, 0)
    large = client.submit(np.zeros, 100_000)
    wait([bad, large])
    for asker in (client, other):
        usage = asker.usage()
        assert (usage.keys, usage.nbytes, usage.inline) == (3, large.nbytes, small.nbytes)
        assert sum(usage.by_worker.values()) == usage.nbytes
    assert small.nbytes > 0
    del small, large, bad
    wait_until(lambda: client.usage().keys == 0)
    assert client.usage().nbytes == client.usage().inline == 0


def test_call_stack(client: Client, new_client: Callable[..., Client], go_on: str) -> None:
    assert client.call_stack() == {}
    one, other = client.map(until_there, [go_on, go_on], key=["one", "other"], pure=False)
    after = client.submit(lambda _: None, one, key="after")
    done = client.submit(abs, -1)
    done.result()
    wait_until(lambda: str(client.call_stack()).count("in until_there") == 2)
    for asker in (client, new_client(set_as_default=False)):
        stacks = asker.call_stack()
        assert set(stacks) <= addresses(client)
        found = {key: frames for of_worker in stacks.values() for key, frames in of_worker.items()}
        assert set(found) == {"one", "other"}
        assert "in until_there\n\t" in found["one"][0]
    assert [set(s) for s in client.call_stack([one]).values()] == [{"one"}]
    assert [set(s) for s in client.call_stack(after).values()] == [{"one"}]
    assert [set(s) for s in client.call_stack(keys=["other"]).values()] == [{"other"}]
    assert client.call_stack(done) == {}
    with pytest.raises(KeyError, match="nobody"):
        client.call_stack(keys=["nobody"])
    Path(go_on).touch()
    client.gather([one, other, after])


def test_who_has_what(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    big = client.submit(np.zeros, 100_000, key="big")
    small = client.submit(abs, -1, key="small")
    wait([big, small])
    (address,) = client.who_has(big)["big"]
    assert client.who_has() == other.who_has() == {"big": (address,), "small": ()}
    assert other.who_has(["big"]) == {"big": (address,)}
    assert client.has_what()[address] == client.has_what(address)[address] == ("big",)
    assert client.has_what([address, "tcp://127.0.0.1:1"]) == {address: ("big",), "tcp://127.0.0.1:1": ()}
    assert client.nthreads() == client.ncores() == dict.fromkeys(addresses(client), 2)
    assert client.processing(workers=[address]) == {address: ()}


def test_scheduler_info_has_what_dask_tells(client: Client) -> None:
    info = client.scheduler_info()
    assert {"type", "id", "address", "services", "started", "n_workers", "total_threads", "total_memory", "workers"} <= set(
        info
    )  # fmt: skip
    for worker in info["workers"].values():
        assert {
            "type", "id", "host", "resources", "local_directory", "name", "nthreads", "memory_limit", "last_seen",
            "services", "metrics", "status", "nanny",
        } <= set(worker)  # fmt: skip
    assert client.scheduler_info(n_workers=1)["n_workers"] == 2
    assert len(client.scheduler_info(n_workers=1)["workers"]) == 1


def test_asynchronous(cluster: LocalCluster, go_on: str) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            versions = await client.get_versions(check=True)
            assert len(versions["workers"]) == 2
            future = client.submit(until_there, go_on, key="waits")
            stacks: dict[str, Any] = {}
            while not stacks:
                stacks = await client.call_stack(future)
            assert [set(s) for s in stacks.values()] == [{"waits"}]
            assert await client.nbytes(["waits"]) == {"waits": -1}
            assert await client.who_has() == {"waits": ()}
            Path(go_on).touch()
            await future

    asyncio.run(main())


def test_inside_a_task(client: Client) -> None:
    def look() -> tuple[int, int, set[Any]]:
        from redist import get_client

        client = get_client()
        keys = {key for stacks in client.call_stack().values() for key in stacks}
        return len(client.get_versions()["workers"]), len(client.who_has()), keys

    assert client.submit(look, key="look").result() == (2, 1, {"look"})
