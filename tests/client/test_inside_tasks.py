"""What tasks do with their worker and with clients: in one executor with one thread, where whatever waits wrongly hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redist import Client, LocalCluster, as_completed, get_client
from servers import keys_of

PATIENCE = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def keys(cluster: LocalCluster) -> Callable[[], list[str]]:
    return lambda: keys_of(cluster)


def inc(x: int) -> int:
    return x + 1


def depth_of(n: int) -> int:
    return 0 if n == 0 else 1 + int(get_client().submit(depth_of, n - 1).result())


def test_tasks_submit_to_their_own_executor_to_any_depth(client: Client) -> None:
    assert client.submit(depth_of, 200).result(PATIENCE) == 200


# --- other clients in tasks -----------------------------------------------------------------------------------------


def with_a_client_of_its_own(url: str, namespace: str) -> int:
    with Client(url, namespace=namespace, set_as_default=False) as client:
        return sum(client.gather(client.map(inc, range(5), pure=False)))


async def with_an_asynchronous_client(url: str, namespace: str) -> list[int]:
    async with Client(url, namespace=namespace, asynchronous=True) as client:
        first = await client.submit(inc, 1, pure=False)
        rest = await client.gather(client.map(inc, range(5), pure=False))
        both = await asyncio.gather(*(client.submit(inc, i, pure=False).result() for i in (10, 20)))
        return [first, *rest, *both]


async def with_the_client_of_the_task() -> list[Any]:
    client = get_client()
    one = await client.submit(inc, 1, pure=False)
    two = await asyncio.gather(*client.map(inc, (2, 3), pure=False))
    three = [future.result() async for future in as_completed(client.map(inc, (4,), pure=False))]
    return [one, *two, *three]


def test_a_task_with_a_client_of_its_own(client: Client) -> None:
    assert client.submit(with_a_client_of_its_own, client.url, client.namespace).result(PATIENCE) == 15


def test_coroutines_await_futures(client: Client) -> None:
    given = client.submit(with_an_asynchronous_client, client.url, client.namespace)
    assert given.result(PATIENCE) == [2, 1, 2, 3, 4, 5, 11, 21]
    assert client.submit(with_the_client_of_the_task).result(PATIENCE) == [2, 3, 4, 5]
