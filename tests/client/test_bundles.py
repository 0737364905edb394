"""Values that hold so many Futures that they contain bundles of keys, by every way in which a value is stored."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redist import (
    Client,
    Future,
    LocalCluster,
    Pub,
    Queue,
    Variable,
    bundling,
    committing,
    get_client,
    scattering,
    wait,
)
from redist.bundling import Bundles
from redist.diagnostics.doctor import examine
from redist.errors import DependencyUnknown, SerializationError, ServerFull
from redist.store.calls import MOST_CONTAINED
from redist.store.keys import BUNDLE
from servers import full, keys_of, wait_until

MANY = 3_000

Keys = Callable[[], list[str]]


def bundles_of(cluster: LocalCluster) -> list[str]:
    return [name for name in keys_of(cluster) if name.startswith(BUNDLE)]


def most_contained(cluster: LocalCluster) -> int:
    """How many keys the fullest container of the namespace contains."""
    wire = cluster.endpoint.open()
    try:
        return max(
            wire.call("SCARD", key) for key in wire.call("KEYS", f"{cluster.endpoint.prefix}contains:*")
        )
    finally:
        wire.close()


def makes(count: int) -> list[Future[int]]:
    return get_client().scatter(list(range(count)), hash=False)


def first(futures: list[Future[int]]) -> Future[int]:
    return futures[0]


def the_value(client: Client, how: str) -> tuple[Callable[[Client], list[Future[int]]], Any]:
    """Store a list of Futures that nothing else holds; return what reads it, and what holds it."""
    if how == "result":
        held = client.submit(makes, MANY, pure=False)
        wait(held)
        return lambda other: Future(held.key, other).result(), held
    leaves = client.scatter(list(range(MANY)), hash=False)
    if how == "publish":
        client.publish_dataset(leaves, name="many")
        return lambda other: other.get_dataset("many"), None
    if how == "variable":
        Variable("many", client).set(leaves)
        return lambda other: Variable("many", other).get(), None
    if how == "queue":
        Queue("many", client).put(leaves)
        return lambda other: Queue("many", other).get(), None
    held = client.scatter([leaves], hash=how == "scatter by content")[0]
    if how == "scatter by content":
        assert client.scatter([leaves])[0].key == held.key
    return lambda other: Future(held.key, other).result(), held


@pytest.mark.parametrize("how", ["scatter", "scatter by content", "publish", "variable", "queue", "result"])
def test_it_holds_them_all(
    client: Client, new_client: Callable[..., Client], cluster: LocalCluster, how: str
) -> None:
    read, held = the_value(client, how)
    wait_until(lambda: len(bundles_of(cluster)) == MANY / MOST_CONTAINED, what="the other bundles are gone")
    wait_until(
        lambda: (
            not any(
                field.count for field in client.futures.values() if field is not getattr(held, "_state", None)
            )
        )
    )
    assert most_contained(cluster) == MOST_CONTAINED
    other = new_client(set_as_default=False)
    leaves = read(other)
    if held is not None:
        held.release()
    elif how == "publish":
        client.unpublish_dataset("many")
    elif how == "variable":
        Variable("many", client).delete()
    wait_until(lambda: not bundles_of(cluster), what="the bundles are gone")
    assert other.gather(leaves) == list(range(MANY))
    assert not examine(cluster.endpoint).violations
    del leaves
    wait_until(lambda: not keys_of(cluster), what="every key is gone")


def test_bundles_of_bundles(client: Client, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (bundling, scattering):
        monkeypatch.setattr(module, "MOST_CONTAINED", 10)
    held = client.scatter([client.scatter(list(range(MANY)), hash=False)])[0]
    assert len(bundles_of(cluster)) == 300 + 30 + 3
    wait_until(lambda: len(client.futures) == 1)
    assert most_contained(cluster) == 10
    assert client.gather(held.result()) == list(range(MANY))
    del held
    wait_until(lambda: not keys_of(cluster), what="every key is gone")


@pytest.mark.parametrize("asynchronous", [False, True])
def test_in_an_argument(cluster: LocalCluster, keys: Keys, asynchronous: bool) -> None:
    """A large argument is stored as a value of its own."""

    class Box:
        def __init__(self, content: Any) -> None:
            self.content = content, bytes(100_000)

    def opened(box: Box) -> int:
        futures = box.content[0]
        return sum(get_client().gather(futures)) if len(futures) == MANY else -1

    if not asynchronous:
        with Client(cluster) as client:
            box = Box(client.scatter(list(range(MANY)), hash=False))
            future = client.submit(opened, client.scatter([box])[0])
            assert future.result(30) == sum(range(MANY))
    else:

        async def main() -> None:
            async with Client(cluster, asynchronous=True) as client:
                box = Box(await client.scatter(list(range(MANY)), hash=False))
                held = (await client.scatter([box]))[0]
                future = client.submit(opened, held)
                del box
                assert await future == sum(range(MANY))
                await client.publish_dataset(await held, name="box")
                del held, future
                futures, _ = (await client.get_dataset("box")).content
                await client.unpublish_dataset("box")
                assert await client.gather(futures) == list(range(MANY))

        asyncio.run(main())
    wait_until(lambda: not keys())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_large_argument_that_submit_stores(
    client: Client, cluster: LocalCluster, keys: Keys, asynchronous: bool
) -> None:
    """Hidden Futures are found where the argument is stored, tasks that have not left among them."""

    class Hidden:
        def __init__(self, futures: list[Any]) -> None:
            self.futures = futures
            self.filler = bytes(100_000)

    if not asynchronous:
        with Client(cluster, set_as_default=False) as mine:
            hidden = Hidden(mine.map(abs, range(-MANY, 0), pure=False))
            (stored,) = mine._store([hidden])
            del hidden
            wait_until(lambda: len(mine.futures) == 1)
            assert client.gather(Future(stored.key, client).result().futures[0]) == MANY
            del stored
    else:

        async def main() -> None:
            async with Client(cluster, asynchronous=True, set_as_default=False) as mine:
                late = mine.submit(len, bytes(200_000), pure=False)  # leaves when its argument is stored
                hidden = Hidden([late, *mine.map(abs, range(-MANY, 0), pure=False)])
                (stored,) = mine._store([hidden])
                task = mine.submit(lambda hidden: hidden.futures[0].result(), stored, pure=False)
                del hidden, late
                assert await task == 200_000
                del stored, task

        asyncio.run(main())
    wait_until(lambda: not [key for key in keys() if key not in client.futures])


def test_why(client: Client, cluster: LocalCluster) -> None:
    leaf = client.scatter({"leaf": 1})["leaf"]
    others = client.scatter(list(range(MANY)), hash=False)
    whole = client.scatter({"whole": [leaf, *others]})["whole"]
    client.publish_dataset([leaf, *others], name="many")
    leaf.release()
    wait_until(lambda: len(client.why("leaf").holders) == 2)
    holders = {(holder.kind, holder.name) for holder in client.why("leaf").holders}
    assert holders == {("container", "whole"), ("dataset", "many")}
    client.unpublish_dataset("many")
    whole.release()
    bundles = Bundles(client)
    names = [future.key for future in others]
    client._run(bundles.of(names))
    (mine, bundle) = client.why(others[0]).holders
    assert (mine.kind, mine.name) == ("client", client.name)
    assert str(bundle).startswith(f"container that client {client.name} is storing, caller:")
    bundles.release()
    wait_until(lambda: len(client.why(others[0]).holders) == 1)


def test_a_message_of_too_many(client: Client) -> None:
    leaves = client.scatter(list(range(MOST_CONTAINED + 1)), hash=False)
    with pytest.raises(SerializationError, match="at most 500 Futures"):
        Pub("many", client=client).put(leaves)


@pytest.mark.parametrize("how", ["publish", "variable", "queue"])
def test_a_key_that_is_not_known_any_more(
    client: Client, new_client: Callable[..., Client], keys: Keys, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    leaves = client.scatter(list(range(MANY)), hash=False)
    other = new_client(set_as_default=False)
    gone = Future(leaves[-1].key, other)
    other._settle()
    monkeypatch.setattr(other.session.notifications, "states", lambda message: None)  # it does not hear of it
    client.cancel(leaves.pop(), force=True)
    stores = {
        "publish": lambda value: client.publish_dataset(value, name="many"),
        "variable": Variable("many", client).set,
        "queue": Queue("many", client).put,
    }
    with pytest.raises(DependencyUnknown, match=gone.key):
        stores[how]([*leaves, gone])
    assert client.list_datasets() == ()
    wait_until(lambda: len(keys()) == MANY - 1, what="the bundles are gone")


@contextlib.contextmanager
def at_the_third(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[], None], before: bool
) -> Iterator[None]:
    """Have something happen before the third commit leaves, or after it was answered."""
    module, name = (committing.calls, "commit") if before else (committing, "parse_commit")
    real = getattr(module, name)
    calls = 0

    def counting(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            happens()
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, counting)
        yield
    assert calls >= 3


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("how", ["scatter", "publish"])
def test_a_ctrl_c_halfway(
    client: Client, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, how: str, before: bool
) -> None:
    leaves = client.scatter(list(range(MANY)), hash=False)
    with at_the_third(monkeypatch, interrupt, before), pytest.raises(KeyboardInterrupt):
        client.publish_dataset(leaves, name="many") if how == "publish" else client.scatter([leaves])
    wait_until(lambda: len(keys_of(cluster)) == MANY, what="only the leaves are left")
    assert len(client.futures) == MANY
    assert client.list_datasets() == ()
    assert client.gather(leaves) == list(range(MANY))


@pytest.mark.parametrize("how", ["scatter", "publish"])
def test_a_server_that_becomes_full_halfway(
    client: Client, cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    leaves = client.scatter(list(range(MANY)), hash=False)
    wire = cluster.endpoint.open()
    with contextlib.ExitStack() as stack:
        stack.callback(wire.close)
        fill = lambda: stack.enter_context(full(wire.call))  # noqa: E731
        with at_the_third(monkeypatch, fill, before=True), pytest.raises(ServerFull):
            client.publish_dataset(leaves, name="many") if how == "publish" else client.scatter([leaves])
        wait_until(lambda: len(keys_of(cluster)) == MANY, what="only the leaves are left")
    assert len(client.futures) == MANY
    assert client.list_datasets() == ()


def test_a_server_that_is_full_when_a_task_returns(client: Client, cluster: LocalCluster, keys: Keys) -> None:
    def fills(count: int, url: str) -> Any:
        from redist.store.connect import endpoint

        futures = makes(count)
        wire = endpoint(url).open()
        wire.call("CONFIG", "SET", "maxmemory", "1")
        wire.close()
        return futures

    wire = cluster.endpoint.open()
    _, limit = wire.call("CONFIG", "GET", "maxmemory")
    future = client.submit(fills, MANY, cluster.endpoint.address.url(secrets=True))
    try:
        with pytest.raises(ServerFull):
            future.result(20)
    finally:
        wire.call("CONFIG", "SET", "maxmemory", limit)
        wire.close()
    del future
    wait_until(lambda: not keys(), what="every key is gone")


def test_a_cancelled_scatter(cluster: LocalCluster, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            leaves = await client.scatter(list(range(MANY)), hash=False)
            running: asyncio.Task[Any]
            with at_the_third(monkeypatch, lambda: running.cancel() and None, before=True):
                running = asyncio.ensure_future(client.scatter([leaves]))
                with pytest.raises(asyncio.CancelledError):
                    await running
            await asyncio.to_thread(wait_until, lambda: len(keys()) == MANY, 10, "only the leaves are left")
            assert len(client.futures) == MANY
            assert await client.gather(leaves) == list(range(MANY))

    asyncio.run(main())
    wait_until(lambda: not keys())


def test_a_session_of_the_same_name_takes_up_no_bundles(cluster: LocalCluster, keys: Keys) -> None:
    first = Client(cluster, name="nightly", grace="1h", set_as_default=False)
    leaves = first.scatter(list(range(MANY)), hash=False)
    bundles = Bundles(first)
    first._run(bundles.of([future.key for future in leaves]))
    with Client(cluster, name="nightly", grace="1h", set_as_default=False) as second:
        wait_until(lambda: len(second.futures) == MANY)
        wait_until(lambda: len(keys()) == MANY, what="the bundles are gone")
        first.close()
        del leaves, bundles
    wait_until(lambda: not keys())
