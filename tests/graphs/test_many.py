"""Graphs of many tasks, of every shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from operator import add
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
from dask._task_spec import List, Task, TaskRef

from redist import Client
from servers import wait_until


def inc(x: int) -> int:
    return x + 1


def logged(path: str, what: str, before: Any) -> float:
    """Note that it runs, for a little longer than what is taken several at a time."""
    time.sleep(0.002)
    with open(path, "a") as file:
        file.write(what)
    return 0.0


def test_ten_thousand_tasks(client: Client, keys: Callable[[], list[str]]) -> None:
    n = 10_000
    graph: dict[Any, Any] = {("x-a", i): (inc, i) for i in range(n)}
    futures = client.get(graph, list(graph), sync=False)
    assert client.gather(futures) == list(range(1, n + 1))
    del futures
    wait_until(lambda: not keys(), 30)


def test_an_array_of_many_chunks(client: Client) -> None:
    assert da.ones(5_000, chunks=1).sum().compute() == 5_000


@pytest.mark.parametrize("optimize", [True, False])
def test_a_long_chain(client: Client, optimize: bool) -> None:
    from dask import delayed

    x = delayed(inc)(0)
    for _ in range(1_999):
        x = delayed(inc)(x)
    assert client.compute(x, optimize_graph=optimize, sync=True) == 2_000


def test_a_wide_reduction(client: Client) -> None:
    n = 5_000
    graph: dict[Any, Any] = {("x-a", i): Task(("x-a", i), inc, i) for i in range(n)}
    graph["sum-b"] = Task("sum-b", sum, List(*(TaskRef(("x-a", i)) for i in range(n))))
    assert client.get(graph, "sum-b") == n * (n + 1) // 2


def test_a_wide_fan(client: Client) -> None:
    n = 3_000
    graph: dict[Any, Any] = {"root-a": (np.ones, 10_000)}
    graph |= {("y-a", i): (np.dot, "root-a", i) for i in range(n)}
    graph |= {("z-a", i): (len, ("y-a", i)) for i in range(n)}
    graph["end-a"] = (sum, [("z-a", i) for i in range(n)])
    assert client.get(graph, "end-a") == n * 10_000


def test_levels_that_need_all_of_the_one_before(client: Client) -> None:
    width, depth = 40, 40
    graph: dict[Any, Any] = {("l-0", i): i for i in range(width)}
    for level in range(1, depth):
        before = [(f"l-{level - 1}", i) for i in range(width)]
        graph |= {(f"l-{level}", i): (max, [*before, i]) for i in range(width)}
    last = [(f"l-{depth - 1}", i) for i in range(width)]
    assert client.get(graph, last) == [width - 1] * width


def test_specs_that_do_not_go_into_one_call(client: Client) -> None:
    """What needs a task may leave with a later call than the task."""
    text = ["x" * 3_500]
    graph: dict[Any, Any] = {("x-a", i): Task(("x-a", i), len, text) for i in range(1_000)}
    graph |= {("y-a", i): (add, ("x-a", i), ("x-a", 999 - i)) for i in range(1_000)}
    graph["end-a"] = (sum, [("y-a", i) for i in range(1_000)])
    for _ in range(3):
        assert client.get(graph, "end-a") == 2_000


def test_behind_other_tasks(client: Client) -> None:
    """The calls that a graph leaves with begin with what was collected before it."""
    for round_ in range(3):
        futures = client.map(inc, range(1_300), pure=False)
        graph: dict[Any, Any] = {f"x-{i}": (inc, f"x-{i - 1}") for i in range(1, 1_000)}
        graph["x-0"] = round_
        assert client.get(graph, "x-999") == 999 + round_
        assert client.gather(futures) == list(range(1, 1_301))
        del futures


def test_what_can_go_goes_before_more_comes(client: Client, tmp_path: Path) -> None:
    """A graph is not computed level by level: values are used as soon as they are there."""
    path = str(tmp_path / "order")
    graph: dict[Any, Any] = {("root-a", i): (logged, path, "r", 0.002) for i in range(100)}
    graph |= {("use-a", i): (logged, path, "u", ("root-a", i)) for i in range(100)}
    graph["end-a"] = (len, [("use-a", i) for i in range(100)])
    assert client.get(graph, "end-a", workers=sorted(client.scheduler_info()["workers"])[:1]) == 100
    alive = most = 0
    for what in Path(path).read_text():
        alive += 1 if what == "r" else -1
        most = max(most, alive)
    assert most <= 10
