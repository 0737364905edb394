"""Keys that are let go and mean something else at once, on a connection on which pushes are late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack

from redist import Client, Event, LocalCluster
from servers import keys_of, wait_until


class Late:
    """The states that a client is told, which come when they are let through."""

    def __init__(self, client: Client) -> None:
        self.session = client.session
        self._apply = self.session.on_message
        self._kept: list[tuple[bytes, bytes]] = []
        self.session.on_message = self._take  # type: ignore[method-assign]

    def _take(self, channel: bytes, data: bytes) -> None:
        if msgpack.unpackb(data, raw=True)[0] == b"s":
            self._kept.append((channel, data))
        else:
            self._apply(channel, data)

    def told(self, name: str) -> bool:
        return any(name.encode() in msgpack.unpackb(data, raw=True) for _, data in list(self._kept))

    def come(self) -> None:
        with self.session.lock:
            kept, self._kept = self._kept, []
            for message in kept:
                self._apply(*message)

    def end(self) -> None:
        self.session.on_message = self._apply  # type: ignore[method-assign]
        self.come()


def after(x: Any, event: str) -> Any:
    Event(event).wait(20)
    return x


def fail(message: str) -> None:
    raise ValueError(message)


def test_scattered_and_then_computed(client: Client, keys: Callable[[], list[str]]) -> None:
    late = Late(client)
    value = client.scatter({"k": "old"})["k"]
    wait_until(lambda: late.told("k"))
    del value
    wait_until(lambda: not keys())
    event = Event("go")
    future = client.submit(after, "new", "go", key="k")
    wait_until(lambda: keys() == ["k"])
    late.come()
    assert future.status == "pending"
    event.set()
    late.end()
    assert future.result(20) == "new"
    event.clear()


def test_failed_and_then_computed(client: Client, keys: Callable[[], list[str]]) -> None:
    late = Late(client)
    future = client.submit(fail, "old", key="k")
    wait_until(lambda: late.told("k"))
    del future
    wait_until(lambda: not keys())
    again = client.submit(abs, -1, key="k")
    late.end()
    assert again.result(20) == 1


def test_asynchronous(cluster: LocalCluster) -> None:
    async def until(condition: Callable[[], object]) -> None:
        async def wait() -> None:
            while not condition():
                await asyncio.sleep(0.005)

        await asyncio.wait_for(wait(), 20)

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            late = Late(client)
            value = (await client.scatter({"k": "old"}))["k"]  # type: ignore[misc]
            await until(lambda: late.told("k"))
            del value
            await until(lambda: not keys_of(cluster))
            event = Event("go", client)
            future = client.submit(after, "new", "go", key="k")
            await until(lambda: keys_of(cluster) == ["k"])
            late.come()
            assert future.status == "pending"
            await event.set()  # type: ignore[misc]
            late.end()
            assert await future == "new"
            await event.clear()  # type: ignore[misc]

    asyncio.run(main())
