"""Graphs with the asynchronous client: the same methods, what waits being awaited."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from operator import add
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask import delayed
from dask._task_spec import Task

from redist import Client, LocalCluster, futures_of, wait
from redist.errors import DependencyUnknown
from servers import wait_until


def inc(x: int) -> int:
    return x + 1


@pytest.fixture
def run(cluster: LocalCluster, keys: Callable[[], list[str]]) -> Callable[..., None]:
    def run(test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with Client(cluster, asynchronous=True) as client:
                await test(client)
                # again and again: what was in a frame a moment ago may be in a cycle only now
                await asyncio.to_thread(
                    wait_until, lambda: gc.collect() < 0 or not keys(), 20, "every key is gone"
                )

        asyncio.run(main())

    return run


def test_simple(run: Any) -> None:
    async def test(client: Client) -> None:
        assert await client.get({"x": 1, "y": (inc, "x")}, ["y"]) == [2]
        future = client.get({"x": 1, "y": (inc, "x")}, "y", sync=False)
        assert await future == 2
        x = delayed(inc)(1)
        assert await client.compute(x) == 2
        assert await client.compute([x, x + 1], sync=True) == [2, 3]
        assert await client.gather(client.compute([x])) == [2]
        with pytest.raises(DependencyUnknown):
            client.get({}, "x")

    run(test)


def test_collections(run: Any) -> None:
    async def test(client: Client) -> None:
        x = client.persist(da.ones(1000, chunks=100) + 1)
        assert len(futures_of(x)) == 10
        await wait(x)
        assert await client.compute(x.sum()) == 2000
        await client.publish_dataset(x=x)
        del x
        y = await client.get_dataset("x")
        assert await client.compute(y.max(), sync=True) == 2
        await client.unpublish_dataset("x")
        del y
        # As with Dask: `compute` of the collection cannot be awaited.
        with pytest.raises(RuntimeError, match="synchronous"):
            delayed(inc)(1).compute()

    run(test)


def test_large_literals(run: Any) -> None:
    """They are stored behind the call; what needs them waits."""

    async def test(client: Client) -> None:
        big = np.arange(100_000)
        graph: dict[Any, Any] = {"big-a": big}
        for i in range(200):
            graph[f"x-{i}"] = (inc, i)
            graph[f"y-{i}"] = (add, f"x-{i}", 1)
            graph[f"z-{i}"] = Task(f"z-{i}", np.dot, big, i)
        graph["sum-a"] = (sum, [f"y-{i}" for i in range(200)])
        graph["sum-b"] = (lambda *all: int(sum(a[-1] for a in all)), *(f"z-{i}" for i in range(200)))
        graph["len-a"] = (len, "big-a")
        expected = [sum(range(2, 202)), sum(range(200)) * 99_999, 100_000]
        for _ in range(3):
            assert await client.get(graph, ["sum-a", "sum-b", "len-a"]) == expected

    run(test)


def test_many(run: Any) -> None:
    async def test(client: Client) -> None:
        graph: dict[Any, Any] = {f"x-{i}": (inc, f"x-{i - 1}") for i in range(1, 2_000)}
        graph["x-0"] = 0
        assert await client.get(graph, "x-1999") == 1_999
        assert await client.compute(da.ones(3_000, chunks=1).sum()) == 3_000

    run(test)
