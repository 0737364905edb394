"""The asynchronous client: the same methods, awaited in one loop, without a thread."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Client, Future, LocalCluster, as_completed, wait
from redist.errors import ClientClosed, DatasetNotFound, ForkedClientError
from servers import wait_until


def inc(x: int) -> int:
    return x + 1


def slowly(x: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return x


def run(
    cluster: LocalCluster, keys: Callable[[], list[str]], test: Callable[[Client], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await test(client)

    asyncio.run(main())
    wait_until(lambda: not keys(), what="every key is gone")


def test_simple(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        before = threading.active_count()
        future = client.submit(inc, 1)
        assert await future == 2
        assert await future.result(timeout=10) == 2  # type: ignore[misc]
        assert future.status == "finished"
        after = client.submit(inc, future)
        assert await client.gather([future, after]) == [2, 3]
        assert await client.gather(client.map(inc, range(1000))) == list(range(1, 1001))
        assert threading.active_count() == before

    run(cluster, keys, test)


def test_await_client(cluster: LocalCluster) -> None:
    async def main() -> None:
        client = await Client(cluster, asynchronous=True)
        assert client.status == "running"
        assert await client is client
        future = client.submit(inc, 1)
        await client.close()
        await client.close()
        assert future.cancelled()
        with pytest.raises(ClientClosed):
            client.submit(inc, 1)
        with pytest.raises(ClientClosed):
            await client

    asyncio.run(main())


def test_errors_and_timeouts(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        future = client.submit(divmod, 1, 0)
        with pytest.raises(ZeroDivisionError):
            await future
        assert isinstance(await future.exception(), ZeroDivisionError)  # type: ignore[misc]
        with pytest.raises(TimeoutError):
            await client.submit(slowly, 1, 0.5).result(0.01)  # type: ignore[misc]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                client.submit(slowly, 2, 0.5)._client._await_result(client.submit(slowly, 3, 0.5)), 0.01
            )

    run(cluster, keys, test)


def test_data(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        array = np.arange(100_000)
        future = await client.scatter(array)
        assert await client.submit(np.sum, future) == array.sum()
        assert (await future)[5] == 5
        # submit cannot wait, so its tasks stay behind until the argument is stored.
        futures = [client.submit(np.sum, array + i) for i in range(3)]
        after = client.submit(sum, futures)
        assert await after == sum((array + i).sum() for i in range(3))
        await client.publish_dataset(mine=future)
        assert await client.list_datasets() == ("mine",)
        assert (await client.get_dataset("mine")).key == future.key
        await client.unpublish_dataset("mine")
        with pytest.raises(DatasetNotFound):
            await client.get_dataset("mine")
        assert len((await client.scheduler_info())["workers"]) == 2
        assert len((await client.who_has(future))[future.key]) == 1

    run(cluster, keys, test)


def test_wait_and_as_completed(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        slow, fast = client.submit(slowly, 1, 0.5), client.submit(slowly, 2, 0.0)
        done, not_done = await wait([slow, fast], return_when="FIRST_COMPLETED")
        assert (done, not_done) == ({fast}, {slow})
        seen = [future async for future in as_completed([slow, fast])]
        assert seen == [fast, slow]
        results = [pair async for pair in as_completed(client.map(inc, range(4)), with_results=True)]
        assert sorted(value for _, value in results) == [1, 2, 3, 4]
        count = 0
        async for batch in as_completed(client.map(inc, range(50), pure=False)).batches():  # type: ignore[union-attr]
            count += len(batch)
        assert count == 50

    run(cluster, keys, test)


def test_many_coroutines(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        async def one(i: int) -> int:
            return int(await client.submit(inc, i, pure=False))

        assert await asyncio.gather(*[one(i) for i in range(200)]) == list(range(1, 201))

    run(cluster, keys, test)


WAITS: dict[str, Callable[[Client, Future[int]], Any]] = {
    "await": lambda client, future: future,
    "result": lambda client, future: future.result(),
    "exception": lambda client, future: future.exception(),
    "gather": lambda client, future: client.gather([future]),
    "wait": lambda client, future: wait([future]),
    "the first": lambda client, future: wait([future], return_when="FIRST_COMPLETED"),
}


@pytest.mark.parametrize("how", WAITS)
def test_who_is_cancelled_while_it_waits_leaves_nothing_behind(
    cluster: LocalCluster, keys: Any, how: str, tmp_path: Path
) -> None:
    def when_there(path: str) -> int:
        deadline = time.monotonic() + 20
        while not os.path.exists(path) and time.monotonic() < deadline:
            time.sleep(0.002)
        return 1

    async def test(client: Client) -> None:
        future = client.submit(when_there, str(tmp_path / "go"), pure=False)

        async def waiting() -> None:
            await WAITS[how](client, future)

        async def hung() -> None:
            while not future._state.waiters:
                await asyncio.sleep(0)

        for _ in range(3):
            task = asyncio.create_task(waiting())
            await asyncio.wait_for(hung(), 20)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not future._state.waiters
        (tmp_path / "go").touch()
        assert await future == 1

    run(cluster, keys, test)


def test_callbacks_and_pickles(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        called: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future = client.submit(slowly, 1)
        future.add_done_callback(called.set_result)
        assert await called is future
        again: Future[Any] = pickle.loads(pickle.dumps(future))
        assert again.client is client
        assert await again == 1
        del called

    run(cluster, keys, test)


def test_sync_future_is_awaitable(client: Client) -> None:
    async def main() -> int:
        return int(await client.submit(inc, 1))

    assert asyncio.run(main()) == 2


def test_sync_client_refuses_async_with(client: Client, cluster: LocalCluster) -> None:
    async def main() -> None:
        with pytest.raises(TypeError):
            await client
        with pytest.raises(TypeError):
            with Client(cluster, asynchronous=True):
                pass

    asyncio.run(main())


def test_broken_connections(cluster: LocalCluster, keys: Any) -> None:
    async def test(client: Client) -> None:
        wire = cluster.endpoint.open()
        for kind in ("normal", "pubsub") * 3:
            futures = client.map(slowly, range(5), seconds=0.02, pure=False)
            wire.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
            assert await asyncio.wait_for(client.gather(futures), 20) == list(range(5))
        wire.close()

    run(cluster, keys, test)


@pytest.mark.parametrize("when", ["while its loop runs", "behind its loop", "from another thread"])
def test_a_dropped_client_leaves(cluster: LocalCluster, keys: Any, when: str) -> None:
    held: list[Any] = []

    def drop() -> None:
        driver = held[0].client._driver
        with pytest.warns(ResourceWarning, match="the asynchronous client 'forgetful' was not closed"):
            held.clear()
            gc.collect()
        held.append(driver)

    async def main() -> None:
        client = await Client(cluster, asynchronous=True, set_as_default=False, name="forgetful")
        await client.who_has()  # which opens a connection of its own
        future = client.submit(inc, 1, key="dropped")
        assert await future == 2
        del client
        gc.collect()
        assert future.client.status == "running"  # its Futures keep it
        assert "dropped" in keys()
        held.append(future)
        if when == "from another thread":
            del future
            await asyncio.to_thread(drop)
        elif when == "while its loop runs":
            del future
            drop()
        while when != "behind its loop" and not held[0].closed:
            await asyncio.sleep(0.005)

    asyncio.run(asyncio.wait_for(main(), 20))
    if when == "behind its loop":
        drop()
    wait_until(lambda: held[0].closed, what="the client has left")
    wait_until(lambda: not keys(), what="every key is gone")


def test_close_ends_what_is_awaited(cluster: LocalCluster, keys: Any) -> None:
    async def main() -> list[Any]:
        client = await Client(cluster, asynchronous=True)
        futures = client.map(slowly, range(8), seconds=0.5, pure=False)

        async def each() -> list[Any]:
            return [future async for future in as_completed(futures)]

        async def one() -> Any:
            return await futures[-1]

        pending = [
            asyncio.ensure_future(what) for what in (one(), client.gather(futures), wait(futures), each())
        ]
        for _ in range(3):
            await asyncio.sleep(0)  # all of them wait
        assert not any(task.done() for task in pending)
        await asyncio.wait_for(client.close(), 10)
        return list(await asyncio.wait_for(asyncio.gather(*pending, return_exceptions=True), 10))

    *errors, cancelled = asyncio.run(main())
    assert [type(error) for error in errors] == [ClientClosed] * 3
    assert [future.status for future in cancelled] == ["cancelled"] * 8
    wait_until(lambda: not keys(), what="every key is gone")


def test_fork(cluster: LocalCluster, keys: Any) -> None:
    """The child has the loop's selector in common with its parent, and leaves it alone."""

    async def in_child(future: Future[Any], client: Client) -> list[str]:
        said = []
        for attempt in (
            lambda: client.submit(inc, 1),
            lambda: client.gather([future]),
            lambda: future.result(),
        ):
            try:
                await attempt()  # type: ignore[misc]
            except ForkedClientError as error:
                said.append(type(error).__name__)
        future.release()
        await client.close()
        async with Client(cluster.scheduler_address, asynchronous=True) as mine:
            said.append(str(await mine.submit(slowly, 7, 0, pure=False)))
        return said

    async def test(client: Client) -> None:
        future = client.submit(slowly, 1, 0)
        assert await future == 1
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, " ".join(asyncio.run(in_child(future, client))).encode())
            finally:
                os._exit(0)
        os.close(writing)
        assert (await asyncio.to_thread(os.waitpid, pid, 0))[1] == 0
        assert os.read(reading, 200) == b"ForkedClientError ForkedClientError ForkedClientError 7"
        os.close(reading)
        assert await future == 1
        assert await client.submit(slowly, 3, 0, pure=False) == 3

    run(cluster, keys, test)
