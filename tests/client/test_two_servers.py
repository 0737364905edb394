"""Futures of another server: it may have the same namespace and the same keys, and is another cluster all the same."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from dask import delayed
from dask._task_spec import Task

from redist import Client, Future, LocalCluster, Pub, Queue, Variable, wait
from redist.current import living_clients
from redist.errors import ForeignFutureError
from servers import keys_of, wait_until


class Box:
    """Hides what it holds from whoever looks into containers only."""

    def __init__(self, content: Any) -> None:
        self.content = content


def same(x: Any) -> Any:
    return x


@pytest.fixture(scope="module")
def other_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def other(other_cluster: LocalCluster) -> Iterator[Client]:
    with Client(other_cluster, set_as_default=False) as client:
        yield client
    wait_until(lambda: not keys_of(other_cluster), what="every key is gone")


@pytest.fixture
def pair(client: Client, other: Client) -> tuple[Future[int], Future[int]]:
    """Futures of the same key on both servers."""
    pair = client.submit(abs, -1, key="k"), other.submit(abs, -9, key="k")
    wait(list(pair))
    assert client.namespace == other.namespace
    return pair


USES: dict[str, Callable[[Client, Future[int]], Any]] = {
    "submit": lambda c, f: c.submit(same, f),
    "submit nested": lambda c, f: c.submit(same, [{"x": f}]),
    "submit hidden": lambda c, f: c.submit(same, Box(f)),
    "submit closure": lambda c, f: c.submit(lambda: f.key),
    "submit by keyword": lambda c, f: c.submit(same, x=f),
    "submit under a key": lambda c, f: c.submit(same, f, key="new"),
    "map": lambda c, f: c.map(same, [1, f]),
    "map by keyword": lambda c, f: c.map(lambda a, x: a, [1], x=f),
    "gather": lambda c, f: c.gather([f]),
    "scatter": lambda c, f: c.scatter(f),
    "scatter hidden": lambda c, f: c.scatter([Box(f)]),
    "scatter large": lambda c, f: c.scatter([Box([f, bytes(100_000)])]),
    "publish": lambda c, f: c.publish_dataset(x=[f]),
    "publish large": lambda c, f: c.publish_dataset(x=[f, bytes(100_000)]),
    "cancel": lambda c, f: c.cancel(f),
    "cancel several": lambda c, f: c.cancel([[f]], force=True),
    "retry": lambda c, f: c.retry([f]),
    "who_has": lambda c, f: c.who_has({"x": f}),
    "why": lambda c, f: c.why(f),
    "call_stack": lambda c, f: c.call_stack([f]),
    "replicate": lambda c, f: c.replicate([f], n=1),
    "rebalance": lambda c, f: c.rebalance([f]),
    "get": lambda c, f: c.get({"x": (same, f)}, "x"),
    "get nested": lambda c, f: c.get({"x": (same, [2, (f, {f})])}, "x"),
    "get in a dict": lambda c, f: c.get({"x": (same, {"y": f})}, "x"),
    "get itself": lambda c, f: c.get({"x": f}, "x"),
    "get under its key": lambda c, f: c.get({f.key: f, "x": (same, f.key)}, "x"),
    "get a task": lambda c, f: c.get({"x": Task("x", same, f)}, "x"),
    "compute": lambda c, f: c.compute(delayed(same)(f)),
    "compute nested": lambda c, f: c.compute(delayed(same)([f])),
    "persist": lambda c, f: c.persist(delayed(f)),
    "compute what is persisted": lambda c, f: c.compute(f.client.persist(delayed(same)(5))),
    "queue": lambda c, f: Queue("q", client=c).put(f),
    "variable": lambda c, f: Variable("v", client=c).set([f]),
    "topic": lambda c, f: Pub("t", client=c).put([f]),
}


@pytest.mark.parametrize("use", USES)
def test_a_future_of_another_server(use: str, client: Client, pair: tuple[Future[int], Future[int]]) -> None:
    own, foreign = pair
    with pytest.raises(ForeignFutureError, match="another cluster"):
        USES[use](client, foreign)
    assert own.result() == 1
    assert foreign.result() == 9
    assert client.list_datasets() == ()


def test_binding_it(client: Client, pair: tuple[Future[int], Future[int]]) -> None:
    _, foreign = pair
    with pytest.raises(ForeignFutureError):
        foreign.bind_client(client)
    assert foreign.result() == 9


def test_another_namespace_of_the_same_server(client: Client, cluster: LocalCluster) -> None:
    with Client(cluster.endpoint.url, namespace="elsewhere", set_as_default=False) as other:
        own, foreign = client.scatter({"k": 1}), other.scatter({"k": 9})
        for use in ("cancel", "retry", "who_has", "why", "scatter", "publish"):
            with pytest.raises(ForeignFutureError, match="another cluster"):
                USES[use](client, foreign["k"])
        assert own["k"].result() == 1


def test_a_pickled_one(client: Client, other: Client, pair: tuple[Future[int], Future[int]]) -> None:
    _, foreign = pair
    data = pickle.dumps(foreign)
    assert other.session.secret.encode() not in data
    with client.as_current(), pytest.raises(ForeignFutureError, match="another server"):
        pickle.loads(data)
    with other.as_current():
        assert pickle.loads(data).result() == 9


def test_in_a_result(client: Client, other_cluster: LocalCluster) -> None:
    url = other_cluster.endpoint.address.url(secrets=True)

    def foreign() -> Any:
        there = Client(url, name="foreign", set_as_default=False)
        return there.scatter(9)

    def close() -> int:
        foreigners = [one for one in living_clients() if one.name == "foreign"]
        for one in foreigners:
            one.close()
        return len(foreigners)

    worker = next(iter(client.scheduler_info()["workers"]))
    with pytest.raises(ForeignFutureError):
        client.submit(foreign, workers=worker).result(timeout=20)
    assert client.submit(close, workers=worker).result(timeout=20) == 1


def test_with_an_asynchronous_client(cluster: LocalCluster, other: Client) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            own, foreign = client.submit(abs, -1, key="k"), other.submit(abs, -9, key="k")
            for use in USES.values():
                with pytest.raises(ForeignFutureError, match="another cluster"):
                    answer = use(client, foreign)
                    if asyncio.iscoroutine(answer):
                        await answer
            assert await own == 1

    asyncio.run(main())
