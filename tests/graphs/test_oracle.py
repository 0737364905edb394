"""Random graphs: what Dask's synchronous scheduler makes of them, redist makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from zlib import crc32

import dask
import hypothesis.strategies as st
from dask._task_spec import Alias, DataNode, Dict, List, Task, TaskRef
from hypothesis import HealthCheck, given, settings

from redist import Client
from servers import wait_until


def combined(*args: Any, **kwargs: Any) -> Any:
    """A small value that tells all of its arguments."""
    return crc32(repr((args, sorted(kwargs.items()))).encode())


KEYS = st.sampled_from(
    [
        *"abcdefgh",
        *(f"name-{i}" for i in range(8)),
        *(("t-x", i, j) for i in range(3) for j in range(3)),
        *(100, 101, "100", (100,), 1.5, b"bytes"),
    ]
)
LITERALS = st.one_of(
    st.integers(-5, 5), st.text("xyz", max_size=3), st.none(), st.lists(st.integers(0, 3), max_size=3)
)


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[Any, Any], list[Any]]:
    """A graph without cycles, and keys of it; nodes are written in the old way and in the new one."""
    keys = draw(st.lists(KEYS, min_size=1, max_size=20, unique=True))
    graph: dict[Any, Any] = {}
    for key in keys:
        before = list(graph)
        deps = draw(st.lists(st.sampled_from(before), max_size=4)) if before else []
        literal = draw(LITERALS)
        kinds = ["literal", "data", "old", "new"]
        if deps:
            kinds += ["alias", "link", "list", "nested", "containers", "fused"]
        kind = draw(st.sampled_from(kinds))
        refs = [TaskRef(dep) for dep in deps]
        if kind == "literal":
            graph[key] = ["l", literal]
        elif kind == "data":
            graph[key] = DataNode(key, literal)
        elif kind == "old":
            graph[key] = (combined, *deps, [literal])
        elif kind == "new":
            graph[key] = Task(key, combined, *refs, last=literal)
        elif kind == "alias":
            graph[key] = Alias(key, deps[0])
        elif kind == "link":
            graph[key] = deps[0]
        elif kind == "list":
            graph[key] = [*deps, [deps[0], [literal]]]
        elif kind == "nested":
            graph[key] = (combined, (combined, *deps), [deps[0], (combined, deps[-1])])
        elif kind == "containers":
            graph[key] = Task(
                key, combined, List(*refs, literal), Dict({"k": refs[0], "l": List(*refs)}), w=refs[-1]
            )
        else:
            inner = Task(("inner", repr(key)), combined, *refs)
            graph[key] = Task.fuse(inner, Task(key, combined, TaskRef(inner.key), literal))
    wanted = draw(st.lists(st.sampled_from(keys), min_size=1, max_size=5))
    return graph, wanted


def test_random_graphs(client: Client, keys: Callable[[], list[str]]) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(graphs())
    def check(drawn: tuple[dict[Any, Any], list[Any]]) -> None:
        graph, wanted = drawn
        assert client.get(graph, wanted) == list(dask.get(graph, wanted))
        # The next graph gives the same keys other meanings.
        wait_until(lambda: not client.futures and not keys())

    check()
