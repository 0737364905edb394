"""Clients of event loops in several threads, whose Futures each other's clients use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, Future, LocalCluster
from servers import wait_until

pytestmark = pytest.mark.timeout(60)


def inc(x: int) -> int:
    return x + 1


@pytest.mark.parametrize("count", [2, 3])
def test_loops_that_use_each_others_futures_at_one_moment(
    cluster: LocalCluster, keys: Callable[[], list[str]], count: int
) -> None:
    """A loop stands still while the other client's calls go ahead, and so does the other one."""
    together = threading.Barrier(count, timeout=20)
    made: list[Future[int] | None] = [None] * count
    told: list[Any] = [None] * count

    async def one(number: int) -> None:
        async with Client(cluster, asynchronous=True, set_as_default=False) as client:
            for i in range(5):
                made[number] = client.submit(inc, i, pure=False)
                together.wait()
                mine = client.submit(inc, made[number - 1], pure=False)
                told[number] = await asyncio.wait_for(mine, 20)
                del mine
                assert told[number] == i + 2
                await asyncio.to_thread(together.wait)
                made[number] = None

    def run(number: int) -> None:
        try:
            asyncio.run(one(number))
        except BaseException as error:
            told[number] = error
            together.abort()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == [6] * count
    wait_until(lambda: not keys(), what="every key is gone")
