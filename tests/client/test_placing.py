"""Places that are asked for ahead: they save a round trip, and nobody is sent where he should not go."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from redist import Client, LocalCluster, placing
from redist.errors import QuotaExceeded
from servers import ordinals, wait_until

LARGE = bytes(100_000)


def placed(cluster: LocalCluster) -> int:
    """How far the turn of the workers went: one further with each call that brings places ahead, else one a value."""
    with closing(cluster.endpoint.open()) as wire:
        return int(wire.call("HGET", f"{cluster.endpoint.prefix}meta", "placed") or 0)


def where(client: Client, future: Any) -> list[str]:
    return list(client.who_has([future])[future.key])


def test_the_server_is_asked_once_for_many_values(cluster: LocalCluster, client: Client) -> None:
    first = client.scatter(LARGE, hash=False)
    before = placed(cluster)
    others = [client.scatter(LARGE, hash=False) for _ in range(placing._AHEAD)]
    assert placed(cluster) == before
    assert {worker for future in others for worker in where(client, future)} == set(
        client.scheduler_info()["workers"]
    )
    attempts = {future._state.where.partition(".")[2] for future in [first, *others]}
    assert len(attempts) == placing._AHEAD + 1
    client.scatter(LARGE, hash=False)
    assert placed(cluster) == before + 1


def test_large_arguments_of_tasks_use_them(cluster: LocalCluster, client: Client) -> None:
    kept = client.scatter(LARGE, hash=False)
    before = placed(cluster)
    assert client.submit(len, LARGE + b"1").result(10) == 100_001
    assert placed(cluster) == before
    del kept


def test_in_a_loop(cluster: LocalCluster) -> None:
    async def main() -> tuple[int, int]:
        async with Client(cluster, asynchronous=True) as client:
            kept = await client.scatter(LARGE, hash=False)
            before = await asyncio.to_thread(placed, cluster)
            kept = [kept, await client.scatter(LARGE, hash=False)]
            assert await client.gather(kept) == [LARGE, LARGE]
            return before, await asyncio.to_thread(placed, cluster)

    before, after = asyncio.run(main())
    assert before == after


def test_a_key_with_a_name_gets_a_new_number(cluster: LocalCluster, client: Client) -> None:
    """Somebody else may have used it since: of copies that a lost server left the one with the highest number counts."""
    kept = client.scatter(LARGE, hash=False)
    before = placed(cluster)
    named = client.scatter({"named": LARGE})
    assert placed(cluster) == before + 1
    del kept, named


def test_they_are_good_for_a_while(
    cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placing, "_GOOD_FOR", -1.0)
    client.scatter(LARGE, hash=False)
    before = placed(cluster)
    client.scatter(LARGE, hash=False)
    assert placed(cluster) > before


@pytest.fixture
def another() -> Iterator[LocalCluster]:
    """A cluster of its own: once somebody has a quota it is noted for good who made what."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


def test_where_there_are_quotas_each_value_is_looked_at(another: LocalCluster) -> None:
    with Client(another, quota="250 kB", set_as_default=False) as client:
        before = placed(another)
        kept = [client.scatter(LARGE, hash=False) for _ in range(2)]
        assert placed(another) == before + 2
        with pytest.raises(QuotaExceeded):
            client.scatter(LARGE, hash=False)
        assert len(kept) == 2


def test_places_from_before_a_quota(another: LocalCluster) -> None:
    """The namespace gets a quota while a client has places: what is stored is refused, and nothing is left of it."""
    with (
        Client(another, set_as_default=False) as client,
        closing(another.endpoint.open()) as wire,
    ):
        kept = [client.scatter(LARGE, hash=False)]
        with Client(another, quota="1 MB", set_as_default=False):  # from now on is counted what each has
            kept.append(client.scatter(LARGE, hash=False))
            wire.call("HSET", f"{another.endpoint.prefix}meta", "quota", "150000")
            before = placed(another)
            with pytest.raises(QuotaExceeded):
                client.scatter(LARGE, hash=False)
            assert placed(another) == before
        wait_until(lambda: sum(len(keys) for keys in client.has_what().values()) == 2)
        assert client.gather(kept) == [LARGE, LARGE]


def test_a_worker_that_closes_gets_nothing_more() -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        kept = [client.scatter(LARGE, hash=False)]
        seen = client._workers_seen
        leaving, other = cluster.workers
        client.retire_workers([leaving], close_workers=False)
        wait_until(lambda: client._workers_seen != seen)
        kept += [client.scatter(LARGE, hash=False) for _ in range(4)]
        assert {worker for future in kept[1:] for worker in where(client, future)} == {
            client._peers.worker(ordinals(cluster)[other]).address  # type: ignore[union-attr]
        }


def test_a_worker_that_is_gone_is_replaced() -> None:
    """Nobody has noticed yet that it was killed; the places that it had are forgotten."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        kept = [client.scatter(LARGE, hash=False)]
        killed = next(iter(cluster.workers))
        os.kill(int(client._peers.worker(ordinals(cluster)[killed]).fields["pid"]), signal.SIGKILL)  # type: ignore[union-attr]
        kept += [client.scatter(LARGE, hash=False) for _ in range(placing._AHEAD)]
        assert client.gather(kept[1:]) == [LARGE] * placing._AHEAD
