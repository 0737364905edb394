"""A Ctrl-C, or a cancellation, at a chosen moment: it surfaces, and nothing stays behind."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, LocalCluster, committing, scattering
from redist.errors import RedistError
from redist.memory.headers import is_file_name
from servers import wait_until


def payloads(client: Client) -> int:
    """Payload files of all workers."""
    directories = {peer.fields["segments"] for peer in client._peers.workers()}
    return sum(is_file_name(name) for directory in directories for name in os.listdir(directory))


@pytest.mark.parametrize("moment", ["written", "committed"])
def test_in_scatter(client: Client, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    client.scatter(bytes(100_000)).release()
    wait_until(lambda: payloads(client) == 0)
    module: Any = committing.calls if moment == "written" else committing
    strike = "commit" if moment == "written" else "parse_commit"
    real: Callable[..., Any] = getattr(module, strike)

    def struck(*args: Any) -> Any:
        monkeypatch.undo()
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, strike, struck)
    with pytest.raises(KeyboardInterrupt):
        client.scatter(bytes(100_000), hash=False)
    wait_until(lambda: payloads(client) == 0, 10, "the file is gone")
    wait_until(lambda: not client.futures, 10, "the references are gone")


@pytest.mark.parametrize("then", ["goes on", "closes"])
@pytest.mark.parametrize("what", ["scatter", "argument"])
def test_cancelled_while_it_is_written(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch, what: str, then: str
) -> None:
    """In an event loop the thread that writes goes on, and is through only afterwards."""
    begun, cancelled = threading.Event(), threading.Event()
    real = scattering._put

    def put(*args: Any) -> None:
        begun.set()
        assert cancelled.wait(20)
        time.sleep(0.2)  # as long as a large value takes
        real(*args)

    monkeypatch.setattr(scattering, "_put", put)

    async def main() -> None:
        async with Client(cluster, asynchronous=True, set_as_default=False) as mine:
            value = bytes(100_000)
            if what == "scatter":
                storing = asyncio.ensure_future(mine.scatter(value))
            else:
                future = mine.submit(len, value, pure=False)
            await asyncio.to_thread(begun.wait, 20)
            if what == "scatter":
                storing.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await storing
            elif then == "goes on":
                for task in mine._tasks:
                    task.cancel()
                with pytest.raises(RedistError):
                    await future
            if then == "goes on":
                cancelled.set()
                await asyncio.to_thread(wait_until, lambda: not mine._drops)
            else:
                threading.Timer(0.1, cancelled.set).start()

    asyncio.run(main())
    wait_until(lambda: payloads(client) == 0, 10, "the file is gone")


def test_in_del(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    real = client._release

    def struck(state: Any) -> None:
        monkeypatch.setattr(client, "_release", real)
        real(state)
        raise KeyboardInterrupt

    future = client.submit(len, "abc", pure=False)
    assert future.result() == 3
    monkeypatch.setattr(client, "_release", struck)
    with pytest.raises(KeyboardInterrupt):  # it comes a moment after the release
        del future
        time.sleep(5)
    assert not ignored
    wait_until(lambda: not client.futures)
