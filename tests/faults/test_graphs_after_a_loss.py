"""A server that loses its memory in the middle of a graph: what nobody has a Future of is sent again as well."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from faults import programs
from faults.rig import PATIENCE, Rig, crash
from redist import Client
from servers import wait_until

pytestmark = pytest.mark.timeout(120)

for module in (programs, sys.modules[__name__]):
    cloudpickle.register_pickle_by_value(module)


def inc(x: int) -> int:
    return x + 1


def started(path: Path) -> int:
    ran = Path(f"{path}-ran")
    return len(ran.read_text().split()) if ran.exists() else 0


def wide(gate: Path, width: int) -> dict[Any, Any]:
    """`last` needs `sum`, which needs `x-0` ..., which wait until `gate` is there."""
    graph: dict[Any, Any] = {("x", i): (programs.gated, str(gate), i) for i in range(width)}
    graph["sum"] = (sum, [("x", i) for i in range(width)])
    graph["last"] = (inc, "sum")
    return graph


def unfinished(own_server: Any) -> tuple[Rig, Any, Client]:
    rig, server = own_server(False)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    return rig, server, rig.client()


@pytest.mark.parametrize("width", [6, 1_300])
def test_nothing_is_done_yet(own_server: Any, tmp_path: Path, width: int) -> None:
    """With the larger one, what was collected first is counted until what needs it has left."""
    rig, server, client = unfinished(own_server)
    gate = tmp_path / "gate"
    future = client.get(wide(gate, width), "last", sync=False)
    wait_until(lambda: started(gate) >= 1, PATIENCE)
    wait_until(lambda: "last" in rig.names() and not client.session.lane.unanswered, PATIENCE)
    before = rig.names()
    assert len(before) > width + 1
    crash(server)
    wait_until(lambda: rig.names() == before, PATIENCE)
    gate.touch()
    assert future.result(PATIENCE) == sum(range(width)) + 1
    assert list(client.futures) == ["last"]
    del future
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_a_part_is_done(own_server: Any, tmp_path: Path) -> None:
    """What the rest needs of it only the server had, or a worker."""
    rig, server, client = unfinished(own_server)
    gate = tmp_path / "gate"
    graph = {
        "small": (inc, 1),
        "large": (programs.large, 3),
        "gated": (programs.gated, str(gate), 5),
        "last": (_together, "small", "large", "gated"),
    }
    future = client.get(graph, "last", sync=False)
    wait_until(
        lambda: {rig.hash(f"key:{name}").get("state") for name in ("small", "large")} == {"memory"}, PATIENCE
    )
    wait_until(lambda: started(gate) == 1, PATIENCE)
    crash(server)
    gate.touch()
    assert future.result(PATIENCE) == (2, 50_000, 5)
    del future
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def _together(small: int, large: bytes, gated: int) -> tuple[int, int, int]:
    return small, len(large), gated


def test_literals(own_server: Any, tmp_path: Path) -> None:
    """They are values of their own, inline and in files, that nobody has a reference of once the tasks have left."""
    rig, server, client = unfinished(own_server)
    gate = tmp_path / "gate"
    graph = {
        "gated": (programs.gated, str(gate), 5),
        "inline": bytes(2_000),
        "file": bytes(200_000),
        "last": (_together, "gated", "inline", "gated"),
        "other": (_together, "gated", "file", "gated"),
    }
    futures = client.get(graph, ["last", "other"], sync=False)
    wait_until(lambda: started(gate) == 1, PATIENCE)
    wait_until(lambda: set(client.futures) == {"last", "other"}, PATIENCE)
    crash(server)
    wait_until(lambda: {"gated", "inline", "file", "last", "other"} <= set(rig.names()), PATIENCE)
    gate.touch()
    assert client.gather(futures) == [(5, 2_000, 5), (5, 200_000, 5)]
    del futures
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_a_client_that_was_given_up(rig: Rig, tmp_path: Path) -> None:
    """The server has forgotten nothing but it, and all that nobody else wanted."""
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    gate = tmp_path / "gate"
    future = client.get(wide(gate, 6), "last", sync=False)
    wait_until(lambda: started(gate) >= 1, PATIENCE)
    other = rig.client()
    session = client.session
    with session.lock:  # it stands still
        ordinal = str(session.ordinal)
        rig.command("ZADD", f"{rig.endpoint.prefix}leases", "1", ordinal)
        rig.command("HSET", f"{rig.endpoint.prefix}caller:{ordinal}", "silence", "0")
        wait_until(lambda: ordinal not in rig.hash("clients"), PATIENCE)
        wait_until(lambda: not rig.names(), PATIENCE)
    assert other.status == "running"
    gate.touch()
    assert future.result(PATIENCE) == 16
    del future
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_asynchronous(own_server: Any, tmp_path: Path) -> None:
    rig, server = own_server(False)
    rig.worker("w1")
    rig.ready(1)
    gate = tmp_path / "gate"

    async def main() -> None:
        async with Client(
            rig.endpoint, asynchronous=True, heartbeat_interval=0.2, timeout=PATIENCE
        ) as client:
            future = client.get(wide(gate, 6), "last", sync=False)
            while not await asyncio.to_thread(started, gate):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(crash, server)
            gate.touch()
            assert await asyncio.wait_for(future, PATIENCE) == 16

    asyncio.run(main())
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_no_more_is_kept_than_is_unfinished(rig: Rig, tmp_path: Path) -> None:
    rig.worker("w1", threads=2)
    rig.ready(1)
    client = rig.client()
    gate = tmp_path / "gate"
    graph = wide(gate, 1)
    graph |= {"a": (inc, 1), "b": (inc, "a")}
    gated, quick = client.get(graph, ["last", "b"], sync=False)
    kept = {
        name: [weakref.ref(it) for it in future._state.needs] for name, future in (("g", gated), ("b", quick))
    }
    assert [ref().name for refs in kept.values() for ref in refs if ref()] == ["sum", "a"]
    assert quick.result(PATIENCE) == 3
    gc.collect()
    assert kept["b"][0]() is None
    assert kept["g"][0]() is not None
    gate.touch()
    assert gated.result(PATIENCE) == 1
    gc.collect()
    assert kept["g"][0]() is None
    del gated, quick
    rig.finish()
