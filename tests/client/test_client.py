"""The client's methods, synchronous, on a real cluster."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import threading
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import CancelledError
from operator import add
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import redist
from redist import Client, Future, LocalCluster, as_completed, fire_and_forget, futures_of, get_client, wait
from redist.errors import (
    ClientClosed,
    ConnectionLost,
    DatasetExists,
    DatasetNotFound,
    InvalidKey,
    KeyTaken,
    NoWorkers,
    SerializationError,
)
from redist.utils_comm import pack_data, unpack_remotedata
from servers import wait_until

Keys = Callable[[], list[str]]
NewClient = Callable[..., Client]


def slowly_inc(x: int, seconds: float) -> int:
    time.sleep(seconds)
    return x + 1


def inc(x: int) -> int:
    return x + 1


def slowly(x: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return x


def fail(message: str = "oops") -> None:
    raise ValueError(message)


@pytest.fixture(scope="module", autouse=True)
def imported(cluster: LocalCluster) -> None:
    """Have every executor import this module, which takes long where much else runs: tests tell slow from quick."""
    with Client(cluster, set_as_default=False) as client:
        wait(client.map(slowly, range(4), pure=False))


# --- submit and result ----------------------------------------------------------------------------------------------


def test_simple(client: Client, keys: Keys) -> None:
    future = client.submit(inc, 1)
    assert future.result(timeout=10) == 2
    assert future.done()
    assert future.status == "finished"
    assert future.type == "int"
    assert repr(future) == f"<Future: finished, type: int, key: {future.key}>"
    assert str(future.key).startswith("inc-")
    del future
    wait_until(lambda: not keys(), what="the key is gone")


def test_futures_as_arguments_at_any_depth(client: Client) -> None:
    a, b = client.submit(inc, 1), client.submit(inc, 2)

    def total(x: Any, *, y: Any) -> int:
        return int(x["a"][0] + x["a"][1] + sum(y))

    assert client.submit(total, {"a": (a, b)}, y=[b, {a: 1} and a, b]).result(10) == 13


def test_submit_with_very_many_futures(client: Client) -> None:
    """More than one call tells of; none is released before the task has it."""
    futures = client.scatter(list(range(3000)))
    total = client.submit(sum, futures)
    del futures
    assert total.result(30) == sum(range(3000))


def test_same_call_is_the_same_key(client: Client) -> None:
    one, two = client.submit(inc, 1), client.submit(inc, 1)
    assert one.key == two.key
    assert client.submit(inc, 1, pure=False).key != one.key
    assert client.futures[one.key].count == 2


def test_error(client: Client) -> None:
    future = client.submit(fail, "this")
    with pytest.raises(ValueError, match="this") as caught:
        future.result(10)
    assert "fail" in [entry.name for entry in caught.traceback]
    assert future.status == "error"
    assert isinstance(future.exception(), ValueError)
    assert future.traceback() is not None
    after = client.submit(inc, future)
    with pytest.raises(ValueError, match="this"):
        after.result(10)


def test_timeouts(client: Client) -> None:
    future = client.submit(slowly, 1, 0.5)
    with pytest.raises(TimeoutError):
        future.result(0.01)
    with pytest.raises(TimeoutError):
        future.result("10ms")
    with pytest.raises(TimeoutError):
        wait(future, 0.01)
    assert future.result("10s") == 1


def test_map(client: Client) -> None:
    futures = client.map(add, range(700), range(1, 701))
    assert client.gather(futures) == [2 * i + 1 for i in range(700)]
    named = client.map(inc, [1, 2], key=["x", "y"])
    assert [future.key for future in named] == ["x", "y"]
    prefixed = client.map(inc, [1, 2], key="p")
    assert all(str(future.key).startswith("p-") for future in prefixed)
    assert client.gather(client.map(slowly, [1, 2], seconds=0)) == [1, 2]
    with pytest.raises(ValueError, match="keys"):
        client.map(inc, [1, 2], key=["x"])
    assert client.map(inc, []) == []


@pytest.mark.parametrize(
    "key",
    ["a b", "ü", "nul\0", "../x", "(1, 2)", "x" * 3000, ("t", 1, 2.5), ("n", ("m", None)), 5, -1.5, b"\0b"],
)
def test_odd_keys(client: Client, key: Any) -> None:
    future = client.submit(inc, 1, key=key)
    assert future.key == key
    assert future.result(10) == 2
    assert client.submit(inc, future).result(10) == 3


def test_keys_that_are_none(client: Client) -> None:
    for key in (True, "", ["a"], ("a", object())):
        with pytest.raises(InvalidKey):
            client.submit(inc, 1, key=key)


def test_key_of_another_function(client: Client, new_client: NewClient) -> None:
    future = client.submit(inc, 1, key="mine")
    future.result(10)
    with pytest.raises(KeyTaken):
        client.submit(add, 1, 2, key="mine")
    other = new_client().submit(add, 1, 2, key="mine")
    with pytest.raises(KeyTaken):
        other.result(10)
    assert future.result() == 2


def test_not_serializable(client: Client) -> None:
    with pytest.raises(SerializationError, match="argument 1"):
        client.submit(inc, threading.Lock())
    lock = threading.Lock()
    with pytest.raises(SerializationError):
        client.submit(lambda: lock)
    with pytest.raises(TypeError):
        client.submit(3)  # type: ignore[arg-type]
    with pytest.raises(SerializationError):
        client.submit(threading.Lock).result(10)
    assert client.submit(inc, 1).result(10) == 2


def test_retries_and_priority(client: Client, tmp_path: Any) -> None:
    mark = tmp_path / "mark"

    def flaky() -> str:
        if not mark.exists():
            mark.touch()
            raise OSError("first time")
        return "second time"

    assert client.submit(flaky, retries=1, priority=5).result(10) == "second time"
    with pytest.raises(ValueError, match="retries"):
        client.submit(inc, 1, retries=-1)


def test_a_dropped_client_leaves(cluster: LocalCluster, keys: Callable[[], list[str]]) -> None:
    client = Client(cluster, set_as_default=False)
    future = client.submit(inc, 1, key="dropped")
    assert future.result(10) == 2
    driver = client._driver
    thread = driver._thread
    del client
    gc.collect()
    assert future.result(10) == 2  # its Futures keep it
    assert "dropped" in keys()
    del future
    gc.collect()
    wait_until(lambda: driver.closed and not thread.is_alive(), what="the client has left")
    wait_until(lambda: not keys(), what="every key is gone")


def test_bind_client_keeps_the_key(
    new_client: Callable[..., Client], keys: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = new_client(set_as_default=False), new_client(set_as_default=False)
    for i in range(20):
        future = one.submit(inc, i, key=f"bound-{i}")
        if i % 2:
            wait(future)
        with monkeypatch.context() as slow:
            slow.setattr(two.session, "dirty", lambda: None)  # it says its counts when it must
            future.bind_client(two)
            time.sleep(0.05)
        assert future.client is two
        assert future.result(10) == i + 1
        assert f"bound-{i}" in keys()
    del future


def test_bind_client_comes_behind_the_submission(
    cluster: LocalCluster, new_client: Callable[..., Client]
) -> None:
    one, two = new_client(set_as_default=False), new_client(set_as_default=False)
    wire = cluster.endpoint.open()
    wire.call("CLIENT", "PAUSE", 10_000, "WRITE")
    resume = threading.Timer(0.3, wire.call, ("CLIENT", "UNPAUSE"))
    try:
        futures = [one.submit(inc, i, pure=False) for i in range(10)]
        assert one.session.collected  # the last ones leave when the first are answered
        resume.start()
        futures[-1].bind_client(two)
    finally:
        resume.join()
        wire.close()
    assert futures[-1].result(10) == 10


@pytest.mark.parametrize("how", ["wait", "first", "gather", "as_completed"])
def test_futures_of_two_clients(new_client: Callable[..., Client], how: str) -> None:
    """What arrives at the other client wakes who waits, at once."""
    one, two = new_client(set_as_default=False), new_client(set_as_default=False)
    wait([one.submit(slowly_inc, i, 0.2, pure=False) for i in range(4)])  # executors import this module
    soon = one.submit(slowly_inc, 1, 0.1)
    if how == "first":
        soon = one.submit(slowly_inc, 1, 5.0)
    late = two.submit(slowly_inc, 2, 0.7)
    with one.session.lock:
        one.session.heart.at = one.session.clock() + 30.0  # nothing else is to wake it
    start = time.monotonic()
    if how == "wait":
        assert not wait([soon, late], timeout=20).not_done
    elif how == "first":
        assert wait([soon, late], timeout=20, return_when="FIRST_COMPLETED").done == {late}
    elif how == "gather":
        assert one.gather([soon, late]) == [2, 3]
    else:
        assert list(as_completed([soon, late], timeout=20)) == [soon, late]
    assert time.monotonic() - start < 4.0


def test_retry_of_a_root_says_at_once_that_its_dependents_run_again(
    client: Client, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(path: str) -> int:
        open(path).close()
        time.sleep(0.3)
        return 1

    root = client.submit(fragile, str(tmp_path / "there"))
    dependents = [client.submit(inc, root), client.submit(inc, client.submit(inc, root))]
    wait(dependents)
    assert {future.status for future in [root, *dependents]} == {"error"}
    (tmp_path / "there").touch()
    with monkeypatch.context() as late:
        late.setattr(client.session.notifications, "states", lambda message: None)  # the push is slow
        root.retry()
        assert [future.status for future in [root, *dependents]] == ["pending"] * 3
    assert client.gather(dependents) == [2, 3]


def test_retry(client: Client, tmp_path: Any) -> None:
    mark = tmp_path / "mark"

    def needs_mark() -> int:
        return int(mark.read_text())

    future = client.submit(needs_mark)
    after = client.submit(inc, future)
    assert isinstance(after.exception(10), FileNotFoundError)
    mark.write_text("41")
    after.retry()
    assert after.result(10) == 42
    assert future.result(10) == 41


def test_workers(client: Client, cluster: LocalCluster) -> None:
    name = next(iter(cluster.workers))
    where = [client.submit(lambda: redist.get_worker().name, workers=name, pure=False) for _ in range(6)]
    assert set(client.gather(where)) == {name}
    address = client.who_has(client.submit(np.arange, 100_000, workers=[name]))
    assert len(address) == 1
    with pytest.raises(ValueError, match="allow_other_workers"):
        client.submit(inc, 1, allow_other_workers=True)


def test_large_argument_and_function(client: Client, keys: Keys) -> None:
    array = np.arange(100_000)
    assert client.submit(np.sum, array).result(10) == array.sum()
    offset = np.ones(50_000)
    assert client.submit(lambda: float(offset.sum())).result(10) == 50_000
    assert client.gather(client.map(lambda i, a: int(a[i]), range(5), a=array)) == [0, 1, 2, 3, 4]
    assert client.gather(client.map(lambda i: int(array[i]), range(5))) == [0, 1, 2, 3, 4]
    gc.collect()
    wait_until(lambda: not keys(), what="arguments are gone")


def test_submit_is_typed(client: Client) -> None:
    future: Future[int] = client.submit(inc, 1)
    value: int = future.result(10)
    assert value == 2


# --- scatter and gather ---------------------------------------------------------------------------------------------


def test_scatter(client: Client, keys: Keys) -> None:
    array = np.arange(100_000)
    future = client.scatter(array)
    assert future.status == "finished"
    assert future.nbytes > array.nbytes
    value = future.result()
    assert (value == array).all()
    assert not value.flags.writeable
    assert client.who_has(future)[future.key]
    several = client.scatter([1, array, "x"])
    assert [item.result() for item in several][::2] == [1, "x"]
    assert several[1].key == future.key
    named = client.scatter({"a": 1, ("b", 2): array})
    assert named["a"].key == "a"
    assert named["b", 2].result().sum() == array.sum()
    assert client.scatter((1, 2))[1].result() == 2
    assert client.scatter(array, hash=False).key != future.key
    del future, several, named, value
    wait_until(lambda: not keys(), what="the data is gone")


def test_copies_can_be_written_to(client: Client) -> None:
    future = client.scatter(np.zeros(10_000))
    copied = future.result(copy=True)
    copied[0] = 1
    mapped = future.result(writable=True)
    mapped[0] = 2
    assert future.result()[0] == 0
    assert client.gather([future], copy=True)[0].flags.writeable
    frame = client.scatter(pd.DataFrame({"a": np.arange(10_000)})).result()
    frame["b"] = frame.a + 1
    assert frame.b.sum() == frame.a.sum() + 10_000


def test_scatter_to_no_worker(client: Client) -> None:
    with pytest.raises(NoWorkers):
        client.scatter(np.zeros(10_000), workers="nobody", timeout=0.2)
    assert client.scatter(1).result() == 1


def test_gather_nested(client: Client) -> None:
    a, b, c = client.map(inc, range(3))
    assert client.gather(a) == 1
    assert client.gather({"x": [a, (b, {c})], "y": 5}) == {"x": [1, (2, {3})], "y": 5}
    assert client.gather([]) == []
    assert client.gather(iter([a, b])) == [1, 2]


def test_gather_errors(client: Client) -> None:
    good, bad = client.submit(inc, 1), client.submit(fail)
    slow = client.submit(slowly, 1, 3)
    began = time.monotonic()
    with pytest.raises(ValueError, match="oops"):
        client.gather([good, slow, bad])
    assert time.monotonic() - began < 2.5
    assert client.gather([good, bad], errors="skip") == [2]
    # Only a list has nothing in its place, as in Dask.
    assert client.gather({"g": good, "b": bad}, errors="skip") == {"g": 2, "b": None}
    assert client.gather((bad, good), errors="skip") == (None, 2)
    assert client.gather([bad, {"x": [good, bad]}], errors="skip") == [{"x": [2, None]}]
    assert client.gather([bad, bad], errors="skip") == []
    with pytest.raises(ValueError, match="errors"):
        client.gather([good], errors="ignore")


@pytest.mark.parametrize("size", [10, 1_500, 4_000, 20_000, 1_000_000])
def test_values_of_every_size(client: Client, size: int) -> None:
    futures = [client.submit(lambda i, n: bytes([i]) * n, i, size) for i in range(3)]
    assert client.gather(futures) == [bytes([i]) * size for i in range(3)]
    assert client.submit(len, futures[1]).result(10) == size


# --- lifetime -------------------------------------------------------------------------------------------------------


def test_release_and_count(client: Client, keys: Keys) -> None:
    one = client.submit(inc, 1)
    two = Future(one.key, client)
    assert two.result(10) == 2
    one.release()
    assert one.status == "cancelled"
    with pytest.raises(CancelledError):
        one.result()
    with pytest.raises(CancelledError):
        client.submit(inc, one)
    assert two.result() == 2
    del two
    wait_until(lambda: not keys())


def test_dependents_keep_what_they_need(client: Client) -> None:
    future = client.submit(slowly, 1)
    for _ in range(20):
        future = client.submit(inc, future)
    assert future.result(20) == 21


def test_fire_and_forget(client: Client, keys: Keys, tmp_path: Any) -> None:
    mark = tmp_path / "mark"
    future = client.submit(lambda: (time.sleep(0.2), mark.touch()))
    fire_and_forget(future)
    del future
    wait_until(mark.exists)
    wait_until(lambda: not keys())


def when_there(path: Any) -> None:
    wait_until(path.exists)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_is_fired_and_waits_still_outlives_its_client(
    client: Client, cluster: LocalCluster, keys: Keys, tmp_path: Any, asynchronous: bool
) -> None:
    mark, gate = tmp_path / "mark", tmp_path / "gate"
    held = client.map(when_there, [gate] * 4, pure=False)
    wait_until(lambda: sum(map(len, client.processing().values())) == 4, what="all threads are busy")

    def fire(other: Client) -> None:
        first = other.submit(str, mark)
        fire_and_forget([other.submit(lambda path: open(path, "x").close(), first)])

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as other:
            fire(other)

    if asynchronous:
        asyncio.run(main())
    else:
        with Client(cluster, set_as_default=False) as other:
            fire(other)
    assert not mark.exists()
    gate.touch()
    wait_until(mark.exists)
    wait(held)
    del held
    wait_until(lambda: not keys())


def test_futures_in_results(client: Client, keys: Keys) -> None:
    def makes() -> list[Future[int]]:
        return [get_client().submit(inc, 10), get_client().submit(inc, 20)]

    holder = client.submit(makes)
    inner = holder.result(10)
    assert client.gather(inner) == [11, 21]
    del holder
    assert inner[0].result() == 11
    del inner
    wait_until(lambda: not keys())


def test_future_hidden_in_an_argument(client: Client) -> None:
    class Holder:
        def __init__(self, future: Future[int]) -> None:
            self.future = future

    future = client.submit(inc, 5)
    after = client.submit(lambda holder: holder.future.result(), Holder(future))
    del future
    assert after.result(10) == 6


def test_tasks_that_wait_for_tasks(client: Client) -> None:
    def tree(depth: int) -> int:
        if depth == 0:
            return 1
        client = get_client()
        return sum(client.gather(client.map(tree, [depth - 1] * 2, pure=False)))

    assert client.submit(tree, 4).result(40) == 16


def test_pickled_future(client: Client, new_client: NewClient, keys: Keys) -> None:
    other = new_client(set_as_default=False)
    future = client.submit(inc, 1)
    data = pickle.dumps(future)
    name = future.key
    del future
    with other.as_current():
        there = pickle.loads(data)
    assert there.client is other
    assert there.key == name
    assert there.result(10) == 2
    assert copy.deepcopy(there).result(10) == 2
    del there
    wait_until(lambda: not keys())


def test_done_callbacks(client: Client) -> None:
    called: list[Any] = []
    future = client.submit(slowly, 1)
    future.add_done_callback(lambda f: called.append(f.result()))
    wait_until(lambda: called == [1])
    future.add_done_callback(lambda f: called.append(f.status))
    wait_until(lambda: called == [1, "finished"])
    # A callback that fails harms nobody.
    future.add_done_callback(lambda f: 1 / 0)
    assert client.submit(inc, 1).result(10) == 2


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_cancel(client: Client, keys: Keys) -> None:
    slow = client.map(slowly, range(20), pure=False)
    after = client.submit(sum, slow)
    client.cancel(slow, reason="no need")
    assert slow[-1].cancelled()
    with pytest.raises(CancelledError, match="no need"):
        slow[-1].result()
    wait_until(after.cancelled)
    wait_until(lambda: not keys())
    with pytest.raises(CancelledError):
        wait(slow)


class Pair(NamedTuple):
    a: Any
    b: Any = None


def kinds(*given: Any, **named: Any) -> list[Any]:
    return [type(given[0]).__name__, given, named]


def test_futures_in_namedtuples_and_dicts_of_other_kinds(client: Client, cluster: LocalCluster) -> None:
    one, two = client.submit(inc, 1), client.submit(inc, 2)
    for given, value in (
        (Pair(one, two), Pair(2, 3)),
        ([Pair(1, [two])], [Pair(1, [3])]),
        (Pair(Pair(one), {"x": Pair(b=two, a=5)}), Pair(Pair(2), {"x": Pair(5, 3)})),
        (OrderedDict(b=one, a=[Pair(two)]), OrderedDict(b=2, a=[Pair(3)])),
        (defaultdict(list, x=one), defaultdict(list, x=2)),
        (Pair(np.arange(3), "x" * 10_000), None),
    ):
        name, (back,), named = client.submit(kinds, given, pure=False).result(10)
        assert name == type(given).__name__
        if value is None:
            assert (back.a.tolist(), back.b) == ([0, 1, 2], "x" * 10_000)
            continue
        assert back == value
        assert type(back) is type(value)
        assert client.submit(kinds, 1, x=given, pure=False).result(10)[2] == {"x": value}
        (mapped,) = client.map(kinds, [given], pure=False)
        assert mapped.result(10)[1] == (value,)
        assert named == {}
    scattered = client.scatter(Pair(1, "b"))
    assert type(scattered) is Pair
    assert client.gather(scattered) == Pair(1, "b")
    assert wait(scattered).done == set(scattered)
    data, found = unpack_remotedata([Pair(one, 7)])
    assert (data, found) == ([Pair(one.key, 7)], {one})
    assert pack_data(data, {one.key: 2}) == [Pair(2, 7)]

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            one = client.submit(inc, 1)
            assert (await client.submit(kinds, Pair(one), pure=False))[1] == (Pair(2),)

    asyncio.run(main())


def test_what_is_cancelled_already(client: Client, new_client: NewClient, cluster: LocalCluster) -> None:
    future, other = client.submit(inc, 1), new_client().submit(inc, 1)
    assert other.result(10) == 2
    for _ in range(2):
        future.cancel()
        client.cancel([future])
    fire_and_forget([future])
    assert futures_of([future, other]) == [future, other]
    for call in (client.retry, client.who_has, client.replicate, client.futures_of):
        for given in (future, [future], {"x": [future]}):
            with pytest.raises(CancelledError, match="cancelled before"):
                call(given)
    assert other.status == "finished"

    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            future = client.submit(slowly, 5)
            await future.cancel()
            await future.cancel()
            await client.cancel([future])
            with pytest.raises(CancelledError, match="cancelled before"):
                await client.who_has(future)

    asyncio.run(main())


def test_cancel_and_submit_again(client: Client) -> None:
    for i in range(20):
        future = client.submit(slowly, i, 0.01, key="again")
        if i % 2:
            future.result(10)
        future.cancel()
    future = client.submit(slowly, "last", 0.01, key="again")
    assert future.result(10) == "last"
    time.sleep(0.1)
    assert future.status == "finished"


def test_cancel_concerns_only_this_client(client: Client, new_client: NewClient) -> None:
    other = new_client()
    mine, theirs = client.submit(slowly, 1, key="shared"), other.submit(slowly, 1, key="shared")
    time.sleep(0.05)
    mine.cancel()
    assert theirs.result(10) == 1
    mine = client.submit(slowly, 1, key="shared")
    assert mine.result(10) == 1
    theirs.cancel(force=True)
    wait_until(mine.cancelled)


# --- wait, as_completed ---------------------------------------------------------------------------------------------


def test_wait(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    fast, slow = client.submit(inc, 1), client.submit(after, str(go), 1)
    done, not_done = wait([fast, slow], return_when="FIRST_COMPLETED")
    assert (done, not_done) == ({fast}, {slow})
    go.touch()
    assert wait([fast, slow], 10).done == {fast, slow}
    assert wait([]).done == set()


def after(path: str, value: int) -> int:
    while not os.path.exists(path):
        time.sleep(0.01)
    return value


def test_as_completed(client: Client, tmp_path: Path) -> None:
    go = tmp_path / "go"
    slow, fast = client.submit(after, str(go), 1), client.submit(inc, 2)
    completed = as_completed([slow, fast])
    assert next(completed) is fast
    go.touch()
    assert list(completed) == [slow]
    pairs = dict(as_completed(client.map(inc, range(5)), with_results=True))
    assert sorted(pairs.values()) == [1, 2, 3, 4, 5]


def test_as_completed_grows_and_tells(client: Client) -> None:
    done = as_completed(client.map(inc, range(3)))
    seen = []
    for future in done:
        seen.append(future.result())
        if len(seen) == 2:
            done.add(client.submit(inc, 10))
    assert sorted(seen) == [1, 2, 3, 11]
    assert done.is_empty()
    assert done.count() == 0
    futures = client.map(inc, range(3))
    wait(futures)
    done.update(futures)
    assert done.has_ready()
    assert done.next_batch() == futures
    with pytest.raises(StopIteration):
        done.next()
    done.update([client.submit(slowly, 1, 0.3)])
    assert done.next_batch(block=False) == []
    done.clear()
    assert done.is_empty()


def test_as_completed_errors(client: Client) -> None:
    future = client.submit(fail)
    with pytest.raises(ValueError, match="oops"):
        list(as_completed([future], with_results=True))
    [(same, error)] = as_completed([future], with_results=True, raise_errors=False)
    assert same is future
    assert isinstance(error[1], ValueError)
    with pytest.raises(TimeoutError):
        list(as_completed([client.submit(slowly, 5, 0.5)], timeout=0.01))


# --- datasets -------------------------------------------------------------------------------------------------------


def test_datasets(client: Client, new_client: NewClient, keys: Keys) -> None:
    futures = client.map(inc, range(3))
    client.publish_dataset(numbers=futures)
    client.publish_dataset({"any": "value"}, name="plain")
    assert client.list_datasets() == ("numbers", "plain")
    with pytest.raises(DatasetExists):
        client.publish_dataset(numbers=1)
    client.close()
    other = new_client()
    there = other.get_dataset("numbers")
    assert other.gather(there) == [1, 2, 3]
    assert other.get_dataset("plain") == {"any": "value"}
    other.publish_dataset(5, name="numbers", override=True)
    assert other.get_dataset("numbers") == 5
    assert other.gather(there) == [1, 2, 3]
    for name in ("numbers", "plain"):
        other.unpublish_dataset(name)
    with pytest.raises(DatasetNotFound):
        other.get_dataset("numbers")
    assert other.get_dataset("numbers", None) is None
    other.unpublish_dataset("numbers")  # as in Dask, there need be none
    del other.datasets["numbers"]
    del there
    wait_until(lambda: not keys())


@pytest.mark.parametrize("kind", [dict, list, tuple])
def test_large_collection_as_a_dataset(client: Client, keys: Keys, kind: type) -> None:
    array = np.arange(100_000)
    client.publish_dataset({"a": array} if kind is dict else kind([array]), name="d")
    value = client.get_dataset("d")
    assert type(value) is kind
    assert np.array_equal(value["a" if kind is dict else 0], array)
    client.unpublish_dataset("d")
    del value
    gc.collect()
    wait_until(lambda: not keys(), what="the dataset is gone")


def test_keys_of_the_wrong_kind(client: Client) -> None:
    for key in [("x", [1]), ("x", float("nan")), ("x", 1j)]:
        for call in (client.get_dataset, client.unpublish_dataset, client.why):
            with pytest.raises(InvalidKey):
                call(key)
        with pytest.raises(InvalidKey):
            client.publish_dataset(1, name=key)
        with pytest.raises(InvalidKey):
            client.submit(inc, 1, key=key)
    odd = client.submit(inc, 1, key="\ud800")
    assert odd.key == "\ud800"
    assert client.submit(inc, odd, key=("\ud800", 2)).result(10) == 3


def test_large_dataset(client: Client, keys: Keys) -> None:
    client.publish_dataset(big=np.arange(100_000))
    assert client.get_dataset("big").sum() == np.arange(100_000).sum()
    many = client.map(inc, range(2000))
    client.publish_dataset(many=many)
    del many
    assert client.gather(client.get_dataset("many")) == list(range(1, 2001))
    client.unpublish_dataset("big")
    client.unpublish_dataset("many")
    gc.collect()
    wait_until(lambda: not keys())


# --- the cluster ----------------------------------------------------------------------------------------------------


def test_what_it_tells(client: Client) -> None:
    info = client.scheduler_info()
    assert len(info["workers"]) == 2
    assert info["total_threads"] == 4
    assert client.nthreads() == dict.fromkeys(info["workers"], 2)
    future = client.scatter(np.zeros(10_000))
    (address,) = client.who_has(future)[future.key]
    assert client.has_what()[address] == (future.key,)
    assert client.who_has(client.scatter(1)) == {client.scatter(1).key: ()}
    client.wait_for_workers(2, 5)
    with pytest.raises(TimeoutError):
        client.wait_for_workers(5, 0.1)
    slow = client.submit(slowly, 1, 0.5)
    wait_until(lambda: any(slow.key in keys for keys in client.processing().values()))


def test_why(client: Client, new_client: NewClient) -> None:
    other = new_client(name="somebody")
    mine = client.submit(inc, 1)
    theirs = other.submit(inc, 1)
    wait([mine])
    theirs.result(10)
    text = str(client.why(mine))
    assert "somebody" in text
    assert text.count(__file__) == 2
    assert "nothing holds it" in str(client.why("unknown"))


def test_restart(client: Client, keys: Keys) -> None:
    future = client.submit(inc, 1)
    future.result(10)
    client.publish_dataset(x=future)
    client.restart()
    assert future.cancelled()
    assert client.list_datasets() == ()
    wait_until(lambda: not keys())
    with pytest.raises(CancelledError, match="restarted"):
        future.result()
    assert client.submit(inc, 1).result(20) == 2
    assert client.generation >= 2


# --- clients --------------------------------------------------------------------------------------------------------


def test_closed(new_client: NewClient) -> None:
    client = new_client()
    future = client.submit(inc, 1)
    client.close()
    client.close()
    assert client.status == "closed"
    assert future.cancelled()
    with pytest.raises(ClientClosed):
        future.result()
    with pytest.raises(ClientClosed):
        client.submit(inc, 1)
    with pytest.raises(ClientClosed):
        client.gather([future])
    other = new_client()
    with pytest.raises(ClientClosed):
        other.submit(inc, future)


def test_current_client(client: Client, new_client: NewClient) -> None:
    assert redist.default_client() is client
    other = new_client()
    assert redist.default_client() is other
    with client.as_current():
        assert get_client() is client
    quiet = new_client(set_as_default=False)
    assert redist.default_client() is other
    other.close()
    assert redist.default_client() is client
    assert Client.current() is client
    assert get_client(client.url) is client
    assert quiet.submit(inc, 1).client is quiet


def test_foreign_future(client: Client, cluster: LocalCluster) -> None:
    with Client(cluster.endpoint.url, namespace="elsewhere", set_as_default=False) as other:
        foreign = other.scatter(1)
        with pytest.raises(ValueError, match="another cluster"):
            client.submit(inc, foreign)
        with pytest.raises(ValueError, match="another cluster"):
            client.gather([foreign])


def test_a_last_look_at_workers_that_is_cut_short(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []

    def look(*args: Any) -> Any:
        looks.append(args)
        if len(looks) > 1:
            raise ConnectionLost("no answer within 0.001 s")
        return [], []

    monkeypatch.setattr("redist.describing._read_both", look)
    with pytest.raises(TimeoutError, match="only 0 of 5 workers"):
        client.wait_for_workers(5, 0.3)
    assert len(looks) > 1
    looks.clear()
    with pytest.raises(ConnectionLost):
        client.wait_for_workers(5, 10)


def test_many_threads(client: Client) -> None:
    results: list[int] = []

    def work(k: int) -> None:
        for i in range(10):
            results.append(client.submit(inc, 100 * k + i).result(20))  # noqa: PERF401

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert sorted(results) == sorted(100 * k + i + 1 for k in range(6) for i in range(10))


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(3), StopAsyncIteration()],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_would_end_who_asks(client: Client, error: BaseException) -> None:
    def fail() -> None:
        raise error

    future = client.submit(fail, pure=False)
    for ask in (
        lambda: future.result(10),
        lambda: client.gather([future]),
        lambda: list(as_completed([future], with_results=True)),
    ):
        with pytest.raises(RuntimeError, match=f"the task raised {type(error).__name__}") as caught:
            ask()
        assert type(caught.value.__cause__) is type(error)
        assert caught.value.__cause__.args == error.args
    assert future.status == "error"
    assert client.submit(inc, 1).result(10) == 2
