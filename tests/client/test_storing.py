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
from redist.dropping import wait_for_drops
from redist.errors import SegmentsFull, TransferError
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


def here(client: Client) -> int:
    """How many payloads the workers have."""
    return sum(client._broker_of(peer).stat().files for peer in client._peers.workers())


@pytest.mark.parametrize("afar", [False, True], ids=["on this host", "on another host"])
@pytest.mark.parametrize("took", [False, True], ids=["refused", "took it and could not say so"])
def test_what_a_worker_got_goes_when_it_is_stored_elsewhere(
    client: Client, monkeypatch: pytest.MonkeyPatch, afar: bool, took: bool
) -> None:
    """One worker has taken its value when the other cannot be reached: both are placed once more."""
    put, times = scattering._put, 0
    assert here(client) == 0

    def fails(client: Client, worker: int, batch: Any, *rest: Any) -> None:
        nonlocal times
        times += 1
        if took or times != 2:
            put(client, worker, batch, *rest)
        if times == 2:
            raise TransferError("it does not answer")

    monkeypatch.setattr(scattering, "_put", fails)
    with monkeypatch.context() as patch:
        if afar:
            patch.setattr("redist.peers.same_host", lambda segments, hostid: False)
            client._peers.forget()
        futures = client.scatter([bytes(100_000), bytes(200_000)], hash=False)
        assert times == 4
        wait_for_drops(client, 10)
    client._peers.forget()
    wait_until(lambda: here(client) == 2, what="each is there once")
    assert list(map(len, client.gather(futures))) == [100_000, 200_000]
    del futures
    wait_until(lambda: here(client) == 0)


def test_what_a_worker_got_goes_when_it_is_stored_elsewhere_ahead(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a part that is written while the one before it is made known."""
    put, times = scattering._put, 0

    def fails(client: Client, worker: int, batch: Any, *rest: Any) -> None:
        nonlocal times
        times += 1
        put(client, worker, batch, *rest)
        if times == 4:
            raise TransferError("it does not answer")

    monkeypatch.setattr(scattering, "_put", fails)
    monkeypatch.setattr(scattering, "_PART", 2)
    futures = client.scatter([bytes(100_000) for _ in range(4)], hash=False)
    assert times == 6
    wait_until(lambda: here(client) == 4, what="each is there once")
    del futures
    wait_until(lambda: here(client) == 0)


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
