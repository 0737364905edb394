"""What is awaited and given up, above all by synchronous clients in event loops, as in tasks that are coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from coordination.test_locks import in_line, wait_in_loop
from redist import Client, LocalCluster, Lock, MultiLock, Pub, Semaphore, Sub, Variable, as_completed
from servers import wait_until

MANY = 40  # more than a loop's own pool has threads
LONG = 20.0


async def enter(make: Callable[[], Any]) -> None:
    async with make():
        await asyncio.sleep(0.001)


async def enter_many(make: Callable[[], Any]) -> int:
    await asyncio.wait_for(asyncio.gather(*[enter(make) for _ in range(MANY)]), LONG)
    return MANY


def make_lock() -> Any:
    return Lock("x")


def make_several() -> Any:
    return MultiLock(["x", "y"])


@pytest.mark.parametrize("make", [make_lock, make_several])
def test_many_in_one_loop(client: Client, make: Callable[[], Any]) -> None:
    """Those that wait do not keep away the one that is to give back."""
    assert asyncio.run(enter_many(make)) == MANY
    assert client.submit(enter_many, make).result(timeout=LONG) == MANY


def waiting_threads() -> int:
    return sum(thread.name == "redist-await" for thread in threading.enumerate())


@pytest.mark.parametrize(("make", "line"), [(make_lock, "x"), (make_several, "@x")])
def test_cancelled_while_it_waits(client: Client, make: Callable[[], Any], line: str) -> None:
    async def main() -> Any:
        held, lock = make(), make()
        assert held.acquire()

        async def wait() -> None:
            async with lock:
                pass

        waiting = asyncio.create_task(wait())
        await wait_in_loop(lambda: in_line(client, line) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await wait_in_loop(lambda: in_line(client, line) == 1)
        held.release()
        return lock  # it is not collected, and holds nothing

    kept = asyncio.run(main())
    assert in_line(client, line) == 0
    del kept
    wait_until(lambda: not waiting_threads(), what="no thread waits any more")


def test_cancelled_in_the_moment_when_it_is_granted(client: Client) -> None:
    async def main() -> list[Any]:
        kept = []
        for _ in range(20):
            first, second = Lock("x"), Lock("x")
            first.acquire()
            waiting = asyncio.create_task(enter(lambda lock=second: lock))  # type: ignore[misc]
            await wait_in_loop(lambda: in_line(client, "x") == 2)
            first.release()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            with Lock("x") as last:
                kept += [first, second, last]
        return kept

    assert len(asyncio.run(main())) == 60


def test_a_message_is_not_lost_with_who_waited_for_it(client: Client) -> None:
    async def main() -> list[Any]:
        sub, pub = Sub("news"), Pub("news")
        waiting = asyncio.create_task(anext(aiter(sub)))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        pub.put(1)
        pub.put(2)
        return [await anext(aiter(sub)), await anext(aiter(sub))]

    assert asyncio.run(asyncio.wait_for(main(), LONG)) == [1, 2]


def test_futures(client: Client) -> None:
    gate = Lock("gate")
    gate.acquire()

    def behind(x: int) -> int:
        with Lock("gate"):
            return x

    async def main() -> list[int]:
        futures = client.map(behind, range(MANY))
        all_of_them = asyncio.gather(*[asyncio.ensure_future(one(future)) for future in futures])
        give_up = asyncio.create_task(anext(aiter(as_completed(futures))))
        await asyncio.sleep(0.01)
        give_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await give_up
        gate.release()
        return await asyncio.wait_for(all_of_them, LONG)

    async def one(future: Any) -> int:
        return int(await future)

    assert asyncio.run(main()) == list(range(MANY))
    wait_until(lambda: not waiting_threads(), what="no thread waits any more")


@pytest.mark.parametrize("make", [make_lock, make_several, lambda: Semaphore(1, "s")])
def test_a_release_that_never_begins_takes_nothing_away(
    cluster: LocalCluster, make: Callable[[], Any]
) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True):
            lock = make()
            assert await lock.acquire()
            lock.release().close()  # as that of a task which is cancelled before it begins
            assert await make().acquire(timeout=0.01) is False
            await lock.release()
            other = make()
            assert await other.acquire(timeout=LONG) is True
            await other.release()

    asyncio.run(main())


def test_reads_that_are_given_up_keep_nothing(
    cluster: LocalCluster, client: Client, keys: Callable[[], list[str]]
) -> None:
    client.publish_dataset(data=client.submit(abs, -1))
    Variable("v").set(client.submit(abs, -2))

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as reader:
            for read in (lambda: reader.get_dataset("data"), Variable("v", client=reader).get) * 10:
                task = asyncio.ensure_future(read())
                await asyncio.sleep(0)  # it is asked for
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            client.unpublish_dataset("data")
            Variable("v").delete()
            await wait_in_loop(lambda: not keys())

    asyncio.run(main())
