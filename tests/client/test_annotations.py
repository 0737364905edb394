"""Order and place of tasks: `priority`, `resources`, `workers`, `allow_other_workers`, `retries`; on submit and map."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from dask.delayed import delayed

from redist import Client, Future, LocalCluster, get_worker, wait
from servers import wait_until

PATIENCE = 20.0


@pytest.fixture(scope="module")
def clusters() -> Iterator[list[LocalCluster]]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1) as one,
        LocalCluster(n_workers=2, threads_per_worker=1) as two,
    ):
        yield [one, two]


@pytest.fixture
def single(clusters: list[LocalCluster]) -> Iterator[Client]:
    """A client of one worker with one thread."""
    with Client(clusters[0]) as client:
        yield client


@pytest.fixture
def two(clusters: list[LocalCluster]) -> Iterator[Client]:
    """A client of two workers with one thread each."""
    with Client(clusters[1]) as client:
        yield client


def note(path: str, what: Any, _: Any = None) -> Any:
    with open(path, "a") as file:
        file.write(f"{what}\n")
    return what


def when_there(path: str, i: int = 0) -> str:
    deadline = time.monotonic() + PATIENCE
    Path(f"{path}.begun{i}").touch()
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)
    return get_worker().name


def where(_: Any = None) -> str:
    return get_worker().name


def fail_once(path: str) -> str:
    if os.path.exists(path):
        return "again"
    Path(path).touch()
    raise ValueError("the first time")


class Placed:
    def where(self) -> str:
        return get_worker().name


def names(client: Client) -> list[str]:
    return [worker["name"] for worker in client.scheduler_info()["workers"].values()]


def occupied(client: Client, path: Path, **options: Any) -> Future[Any]:
    """Return a task that runs until `path` is there."""
    future = client.submit(when_there, str(path), 99, pure=False, **options)
    wait_until(lambda: Path(f"{path}.begun99").exists(), what="the task runs")
    return future


# --- priority -------------------------------------------------------------------------------------------------------


def test_priority(single: Client, tmp_path: Path) -> None:
    gate = occupied(single, tmp_path / "go")
    log = str(tmp_path / "log")
    futures = [
        single.submit(note, log, f"{priority}{letter}", priority=priority)
        for letter, priority in itertools.product("abc", (0, -1, 10, 2))
    ]
    futures += single.map(note, [log] * 3, ["5x", "5y", "5z"], priority=5)
    single.who_has(futures)  # the server knows them
    (tmp_path / "go").touch()
    wait([gate, *futures])
    assert Path(log).read_text().split() == [
        *("10a", "10b", "10c", "5x", "5y", "5z", "2a", "2b", "2c", "0a", "0b", "0c", "-1a", "-1b", "-1c")
    ]


def test_fractions_and_other_numbers(single: Client, tmp_path: Path) -> None:
    gate = occupied(single, tmp_path / "go")
    log = str(tmp_path / "log")
    given = [
        0,
        0.5,
        -0.5,
        1e-7,
        1,
        1.0,
        Fraction(3, 2),
        np.float64(2.5),
        np.int64(2),
        float("inf"),
        -1e300,
        None,
    ]
    futures = [single.submit(note, log, str(i), priority=one) for i, one in enumerate(given)]  # type: ignore[arg-type]
    futures += single.map(note, [log] * 2, ["m", "n"], priority=0.75)
    with single.get_executor(priority=0.25) as executor:
        ran = executor.submit(note, log, "e")
        futures.append(single.compute(delayed(note)(log, "c"), priority=0.3))
        with dask.annotate(priority=0.4):
            futures.append(single.compute(delayed(note)(log, "a")))
        single.who_has(futures)
        (tmp_path / "go").touch()
        wait([gate, *futures])
        ran.result(PATIENCE)
    assert Path(log).read_text().split() == [
        *"9786",
        "4",
        "5",
        "m",
        "n",
        "1",
        "a",
        "c",
        "e",
        *("3", "0", "11", "2", "10"),
    ]
    with pytest.raises(ValueError, match="neither above nor below"):
        single.submit(note, log, "x", priority=float("nan"))


def test_fractions_from_two_clients_one_of_them_asynchronous(single: Client, tmp_path: Path) -> None:
    gate = occupied(single, tmp_path / "go")
    log = str(tmp_path / "log")

    async def main() -> None:
        async with Client(single.url, namespace=single.namespace, asynchronous=True) as other:
            futures = [
                (single if i % 2 else other).submit(note, log, str(i), priority=i / 10) for i in range(6)
            ]
            await other.who_has(futures[::2])
            single.who_has(futures[1::2])
            (tmp_path / "go").touch()
            for future in futures[::2]:
                await future
            wait(futures[1::2])

    asyncio.run(main())
    assert Path(log).read_text().split() == list("543210")
    wait(gate)


def test_annotations_hold_for_submit_and_map(two: Client, tmp_path: Path) -> None:
    first, second = names(two)
    flaky = str(tmp_path / "flaky")
    with dask.annotate(workers=first, retries=1):
        assert two.submit(where, pure=False).result(PATIENCE) == first
        assert set(two.gather(two.map(where, range(5), pure=False))) == {first}
        assert two.submit(where, workers=second, pure=False).result(PATIENCE) == second
        assert two.submit(fail_once, flaky).result(PATIENCE) == "again"
        with two.get_executor() as executor:
            assert executor.submit(where).result(PATIENCE) == first
            assert set(executor.map(where, range(3))) == {first}
        actor = two.submit(Placed, actor=True).result(PATIENCE)
        assert actor.where().result(PATIENCE) == first
    with dask.annotate(workers=lambda key: second if key.endswith("b") else first):
        assert [two.submit(where, i, key=f"key-{i}").result(PATIENCE) for i in "ab"] == [first, second]
        assert two.gather(two.map(where, range(4), key=list("cbab"), pure=False)) == [
            first,
            second,
            first,
            second,
        ]
    with dask.annotate(retries=1.5):
        with pytest.raises(TypeError, match="retries"):
            two.submit(where)


def test_priority_of_what_becomes_ready(single: Client, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    gate = occupied(single, tmp_path / "go")
    plain = [single.submit(note, log, f"plain{i}") for i in range(3)]
    urgent = [single.submit(note, log, f"urgent{i}", gate, priority=1) for i in range(3)]
    single.who_has(urgent)
    (tmp_path / "go").touch()
    wait([*plain, *urgent])
    assert sorted(Path(log).read_text().split()[:3]) == ["urgent0", "urgent1", "urgent2"]


# --- workers --------------------------------------------------------------------------------------------------------


def test_workers(two: Client) -> None:
    for name, (address, info) in zip(names(two), two.scheduler_info()["workers"].items(), strict=True):
        assert two.submit(where, workers=name, pure=False).result(PATIENCE) == name
        assert two.submit(where, workers=[address], pure=False).result(PATIENCE) == name
        placed = two.map(where, range(10), workers=[name], pure=False)
        assert set(two.gather(placed)) == {name}
        assert two.submit(where, workers=info["host"], pure=False).result(PATIENCE) in names(two)


def test_who_may_run_it_elsewhere(two: Client, tmp_path: Path) -> None:
    first, second = names(two)
    gate = occupied(two, tmp_path / "go", workers=first)
    free = two.submit(where, workers=first, allow_other_workers=True, pure=False)
    assert free.result(PATIENCE) == second
    mapped = two.map(where, range(5), workers=[first], allow_other_workers=True, pure=False)
    assert set(two.gather(mapped)) == {second}
    bound = two.submit(where, workers=first, pure=False)
    assert two.submit(where, pure=False).result(PATIENCE) == second
    assert bound.status == "pending"
    (tmp_path / "go").touch()
    assert bound.result(PATIENCE) == first
    assert gate.result(PATIENCE) == first
    # where it may choose, it goes to the one that is named
    assert two.submit(where, workers=second, allow_other_workers=True, pure=False).result(PATIENCE) == second
    with pytest.raises(ValueError, match="means nothing without workers"):
        two.submit(where, allow_other_workers=True)


def test_a_worker_that_joins_later() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        waiting = [client.submit(where, workers=["local-1"]), *client.map(where, range(3), workers="local-1")]
        free = client.submit(where, workers="local-1", allow_other_workers=True, pure=False)
        assert free.result(PATIENCE) == "local-0"
        assert {future.status for future in waiting} == {"pending"}
        with pytest.raises(TimeoutError, match="local-1"):
            waiting[0].result(0.1)
        cluster.scale(2)
        assert {future.result(PATIENCE) for future in waiting} == {"local-1"}


# --- resources ------------------------------------------------------------------------------------------------------


def together(directory: str, i: int) -> int:
    """Return how many of these run at this moment."""
    mine = Path(directory, f"r{i}")
    mine.touch()
    count = sum(name.startswith("r") for name in os.listdir(directory))
    time.sleep(0.01)
    mine.unlink()
    return count


def test_resources(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=4, resources={"GPU": 2, "MEM": 1.5}) as cluster:
        with Client(cluster) as client:
            args = [str(tmp_path)] * 20, range(20)
            assert max(client.gather(client.map(together, *args, resources={"GPU": 1}, pure=False))) <= 2
            assert set(client.gather(client.map(together, *args, resources={"GPU": 2}, pure=False))) == {1}
            assert set(client.gather(client.map(together, *args, resources={"MEM": 1}, pure=False))) == {1}
            too_much = client.submit(where, resources={"GPU": 3})
            with pytest.raises(TimeoutError, match="GPU"):
                too_much.result(0.1)


def test_resources_that_come_later() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        waiting = [
            client.submit(where, resources={"GPU": 1}),
            *client.map(where, range(3), resources={"GPU": 1}, priority=1),
        ]
        assert client.submit(where, pure=False).result(PATIENCE) == "local-0"
        assert {future.status for future in waiting} == {"pending"}
        with LocalCluster(
            n_workers=1, threads_per_worker=1, address=cluster.endpoint.url, name="gpus", resources={"GPU": 1}
        ):
            assert {future.result(PATIENCE) for future in waiting} == {"gpus-0"}


# --- retries --------------------------------------------------------------------------------------------------------


def fail_until(directory: str, name: str, times: int) -> int:
    count = sum(entry.startswith(f"{name}-") for entry in os.listdir(directory)) + 1
    Path(directory, f"{name}-{count}").touch()
    if count <= times:
        raise ValueError(f"time {count}")
    return count


def test_retries(two: Client, tmp_path: Path) -> None:
    path = str(tmp_path)
    assert two.submit(fail_until, path, "a", 2, retries=2).result(PATIENCE) == 3
    with pytest.raises(ValueError, match="time 2"):
        two.submit(fail_until, path, "b", 2, retries=1).result(PATIENCE)
    with pytest.raises(ValueError, match="time 1"):
        two.submit(fail_until, path, "c", 1).result(PATIENCE)
    mapped = two.map(fail_until, [path] * 3, ["d", "e", "f"], [0, 1, 3], retries=3)
    assert two.gather(mapped) == [1, 2, 4]


# --- asynchronous ---------------------------------------------------------------------------------------------------


def test_with_an_asynchronous_client(two: Client, tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(two.cluster, asynchronous=True) as client:
            first, second = names(two)
            assert await client.submit(where, workers=first, pure=False) == first
            placed = client.map(where, range(5), workers=second, priority=3, pure=False)
            assert set(await client.gather(placed)) == {second}
            assert await client.submit(fail_until, str(tmp_path), "x", 1, retries=1) == 2
            never = client.submit(where, resources={"GPU": 1})
            with pytest.raises(TimeoutError):
                await never.result(0.1)

    asyncio.run(main())
