"""What tasks do with their worker and with clients: in one executor with one thread, where whatever waits wrongly hangs."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest

from redist import (
    Client,
    LocalCluster,
    Reschedule,
    as_completed,
    get_client,
    get_worker,
    rejoin,
    secede,
    wait,
    worker_client,
)  # fmt: skip
from redist.errors import SerializationError
from servers import keys_of

PATIENCE = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def keys(cluster: LocalCluster) -> Callable[[], list[str]]:
    return lambda: keys_of(cluster)


def inc(x: int) -> int:
    return x + 1


def depth_of(n: int) -> int:
    return 0 if n == 0 else 1 + int(get_client().submit(depth_of, n - 1).result())


def test_tasks_submit_to_their_own_executor_to_any_depth(client: Client) -> None:
    assert client.submit(depth_of, 200).result(PATIENCE) == 200


# --- other clients in tasks -----------------------------------------------------------------------------------------


def with_a_client_of_its_own(url: str, namespace: str) -> int:
    with Client(url, namespace=namespace, set_as_default=False) as client:
        return sum(client.gather(client.map(inc, range(5), pure=False)))


async def with_an_asynchronous_client(url: str, namespace: str) -> list[int]:
    async with Client(url, namespace=namespace, asynchronous=True) as client:
        first = await client.submit(inc, 1, pure=False)
        rest = await client.gather(client.map(inc, range(5), pure=False))
        both = await asyncio.gather(*(client.submit(inc, i, pure=False).result() for i in (10, 20)))
        return [first, *rest, *both]


async def with_the_client_of_the_task() -> list[Any]:
    client = get_client()
    one = await client.submit(inc, 1, pure=False)
    two = await asyncio.gather(*client.map(inc, (2, 3), pure=False))
    three = [future.result() async for future in as_completed(client.map(inc, (4,), pure=False))]
    return [one, *two, *three]


def test_a_task_with_a_client_of_its_own(client: Client) -> None:
    assert client.submit(with_a_client_of_its_own, client.url, client.namespace).result(PATIENCE) == 15


def there_and_back(url: str, namespace: str) -> list[int]:
    with Client(url, namespace=namespace, set_as_default=False) as client:
        return list(client.gather(client.scatter([1, 2])))


def in_a_fork(url: str, namespace: str) -> list[int]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return list(pool.apply(there_and_back, (url, namespace)))


def test_a_process_that_a_task_forks_is_no_task(client: Client) -> None:
    assert client.submit(in_a_fork, client.url, client.namespace).result(PATIENCE) == [1, 2]


def test_coroutines_await_futures(client: Client) -> None:
    given = client.submit(with_an_asynchronous_client, client.url, client.namespace)
    assert given.result(PATIENCE) == [2, 1, 2, 3, 4, 5, 11, 21]
    assert client.submit(with_the_client_of_the_task).result(PATIENCE) == [2, 3, 4, 5]


# --- the worker -----------------------------------------------------------------------------------------------------


def what_a_task_sees() -> dict[str, Any]:
    worker = get_worker()
    with open(os.path.join(worker.local_directory, "file"), "w") as file:
        file.write("x")
    try:
        in_thread: list[Any] = []

        def ask() -> None:
            try:
                worker.get_current_task()
            except ValueError as error:
                in_thread.append(str(error))

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    finally:
        os.unlink(file.name)
    worker.log_event("seen", "by a task")
    return {
        "address": worker.address,
        "name": worker.name,
        "id": worker.id,
        "key": worker.get_current_task(),
        "in a thread": in_thread,
    }


async def key_in_a_coroutine() -> Any:
    await asyncio.sleep(0)
    return get_worker().get_current_task()


def test_the_worker(client: Client) -> None:
    seen = client.submit(what_a_task_sees, key=("task", 1)).result(PATIENCE)
    (address,) = client.nthreads()
    assert seen["address"] == address
    assert seen["name"] == client.scheduler_info()["workers"][address]["name"]
    assert seen["id"].isdigit()
    assert seen["key"] == ("task", 1)
    assert seen["in a thread"] == ["this thread runs no task"]
    assert client.submit(key_in_a_coroutine, key="async").result(PATIENCE) == "async"
    for outside in (get_worker, secede, rejoin, lambda: worker_client().__enter__()):
        with pytest.raises(ValueError, match="inside tasks only"):
            outside()


def test_what_the_worker_has(client: Client) -> None:
    arrays = client.map(numpy.full, [50_000, 60_000], [1, 2], key=["one", "two"])
    wait(arrays)

    def look() -> tuple[list[Any], int, int, bool, str]:
        data = get_worker().data
        try:
            data["three"]
        except KeyError as error:
            return sorted(data), len(data), int(data["two"].sum()), "one" in data, str(error)
        raise AssertionError

    assert client.submit(look).result(PATIENCE) == (["one", "two"], 2, 120_000, True, "'three'")


# --- places ---------------------------------------------------------------------------------------------------------


def sum_with_worker_client(separate_thread: bool) -> int:
    with worker_client(separate_thread=separate_thread) as client:
        futures = client.map(inc, range(5), pure=False)
        total = sum(client.gather(futures))
    with worker_client(timeout="3s") as client:
        return total + client.submit(inc, 1, pure=False).result()


@pytest.mark.parametrize("separate_thread", [True, False])
def test_worker_client(client: Client, separate_thread: bool) -> None:
    assert client.submit(sum_with_worker_client, separate_thread, pure=False).result(PATIENCE) == 17


def seceded(way: str, other: str) -> int:
    secede()
    secede()
    with worker_client():  # has no place to give up, and takes none
        pass
    with open(way, "w"):
        pass
    while not os.path.exists(other):
        pass
    rejoin()
    rejoin()
    return 1


def test_who_secedes_lets_others_run(client: Client, tmp_path: Any) -> None:
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert client.gather([client.submit(seceded, a, b), client.submit(seceded, b, a)]) == [1, 1]


# --- coroutines and generators --------------------------------------------------------------------------------------


async def leave_something_behind(_: int = 0) -> list[str]:
    found = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    asyncio.get_running_loop().create_task(asyncio.sleep(1000), name="left")
    return found


async def fails() -> None:
    await asyncio.sleep(0.001)
    raise LookupError("in a coroutine")


def test_coroutines(client: Client) -> None:
    left = client.map(leave_something_behind, range(10))  # in whatever thread
    assert {name for future in left for name in future.result(PATIENCE)} == set()
    with pytest.raises(LookupError, match="in a coroutine"):
        client.submit(fails).result(PATIENCE)
    assert client.submit(functools.partial(leave_something_behind, 3)).result(PATIENCE) == []


def generate(n: int = 3) -> Iterator[int]:
    yield from range(n)


async def generate_later() -> Any:
    yield 1


class Generates:
    def __call__(self) -> Iterator[int]:
        yield 1


@pytest.mark.parametrize(
    "function", [generate, generate_later, functools.partial(generate, 2), Generates(), Generates().__call__]
)
def test_generators_are_refused(client: Client, function: Callable[..., Any]) -> None:
    with pytest.raises(SerializationError, match="generator function"):
        client.submit(function)
    with pytest.raises(TypeError, match="return a list"):
        client.map(function, [1])
    assert client.submit(lambda: list(generate())).result(PATIENCE) == [0, 1, 2]


# --- to be run elsewhere --------------------------------------------------------------------------------------------


def not_on(name: str, i: int = 0) -> str:
    if get_worker().name == name:
        raise Reschedule
    return get_worker().name


def test_what_is_rescheduled_runs_elsewhere() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        names = [worker["name"] for worker in client.scheduler_info()["workers"].values()]
        for here, there in (names, names[::-1]):
            futures = client.map(functools.partial(not_on, here), range(20), pure=False)
            assert {future.result(PATIENCE) for future in futures} == {there}


def third_time(path: str) -> int:
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < 3:
        raise Reschedule("not yet")
    return os.path.getsize(path)


def test_what_is_rescheduled_takes_no_retry(client: Client, tmp_path: Any) -> None:
    assert client.submit(third_time, str(tmp_path / "times"), retries=0).result(PATIENCE) == 3


def priorities() -> tuple[int, int]:
    worker = get_worker()
    given = get_client().submit(worker_priority, priority=worker.get_current_priority(), pure=False)
    return worker.get_current_priority(), given.result()


def worker_priority() -> int:
    return get_worker().get_current_priority()


def test_a_task_knows_its_priority_and_can_pass_it_on(client: Client) -> None:
    assert client.submit(priorities, priority=7, pure=False).result(20) == (7, 7)
    assert client.submit(worker_priority, priority=-3, pure=False).result(20) == -3
    assert client.submit(worker_priority, pure=False).result(20) == 0
