"""`Queue`, `Variable`, `Event`, `Pub` and `Sub`, by clients, in loops and in tasks."""

from __future__ import annotations

import asyncio
import gc
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import servers
from coordination.test_locks import in_thread, wait_in_loop
from redist import Client, Event, Future, LocalCluster, Pub, Queue, Sub, Variable, get_client
from redist.errors import DependencyUnknown, NotInitialized, SerializationError, ServerFull
from servers import wait_until

NewClient = Callable[..., Client]
Ask = Callable[..., Any]


@pytest.fixture
def ask(cluster: LocalCluster) -> Iterator[Ask]:
    """Send a command to the server, the second word of which is a key without prefix."""
    wire = cluster.endpoint.open()
    yield lambda command, key, *args: wire.call(command, cluster.endpoint.prefix + key, *args)
    wire.close()


def inc(x: int) -> int:
    return x + 1


# --- queues -----------------------------------------------------------------------------------------------------------


def test_simple(client: Client, new_client: NewClient) -> None:
    queue, theirs = Queue("x"), Queue("x", client=new_client(set_as_default=False))
    queue.put(1)
    queue.put({"a": (1, None), "b": b"2"})
    assert theirs.qsize() == 2
    assert theirs.get() == 1
    assert theirs.get(timeout=1) == {"a": (1, None), "b": b"2"}
    assert repr(queue) == "<Queue: x>"
    with pytest.raises(TimeoutError, match="no item"):
        queue.get(timeout="20 ms")
    assert Queue().name.startswith("queue-")


def test_items_in_batches(client: Client) -> None:
    queue = Queue("x")
    assert queue.get(batch=True) == []
    for i in range(450):
        queue.put(i)
    assert queue.get(batch=2) == [0, 1]
    assert queue.get(batch=True) == list(range(2, 450))
    with pytest.raises(NotImplementedError, match="timeout"):
        queue.get(timeout=1, batch=2)
    result = in_thread(lambda: queue.get(batch=3))
    for i in range(4):
        queue.put(i)
    assert result() == [0, 1, 2]
    assert queue.get() == 3


def test_a_batch_that_is_given_up_goes_back(client: Client, ask: Ask) -> None:
    queue = Queue("x")
    queue.put(1)
    main = threading.main_thread().ident or 0
    in_thread(
        lambda: wait_until(lambda: ask("ZCARD", "waits:get x")) and signal.pthread_kill(main, signal.SIGINT)
    )
    with pytest.raises(KeyboardInterrupt):
        queue.get(batch=2)
    assert queue.get(timeout=5) == 1
    wait_until(lambda: not ask("EXISTS", "waits:get x"))


def test_a_full_queue(client: Client, new_client: NewClient, ask: Ask) -> None:
    queue = Queue("x", maxsize=1)
    assert queue.qsize() == 0  # it is open: whoever opens it first says how long it is
    theirs = Queue("x", client=new_client(set_as_default=False))
    theirs.put(1)
    with pytest.raises(TimeoutError, match="full"):
        theirs.put(2, timeout=0.02)
    with pytest.raises(TimeoutError, match="full"):
        theirs.put(2, timeout=0)
    results = []
    for i in (3, 4):
        results.append(in_thread(lambda i=i: theirs.put(i)))  # type: ignore[misc]
        wait_until(lambda count=i - 2: ask("ZCARD", "waits:put x") == count)
    assert [queue.get() for _ in range(3)] == [1, 3, 4]
    for result in results:
        result()
    assert not ask("EXISTS", "waits:put x")


def test_who_asks_first_gets_first(client: Client, new_client: NewClient, ask: Ask) -> None:
    clients = [client, new_client(set_as_default=False)]
    results = []
    for i in range(6):
        results.append(in_thread(lambda i=i: Queue("x", client=clients[i % 2]).get(timeout=10)))  # type: ignore[misc]
        wait_until(lambda count=i + 1: ask("ZCARD", "waits:get x") == count)
    queue = Queue("x")
    for i in range(6):
        queue.put(i)
    assert [result() for result in results] == list(range(6))


def test_futures_in_items_live(client: Client, new_client: NewClient, keys: Callable[[], list[str]]) -> None:
    other = new_client(set_as_default=False)
    queue, theirs = Queue("x"), Queue("x", client=other)
    future = client.submit(inc, 1)
    queue.put({"futures": [future]})
    key = future.key
    del future
    gc.collect()
    client.submit(inc, 100).result()
    assert key in keys()
    (got,) = theirs.get()["futures"]
    assert isinstance(got, Future)
    assert got.client is other
    assert got.result() == 2
    queue.put(got)
    assert queue.get().result() == 2
    del got
    wait_until(lambda: key not in keys())
    gone = client.submit(inc, 5)
    gone.cancel()
    with pytest.raises(DependencyUnknown):
        queue.put(gone)


