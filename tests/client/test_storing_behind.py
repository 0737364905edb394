"""In an event loop large arguments are stored behind `submit`: what comes meanwhile keeps its order, or need not wait."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Client, Future, LocalCluster, fire_and_forget, scattering
from redist.errors import RedistError, TransferError
from servers import wait_until

pytestmark = pytest.mark.timeout(60)


def size(values: Any, path: str = "") -> int:
    if path:
        Path(path).touch()
    return len(values)


def inc(x: int) -> int:
    return x + 1


class Box:
    def __init__(self, values: Any, future: Future[int]) -> None:
        self.values = values
        self.future = future


def inside(box: Box) -> int:
    return len(box.values) + int(box.future.result())


class Gate:
    """Keeps payloads from being written while it is shut."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.error: Exception | None = None

    def put(self, real: Callable[..., None], *args: Any) -> None:
        assert self.opened.wait(20)
        if self.error is not None:
            raise self.error
        real(*args)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate, real = Gate(), scattering._put
    monkeypatch.setattr(scattering, "_put", lambda *args: gate.put(real, *args))
    yield gate
    gate.opened.set()


@pytest.fixture
def run(cluster: LocalCluster, keys: Any) -> Callable[[Callable[[Client], Coroutine[Any, Any, None]]], None]:
    def run(test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
        async def main() -> None:
            async with Client(cluster, asynchronous=True) as client:
                await test(client)

        asyncio.run(main())
        wait_until(lambda: not keys(), what="every key is gone")

    return run


def large(count: int = 1) -> Any:
    return np.full(500_000, count)


async def until(what: Callable[[], Any]) -> None:
    for _ in range(1000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


def soon(gate: Gate) -> None:
    asyncio.get_running_loop().call_later(0.2, gate.opened.set)


def test_fired_task_runs(run: Any, gate: Gate, tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), str(tmp_path / "ran"), pure=False)
        fire_and_forget(future)
        del future
        await asyncio.sleep(0.1)
        gate.opened.set()
        await until((tmp_path / "ran").exists)

    run(test)


def test_fired_task_runs_though_the_client_closes(run: Any, gate: Gate, tmp_path: Path) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), str(tmp_path / "ran"), pure=False)
        fire_and_forget(future)
        soon(gate)

    run(test)
    wait_until((tmp_path / "ran").exists)


def test_container_pins_a_task_that_has_not_left(run: Any, gate: Gate) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        soon(gate)
        (box,) = await client.scatter([[future]])
        del future
        await asyncio.sleep(0.1)
        (inner,) = await box
        assert await inner == 500_000

    run(test)


def test_published_before_it_left(run: Any, gate: Gate) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        soon(gate)
        await client.publish_dataset(x=future)
        del future
        assert await (await client.get_dataset("x")) == 500_000
        await client.unpublish_dataset("x")

    run(test)


def test_large_argument_that_holds_a_task_that_has_not_left(run: Any, gate: Gate) -> None:
    async def test(client: Client) -> None:
        first = client.submit(size, large(1), pure=False)
        second = client.submit(inside, Box(large(2), first), pure=False)
        third = client.submit(inc, second, pure=False)
        del first, second
        soon(gate)
        assert await third == 1_000_001

    run(test)


def test_others_do_not_wait(run: Any, gate: Gate, keys: Any) -> None:
    async def test(client: Client) -> None:
        (value,) = await client.scatter([1])
        needed, other = client.submit(inc, value, pure=False), client.submit(inc, value, pure=False)
        assert await client.gather([needed, other]) == [2, 2]
        late = client.submit(lambda values, x: len(values) + x, large(), needed, pure=False)
        gone = other.name
        del needed, other
        assert await client.submit(inc, 5) == 6
        assert await client.gather(client.map(inc, range(1000))) == list(range(1, 1001))
        await client.publish_dataset(y=1)
        await client.unpublish_dataset("y")
        await until(lambda: gone not in keys())
        gate.opened.set()
        assert await late == 500_002

    run(test)


