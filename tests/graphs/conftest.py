"""A cluster for the tests of Dask graphs, and a check that each leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redist import Client, LocalCluster
from servers import keys_of, wait_until


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def keys(cluster: LocalCluster) -> Callable[[], list[str]]:
    return lambda: keys_of(cluster)


@pytest.fixture
def new_client(cluster: LocalCluster) -> Iterator[Callable[..., Client]]:
    """Makes clients; at the end of the test nothing may be left, already before they are closed."""
    clients: list[Client] = []

    def make(**options: Any) -> Client:
        client = Client(cluster, **options)
        clients.append(client)
        return client

    yield make
    wait_until(lambda: not keys_of(cluster), what="every key is gone")
    for client in clients:
        client.close()


@pytest.fixture
def client(new_client: Callable[..., Client]) -> Client:
    return new_client()