def test_large_items(client: Client, new_client: NewClient, keys: Callable[[], list[str]]) -> None:
    queue = Queue("x")
    queue.put(np.arange(100_000))
    queue.put(bytes(50_000))
    theirs = Queue("x", client=new_client(set_as_default=False))
    assert (theirs.get() == np.arange(100_000)).all()
    assert theirs.get() == bytes(50_000)
    wait_until(lambda: not keys(), what="the items' values are gone")


def take(queue: Queue) -> Any:
    return queue.get(timeout=20)


def give(queue: Queue, x: int) -> int:
    future = get_client().submit(inc, x)
    queue.put(future)
    return queue.qsize()


def test_in_tasks(client: Client) -> None:
    queue = Queue("x")
    taken = client.map(take, [queue] * 10, pure=False)
    for i in range(10):
        queue.put(i)
    assert sorted(client.gather(taken)) == list(range(10))
    client.gather(client.map(give, [queue] * 3, range(3), pure=False))
    assert sorted(queue.get().result() for _ in range(3)) == [1, 2, 3]


def test_one_thread_is_enough(ask: Ask) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as one, Client(one) as client:
        queue, event = Queue("x"), Event("go")
        taken = client.map(take, [queue] * 3, pure=False)
        waited = client.map(wait_for, [event] * 3, pure=False)
        variable = client.submit(read, Variable("v"))
        client.submit(start, queue, event).result(timeout=20)
        assert sorted(client.gather(taken)) == [0, 1, 2]
        assert client.gather(waited) == [True] * 3
        assert variable.result(timeout=20) == "there"
        event.clear()
        Variable("v").delete()


def wait_for(event: Event) -> Any:
    return event.wait(timeout=20)


def read(variable: Variable) -> Any:
    return variable.get(timeout=20)


def start(queue: Queue, event: Event) -> None:
    for i in range(3):
        queue.put(i)
    Variable("v").set("there")
    event.set()


def test_an_item_of_a_process_that_was_killed_goes_back(cluster: LocalCluster, client: Client) -> None:
    program = f"""
import time
from redist import *
from redist.coordination import base
base.Request.leave = lambda *args, **kwargs: (print("got", flush=True), time.sleep(60))
client = Client({cluster.scheduler_address!r}, heartbeat_interval=0.1)
Queue("x").get()
"""
    queue = Queue("x")
    queue.put(client.submit(inc, 1))
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "got\n"
    assert queue.qsize() == 0
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert queue.get(timeout=20).result() == 2


def test_close(client: Client, new_client: NewClient, ask: Ask) -> None:
    other = new_client(set_as_default=False)
    queue = Queue("x", maxsize=2)
    assert queue.qsize() == 0  # it is open
    theirs = Queue("x", client=other)
    second = Queue("x")
    queue.put(1)
    queue.close()
    assert second.qsize() == 1  # another of this client
    second.close()
    assert theirs.qsize() == 1  # another client
    theirs.close()
    wait_until(lambda: not ask("EXISTS", "items:x") and not ask("HEXISTS", "limits", "queue x"))
    queue.put(2)  # it can be used again
    assert queue.get() == 2


def test_a_queue_outlives_its_clients(new_client: NewClient, client: Client) -> None:
    other = new_client(set_as_default=False)
    Queue("x", client=other).put(other.submit(inc, 1))
    other.close()
    assert Queue("x").get(timeout=5).result() == 2


def test_full_server(cluster: LocalCluster, client: Client) -> None:
    queue = Queue("x")
    queue.put(1)
    Variable("v").set(2)
    wire = cluster.endpoint.open()
    try:
        with servers.full(wire.call):
            with pytest.raises(ServerFull):
                queue.put(2)
            with pytest.raises(ServerFull):
                Variable("v").set(3)
            assert queue.get() == 1  # what makes room passes
            assert Variable("v").get() == 2
            Variable("v").delete()
    finally:
        wire.close()
    queue.put(3)
    assert queue.get() == 3