def test_cancelled_at_once(run: Any, gate: Gate, keys: Any) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        await client.cancel(future)
        assert future.cancelled()
        gate.opened.set()
        await until(lambda: not keys())

    run(test)


def test_pickled_before_it_left(run: Any, gate: Gate) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        data = pickle.dumps(future)
        del future
        gate.opened.set()
        await until(lambda: not client.session.submissions.holding.tasks)
        await asyncio.sleep(0.1)
        assert await pickle.loads(data) == 500_000

    run(test)


async def both(cluster: LocalCluster, test: Callable[[Client], Coroutine[Any, Any, None]]) -> None:
    async with Client(cluster, asynchronous=True, set_as_default=False) as other:
        await test(other)


def test_another_client_refers_to_it_before_it_left(run: Any, gate: Gate, cluster: LocalCluster) -> None:
    async def test(client: Client) -> None:
        first = client.submit(size, large(), pure=False)
        second = client.submit(inc, first, pure=False)

        async def other_one(other: Client) -> None:
            third = other.submit(inc, second, pure=False)
            fourth = Future(first.key, other)
            await asyncio.sleep(0.1)
            gate.opened.set()
            assert await third == 500_002
            assert await fourth == 500_000

        await both(cluster, other_one)

    run(test)


def test_another_client_loads_its_pickle_before_it_left(run: Any, gate: Gate, cluster: LocalCluster) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        data = pickle.dumps(future)

        async def other_one(other: Client) -> None:
            with other.as_current():
                mine = pickle.loads(data)
            await asyncio.sleep(0.1)
            gate.opened.set()
            assert await mine == 500_000

        await both(cluster, other_one)

    run(test)


def test_another_thread_takes_it_over_before_it_left(run: Any, gate: Gate, cluster: LocalCluster) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)

        def elsewhere() -> int:
            with Client(cluster, set_as_default=False) as other:
                task = other.submit(inc, future, pure=False)
                gate.opened.set()
                return int(task.result(20))

        assert await asyncio.to_thread(elsewhere) == 500_001

    run(test)


def test_announced_and_let_go(run: Any, gate: Gate, keys: Any) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        fired = client.submit(inc, future, pure=False)
        fire_and_forget(fired)
        client._settle()
        assert {future.name, fired.name} <= set(keys())
        del future, fired
        await asyncio.sleep(0.1)
        gate.opened.set()
        await until(lambda: not keys())

    run(test)


def test_announced_and_registered_anew(run: Any, gate: Gate, cluster: LocalCluster) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        client._settle()
        incarnation = client.session.incarnation
        wire = cluster.endpoint.open()
        wire.call("HSET", f"{cluster.endpoint.prefix}caller:{client.session.ordinal}", "inc", "another")
        wire.close()
        client.session.heart.beat()
        client._driver.push_out()
        await until(lambda: client.session.incarnation != incarnation and client.session.ready)
        gate.opened.set()
        assert await asyncio.wait_for(future, 20) == 500_000

    run(test)


@pytest.mark.parametrize("announced", [False, True])
@pytest.mark.parametrize("which", ["fails", "is cancelled"])
def test_nothing_hangs_if_the_storing(which: str, announced: bool, run: Any, gate: Gate) -> None:
    async def test(client: Client) -> None:
        future = client.submit(size, large(), pure=False)
        fire_and_forget(future)
        if announced:
            client._settle()
        published = asyncio.ensure_future(client.publish_dataset(x=future))
        await asyncio.sleep(0.1)
        gate.error = TransferError("as the test wants it")
        if which == "is cancelled":
            for task in client._tasks:
                task.cancel()
        gate.opened.set()
        if announced:  # the server knew the task
            await published
            await client.unpublish_dataset("x")
        else:
            with pytest.raises(RedistError):
                await asyncio.wait_for(published, 20)
        with pytest.raises(RedistError):
            await asyncio.wait_for(future, 20)
        assert await client.submit(inc, 1) == 2

    run(test)
