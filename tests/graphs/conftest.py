"""A cluster for the tests of Dask graphs, and a check that each leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from client.conftest import client, keys
from client.conftest import new_client as made_client
from redist import Client, LocalCluster
from servers import keys_of, wait_until

__all__ = ["client", "keys", "made_client"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def new_client(cluster: LocalCluster, made_client: Callable[..., Client]) -> Iterator[Callable[..., Client]]:
    """Makes clients; at the end of the test nothing may be left, already before they are closed."""
    yield made_client
    wait_until(lambda: not keys_of(cluster), what="every key is gone")
