"""Events under topics, and who listens to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, LocalCluster, get_client, get_worker
from redist.store.beside import MOST_EVENTS
from servers import wait_until


def test_what_is_logged_is_kept(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    before = time.time()
    assert client.log_event("kept", [1, {"a": (2, None)}]) is None
    other.log_event(["kept", "kept too"], "both")
    ((first, one), (second, two)) = other.get_events("kept")
    assert before - 1 <= first <= second <= time.time() + 1
    assert (one, two) == ((1, {"a": (2, None)}), "both")
    assert client.get_events("never") == ()
    every = client.get_events()
    assert every["kept"] == client.get_events("kept")
    assert [msg for _, msg in every["kept too"]] == ["both"]


def test_a_topic_keeps_its_newest(client: Client) -> None:
    for i in range(MOST_EVENTS + 5):
        client._post_from_thread(__import__("redist.events").events.event_call("many", i))
    client.log_event("many", "last")
    events = [msg for _, msg in client.get_events("many")]
    assert events == [*range(6, MOST_EVENTS + 5), "last"]


def test_what_is_no_plain_data(client: Client) -> None:
    with pytest.raises(TypeError, match="plain data"):
        client.log_event("x", object())
    with pytest.raises(TypeError, match="plain data"):
        client.submit(lambda: get_worker().log_event("x", object()), pure=False).result()


def test_handlers(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    mine: list[Any] = []
    theirs: list[Any] = []
    client.log_event("topic", "before")
    client.subscribe_topic("topic", mine.append)
    other.subscribe_topic("topic", theirs.append)
    for i in range(50):
        (client, other)[i % 2].log_event("topic", i)
    client.log_event("another", "not heard")
    wait_until(lambda: len(mine) == len(theirs) == 50)
    assert [msg for _, msg in mine] == [*range(50)]
    assert mine == theirs == list(client.get_events("topic")[1:])

    client.unsubscribe_topic("topic")
    client.unsubscribe_topic("topic")
    client.log_event("topic", "after")
    wait_until(lambda: len(theirs) == 51)
    client.subscribe_topic("topic", mine.append)  # begins anew
    client.log_event("topic", "again")
    wait_until(lambda: len(mine) == 51)
    assert mine[-1][1] == "again"
    with pytest.raises(ValueError, match="no handler"):
        client.unsubscribe_topic("nobody's")


def test_the_second_handler_takes_the_place_of_the_first(client: Client) -> None:
    first: list[Any] = []
    second: list[Any] = []
    client.subscribe_topic("replaced", first.append)
    client.subscribe_topic("replaced", second.append)
    client.log_event("replaced", 1)
    wait_until(lambda: second)
    assert not first


def test_a_handler_that_fails_is_called_again(client: Client) -> None:
    heard: list[Any] = []

    def fail(event: tuple[float, Any]) -> None:
        heard.append(event[1])
        raise ValueError(event)

    async def later(event: tuple[float, Any]) -> None:
        await asyncio.sleep(0)
        heard.append(event[1])

    client.subscribe_topic("failing", fail)
    client.log_event("failing", 1)
    client.log_event("failing", 2)
    wait_until(lambda: heard == [1, 2])
    client.subscribe_topic("failing", later)
    client.log_event("failing", 3)
    wait_until(lambda: heard == [1, 2, 3])


def test_from_tasks(client: Client) -> None:
    heard: list[Any] = []
    client.subscribe_topic("from tasks", heard.append)

    def log(x: int) -> None:
        get_worker().log_event("from tasks", x)
        get_client().log_event(["from tasks"], -x)

    client.gather(client.map(log, range(1, 6)))
    wait_until(lambda: len(heard) == 10)
    assert sorted(msg for _, msg in heard) == [*range(-5, 0), *range(1, 6)]

    def listen() -> object:
        heard: list[Any] = []
        get_client().subscribe_topic("in a task", heard.append)
        get_client().log_event("in a task", "heard")
        while not heard:
            time.sleep(0.01)
        get_client().unsubscribe_topic("in a task")
        return heard[0][1]

    assert client.submit(listen, pure=False).result() == "heard"


def test_what_is_logged_while_the_connection_is_down_is_handled(
    client: Client, new_client: Callable[..., Client]
) -> None:
    other = new_client(set_as_default=False)
    heard: list[Any] = []
    client.subscribe_topic("reconnected", heard.append)
    wire = client._driver.links.push
    wire.close()
    other.log_event("reconnected", 1)
    wait_until(lambda: heard and heard[0][1] == 1)
    other.log_event("reconnected", 2)
    wait_until(lambda: len(heard) == 2)


def test_asynchronous(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            heard: list[Any] = []

            async def handler(event: tuple[float, Any]) -> None:
                assert asyncio.get_running_loop()
                heard.append(event[1])

            assert client.subscribe_topic("loop", handler) is None
            for i in range(20):
                await client.log_event("loop", i)
            while len(heard) < 20:
                await asyncio.sleep(0.001)
            assert heard == [*range(20)]
            assert [msg for _, msg in await client.get_events("loop")] == heard
            client.unsubscribe_topic("loop")

    asyncio.run(main())
