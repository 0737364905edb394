"""Values too large to be inline and too small for a file each: many of them share one."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Iterator
from functools import partial
from threading import Event, Timer
from typing import Any

import numpy as np
import pytest

from redist import Client, LocalCluster, config, scattering
from redist.belonging import Borrowing
from redist.diagnostics.doctor import examine
from redist.errors import ConnectionLost, SegmentsFull, TransferError
from redist.memory.arena import ARENA_SIZE
from redist.memory.headers import is_file_name
from redist.memory.space import Space
from redist.scattering import prepare, store
from redist.session.lane import Refused
from redist.session.operations import Collect
from servers import keys_of, wait_until


@pytest.fixture(scope="module", autouse=True)
def nothing_ready() -> Iterator[None]:
    """Nothing takes memory but values."""
    with config.set({"worker.memory.ready": 0}):
        yield


def values(count: int) -> list[np.ndarray[Any, Any]]:
    return [np.full(1024, number, "f8") for number in range(count)]


def directories(client: Client) -> list[str]:
    return [worker["local_directory"] for worker in client.scheduler_info()["workers"].values()]


def listed(client: Client) -> tuple[int, int]:
    """How many payload files, and how many arenas, there are."""
    names = [name for path in directories(client) for name in os.listdir(path)]
    return sum(map(is_file_name, names)), sum(name.startswith("arena-") for name in names)


def used(client: Client) -> int:
    spaces = [Space(os.path.join(path, "space")) for path in directories(client)]
    try:
        return sum(space.used for space in spaces)
    finally:
        for space in spaces:
            space.close()


def make(number: int) -> np.ndarray[Any, Any]:
    return np.full(1024, number, "f8")


def total(*parts: Any) -> float:
    return float(sum(part.sum() for part in parts))


def check(found: list[Any], count: int) -> None:
    assert len(found) == count
    assert all((one == other).all() for one, other in zip(found, values(count)))


def test_they_share_files_and_leave_nothing(cluster: LocalCluster, client: Client) -> None:
    futures = client.scatter(values(1000), hash=False)
    results = client.map(make, range(300), pure=False)
    check(client.gather(futures), 1000)
    check(client.gather(results), 300)
    check([future.result() for future in futures[:20]], 20)
    assert listed(client)[0] == 0
    assert 8 <= listed(client)[1] <= 30
    assert client.submit(total, futures[1], *results[2:10]).result(10) == 1024.0 * 45
    assert not examine(cluster.endpoint).violations
    del futures, results
    wait_until(lambda: used(client) == 0 and listed(client) == (0, 0), 30)


def test_what_is_read_is_read_only_or_a_copy(client: Client) -> None:
    (future,) = client.scatter(values(1))
    assert not future.result().flags.writeable
    for options in ({"copy": True}, {"writable": True}):
        value = future.result(**options)
        value += 1
        assert value.sum() == 1024
    assert future.result().sum() == 0


def viewed(client: Client, futures: list[Any]) -> list[Any] | None:
    found = client.gather(futures)
    return found if all(isinstance(each.base, mmap.mmap) for each in found) else None


def test_a_value_keeps_its_arena_and_no_more(client: Client) -> None:
    futures = client.scatter(values(1000), hash=False)
    # once the writer's last arena is sealed as well
    found = wait_until(partial(viewed, client, futures))
    del futures
    check(found, 1000)
    one = found[500]
    del found
    wait_until(lambda: 0 < used(client) <= ARENA_SIZE)
    assert (one == 500).all()
    assert not one.flags.writeable
    wait_until(lambda: client.memory().total.lingering == used(client))
    del one
    wait_until(lambda: used(client) == 0 and listed(client) == (0, 0))


def test_copies_keep_nothing(client: Client) -> None:
    futures = client.scatter(values(1000), hash=False)
    found = client.gather(futures, copy=True)
    del futures
    wait_until(lambda: used(client) == 0 and listed(client) == (0, 0))
    check(found, 1000)
    found[3] += 1


def test_a_client_that_cannot_map_anything(
    cluster: LocalCluster, new_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another host: all goes through the data servers of the workers, and into their arenas."""
    monkeypatch.setattr("redist.peers.same_host", lambda segments, hostid: False)
    client = new_client()
    futures = client.scatter(values(300), hash=False)
    assert listed(client)[0] == 0
    check(client.gather(futures), 300)
    assert client.submit(total, *futures[:10]).result(10) == 1024.0 * 45
    check(client.gather(client.map(make, range(100), pure=False)), 100)


