"""What happens meanwhile does not harm a value that is being stored."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from redist import Client, Future, LocalCluster, scattering
from redist.belonging import Borrowing
from redist.errors import SegmentsFull
from redist.scattering import prepare, store
from servers import wait_until


def settled(client: Client) -> None:
    """Wait until everything is answered."""
    session = client.session
    wait_until(lambda: session.ready and not session.lane.unanswered and not session.lane.due)


def expel(cluster: LocalCluster, client: Client) -> None:
    """The server forgets the client, as after an absence for longer than its lease."""
    wire = cluster.endpoint.open()
    wire.call("HSET", f"{cluster.endpoint.prefix}caller:{client.session.ordinal}", "inc", "another")
    wire.close()


def register_anew(cluster: LocalCluster, client: Client) -> None:
    incarnation = client.session.incarnation
    expel(cluster, client)
    with client.session.lock:
        client.session.heart.beat()
        client._driver.push_out()
    wait_until(lambda: client.session.incarnation != incarnation)
    settled(client)


def read_all(cluster: LocalCluster, client: Client) -> None:
    """What a client does after it has missed a push."""
    with client.session.lock:
        client.session.reads.unsettled()
        client._driver.push_out()
    settled(client)


def beat(cluster: LocalCluster, client: Client) -> None:
    """The counts of both sides are compared."""
    with client.session.lock:
        client.session.heart.beat()
        client._driver.push_out()
    settled(client)


@pytest.mark.parametrize("event", [register_anew, expel, read_all, beat])
def test_while_it_is_written(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch, event: Callable[..., None]
) -> None:
    put = scattering._put

    def after(*args: Any) -> Any:
        event(cluster, client)
        return put(*args)

    monkeypatch.setattr(scattering, "_put", after)
    value = client.scatter(bytes(100_000))
    assert client.submit(len, value).result(10) == 100_000
    beats: list[Any] = []
    client.session.on_beat = beats.append
    beat(cluster, client)
    wait_until(lambda: beats)
    assert beats[-1].agree


def test_under_a_key_that_has_just_been_cancelled(
    cluster: LocalCluster, client: Client, new_client: Any
) -> None:
    other = new_client(set_as_default=False)
    for i in range(60):
        key = f"key-{i}"
        future = client.submit(abs, -1, key=key)
        assert future.result(10) == 1
        held = Future(key, other)
        client.cancel(key, force=True)
        del future
        gc.collect()
        large = client.scatter({key: bytes(100_000)})[key]
        assert client.submit(len, large, pure=False).result(10) == 100_000
        del large, held


def test_a_count_does_not_come_before_the_value(client: Client, keys: Callable[[], list[str]]) -> None:
    """Another thread refers to a value whose commit is just about to leave, and tells its counts."""
    borrowing = Borrowing(client)
    first = prepare(client, ["a value"], [None], unique=False, borrowing=borrowing)
    storing = store(client, first)
    request = next(storing)
    second = prepare(client, ["a value"], [None], unique=False, borrowing=borrowing)
    with client.session.lock:
        client.session.flush(everything=True)
        client._driver.push_out()
    client.who_has([])  # behind the counts
    with suppress(StopIteration):
        while True:
            request = storing.send(client._driver.perform(request))
    (state,) = {item.state for item in (*first, *second)}
    assert state.status == "finished"
    client.list_datasets()  # behind what the server may have said
    assert client.gather(Future._of(state, client)) == "a value"
    client._release(state)
    wait_until(lambda: not keys())


def test_a_refused_value_keeps_nothing_of_its_caller(monkeypatch: pytest.MonkeyPatch, client: Client) -> None:
    class Held:
        pass

    def full(*_: object) -> None:
        raise SegmentsFull("full")

    def scatter() -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(SegmentsFull, match="full"):
            client.scatter(b"x" * 100_000)
        return weakref.ref(held)

    monkeypatch.setattr(scattering, "_put", full)
    gc.collect()
    gc.disable()
    try:
        assert scatter()() is None
    finally:
        gc.enable()
