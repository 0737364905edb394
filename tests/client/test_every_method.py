"""Every method, synchronous and asynchronous, by two clients at the same time; the doctor looks behind each test."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import pytest

from redist import (
    ActorFuture,
    CancelledError,
    Client,
    Event,
    Future,
    LocalCluster,
    Lock,
    MultiLock,
    Pub,
    Queue,
    Semaphore,
    Sub,
    Variable,
    WorkerPlugin,
    as_completed,
    fire_and_forget,
    get_client,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)
from servers import keys_of, wait_until

KINDS = ("synchronous", "asynchronous")


def inc(x: int) -> int:
    return x + 1


def needs(path: str) -> int:
    return len(Path(path).read_text())


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def add(self, x: int) -> int:
        self.n += x
        return self.n


class Nothing(WorkerPlugin):
    pass


async def got(value: Any) -> Any:
    """Return what a method gives, which is to be awaited if the client is asynchronous, and only then."""
    return (
        await value if inspect.isawaitable(value) and not isinstance(value, Future | ActorFuture) else value
    )


async def tasks(client: Client, me: str, path: Path) -> None:
    future = client.submit(inc, 1, key=f"{me} one")
    many = client.map(inc, range(10), key=f"{me} many")
    assert await got(future.result(timeout=20)) == 2
    assert await got(client.gather({"a": many[:2]})) == {"a": [1, 2]}
    assert (await got(wait([future, *many]))).not_done == set()
    wrong = client.submit(needs, str(path / me), key=f"{me} wrong")
    after = client.submit(inc, wrong, key=f"{me} after")
    assert isinstance(await got(after.exception()), FileNotFoundError)
    assert await got(after.traceback()) is not None
    (path / me).write_text("abc")
    await got(client.retry(after))
    assert await got(after.result()) == 4
    (path / me).unlink()
    again = client.submit(needs, str(path / me), key=f"{me} again")
    await got(wait(again))
    (path / me).write_text("a")
    await got(again.retry())
    assert await got(again.result()) == 1
    gone = client.submit(inc, 5, key=f"{me} gone")
    await got(client.cancel(gone))
    with pytest.raises(CancelledError):
        await got(gone.result())
    await got(again.cancel())
    assert again.cancelled()
    fire_and_forget(client.submit(inc, 6, key=f"{me} fired"))
    assert client.futures_of([many, {"x": future}]) == [*many, future]
    assert await got(as_completed([future]).next_batch()) == [future]


async def data(client: Client, me: str, path: Path) -> None:
    one = await got(client.scatter(bytes(100_000)))
    several = await got(client.scatter({f"{me} s": 1}))
    assert await got(client.submit(len, one).result()) == 100_000
    copies = await got(client.scatter(me.encode() * 50_000, broadcast=True))
    await got(client.replicate([copies], n=1))
    await got(client.rebalance())
    assert await got(client.submit(len, copies).result()) == 50_000 * len(me)
    await got(client.publish_dataset(several, name=f"{me} set"))
    assert f"{me} set" in await got(client.list_datasets())
    assert (await got(client.get_dataset(f"{me} set"))).keys() == {f"{me} s"}
    await got(client.unpublish_dataset(f"{me} set"))
    assert await got(client.get_dataset(f"{me} set", None)) is None
    await got(client.unpublish_dataset(f"{me} set"))  # there need be none


async def graphs(client: Client, me: str, path: Path) -> None:
    lazy = dask.delayed(inc)(dask.delayed(inc)(1, dask_key_name=f"{me} d1"), dask_key_name=f"{me} d2")
    assert await got(client.compute(lazy).result()) == 3
    kept = client.persist(lazy)
    assert await got(client.compute(client.normalize_collection(kept), sync=True)) == 3
    assert await got(client.get({f"{me} x": (inc, 1)}, [f"{me} x"])) == [2]


async def looks(client: Client, me: str, path: Path) -> None:
    held = client.submit(bytes, 100_000, key=f"{me} held")
    await got(wait(held))
    key, info = f"{me} held", await got(client.scheduler_info())
    ((address,),) = [where for name, where in (await got(client.who_has(held))).items() if name == key]
    assert key in (await got(client.has_what([address])))[address]
    assert set(await got(client.nthreads())) == set(await got(client.ncores())) == set(info["workers"])
    assert set(await got(client.processing())) == set(info["workers"])
    assert (await got(client.nbytes([key], summary=False)))[key] > 100_000
    assert key not in str(await got(client.call_stack()))
    assert "Future" in str(await got(client.why(held))) or me in str(await got(client.why(held)))
    assert (await got(client.memory())).total is not None
    assert await got(client.usage()) is not None
    assert set((await got(client.get_versions(check=True)))["workers"]) == set(info["workers"])
    assert set((await got(client.run(inc, 1))).values()) == {2}
    await got(client.wait_for_workers(2, timeout=20))
    await got(client.dump_cluster_state(str(path / f"{me} dump")))
    await got(client.write_scheduler_file(str(path / f"{me} file")))
    assert client.get_executor() is not None
    assert me in repr(client)
    assert "redist" in client._repr_html_()


async def beside(client: Client, me: str, path: Path) -> None:
    await got(client.set_metadata([me, "x"], 1))
    assert await got(client.get_metadata([me, "x"])) == 1
    came = threading.Event()
    client.subscribe_topic(f"{me} topic", lambda event: came.set())
    if client.asynchronous:
        await client.who_has([])  # the subscription was sent before
    await got(client.log_event(f"{me} topic", {"a": 1}))
    assert [what for _, what in await got(client.get_events(f"{me} topic"))] == [{"a": 1}]
    while client.asynchronous and not came.is_set():
        await asyncio.sleep(0.002)
    assert came.wait(20)
    client.unsubscribe_topic(f"{me} topic")
    await got(client.register_plugin(Nothing(), name=f"{me} plugin"))
    await got(client.unregister_worker_plugin(f"{me} plugin"))
    assert await got(client.register_worker_callbacks(list)) != {}
    await got(client.forward_logging(f"{me} log"))
    await got(client.unforward_logging(f"{me} log"))
    (path / f"mod_{me}.py").write_text("x = 1\n")
    assert await got(client.upload_file(str(path / f"mod_{me}.py"))) != {}


async def coordination(client: Client, me: str, path: Path) -> None:
    """The names are the same for both clients where they are to keep each other out."""
    for make in (lambda: Lock("shared", client=client), lambda: Semaphore(1, name="shared", client=client)):
        lock: Any = make()
        for _ in range(3):
            assert await got(lock.acquire(timeout=20))
            await got(lock.release())
    both = MultiLock(["shared one", "shared two"], client=client)
    assert await got(both.acquire(timeout=20))
    await got(both.release())
    event = Event(f"{me} event", client=client)
    await got(event.set())
    assert await got(event.wait(20))
    await got(event.clear())
    queue, future = Queue(f"{me} queue", client=client), client.submit(inc, 1, key=f"{me} queued")
    await got(queue.put(future))
    del future
    assert await got((await got(queue.get(timeout=20))).result()) == 2
    queue.close()
    variable = Variable(f"{me} variable", client=client)
    await got(variable.set([1]))
    assert await got(variable.get(timeout=20)) == [1]
    await got(variable.delete())


async def topics(client: Client, me: str, path: Path) -> None:
    sub, pub = Sub(f"{me} pub", client=client), Pub(f"{me} pub", client=client)
    future = client.submit(inc, 1, key=f"{me} published")
    assert await got(pub.subscribers) == 1
    pub.put({"x": future})
    del future
    message = await got(sub.get(timeout=20))
    assert await got(message["x"].result()) == 2


async def waits(client: Client, me: str, path: Path) -> None:
    futures = client.map(inc, range(4), key=f"{me} waits")
    wrong = client.submit(inc, None, key=f"{me} wrong")  # type: ignore[arg-type]
    held = client.submit(when_there, str(path / f"{me} go"), key=f"{me} held")
    first = await got(wait([held, *futures], return_when="FIRST_COMPLETED", timeout=20))
    assert held in first.not_done
    with pytest.raises(TimeoutError):
        await got(wait(held, timeout=0.01))
    results = await all_of(as_completed(futures, with_results=True))
    assert sorted(value for _, value in results) == [1, 2, 3, 4]
    ((same, (kind, error, _)),) = await all_of(as_completed([wrong], with_results=True, raise_errors=False))
    assert (same, kind, type(error)) == (wrong, TypeError, TypeError)
    with pytest.raises(TypeError, match="NoneType"):
        await all_of(as_completed([wrong], with_results=True))
    completed = as_completed(futures)
    completed.add(wrong)
    completed.update([held])
    assert completed.count() == 6
    (path / f"{me} go").touch()
    assert {f for batch in await all_of(completed.batches()) for f in batch} == {*futures, wrong, held}
    assert completed.is_empty()
    assert not completed.has_ready()
    never = client.submit(inc, 1, key=f"{me} never", workers="nobody")
    with pytest.raises(TimeoutError):
        await all_of(as_completed([never], timeout=0.01))
    called: list[Any] = []
    held.add_done_callback(called.append)
    while called != [held]:
        await asyncio.sleep(0.002)
    await got(client.cancel(never))
    with pytest.raises(CancelledError):
        await got(wait(never))


async def all_of(iterable: Any) -> list[Any]:
    """Return what an iterator gives, one of an asynchronous client too."""
    if hasattr(iterable, "__anext__") and not (
        isinstance(iterable, as_completed) and not iterable._the_client().asynchronous
    ):
        return [item async for item in iterable]
    return list(iterable)


def when_there(path: str) -> None:
    deadline = time.monotonic() + 20
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.005)


async def placement(client: Client, me: str, path: Path) -> None:
    names = sorted(worker["name"] for worker in (await got(client.scheduler_info()))["workers"].values())
    for name in names:
        placed = client.map(where, range(3), workers=name, pure=False, priority=0.5, retries=1)
        assert set(await got(client.gather(placed))) == {name}
    with dask.annotate(workers=names[0], priority=2):
        assert await got(client.submit(where, pure=False).result()) == names[0]
        assert await got(client.compute(dask.delayed(where)(me)).result()) == names[0]
    lazy = dask.delayed(where)(f"{me} too")
    assert await got(client.compute(lazy, workers=[names[1]], allow_other_workers=False).result()) == names[1]
    assert (
        await got(client.submit(where, workers="nobody", allow_other_workers=True, pure=False).result())
        in names
    )
    needy = client.submit(inc, 1, resources={"nobody has": 1}, key=f"{me} needy")
    with pytest.raises(TimeoutError):
        await got(needy.result(timeout=0.05))
    await got(client.cancel(needy))
    with client.get_executor(workers=names[0], priority=-1.5) as executor:
        assert await asyncio.wrap_future(executor.submit(where)) == names[0]


def where(_: Any = None) -> str:
    return str(get_worker().name)


async def inside(client: Client, me: str, path: Path) -> None:
    """What tasks do with clients of their own, and leave."""
    assert await got(client.submit(submits, 3, key=f"{me} submits").result(timeout=20)) == 3
    assert await got(client.submit(secedes, key=f"{me} secedes").result(timeout=20)) == 2
    assert await got(client.submit(waits_inside, key=f"{me} coroutine").result(timeout=20)) == 2
    key, priority = await got(
        client.submit(about_itself, key=f"{me} itself", priority=1.5).result(timeout=20)
    )
    assert (key, priority) == (f"{me} itself", 1.5)


def submits(depth: int) -> int:
    return depth and get_client().submit(submits, depth - 1).result() + 1


def secedes() -> int:
    with worker_client() as client:
        one = client.submit(inc, 0).result()
    secede()
    value = get_client().submit(inc, one).result()
    rejoin()
    return value


async def waits_inside() -> int:
    return int(await get_client().submit(inc, 1, pure=False))


def about_itself() -> tuple[Any, float]:
    return get_worker().get_current_task(), get_worker().get_current_priority()


async def actors(client: Client, me: str, path: Path) -> None:
    counter = await got(client.submit(Counter, actor=True, key=f"{me} actor").result())
    assert [await got_of_a_call(counter.add(1), client) for _ in range(3)] == [1, 2, 3]
    assert await got(counter.n) == 3


async def got_of_a_call(call: Any, client: Client) -> Any:
    return await call if client.asynchronous else call.result(20)


@pytest.mark.parametrize(
    "program", [tasks, data, graphs, looks, beside, coordination, topics, waits, placement, inside, actors]
)
@pytest.mark.parametrize("kind", KINDS)
def test_two_clients_at_once(
    cluster: LocalCluster, tmp_path: Path, program: Callable[..., Any], kind: str
) -> None:
    asynchronous = kind == "asynchronous"
    names = [f"{name}_{kind}" for name in ("ada", "bob")]

    async def alone(name: str) -> None:
        with Client(cluster, name=name, set_as_default=False) as client, client.as_current():
            await program(client, name, tmp_path)

    async def beside_the_other(name: str) -> None:
        async with Client(cluster, name=name, asynchronous=True, set_as_default=False) as client:
            with client.as_current():
                await program(client, name, tmp_path)

    async def together() -> None:
        await asyncio.wait_for(asyncio.gather(*map(beside_the_other, names)), 60)

    if asynchronous:
        asyncio.run(together())
    else:
        with ThreadPoolExecutor(2) as threads:
            for done in [threads.submit(asyncio.run, alone(name)) for name in names]:
                done.result(60)
    wait_until(lambda: not keys_of(cluster), what="every key is gone")


@pytest.mark.parametrize("kind", KINDS)
def test_restarting_and_retiring(kind: str) -> None:
    async def program(client: Client) -> None:
        future = client.submit(inc, 1)
        assert await got(future.result()) == 2
        first, second = (await got(client.scheduler_info()))["workers"]
        assert await got(client.restart_workers([first])) == {first: "OK"}
        await got(client.restart(timeout=20))
        assert future.cancelled()
        assert set(await got(client.retire_workers([second]))) == {second}
        assert set(await got(client.nthreads())) == {first}
        assert await got(client.submit(inc, 1).result()) == 2
        await got(client.shutdown())
        assert client.status == "closed"

    async def synchronous() -> None:
        with Client(cluster) as client:
            await program(client)

    async def asynchronous() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await program(client)

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        asyncio.run(synchronous() if kind == "synchronous" else asynchronous())
