"""`Client.get`: graphs in all the forms in which Dask writes them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask import delayed
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef
from dask.highlevelgraph import HighLevelGraph

from redist import Client, Future, wait
from redist.errors import DependencyUnknown, GraphCycle, InvalidKey, SerializationError
from servers import wait_until


def inc(x: int) -> int:
    return x + 1


def failing(x: int) -> int:
    raise ValueError(f"at {x}")


def held(path: str, x: int) -> int:
    while not Path(path).exists():
        time.sleep(0.002)
    return x


def test_simple(client: Client) -> None:
    assert client.get({"x": 1, "y": (inc, "x")}, "y") == 2
    assert client.get({"x": 1, "y": (inc, "x"), ("z", 0): (add, "x", "y")}, ["y", [("z", 0)], "x"]) == [
        2,
        [3],
        1,
    ]
    assert client.get({"x": (inc, 1)}, []) == []


def test_keys_that_are_no_strs(client: Client) -> None:
    graph: dict[Any, Any] = {1: (inc, 0), 2.5: (add, 1, "two"), "two": 2, b"x": (inc, 2.5), "1": 10}
    # Dask takes bytes in the old form of a task for a value.
    graph["t", 1] = Task(("t", 1), add, TaskRef(b"x"), TaskRef(1))
    assert client.get(graph, [1, 2.5, [b"x", ("t", 1)], "1"]) == [1, 3, [4, 5], 10]
    (future,) = client.get(graph, [1.0], sync=False)
    assert future.key == 1
    assert future.result() == 1
    assert client.get({"y": (inc, 1)}, "y") == 2  # here 1 is a number
    assert client.get({"z": Task("z", inc, TaskRef(1))}, "z") == 2  # known from before
    known = client.scatter({7: "seven", b"8": "eight"})
    assert client.gather(known) == {7: "seven", b"8": "eight"}
    assert client.who_has(known[7]) == {7: ()}
    assert client.compute(delayed(str.upper)(known[7])).result() == "SEVEN"
    assert client.submit(inc, 5, key=5).key == 5
    assert [f.key for f in client.map(inc, [1, 2], key=[3, 4.5])] == [3, 4.5]
    assert str(client.why(future.key)).startswith("(1): in memory")


def test_futures(client: Client) -> None:
    futures = client.get({"x": (inc, 1), "y": (inc, "x")}, ["x", "y"], sync=False)
    assert [type(future) for future in futures] == [Future, Future]
    assert [future.key for future in futures] == ["x", "y"]
    assert client.gather(futures) == [2, 3]
    assert set(client.futures) == {"x", "y"}


def test_legacy_tasks(client: Client) -> None:
    graph = {
        "a": 1,
        "list": [1, "a", ["a"]],
        "dict": (dict, [["k", "a"]]),
        "nested": (add, (inc, "a"), (sum, ["a", (inc, "a")])),
        "alias": "nested",
        "again": "alias",
        "text": (str, "not a key"),
    }
    wanted = ["list", "dict", "nested", "alias", "again", "text", "a"]
    assert client.get(graph, wanted) == [[1, 1, [1]], {"k": 1}, 5, 5, 5, "not a key", 1]


def test_nodes(client: Client) -> None:
    graph = {
        "a": DataNode("a", 1),
        "b": Task("b", inc, TaskRef("a")),
        "c": Task("c", add, TaskRef("a"), Alias("b")),
        "d": Alias("d", "c"),
        "e": Task("e", sum, List(TaskRef("a"), TaskRef("b"), Task(None, inc, TaskRef("d")))),
        "f": Task("f", dict, Dict({"x": TaskRef("e")}), y=TaskRef("a")),
    }
    assert client.get(graph, ["d", "e", "f"]) == [3, 7, {"x": 7, "y": 1}]


def test_high_level_graph(client: Client) -> None:
    graph = HighLevelGraph({"a": {"x": (inc, 1)}, "b": {"y": (inc, "x")}}, {"a": set(), "b": {"a"}})
    assert client.get(graph, "y") == 3


def test_only_what_is_asked_for_runs(client: Client, keys: Callable[[], list[str]]) -> None:
    assert client.get({"x": (inc, 1), "bad": (failing, "x"), "y": (inc, "x")}, "y") == 3


def test_what_nobody_asked_for_is_not_held(client: Client, keys: Callable[[], list[str]]) -> None:
    chain: dict[str, Any] = {"x-0": (np.zeros, 100_000)}
    chain |= {f"x-{i}": (add, f"x-{i - 1}", 1) for i in range(1, 20)}
    future = client.get(chain, "x-19", sync=False)
    wait(future)
    assert set(client.futures) == {"x-19"}
    # The others are known, since it may be computed again, but their values are gone.
    wait_until(lambda: sum(map(bool, client.has_what().values())) == 1)
    wait_until(lambda: sum(map(len, client.has_what().values())) == 1)
    assert future.result()[0] == 19
    del future
    wait_until(lambda: not keys())


def test_what_is_known_is_not_computed_again(client: Client, tmp_path: Path) -> None:
    first = client.get({"a": (inc, 1), "b": (inc, "a")}, "b", sync=False)
    assert first.result() == 3
    # Were `b` computed again, it would fail.
    assert client.get({"a": (failing, 1), "b": (failing, "a"), "c": (inc, "b")}, "c") == 4
    again = client.get({"b": (failing, 1)}, "b", sync=False)
    assert again.result() == 3
    # A key that is on its way is shared.
    gate = tmp_path / "gate"
    slow = client.get({"s": (held, str(gate), 5)}, "s", sync=False)
    more = client.get({"s": (failing, 1), "t": (inc, "s")}, ["s", "t"], sync=False)
    gate.touch()
    assert client.gather([slow, *more]) == [5, 5, 6]


def test_futures_in_a_graph(client: Client) -> None:
    one = client.submit(inc, 0)
    data = client.scatter(np.arange(10_000))
    graph = {
        "a": one,
        "b": (inc, one),
        "c": (sum, [one, one, "b"]),
        "d": Task("d", add, one, 1),
        "e": Task("e", sum, [one, 2]),
        "f": Task("f", len, {"x": one}),
        "g": Task("g", np.sum, data),
        "h": DataNode("h", [one, {"y": one}]),
    }
    wanted = list(graph)
    assert client.get(graph, wanted) == [1, 2, 4, 2, 3, 1, 49995000, [1, {"y": 1}]]
    assert client.get({one.key: one, "z": (inc, one.key)}, [one.key, "z"]) == [1, 2]


def test_futures_of_another_client(new_client: Callable[..., Client]) -> None:
    first, second = new_client(), new_client()
    future = first.submit(inc, 1, pure=False)
    assert second.get({"x": (inc, future), "y": Task("y", inc, future)}, ["x", "y"]) == [3, 3]
    later = second.get({"z": (inc, future)}, "z", sync=False)
    del future
    assert later.result() == 3


def test_a_future_inside_of_an_object_stays_one(client: Client) -> None:
    class Box:
        def __init__(self, future: Any) -> None:
            self.future = future

    future = client.submit(inc, 1)
    assert client.get({"x": Task("x", lambda box: box.future.result() + 1, Box(future))}, "x") == 3


def test_large_literals_are_stored_once(client: Client, keys: Callable[[], list[str]]) -> None:
    big = np.arange(100_000)
    graph: dict[str, Any] = {f"x-{i}": Task(f"x-{i}", np.dot, big, i) for i in range(30)}
    graph |= {f"y-{i}": Task(f"y-{i}", max, [len(big), i]) for i in range(3)}
    futures = client.get(graph, list(graph), sync=False)
    wait(futures)
    payloads = [name for name in keys() if not name.startswith(("x-", "y-"))]
    assert len(payloads) == 1
    assert futures[3].result()[-1] == 3 * 99_999
    shared: dict[str, Any] = {"big": big, **{f"z-{i}": (np.sum, "big") for i in range(10)}}
    assert client.get(shared, [f"z-{i}" for i in range(10)]) == [big.sum()] * 10
    assert client.get(shared, "big").nbytes == big.nbytes


def test_large_functions(client: Client) -> None:
    big = np.arange(100_000)

    def total(x: int) -> int:
        return int(big.sum()) + x

    graph = {f"x-{i}": (total, i) for i in range(20)}
    assert client.get(graph, list(graph)) == [int(big.sum()) + i for i in range(20)]


def test_values_can_be_written_to(client: Client) -> None:
    (value,) = client.get({"x": (np.zeros, 100_000)}, ["x"])
    value[0] = 1
    assert value[0] == 1


def test_none_and_other_values(client: Client) -> None:
    graph: dict[Any, Any] = {"none": None, "empty": [], ("t", 1, "a"): (lambda: None,), "set": {1}}
    assert client.get(graph, list(graph)) == [None, [], None, {1}]


def test_errors(client: Client) -> None:
    with pytest.raises(ValueError, match="at 2") as caught:
        client.get({"x": (inc, 1), "y": (failing, "x"), "z": (inc, "y")}, "z")
    names = [entry.name for entry in caught.traceback]
    assert "failing" in names
    future = client.get({"x": (inc, 1), "y": (failing, "x"), "z": (inc, "y")}, "z", sync=False)
    assert isinstance(future.exception(), ValueError)
    del caught
    gc.collect()


def test_cycles(client: Client) -> None:
    with pytest.raises(GraphCycle, match="'a'"):
        client.get({"a": (inc, "b"), "b": (inc, "a")}, "a")
    with pytest.raises(GraphCycle, match="'a'"):
        client.get({"a": Alias("a", "b"), "b": Alias("b", "a"), "c": (inc, "a")}, "c")
    with pytest.raises(GraphCycle, match="'c'"):
        client.get({"a": 1, "c": Task("c", add, TaskRef("a"), TaskRef("c"))}, "c")
    # What nobody asked for does not matter.
    assert client.get({"a": (inc, "b"), "b": (inc, "a"), "c": (inc, 1)}, "c") == 2


def test_unknown_keys(client: Client) -> None:
    with pytest.raises(DependencyUnknown, match="nowhere"):
        client.get({"x": (inc, 1)}, ["x", "nowhere"])
    with pytest.raises(DependencyUnknown, match="nowhere"):
        client.get({"x": Task("x", inc, TaskRef("nowhere"))}, "x")
    with pytest.raises(InvalidKey):
        client.get({"x": 1, frozenset(): 2}, [frozenset()])


def test_what_cannot_be_sent(client: Client) -> None:
    import threading

    with pytest.raises(SerializationError, match="'x'"):
        client.get({"x": Task("x", id, threading.Lock())}, "x")


def test_wrong_arguments(client: Client) -> None:
    with pytest.raises(TypeError, match="resources"):
        client.get({"x": (inc, 1)}, "x", resources=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="allow_other_workers"):
        client.get({"x": (inc, 1)}, "x", allow_other_workers="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="retries"):
        client.get({"x": (inc, 1)}, "x", retries=-1)
    with pytest.raises(ValueError, match="the actor 'y' is no task of the graph"):
        client.get({"x": (inc, 1)}, "x", actors="y")


def test_cancel(client: Client, tmp_path: Path, keys: Callable[[], list[str]]) -> None:
    gate = tmp_path / "gate"
    graph: dict[str, Any] = {f"x-{i}": (held, str(gate), i) for i in range(10)}
    future = client.get({**graph, "y": (sum, list(graph))}, "y", sync=False)
    wait_until(lambda: any(client.processing().values()))
    client.cancel(future)
    assert future.cancelled()
    gate.touch()
    wait_until(lambda: not keys())


def test_in_a_task(client: Client) -> None:
    def nested(n: int) -> int:
        from redist import get_client

        client = get_client()
        return client.get({f"a-{n}": (inc, n), f"b-{n}": (inc, f"a-{n}")}, f"b-{n}")  # type: ignore[no-any-return]

    assert client.gather(client.map(nested, range(8))) == list(range(2, 10))


def test_keys_that_were_let_go_get_another_meaning_at_once(client: Client) -> None:
    """The release leaves ahead of the next graph, though nobody waits for it."""
    for round_ in range(100):
        assert client.get({"x": (inc, round_), "y": (inc, "x")}, ["y", "x"]) == [round_ + 2, round_ + 1]
