"""`as_completed` that is added to while somebody waits, and what is given up on the way."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from redist import Client, Future, LocalCluster, as_completed, wait
from redist.session.operations import Ask, AskAll, Until
from servers import wait_until

GATE = 20.0


def when_there(path: str) -> str:
    deadline = time.monotonic() + GATE
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)
    return path


def test_one_that_is_done_is_added_while_another_is_waited_for(
    client: Client, new_client: Callable[..., Client], tmp_path: Path
) -> None:
    slow = client.submit(when_there, str(tmp_path / "go"))
    for owner in client, new_client(set_as_default=False):
        quick = owner.submit(abs, -3)
        wait(quick)
        completed = as_completed([slow])
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(next(completed)))  # noqa: B023
        thread.start()
        wait_until(lambda: completed._collector.looks)  # noqa: B023
        completed.add(quick)
        thread.join(GATE / 2)
        assert found == [quick]
    (tmp_path / "go").touch()


def test_one_of_another_client_is_added_while_others_are_waited_for(
    client: Client, new_client: Callable[..., Client], tmp_path: Path
) -> None:
    slow = client.submit(when_there, str(tmp_path / "go"))
    other = new_client(set_as_default=False).submit(when_there, str(tmp_path / "go too"))
    completed = as_completed([slow])
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(next(completed)))
    thread.start()
    wait_until(lambda: completed._collector.looks)
    completed.add(other)
    (tmp_path / "go too").touch()
    thread.join(GATE / 2)
    assert found == [other]
    (tmp_path / "go").touch()


def test_added_in_the_loop(cluster: LocalCluster, tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            slow, quick = client.submit(when_there, str(tmp_path / "go")), client.submit(abs, -3)
            await quick
            completed = as_completed([slow])
            first = asyncio.create_task(anext(aiter(completed)))
            await asyncio.sleep(0.01)
            completed.add(quick)
            assert await asyncio.wait_for(first, GATE / 2) is quick
            (tmp_path / "go").touch()
            assert [future async for future in completed] == [slow]

    asyncio.run(main())


@pytest.mark.parametrize("error", [KeyboardInterrupt, asyncio.CancelledError])
def test_who_is_interrupted_while_a_value_is_fetched_gets_it_later(
    client: Client, error: type[BaseException]
) -> None:
    future = client.submit(bytes, 3000)  # not pushed: it is asked for
    wait(future)
    completed = as_completed([future], with_results=True)
    operation = completed._next()
    assert not isinstance(operation.send(None), Until)  # the value is on its way
    with pytest.raises(error):
        operation.throw(error())
    assert next(completed) == (future, bytes(3000))
    assert list(completed) == []


def nobody_waits(*futures: Future[Any]) -> bool:
    return not any(future._state.waiters for future in futures)


def test_a_cancelled_task_leaves_nothing_behind_and_another_goes_on(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            slow = [client.submit(when_there, str(tmp_path / f"go-{i}")) for i in range(3)]
            completed = as_completed(slow)
            waits = len(client._driver._waits)
            watch = weakref.ref(completed)

            async def first(completed: Any) -> Any:
                async for future in completed:
                    return future
                return None

            for _ in range(2):
                task = asyncio.create_task(first(completed))
                while not completed._collector.looks:
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert nobody_waits(*slow)
                assert not completed._collector.looks
                assert len(client._driver._waits) == waits
            (tmp_path / "go-1").touch()
            assert await asyncio.wait_for(first(completed), GATE) is slow[1]  # what was done meanwhile, too
            (tmp_path / "go-0").touch()
            await slow[0]
            (tmp_path / "go-2").touch()
            assert {future async for future in completed} == {slow[0], slow[2]}
            del completed, task
            gc.collect()
            assert watch() is None

    asyncio.run(main())


def test_a_cancelled_task_of_a_synchronous_client_leaves_nothing_behind(
    client: Client, tmp_path: Path
) -> None:
    slow = client.submit(when_there, str(tmp_path / "go"))

    async def main() -> None:
        completed = as_completed([slow])
        task = asyncio.create_task(anext(completed))
        while not completed._collector.looks:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert nobody_waits(slow)
        (tmp_path / "go").touch()
        assert await anext(completed) is slow

    asyncio.run(main())
    wait_until(lambda: not any(t.name == "redist-await" for t in threading.enumerate()))


def test_what_timed_out_or_was_left_leaves_nothing_behind(client: Client, tmp_path: Path) -> None:
    slow, quick = client.submit(when_there, str(tmp_path / "go")), client.submit(abs, -3)
    wait(quick)
    late = as_completed([slow], timeout=0.01)
    with pytest.raises(TimeoutError):
        next(late)
    assert nobody_waits(slow)
    assert late.count() == 1
    for future in as_completed([slow, quick]):  # and is gone then
        assert future is quick
        break
    assert not nobody_waits(slow)
    late.clear()
    wait_until(lambda: nobody_waits(slow), what="the one that was left is taken down with the next heartbeat")
    (tmp_path / "go").touch()


def test_a_batch_that_is_given_up_is_given_out_later(client: Client) -> None:
    futures = [client.submit(bytes, 3000 + i) for i in range(2)]  # not pushed: asked for one by one
    wait(futures)
    completed = as_completed(futures, with_results=True)
    operation = completed._batch(True)
    first = operation.send(None)
    assert isinstance(first, Ask | AskAll)
    second = operation.send(client._driver.perform(first))
    assert isinstance(second, Ask | AskAll)
    with pytest.raises(KeyboardInterrupt):
        operation.throw(KeyboardInterrupt())
    assert completed.next_batch() == [(future, bytes(3000 + i)) for i, future in enumerate(futures)]


def test_shared_by_threads_and_by_tasks(client: Client, cluster: LocalCluster, tmp_path: Path) -> None:
    def take(completed: Any, found: list[Any]) -> None:
        found += list(completed)

    slow = [client.submit(when_there, str(tmp_path / f"go-{i}")) for i in range(3)]
    completed, found = as_completed(slow), list[Any]()
    threads = [threading.Thread(target=take, args=(completed, found)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(completed._collector.looks) == 2)
    for i in (2, 0, 1):
        (tmp_path / f"go-{i}").touch()
        wait_until(lambda: len(found) + len(completed._collector.looks) >= 2)
    for thread in threads:
        thread.join(GATE)
    assert sorted(map(slow.index, found)) == [0, 1, 2]

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            slow = [client.submit(when_there, str(tmp_path / f"later-{i}")) for i in range(3)]
            completed = as_completed(slow)

            async def take() -> list[Any]:
                return [future async for future in completed]

            tasks = [asyncio.create_task(take()) for _ in range(2)]
            while len(completed._collector.looks) < 2:
                await asyncio.sleep(0)
            for i in range(3):
                (tmp_path / f"later-{i}").touch()
            found = await asyncio.wait_for(asyncio.gather(*tasks), GATE)
            assert sorted(map(slow.index, chain(*found))) == [0, 1, 2]

    asyncio.run(main())


def test_one_of_another_client_is_added_in_the_loop(
    client: Client, cluster: LocalCluster, tmp_path: Path
) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as mine:
            slow = mine.submit(when_there, str(tmp_path / "go"))
            completed = as_completed([slow])
            first = asyncio.create_task(anext(completed))
            while not completed._collector.looks:
                await asyncio.sleep(0)
            other = client.submit(abs, -3, pure=False)
            completed.add(other)
            assert await asyncio.wait_for(first, GATE) is other
            (tmp_path / "go").touch()
            assert [future async for future in completed] == [slow]

    asyncio.run(main())
