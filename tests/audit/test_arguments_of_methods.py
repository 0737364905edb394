"""What the client's methods take: every argument that Dask's users know, by trying it on a cluster."""

from __future__ import annotations

import collections
import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import redist
from redist import Client, Future, LocalCluster, fire_and_forget, get_client, wait
from redist.errors import CancelledError, InvalidKey, KeyTaken, ServerFull
from servers import full, wait_until

from .conftest import Gate

Keys = Callable[[], list[str]]


def inc(x: int) -> int:
    return x + 1


def now() -> int:
    return time.monotonic_ns()


def worker_name() -> str:
    return str(redist.get_worker().name)


# --- submit and map -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_batch_size(client: Client, size: int) -> None:
    futures = client.map(lambda a, b, c: a + b + c, iter(range(10)), range(10, 30), batch_size=size, c=100)
    assert client.gather(futures) == [a + b + 100 for a, b in zip(range(10), range(10, 20))]


def test_map_of_futures_with_a_future_for_all(client: Client) -> None:
    futures = client.map(inc, range(3))
    assert client.gather(client.map(add, futures, [client.submit(inc, i) for i in range(3)])) == [2, 4, 6]
    assert client.gather(client.map(lambda x, y: x + y, futures, y=futures[0])) == [2, 3, 4]
    same = client.map(inc, [7, 7, 7])
    assert client.futures[same[0].key].count == 3


def test_higher_priorities_run_first(client: Client, cluster: LocalCluster, gate: Gate, keys: Keys) -> None:
    (name, _) = cluster.workers
    held = client.submit(gate.task(), workers=name)
    wait_until(lambda: gate.entered)
    futures = {
        i: client.submit(now, workers=name, priority=i % 3, pure=False, fifo_timeout="1s") for i in range(9)
    }
    wait_until(lambda: len(keys()) == 10, what="all are queued")
    gate.open()
    began = {i: future.result(20) for i, future in futures.items()}
    assert sorted(began, key=began.__getitem__) == [2, 5, 8, 1, 4, 7, 0, 3, 6]
    assert held.result(10) is None


def test_others_run_it_when_they_are_allowed_to(client: Client, cluster: LocalCluster, gate: Gate) -> None:
    first, second = cluster.workers
    held = client.submit(gate.task(), workers=[first])
    wait_until(lambda: gate.entered)
    assert client.submit(worker_name, workers=first, allow_other_workers=True).result(20) == second
    strict = client.submit(worker_name, workers=first, pure=False)
    assert client.submit(worker_name, workers=second, pure=False).result(20) == second
    assert strict.status == "pending"
    gate.open()
    assert strict.result(20) == first
    assert held.result(10) is None


def test_resources_are_taken_while_a_task_runs(client: Client, gate: Gate) -> None:
    held = [client.submit(gate.task(), resources={"GPU": 0.75}, key=f"held-{i}") for i in range(2)]
    after = client.submit(now, resources={"GPU": 0.5})
    wait_until(lambda: sum(map(len, client.processing().values())) == 2)
    assert after.status == "pending"
    opened = now()
    gate.open()
    assert after.result(20) > opened
    wait(held)


def test_what_nobody_may_run_waits_and_can_be_cancelled(client: Client, keys: Keys) -> None:
    futures = [client.submit(inc, 1, workers="nobody"), client.submit(inc, 2, resources={"TPU": 1})]
    assert client.submit(inc, 3).result(10) == 4
    assert [future.status for future in futures] == ["pending", "pending"]
    client.cancel(futures)
    wait_until(lambda: len(keys()) <= 1)


def test_futures_in_sets_and_frozen_sets(client: Client) -> None:
    a, b = client.submit(inc, 1), client.submit(inc, 2)
    given = {"s": {a, b}, "f": frozenset([a]), "t": (a, (b,)), "d": {"k": {"z": [a]}}}
    back = client.submit(lambda x: x, given).result(10)
    assert back == {"s": {2, 3}, "f": frozenset([2]), "t": (2, (3,)), "d": {"k": {"z": [2]}}}


def test_a_future_in_a_function(client: Client) -> None:
    future = client.submit(inc, 10)
    assert client.submit(lambda: future.result() + 1).result(20) == 12


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"retries": "x"}, TypeError),
        ({"priority": "x"}, TypeError),
        ({"resources": {"GPU": "x"}}, TypeError),
        ({"resources": {"GPU": -1}}, ValueError),
    ],
)
def test_wrong_values_are_refused_at_the_call(
    client: Client, options: dict[str, Any], error: type[Exception], keys: Keys
) -> None:
    with pytest.raises(error, match=r"x|positive"):
        client.submit(inc, 1, **options)
    with pytest.raises(TypeError):
        client.submit(inc, 1, workers=5)  # type: ignore[arg-type]
    assert keys() == []


