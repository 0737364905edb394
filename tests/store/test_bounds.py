"""Long work is done in slices, and a full server can still free."""

from __future__ import annotations

import re
from collections.abc import Iterator

import hiredis
import pytest

import servers
from redist.store import calls as C
from redist.store import replies as R
from store.kit import Caller, World
from store.test_tasks import F, fail, finish, submit, task

MANY = 5_000
MOST = 4_000  # commands that one script runs; the whole takes some 50,000


def commands(world: World) -> int:
    """Return how many commands the server ran so far, those of scripts included."""
    stats = world.store.command("INFO", "commandstats").decode()
    return sum(int(calls) for calls in re.findall(r":calls=(\d+)", stats))


def slices(world: World) -> int:
    """Carry out the work list that a call has just left; returns in how many slices."""
    world.check(quiescent=False)
    count, most = 0, 0
    while True:
        before = commands(world)
        reply = world.reader.send(C.continue_())
        most = max(most, commands(world) - before)
        count += 1
        if not reply[1]:
            break
    assert most < MOST
    world.check()
    return count


@pytest.fixture
def fan(big: World) -> tuple[World, Caller, Caller]:
    """One task with many dependents."""
    client = big.client()
    x = big.executor(big.worker())
    submit(client, task("root"))
    for i in range(0, MANY, 500):
        submit(client, *(task(f"d{k}", "root") for k in range(i, i + 500)))
    big.draining = False
    return big, client, x


def test_many_dependents_become_ready(fan: tuple[World, Caller, Caller]) -> None:
    world, _, x = fan
    finish(x, "root", b"")
    assert slices(world) > 20
    assert world.command("LLEN", "queue:0") == MANY - 1


def test_many_dependents_err(fan: tuple[World, Caller, Caller]) -> None:
    world, client, x = fan
    fail(x, "root")
    assert slices(world) > 20
    assert world.state(f"d{MANY - 1}") == "erred"
    client.do(C.retry(["root"]))
    assert slices(world) > 20
    assert world.state(f"d{MANY - 1}") == "waiting"


def test_many_dependents_lose_what_they_need(fan: tuple[World, Caller, Caller]) -> None:
    world, _, x = fan
    finish(x, "root", b"")
    slices(world)
    (worker,) = [c for c in world.callers if c.kind == "worker"]
    worker.do(C.remove_replicas([("root", int(world.record("root")["attempt"]))]))
    assert slices(world) > 20
    assert world.record(f"d{MANY - 1}")["missing"] == "1"


def test_many_dependents_are_cancelled(fan: tuple[World, Caller, Caller]) -> None:
    world, client, _ = fan
    client.do(C.cancel(["root"], force=True))
    assert slices(world) > 20
    assert world.state("root") == "gone"


def test_a_client_goes_with_all_that_it_held(fan: tuple[World, Caller, Caller]) -> None:
    world, client, _ = fan
    client.do(C.close())
    assert slices(world) > 20
    assert world.state("root") == "gone"


def test_a_restart_of_much(fan: tuple[World, Caller, Caller]) -> None:
    world, client, _ = fan
    client.do(C.restart())
    assert slices(world) > 20
    assert world.command("HGET", "meta", "keys") == b"0"


def test_a_task_with_many_dependencies(big: World) -> None:
    client = big.client()
    x = big.executor(big.worker())
    names = [f"d{i}" for i in range(MANY)]
    for i in range(0, MANY, 500):
        client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names[i : i + 500]]))
    submit(client, task("all", *names))
    big.draining = False
    finish(x, "all", b"")
    assert slices(big) > 10
    worker = big.callers[1]
    worker.do(C.remove_replicas([("all", int(big.record("all")["attempt"]))]))
    assert slices(big) > 10
    assert big.state("all") == "processing"
    client.do(C.ledger([("all", 0)]))
    assert big.state("all") == "forgetting"
    assert slices(big) > 10


def test_a_worker_with_many_copies_goes(big: World) -> None:
    client, worker = big.client(), big.worker()
    for i in range(0, MANY, 500):
        placed = R.parse_place(client.ok(C.place(500, 1)))
        client.ok(C.commit([C.Value(f"d{i + k}", 1, a, w, 10, "int") for k, (a, w) in enumerate(placed)]))
    big.expire(worker, by=client)
    big.callers.remove(worker)
    assert slices(big) > 20
    assert big.state("d0") == "erred"


# --- a full server --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["valkey", "redis7"])
def full(request: pytest.FixtureRequest) -> Iterator[tuple[World, servers.Server]]:
    with servers.running(request.param) as server:
        world = World(servers.WireStore(server.endpoint("full"), request.param), repeating=False)
        yield world, server
        server.admin("CONFIG", "SET", "maxmemory", 0)
        world.end()
        world.store.close()


def test_a_full_server_refuses_what_grows_whole_and_frees(full: tuple[World, servers.Server]) -> None:
    world, server = full
    client, worker = world.client(), world.worker()
    x = world.executor(worker)
    submit(client, task("a"), task("b", "a"), task("c"), task("e"))
    client.ok(C.commit([C.Value("v", 1, 0, 0, 3000, "int", b"v" * 3000)]))
    client.ok(C.publish("ds", b"x" * 100, ["v"]))
    client.ok(C.handoff([("t", "v")]))
    x.listen_up()
    finish(x, "a", b"")
    finish(x, "c", b"")
    server.admin("CONFIG", "SET", "maxmemory", 1)
    refused = [
        C.submit([task("new", "v", count=3)], F),
        C.commit([C.Value("new", 1, 0, 0, 3000, "int", b"v" * 3000)]),
        C.place(1, 1),
        C.publish("ds", b"y", ["v"], override=True),
        C.get_dataset("ds", "token"),
        C.handoff([("t2", "v")]),
        C.retry(["v"]),
    ]
    for call in refused:
        before = world.dump()
        with pytest.raises(hiredis.ReplyError, match="OOM"):
            client.send(call, n=client.n + 1)
        assert call.grows, call.script.name
        assert world.dump() == before, call.script.name
    with pytest.raises(hiredis.ReplyError, match="OOM"):
        worker.send(C.add_replicas([C.Replica("a", 1)]), n=worker.n + 1)
    # What frees, and what only tells, goes through.
    client.ok(C.noop())
    client.ok(C.drop_handoffs([("t", "v")]))
    client.ok(C.ledger([("v", 0), ("c", 0)]))
    client.ok(C.unpublish("ds"))
    assert world.state("v") == "gone"
    finish(x, "b", b"value" * 100) if [t for t in x.tasks if t.name == "b"] else finish(
        x, x.tasks[0].name, b"1"
    )
    worker.ok(C.remove_replicas([("a", int(world.record("a")["attempt"]))]))
    client.ok(C.fire(["e"]))
    client.ok(C.cancel(["e"], force=True))
    client.do(C.client_heartbeat(0, 0, 0, client.n))
    worker.do(C.worker_heartbeat(0, worker.n))
    worker.ok(C.lost_executor(x.ordinal, "signal 9", [t.attempt for t in x.tasks]))
    world.callers.remove(x)
    client.ok(C.restart())
    assert world.command("HGET", "meta", "keys") == b"0"
