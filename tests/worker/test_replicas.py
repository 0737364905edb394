"""Counts compared at every heartbeat mend what a lost message left apart: a file too many, and an entry too many."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memory.memory_helpers import store
from redist.memory.directory import SegmentDirectory
from redist.store import calls as C
from redist.store.connect import Endpoint
from redist.store.replies import parse_heartbeat
from redist.store.side import Side
from redist_worker import replicas as replicas_module
from redist_worker.replicas import Replicas
from servers import Server, WireStore
from store.kit import World
from worker.harness import until

LEASE_MS = 10_000
GONE = 1 << 30  # no process has such a pid


class Rig:
    """A registered worker with a directory, whose heartbeats are made here, and a client."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.store = WireStore(endpoint, "valkey")
        self.world = World(self.store, repeating=False)
        self.client, self.worker = self.world.client(), self.world.worker("w")
        self.side = Side(endpoint)
        self.directory = SegmentDirectory.create(str(folder))

    def replicas(self, on_its_way: float) -> Replicas:
        return Replicas(self.directory, self.side, lambda call: self.worker.ok(call), on_its_way=on_its_way)

    def scatter(self, name: str, attempt: int) -> None:
        store(self.directory, name, attempt, b"v" * 5000)
        self.client.ok(C.commit([C.Value(name, 1, attempt, self.worker.ordinal, 5000, "bytes")]))

    def has(self) -> dict[str, str]:
        return self.world.snapshot().hgetall(f"has:{self.worker.ordinal}")

    async def beat(self, replicas: Replicas) -> bool:
        """Beat once, and wait for what that began; messages that came since the last beat are taken in after it."""
        call = C.worker_heartbeat(len(self.directory.files), self.worker.n, LEASE_MS)
        agree = parse_heartbeat(self.worker.ok(call)).agree
        replicas.beat(agree, self.worker.ordinal)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        self.worker.listen_up()
        replicas.evict(self.worker.evicted)
        self.worker.evicted.clear()
        return agree


@pytest.fixture
def rig(valkey: Server, namespace: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(valkey.endpoint(namespace), tmp_path)
    yield rig
    rig.world.end()
    rig.directory.close()
    rig.side.close()
    rig.store.close()


def beats(rig: Rig, count: int, on_its_way: float) -> list[bool]:
    async def all_of_them() -> list[bool]:
        replicas = rig.replicas(on_its_way)
        return [await rig.beat(replicas) for _ in range(count)]

    return asyncio.run(all_of_them())


def lose_an_eviction(rig: Rig) -> None:
    rig.scatter("kept", 1)
    rig.scatter("dropped", 2)
    rig.client.ok(C.ledger([("dropped", 0)]))
    rig.worker.listen_up()
    assert rig.worker.evicted == [("dropped", 2)]
    rig.worker.evicted.clear()


def test_a_file_whose_eviction_was_lost_goes(rig: Rig) -> None:
    lose_an_eviction(rig)
    assert beats(rig, 3, on_its_way=-1.0) == [False, False, True]
    assert set(rig.directory.files) == {("kept", 1)}
    assert rig.has() == {"kept": "1"}


def test_a_young_file_may_be_on_its_way(rig: Rig) -> None:
    lose_an_eviction(rig)
    assert beats(rig, 4, on_its_way=60.0) == [False] * 4
    assert set(rig.directory.files) == {("kept", 1), ("dropped", 2)}


def test_an_entry_without_a_file_goes(rig: Rig) -> None:
    rig.scatter("kept", 1)
    rig.scatter("lost", 2)
    rig.directory.drop("lost", 2)
    assert beats(rig, 4, on_its_way=60.0) == [False, False, False, True]
    assert rig.has() == {"kept": "1"}
    assert rig.world.state("lost") == "erred"


def test_a_moment_of_disagreement_mends_nothing(rig: Rig) -> None:
    """A file that is told of between two heartbeats."""
    store(rig.directory, "a", 1, b"v" * 5000)

    async def run() -> None:
        replicas = rig.replicas(-1.0)
        assert not await rig.beat(replicas)
        rig.client.ok(C.commit([C.Value("a", 1, 1, rig.worker.ordinal, 5000, "bytes")]))
        assert await rig.beat(replicas)
        rig.directory.drop("a", 1)
        assert not await rig.beat(replicas)
        assert rig.has() == {"a": "1"}

    asyncio.run(run())


def test_a_worker_mends_by_its_heartbeats(start: Callable[..., Any], client: Any) -> None:
    worker = start("--lease", "1")
    has = f"{client.endpoint.prefix}has:{client.ordinals('workers')['w']}"
    client.command("HSET", has, "nobody", "99")
    until(lambda: not client.command("EXISTS", has), message=worker.text())
    until(lambda: "1 payloads that are not here" in worker.text())


def of_a_process_that_ended(rig: Rig, reconnected: float = 0.0) -> None:
    """Have a worker know that the process `GONE` has let go of it, and take in the answer."""

    async def run() -> None:
        replicas = Replicas(rig.directory, rig.side, lambda call: rig.worker.ok(call), lambda: reconnected)
        replicas.gone(GONE, rig.worker.ordinal)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})
        rig.worker.listen_up()
        replicas.evict(rig.worker.evicted)

    asyncio.run(run())


def test_only_what_it_wrote_and_the_server_does_not_record_goes(rig: Rig) -> None:
    rig.scatter("recorded", 1)  # `store` says that the process 1 has written it
    store(rig.directory, "untold", 2, b"v" * 5000, writer=GONE)
    store(rig.directory, "of-another", 3, b"v" * 5000, writer=GONE + 1)
    store(rig.directory, "of-an-attempt-before", 4, b"v" * 5000, writer=GONE)
    store(rig.directory, "applied", 5, b"v" * 5000, writer=GONE)
    ordinal = rig.worker.ordinal
    rig.client.ok(C.commit([C.Value("applied", 1, 5, ordinal, 5000, "bytes")]))
    rig.client.ok(C.commit([C.Value("of-an-attempt-before", 1, 6, ordinal, 5000, "bytes")]))
    of_a_process_that_ended(rig)
    assert set(rig.directory.files) == {("recorded", 1), ("of-another", 3), ("applied", 5)}
    assert rig.has() == {"recorded": "1", "applied": "5", "of-an-attempt-before": "6"}


def test_of_a_server_that_recovers_nothing_is_believed(rig: Rig) -> None:
    store(rig.directory, "untold", 2, b"v" * 5000, writer=GONE)
    rig.world.command("HSET", "meta", "recovering", 2**52)
    of_a_process_that_ended(rig)
    rig.world.command("HDEL", "meta", "recovering")
    assert set(rig.directory.files) == {("untold", 2)}


def test_a_server_that_comes_again_has_time_to_hear_that_it_lost_writes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It records too little, and a client is about to say so."""
    monkeypatch.setattr(replicas_module, "_HEARD", 0.5)
    store(rig.directory, "told", 2, b"v" * 5000, writer=GONE)
    late = threading.Timer(0.25, lambda: rig.world.command("HSET", "meta", "recovering", 2**52))
    late.start()
    of_a_process_that_ended(rig, time.monotonic())
    late.join()
    rig.world.command("HDEL", "meta", "recovering")
    assert set(rig.directory.files) == {("told", 2)}