def test_spans_of_time_that_are_none(client: Client) -> None:
    future = client.submit(inc, 1)
    for span, error in (("abc", ValueError), ("2 parsecs", ValueError), (object(), TypeError)):
        with pytest.raises(error):
            future.result(span)  # type: ignore[arg-type]
    assert future.result("5 s") == 2


# --- scatter --------------------------------------------------------------------------------------------------------


def test_scatter_keeps_the_shape(client: Client) -> None:
    for data in ((1, 2), [1, 2], {1, 2}, frozenset([1, 2])):
        futures = client.scatter(data)
        assert type(futures) is type(data)
        assert client.gather(futures) == data
    assert client.gather(client.scatter(range(3))) == [0, 1, 2]
    assert client.gather(client.scatter(iter("ab"))) == ["a", "b"]
    assert [client.scatter(one).result() for one in ("abc", b"x", None, 1.5)] == ["abc", b"x", None, 1.5]


def test_scatter_with_and_without_hash(client: Client) -> None:
    assert client.scatter(5).key == client.scatter(5).key
    assert client.scatter(5, hash=False).key != client.scatter(5, hash=False).key


def test_scatter_to_one_worker(client: Client) -> None:
    addresses = {info["name"]: address for address, info in client.scheduler_info()["workers"].items()}
    for name, address in addresses.items():
        future = client.scatter(np.zeros(20_000), workers=name, hash=False)
        assert client.who_has(future) == {future.key: (address,)}
        assert future.key in client.has_what([address])[address]


def test_scatter_under_a_tasks_key(client: Client) -> None:
    future = client.submit(inc, 1, key="task")
    assert future.result(10) == 2
    for value in (1, np.zeros(20_000)):
        with pytest.raises(KeyTaken):
            client.scatter({"task": value})
    assert future.result() == 2


# --- errors ---------------------------------------------------------------------------------------------------------


