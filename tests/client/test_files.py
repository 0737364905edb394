"""Files of a client, and the mapping of datasets, current clients and shutdown."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import msgpack
import numpy as np
import pytest
import yaml

from redist import Client, Future, LocalCluster, current, get_client
from redist.errors import DatasetExists, NoScheduler
from servers import wait_until

# --- scheduler file -------------------------------------------------------------------------------------------------


def test_a_client_finds_the_cluster_by_a_file(client: Client, tmp_path: Path) -> None:
    path = str(tmp_path / "scheduler.json")
    assert client.write_scheduler_file(path) is None
    with Client(scheduler_file=path, set_as_default=False) as other:
        assert (other.url, other.namespace) == (client.url, client.namespace)
        assert other.scheduler_file == path
        client.publish_dataset(1, name="in a file")
        assert other.get_dataset("in a file") == 1
        other.unpublish_dataset("in a file")
        with pytest.raises(ValueError, match="already"):
            other.write_scheduler_file(path)
    assert client.scheduler_info()["n_workers"] == 2  # the other closed no cluster
    with pytest.raises(ValueError, match="already"):
        client.write_scheduler_file(path)
    assert "workers" in json.loads(Path(path).read_text())
    with pytest.raises(ValueError, match="names address"):
        Client(client.url, scheduler_file=path)
    with pytest.raises(TypeError, match="options of a local cluster"):
        Client(scheduler_file=path, n_workers=2)


def test_a_file_that_could_not_be_written_is_written_elsewhere(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        client.write_scheduler_file(str(tmp_path / "no directory" / "file"))
    client.write_scheduler_file(str(tmp_path / "file"))
    with pytest.raises(ValueError, match="has a scheduler file already"):
        client.write_scheduler_file(str(tmp_path / "another"))


def test_the_file_is_waited_for(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    with pytest.raises(TimeoutError, match="is not there"):
        Client(scheduler_file=str(path), timeout=0.05)
    path.write_text("{}")
    with pytest.raises(TimeoutError, match="names no address"):
        Client(scheduler_file=str(path), timeout=0.05)
    writing = threading.Timer(0.05, client.write_scheduler_file, [str(path)])
    writing.start()
    Client(scheduler_file=str(path), set_as_default=False).close()
    writing.join()


# --- dump -----------------------------------------------------------------------------------------------------------


def test_a_dump(client: Client, tmp_path: Path) -> None:
    held = client.submit(np.zeros, 1000, key="held")
    odd = client.submit(abs, -1, key=("odd", 1))
    client.gather([held, odd])
    client.dump_cluster_state(str(tmp_path / "dump"))
    with gzip.open(tmp_path / "dump.msgpack.gz") as file:
        packed = msgpack.unpackb(file.read(), strict_map_key=False)
    client.dump_cluster_state(str(tmp_path / "dump.yaml"), format="yaml")
    state = yaml.safe_load((tmp_path / "dump.yaml").read_text())
    assert packed["namespace"] == state["namespace"] == client.namespace
    for dump in (packed, state):
        assert dump["state"]["key:held"]["state"] == "memory"
        assert "key:('odd', 1)" in dump["state"]
        assert "schema" in dump["state"]["meta"]
        assert "secret" not in dump["state"]["meta"]
        assert set(dump["scheduler"]["workers"]) == set(client.scheduler_info()["workers"])
        assert "python" in dump["versions"]["packages"]
    client.dump_cluster_state(str(tmp_path / "less"), exclude=["key", "meta", "versions"], format="yaml")
    less = yaml.safe_load((tmp_path / "less.yaml").read_text())
    assert "versions" not in less
    assert not [key for key in less["state"] if key == "meta" or key.startswith("key:")]
    with pytest.raises(ValueError, match="format"):
        client.dump_cluster_state(str(tmp_path / "x"), format="json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="options of a URL"):
        client.dump_cluster_state(str(tmp_path / "x"), anon=True)
    with pytest.raises(NoScheduler):
        client.dump_cluster_state(str(tmp_path / "x"), write_from_scheduler=True)
    client.dump_cluster_state("memory://dumps/of-a-test")
    import fsspec

    with fsspec.open("memory://dumps/of-a-test.msgpack.gz") as file:
        assert msgpack.unpackb(gzip.decompress(file.read()))["namespace"] == client.namespace


# --- datasets -------------------------------------------------------------------------------------------------------


def test_datasets_as_a_mapping(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    assert len(client.datasets) == 0
    client.datasets["x"] = [1, 2]
    client.datasets["y", 1] = "tuple"
    assert other.datasets["x"] == [1, 2]
    assert "x" in other.datasets
    assert "z" not in other.datasets
    assert 5 not in other.datasets
    assert sorted(map(str, other.datasets)) == ["('y', 1)", "x"]
    assert dict(other.datasets) == {"x": [1, 2], ("y", 1): "tuple"}
    with pytest.raises(DatasetExists):
        other.datasets["x"] = 3
    assert other.datasets.get("z", 7) == 7
    assert other.datasets.pop(("y", 1)) == "tuple"
    del other.datasets["x"]
    assert list(client.datasets) == []
    with pytest.raises(KeyError):
        client.datasets["x"]
    del client.datasets["x"]  # as in Dask, there need be none
    with pytest.raises(TypeError, match="for name in"):
        client.datasets.__aiter__().__anext__().send(None)


def test_datasets_of_an_asynchronous_client(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await client.publish_dataset(5, name="of a loop")
            assert await client.datasets["of a loop"] == 5
            assert [name async for name in client.datasets] == ["of a loop"]
            for refused in (
                lambda: client.datasets.__setitem__("x", 1),
                lambda: client.datasets.__delitem__("x"),
                lambda: len(client.datasets),
                lambda: list(client.datasets),
                lambda: "x" in client.datasets,
            ):
                with pytest.raises(TypeError, match="with an asynchronous client use"):
                    refused()
            await client.unpublish_dataset("of a loop")

    asyncio.run(main())


# --- current clients ------------------------------------------------------------------------------------------------


def test_current_clients(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    assert Client.current() is client
    with pytest.raises(ValueError, match="as_current"):
        Client.current(allow_global=False)
    with other.as_current():
        assert Client.current() is other
        assert Client.current(allow_global=False) is other
        with client.as_current():
            assert Client.current(allow_global=False) is client
        assert get_client() is other
    assert Client.current() is client

    def inside() -> bool:
        return Client.current() is get_client()

    assert client.submit(inside).result()


def test_clients_that_come_and_go_in_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some:
        closed = asynchronous = False
        _pid = os.getpid()

    monkeypatch.setattr(current, "_living", weakref.WeakSet())
    monkeypatch.setattr(current, "_defaults", [])
    monkeypatch.setattr(current, "_of_tasks", lambda: None)  # Dask's settings stay
    stay: list[Any] = [[Some() for _ in range(300)] for _ in range(4)]
    errors: list[BaseException] = []

    def come(clients: list[Any]) -> None:
        try:
            for client in clients:
                current.register(client, default=True)
                current.register(passing := cast(Any, Some()), default=True)
                current.living_clients()
                current.inherited_client()
                current.unregister(passing)
        except BaseException as error:
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=come, args=(clients,)) for clients in stay]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert errors == []
    everybody = {client for clients in stay for client in clients}
    assert set(current.living_clients()) == everybody
    assert {ref() for ref in current._defaults} == everybody


def test_futures_and_what_is_not_there(client: Client) -> None:
    one, two = client.map(abs, [-1, -2])
    assert client.futures_of({"a": [one], "b": (two, [one])}) == [one, two]
    assert client.futures_of([1, "a"]) == []
    assert all(isinstance(future, Future) for future in client.futures_of([one]))
    assert client.dashboard_link is None
    for missing in (client.story, client.get_scheduler_logs):
        with pytest.raises(NoScheduler, match="no scheduler process"):
            missing()


# --- the end --------------------------------------------------------------------------------------------------------


def workers_of(cluster: LocalCluster) -> int:
    with Client(cluster, set_as_default=False) as client:
        return int(client.scheduler_info()["n_workers"])


def test_shutdown_of_a_client_with_an_address_ends_the_workers() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        client = Client(cluster.endpoint.url, namespace=cluster.endpoint.namespace)
        assert client.submit(abs, -1).result() == 1
        client.shutdown()
        assert client.status == "closed"
        assert workers_of(cluster) == 0
        client.shutdown()  # and again


def test_shutdown_of_an_asynchronous_client_and_of_a_cluster() -> None:
    with LocalCluster(n_workers=1) as cluster:

        async def main() -> None:
            client = await Client(
                cluster.endpoint.url, namespace=cluster.endpoint.namespace, asynchronous=True
            )
            await client.shutdown()
            assert client.status == "closed"

        asyncio.run(main())
        assert workers_of(cluster) == 0
    with LocalCluster(n_workers=1) as cluster:
        client = Client(cluster)
        client.shutdown()
        assert cluster.status == "closed"


def test_a_task_shuts_down() -> None:
    with LocalCluster(n_workers=1) as cluster, Client(cluster) as client:
        future = client.submit(lambda: get_client().shutdown())
        wait_until(lambda: workers_of(cluster) == 0)
        del future


def test_asynchronous_files(cluster: LocalCluster, tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            path = str(tmp_path / "scheduler.json")
            await client.write_scheduler_file(path)
            async with Client(scheduler_file=path, asynchronous=True) as other:
                assert other.namespace == client.namespace
            await client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
            dump: dict[str, Any] = yaml.safe_load((tmp_path / "dump.yaml").read_text())
            assert dump["namespace"] == client.namespace

    asyncio.run(main())
