"""`as_completed` that is added to while somebody waits, and what is given up on the way."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from redist import Client, LocalCluster, as_completed, wait
from redist.session.operations import Until
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
        wait_until(lambda: completed._collector.waited)  # noqa: B023
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
    wait_until(lambda: completed._collector.waited)
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