def test_restart(client: Client, ask: Ask) -> None:
    queue, variable = Queue("x", maxsize=2), Variable("v")
    for i in range(2):
        queue.put(client.submit(inc, i))
    variable.set(1)
    Event("e").set()
    putting = in_thread(lambda: queue.put(7))
    getting = in_thread(lambda: Queue("empty").get())
    wait_until(lambda: ask("EXISTS", "waits:put x") and ask("EXISTS", "waits:get empty"))
    client.restart()
    putting()  # there was room, and what it put was forgotten with the rest
    assert queue.qsize() == 0
    with pytest.raises(TimeoutError):
        variable.get(timeout=0)
    assert Event("e").is_set()
    Event("e").clear()
    Queue("empty").put(1)
    assert getting() == 1


def test_what_was_asked_while_the_cluster_restarted_is_asked_again(client: Client) -> None:
    generation = client.generation
    client.restart()
    queue, variable = Queue("x"), Variable("v")
    for ask in (
        lambda: queue.put(1),
        lambda: queue.get(timeout=5) == 1,
        lambda: variable.set(2),
        lambda: variable.get(timeout=5) == 2,
    ):
        with client.session.lock:
            client.session.lane.generation = generation  # it has not heard of the restart yet
        assert ask() in (None, True)
    variable.delete()


def test_a_server_that_lost_its_memory() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1) as own,
        Client(own, heartbeat_interval=0.2) as client,
    ):
        wire = own.endpoint.open()
        queue, event, sub = Queue("x"), Event("e"), Sub("t")
        queue.put(1)
        results = [
            in_thread(Queue("y").get),
            in_thread(event.wait),
            in_thread(Variable("v").get),
            in_thread(sub.get),
        ]
        prefix = own.endpoint.prefix
        for line in ("get y", "event e", "variable v"):
            wait_until(lambda: wire.call("EXISTS", f"{prefix}waits:{line}"))  # noqa: B023
        wire.call("FLUSHALL")
        with pytest.raises(TimeoutError):
            queue.get(timeout=0.1)
        wait_until(lambda: Pub("t").subscribers == 1)
        Queue("y").put(2)
        event.set()
        Variable("v").set(3)
        Pub("t").put(4)
        assert [result() for result in results] == [2, True, 3, 4]
        event.clear()
        Variable("v").delete()
        wire.close()
        assert client.submit(inc, 1).result(timeout=10) == 2


# --- variables --------------------------------------------------------------------------------------------------------


def test_variable(client: Client, new_client: NewClient, keys: Callable[[], list[str]]) -> None:
    variable = Variable("v")
    theirs = Variable("v", client=new_client(set_as_default=False))
    with pytest.raises(TimeoutError, match="no value"):
        variable.get(timeout=0.02)
    result = in_thread(lambda: theirs.get(timeout=10))
    variable.set(5)
    assert result() == 5
    variable.set([client.submit(inc, 10)])
    gc.collect()
    assert theirs.get()[0].result() == 11
    variable.set(np.arange(100_000))
    assert theirs.get()[-1] == 99_999
    theirs.delete()
    wait_until(lambda: not keys())
    with pytest.raises(TimeoutError):
        variable.get(timeout=0)
    assert Variable().name.startswith("variable-")


def test_a_variable_outlives_its_clients(new_client: NewClient, client: Client) -> None:
    other = new_client(set_as_default=False)
    Variable("v", client=other).set(other.submit(inc, 1))
    other.close()
    assert Variable("v").get(timeout=5).result() == 2
    Variable("v").delete()


def test_many_readers_and_writers(client: Client, new_client: NewClient) -> None:
    """A reader holds what it read, however soon it is replaced."""
    other = new_client(set_as_default=False)

    def write() -> None:
        for i in range(60):
            Variable("v", client=other).set(other.submit(inc, i, pure=False))

    Variable("v").set(client.submit(inc, 0))
    written = in_thread(write)
    for _ in range(60):
        assert 1 <= Variable("v").get().result(timeout=10) <= 60
    written()
    Variable("v").delete()


# --- events -----------------------------------------------------------------------------------------------------------


def test_event(client: Client, new_client: NewClient, ask: Ask) -> None:
    event, theirs = Event("e"), Event("e", client=new_client(set_as_default=False))
    assert event.is_set() is False
    assert event.wait(timeout=0.02) is False
    assert event.wait(timeout=0) is False
    results = [in_thread(theirs.wait) for _ in range(3)]
    wait_until(lambda: ask("ZCARD", "waits:event e") == 3)
    event.set()
    event.clear()
    assert [result() for result in results] == [True] * 3
    event.set()
    assert theirs.is_set() is True
    assert theirs.wait(timeout=0) is True
    theirs.clear()
    wait_until(lambda: not ask("EXISTS", "waits:event e") and not ask("EXISTS", "events"))


# --- topics -----------------------------------------------------------------------------------------------------------


