"""Workers that cannot map each other's files, as on several hosts: payloads travel over TCP."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import redist
from redist import Client, LocalCluster, wait
from redist.errors import DeserializationError
from servers import set_apart, wait_until


def make(n: int) -> Any:
    return np.arange(n)


def where_and_last(array: Any) -> tuple[str, int]:
    return str(redist.get_worker().name), int(array[-1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        set_apart(cluster)
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        assert not any(peer.here for peer in client._peers.workers())
        yield client


def test_payloads_travel(client: Client, cluster: LocalCluster) -> None:
    first, second = cluster.workers
    there = client.submit(make, 200_000, workers=first)
    wait(there)
    assert len(client.who_has(there)[there.key]) == 1
    assert there.result(20)[-1] == 199_999  # to a client
    assert client.submit(where_and_last, there, workers=second).result(20) == (second, 199_999)
    # The worker that fetched it says that it has a copy now.
    wait_until(lambda: len(client.who_has(there)[there.key]) == 2)
    assert all(there.key in held for held in client.has_what().values())


class Broken:
    """What cannot be loaded, and too large to lie in the server."""

    def __reduce__(self) -> Any:
        return _break, (bytes(100_000),)


def _break(_: bytes) -> None:
    raise RuntimeError("not here")


def test_what_cannot_be_loaded_names_its_key_and_keeps_nothing_else_away(client: Client) -> None:
    futures = client.map(make, range(20_000, 20_040), pure=False)
    broken = client.submit(Broken, pure=False)
    wait([*futures, broken])
    with pytest.raises(DeserializationError, match=broken.key) as caught:
        client.gather([*futures, broken])
    assert "not here" in str(caught.value)
    assert [len(value) for value in client.gather(futures)] == list(range(20_000, 20_040))


def test_a_client_of_another_host_scatters(client: Client) -> None:
    futures = client.scatter([np.full(20_000, i) for i in range(4)])
    holders = [address for holder in client.who_has(futures).values() for address in holder]
    assert sorted(holders) == sorted(2 * list(client.scheduler_info()["workers"]))
    assert [int(value[0]) for value in client.gather(futures)] == [0, 1, 2, 3]


def test_broadcast(client: Client) -> None:
    future = client.scatter(np.arange(20_000), broadcast=True)
    assert len(client.who_has(future)[future.key]) == 2


def test_tasks_go_where_their_inputs_are(client: Client, cluster: LocalCluster) -> None:
    for name in cluster.workers:
        data = client.scatter(np.arange(20_000), workers=name, hash=False)
        places = {client.submit(where_and_last, data, pure=False).result(20)[0] for _ in range(5)}
        assert places == {name}


def test_a_task_with_large_inputs_is_taken_elsewhere_soon(client: Client, cluster: LocalCluster) -> None:
    first, second = cluster.workers
    data = client.scatter(np.zeros(60_000_000, np.uint8), workers=first, hash=False)
    hold = client.submit(time.sleep, 1.5, workers=first, pure=False)
    wait_until(lambda: any(client.processing().values()))
    began = time.monotonic()
    task = client.submit(where_and_last, data, pure=False)
    wait_until(lambda: sum(map(len, client.processing().values())) == 2 or task.done())
    took = time.monotonic() - began
    assert task.result(20) == (second, 0)
    assert took < 0.4  # not only when the executor has heard nothing for a second
    hold.result(20)


def test_copies_go_with_the_last_reference(client: Client) -> None:
    future = client.scatter(np.arange(20_000), broadcast=True)
    before = client.usage().nbytes
    assert before > 2 * 20_000 * 8
    del future
    wait_until(lambda: client.usage().nbytes == 0)
    # And so do the files: the workers heard it on their channel of evictions.
    wait_until(lambda: not client.has_what() or not any(client.has_what().values()))