def test_a_client_that_ends_takes_back_what_it_did_not_make_known(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("redist.scattering.tell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.scatter(values(300), hash=False)
    monkeypatch.undo()
    wait_until(lambda: used(client) == 0 and listed(client) == (0, 0), 30)


def failing_put(monkeypatch: pytest.MonkeyPatch, error: BaseException, times: int = 1) -> list[int]:
    """Have the second part of a scatter fail `times` times; return the sizes of the parts that were to be written."""
    put, sizes = scattering._put, []

    def fails(client: Client, worker: int, batch: list[Any], *rest: Any) -> None:
        sizes.append(len(batch))
        if 1 < len(sizes) <= 1 + times:
            raise type(error)(*error.args)  # a new one, whose traceback holds no frame for long
        put(client, worker, batch, *rest)

    monkeypatch.setattr(scattering, "_put", fails)
    monkeypatch.setattr(scattering, "_PART", 100)
    return sizes


@pytest.fixture
def one_worker() -> Iterator[Client]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        yield client
        wait_until(lambda: not keys_of(cluster))
        wait_until(lambda: used(client) == 0 and listed(client) == (0, 0), 30)


def test_a_part_that_cannot_be_written(one_worker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = failing_put(monkeypatch, SegmentsFull("no space"))
    with pytest.raises(SegmentsFull, match="no space"):
        one_worker.scatter(values(350), hash=False)
    assert sizes == [100, 100]


def test_a_worker_that_is_gone_while_a_part_is_written(
    one_worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = failing_put(monkeypatch, TransferError("gone"), times=2)
    check(one_worker.gather(one_worker.scatter(values(350), hash=False)), 350)
    assert sizes == [100, 100, 100, 100, 100, 50]


def test_an_interrupt_while_a_part_is_written(one_worker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    put, begun, go_on = scattering._put, Event(), Event()

    def slow(client: Client, worker: int, batch: list[Any], *rest: Any) -> None:
        if begun.is_set():
            go_on.wait(10)
        begun.set()
        put(client, worker, batch, *rest)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        Timer(0.1, go_on.set).start()
        raise KeyboardInterrupt

    monkeypatch.setattr(scattering, "_PART", 100)
    monkeypatch.setattr(scattering, "_put", slow)
    monkeypatch.setattr(scattering, "tell_on", interrupted)
    with pytest.raises(KeyboardInterrupt):
        one_worker.scatter(values(350), hash=False)
    monkeypatch.undo()


def test_a_refusal_while_a_part_is_written(one_worker: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise Refused("nothing", "not today")

    monkeypatch.setattr(scattering, "_PART", 100)
    monkeypatch.setattr(scattering, "tell_on", refused)
    with pytest.raises(Refused, match="not today"):
        one_worker.scatter(values(350), hash=False)
    monkeypatch.undo()


class Late:
    """A client's second part is written, and refused then; what comes of waiting for the reply to the first is `error`."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
        put, parts = scattering._put, [0]

        def fails(client: Client, worker: int, batch: list[Any], *rest: Any) -> None:
            parts[0] += 1
            put(client, worker, batch, *rest)
            if parts[0] == 2:
                raise SegmentsFull("no space")

        monkeypatch.setattr(scattering, "_PART", 100)
        monkeypatch.setattr(scattering, "_put", fails)
        self.items = prepare(client, values(350), [None] * 350, unique=True, borrowing=Borrowing(client))
        self.states = [item.state for item in self.items]
        operation = store(client, self.items)
        collects = 0
        try:
            request = next(operation)
            while True:
                collects += isinstance(request, Collect)
                try:
                    if collects:
                        raise error
                    outcome = client._driver.perform(request)
                except BaseException as raised:
                    request = operation.throw(raised)
                else:
                    request = operation.send(outcome)
        except BaseException as raised:
            self.raised = raised.with_traceback(None)
            self.raised.__context__ = None
        # what is released when the Futures go
        for state in self.states:
            client.session.ledger.release(state)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError()])
def test_an_interrupt_while_what_was_told_is_waited_for_after_an_error(
    one_worker: Client, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    late = Late(one_worker, monkeypatch, error)
    assert late.raised is error
    assert {state.status for state in late.states} <= {"error", "finished"}
    monkeypatch.undo()


def test_what_some_worker_has_of_a_part_that_cannot_be_written(
    one_worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = scattering._put

    def fails(*args: Any) -> None:
        put(*args)
        raise SegmentsFull("no space on the next one")

    monkeypatch.setattr(scattering, "_put", fails)
    with pytest.raises(SegmentsFull, match="next one"):
        one_worker.scatter(values(50), hash=False)
    monkeypatch.undo()


def test_what_was_told_is_not_answered_in_time_after_an_error(
    one_worker: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ConnectionLost("no reply")
    error.pending = True
    late = Late(one_worker, monkeypatch, error)
    assert isinstance(late.raised, SegmentsFull)
    assert {state.status for state in late.states} <= {"error", "finished"}
    monkeypatch.undo()


def test_in_a_loop_too() -> None:
    async def main() -> None:
        async with (
            LocalCluster(n_workers=1, threads_per_worker=1, asynchronous=True) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            futures = await client.scatter(values(2500), hash=False)
            check(await client.gather(futures), 2500)

    asyncio.run(main())
