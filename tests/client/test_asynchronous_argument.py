"""``asynchronous=True`` of single calls of a synchronous client: a coroutine, which does what the call does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import pytest

from redist import Client, LocalCluster, Queue, Semaphore, Variable, wait


def inc(x: int) -> int:
    return x + 1


def named_calls(client: Client, path: Path) -> dict[str, Callable[..., Any]]:
    future = client.submit(inc, 1)
    wrong = client.submit(inc, "x")  # type: ignore[arg-type]
    wait([future, wrong])
    queue, variable, semaphore = Queue("q"), Variable("v"), Semaphore(2, "s")
    return {
        "gather": lambda **k: client.gather([future], **k),
        "scatter": lambda **k: (
            client.scatter({"a": 1}, **k)["a"].key if not k else client.scatter({"a": 1}, **k)
        ),
        "get": lambda **k: client.get({"x": 1}, "x", **k),
        "run": lambda **k: client.run(inc, 1, **k),
        "publish_dataset": lambda **k: client.publish_dataset(7, name="seven", override=True, **k),
        "get_dataset": lambda **k: client.get_dataset("seven", **k),
        "list_datasets": client.list_datasets,
        "unpublish_dataset": lambda **k: client.unpublish_dataset("seven", **k),
        "who_has": lambda **k: client.who_has(future, **k),
        "has_what": client.has_what,
        "nthreads": client.nthreads,
        "ncores": client.ncores,
        "nbytes": lambda **k: client.nbytes([future.key], **k),
        "replicate": lambda **k: client.replicate([future], **k),
        "rebalance": client.rebalance,
        "retire_workers": lambda **k: client.retire_workers([], **k),
        "dump_cluster_state": lambda **k: client.dump_cluster_state(str(path / "dump"), **k),
        "exception": lambda **k: str(wrong.exception(**k)) if not k else wrong.exception(**k),
        "traceback": lambda **k: type(wrong.traceback(**k)) if not k else wrong.traceback(**k),
        "retry": lambda **k: client.retry([wrong], **k),
        "Future.retry": wrong.retry,
        "put": lambda **k: queue.put(1, **k),
        "qsize": queue.qsize,
        "Queue.get": queue.get,
        "set": lambda **k: variable.set(1, **k),
        "Variable.get": variable.get,
        "register": semaphore.register,
        "cancel": lambda **k: client.cancel([wrong], **k),
        "Future.cancel": future.cancel,
    }


#: What the coroutine gives, made like what `named_calls` gives for the call itself.
LIKE: dict[str, Callable[[Any], Any]] = {
    "scatter": lambda value: value["a"].key,
    "exception": str,
    "traceback": type,
}


def test_every_call(client: Client, tmp_path: Path) -> None:
    for name, call in named_calls(client, tmp_path).items():
        said = call()
        again = call(asynchronous=True)
        assert inspect.iscoroutine(again), name
        came = asyncio.run(_awaited(again))
        assert LIKE.get(name, lambda value: value)(came) == said, name
    Queue("q").close()
    Variable("v").delete()
    Semaphore(2, "s").close()


async def _awaited(coroutine: Any) -> Any:
    return await coroutine


def test_several_wait_in_one_loop(client: Client) -> None:
    async def main() -> None:
        futures = client.map(inc, range(3))
        values = await asyncio.gather(*(client.gather(future, asynchronous=True) for future in futures))
        assert values == [1, 2, 3]
        assert await client.get({"x": (inc, 1)}, "x", asynchronous=True) == 2
        with pytest.raises(TypeError, match="can only concatenate"):
            await client.gather(client.submit(inc, "x"), asynchronous=True)  # type: ignore[arg-type]

    asyncio.run(main())


def test_an_asynchronous_client(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            future = client.submit(inc, 1)
            assert await client.gather(future, asynchronous=True) == 2
            with pytest.raises(RuntimeError, match="cannot wait in its own loop"):
                client.gather(future, asynchronous=False)
            with pytest.raises(RuntimeError, match="cannot wait in its own loop"):
                client.nthreads(asynchronous=False)

    asyncio.run(main())


def test_what_is_neither(client: Client) -> None:
    future = client.submit(inc, 1)
    for call in (lambda **k: client.gather(future, **k), client.nthreads, future.cancel):
        with pytest.raises(TypeError, match="asynchronous is True, False or None"):
            call(asynchronous="x")  # type: ignore[operator]
    assert client.gather(future, asynchronous=False) == 2
    assert client.compute(dask.delayed(inc)(1), sync=True) == 2