def test_topic(client: Client, new_client: NewClient, ask: Ask) -> None:
    pub = Pub("t")
    assert pub.subscribers == 0
    pub.put("nobody hears")
    sub, theirs = Sub("t"), Sub("t", client=new_client(set_as_default=False))
    assert pub.subscribers == 2
    for i in range(250):
        pub.put({"i": i})
    assert [theirs.get(timeout=5)["i"] for _ in range(250)] == list(range(250))
    assert [message["i"] for _, message in zip(range(250), sub)] == list(range(250))
    with pytest.raises(TimeoutError, match="no message"):
        sub.get(timeout=0.02)
    result = in_thread(theirs.next)
    pub.put(client.submit(inc, 1))
    assert result().result() == 2
    with pytest.raises(SerializationError, match="scatter"):
        pub.put(bytes(2_000_000))
    del sub
    wait_until(lambda: pub.subscribers == 1)
    del theirs, result
    gc.collect()
    wait_until(lambda: pub.subscribers == 0)
    wait_until(lambda: not ask("EXISTS", "topic:t"))


def test_what_a_message_holds_goes_with_who_got_it(client: Client, keys: Callable[[], list[str]]) -> None:
    sub = Sub("t")
    for _ in range(3):
        Pub("t").put([client.submit(inc, 1, pure=False)])
    for _ in range(3):
        assert sub.get(timeout=5)[0].result() == 2
    wait_until(lambda: not keys(), what="nothing is kept for a subscriber who does not ask for more")


def publish(i: int) -> None:
    Pub("t").put(i)


def test_topic_in_tasks(client: Client) -> None:
    sub = Sub("t")
    client.gather(client.map(publish, range(10)))
    assert sorted(sub.get(timeout=5) for _ in range(10)) == list(range(10))


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Queue, Variable, Event, Pub])
def test_pickled(make: Any) -> None:
    thing = make("x")
    copy = pickle.loads(pickle.dumps(thing))
    assert type(copy) is make
    assert copy.name == "x"
    use: Any = getattr(copy, {Queue: "qsize", Variable: "get", Event: "is_set"}.get(make, "put"))
    with pytest.raises(NotInitialized, match="no client"):
        use(*([1] if make is Pub else []))


def test_maxsize_travels(client: Client) -> None:
    assert pickle.loads(pickle.dumps(Queue("x", maxsize=3))).maxsize == 3


def test_asynchronous(cluster: LocalCluster, ask: Ask) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            queue = await Queue("x", maxsize=1)
            waiting = [asyncio.create_task(queue.get()) for _ in range(2)]
            await wait_in_loop(lambda: ask("ZCARD", "waits:get x") == 2)
            waiting[0].cancel()
            await queue.put(client.submit(inc, 1))
            assert await (await waiting[1]) == 2
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            with pytest.raises(TimeoutError):
                await queue.get(timeout=0.02)
            await queue.put(1)
            putting = asyncio.create_task(queue.put(2))
            await wait_in_loop(lambda: ask("EXISTS", "waits:put x"))
            putting.cancel()
            assert await queue.get(batch=True) == [1]
            assert await queue.qsize() == 0
            await queue.put(bytes(100_000))
            assert await queue.get() == bytes(100_000)

            event = await Event("e")
            going = asyncio.create_task(event.wait())
            await wait_in_loop(lambda: ask("EXISTS", "waits:event e"))
            await event.set()
            assert await going
            assert await event.is_set()
            await event.clear()

            variable = Variable("v")
            reading = asyncio.create_task(variable.get())
            await wait_in_loop(lambda: ask("EXISTS", "waits:variable v"))
            await variable.set(1)
            assert await reading == 1
            variable.delete()

            sub, pub = Sub("t"), Pub("t")
            for i in range(3):
                pub.put(i)
            got = []
            async for message in sub:
                got.append(message)
                if len(got) == 3:
                    break
            assert got == [0, 1, 2]
            assert await pub.subscribers == 1
            with pytest.raises(TypeError, match="async for"):
                iter(sub)
            queue.close()

    asyncio.run(main())


def test_cancelled_in_the_moment_when_it_is_given(cluster: LocalCluster, ask: Ask) -> None:
    """No item is lost with a task that is cancelled, and none is given twice."""

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            queue = Queue("x", client=client)
            for i in range(20):
                waiting = asyncio.create_task(queue.get())
                await wait_in_loop(lambda: ask("EXISTS", "waits:get x"))
                await queue.put(i)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                assert await queue.get(timeout=10) == i
            assert await queue.qsize() == 0

    asyncio.run(main())