def test_retry_of_the_root_reaches_the_end_of_the_chain(client: Client, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    def needs() -> int:
        with open(mark) as file:
            return int(file.read())

    a = client.submit(needs)
    b = client.submit(inc, a)
    c = client.submit(inc, b)
    wait([a, b, c])
    assert [future.status for future in (a, b, c)] == ["error"] * 3
    Path(mark).write_text("1")
    client.retry([a])
    wait_until(lambda: c.status == "finished")  # told with a push
    assert client.gather([a, b, c]) == [1, 2, 3]


def test_what_an_error_brings(client: Client) -> None:
    class OwnError(Exception):
        def __init__(self, text: str, number: int) -> None:
            super().__init__(text)
            self.number = number

    def raises() -> None:
        try:
            raise OwnError("inside", 5)
        except OwnError as error:
            raise KeyError("outside") from error

    future = client.submit(raises)
    error = future.exception(10)
    assert isinstance(error, KeyError)
    assert isinstance(error.__cause__, OwnError)
    assert error.__cause__.number == 5
    assert future.type == "KeyError"
    assert repr(future) == f"<Future: error, type: KeyError, key: {future.key}>"
    assert "error" in future._repr_html_()
    for function, kind in ((sys.exit, RuntimeError), (lambda: (i for i in "ab"), TypeError)):
        assert isinstance(client.submit(function).exception(10), kind)


def test_a_future_of_an_unknown_key(client: Client) -> None:
    future: Future[Any] = Future("never", client)
    with pytest.raises(CancelledError, match="not known"):
        future.result(10)
    assert future.cancelled()


def test_a_full_server(client: Client, cluster: LocalCluster, keys: Keys) -> None:
    futures = client.map(inc, range(3))
    wait(futures)
    with closing(cluster.endpoint.open()) as wire, full(wire.call):
        assert isinstance(client.submit(inc, 100).exception(10), ServerFull)
        for call in (
            lambda: client.scatter(1),
            lambda: client.scatter(np.zeros(20_000)),
            lambda: client.publish_dataset(full=1),
            lambda: client.gather(client.map(inc, range(200, 203))),
        ):
            with pytest.raises(ServerFull, match="maxmemory"):
                call()
        # What frees is taken.
        del futures
        gc.collect()
        wait_until(lambda: not keys())
    assert client.submit(inc, 100).result(10) == 101


# --- datasets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a b", "ü", "nul\0", "../x", "x" * 3000, ("t", 1)])
def test_names_of_datasets(client: Client, name: Any) -> None:
    client.publish_dataset(1, name=name)
    assert client.list_datasets() == (name,)
    assert client.get_dataset(name) == 1
    client.unpublish_dataset(name)


def test_what_cannot_be_published(client: Client) -> None:
    for name in ("", 5):
        with pytest.raises(InvalidKey):
            client.publish_dataset(1, name=name)  # type: ignore[arg-type]
    for args, options in (((1,), {}), ((1, 2), {"name": "n"}), ((), {})):
        with pytest.raises(ValueError, match=r"publish|value"):
            client.publish_dataset(*args, **options)
    future = client.submit(inc, 77)
    future.cancel()
    with pytest.raises(CancelledError):
        client.publish_dataset(cancelled=future)
    assert client.list_datasets() == ()


def test_a_reader_keeps_the_old_version(client: Client, cluster: LocalCluster, keys: Keys) -> None:
    first = client.scatter(np.full(20_000, 1))
    client.publish_dataset(data=[first])
    key = str(first.key)
    del first
    with Client(cluster, set_as_default=False) as reader:
        old = reader.get_dataset("data")
        client.publish_dataset(data=[client.scatter(np.full(20_000, 2))], override=True)
        gc.collect()
        assert reader.gather(old)[0][0] == 1
        assert reader.gather(reader.get_dataset("data"))[0][0] == 2
        assert key in keys()
        del old
        gc.collect()
        wait_until(lambda: key not in keys())
    client.unpublish_dataset("data")


# --- clients --------------------------------------------------------------------------------------------------------


def test_fired_tasks_outlive_their_client(client: Client, cluster: LocalCluster, gate: Gate) -> None:
    mark = gate.path.with_name("mark")
    other = Client(cluster, set_as_default=False)
    last = other.submit(lambda _: mark.touch(), other.submit(gate.task()))
    fire_and_forget([last])
    other.close()
    assert last.cancelled()
    gate.open()
    wait_until(mark.exists)


def test_a_callback_may_use_the_client(client: Client) -> None:
    results: list[int] = []
    future = client.submit(inc, 1)
    future.add_done_callback(lambda f: results.append(client.submit(inc, f).result(10)))
    wait_until(lambda: results == [3])


def test_a_task_finds_the_client_and_its_futures_the_same(client: Client) -> None:
    def inside() -> Any:
        mine = get_client()
        future = mine.submit(inc, 1)
        assert redist.default_client() is mine
        assert Future(future.key).client is mine
        return {"in": [future], "n": future.result(10)}

    value = client.submit(inside).result(20)
    assert value["n"] == 2
    assert value["in"][0].client is client
    assert value["in"][0].result(10) == 2


def test_what_tasks_print_is_printed_here(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    def speaks() -> None:
        print("said", end="!")
        print("warned", file=sys.stderr)

    client.submit(speaks).result(10)
    out = err = ""

    def arrived() -> bool:
        nonlocal out, err
        more = capsys.readouterr()
        out, err = out + more.out, err + more.err
        return out == "said!" and err == "warned\n"

    wait_until(arrived)


def test_scheduler_info(client: Client, cluster: LocalCluster) -> None:
    info = client.scheduler_info()
    workers = {worker["name"]: worker for worker in info["workers"].values()}
    assert {name: worker["pid"] for name, worker in workers.items()} == {
        name: process.pid for name, process in cluster.workers.items()
    }
    assert all(worker["resources"] == {"GPU": 1.0} for worker in workers.values())
    assert all(worker["nthreads"] == 1 for worker in workers.values())
    assert all(os.path.isdir(worker["local_directory"]) for worker in workers.values())
    assert info["generation"] == client.generation
    assert len(client.scheduler_info(n_workers=1)["workers"]) == 1


def test_without_any_client() -> None:
    code = (
        "import redist\n"
        "for call in (redist.default_client, redist.get_client, lambda: redist.Future('x')):\n"
        "    try: call()\n"
        "    except ValueError as error: print(type(error).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["NoClientError"] * 3


def test_odd_results_are_equal(client: Client) -> None:
    point = collections.namedtuple("point", "x y")
    value = [point(1, 2), {("a", 1): {3}}, 1 + 2j, float("inf"), b"\0", "ü", None, ..., range(3)]
    assert client.submit(lambda: value).result(10) == value
    assert client.gather(client.scatter(value)) == value
