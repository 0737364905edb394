"""A server that lost its memory: containers come back with what they contain, whoever registers first."""

from __future__ import annotations

from itertools import permutations

import pytest

from redist.store import calls as C
from redist.store import copying
from store.kit import Caller, World
from store.test_data import scatter
from store.test_failures import forget_everything, over
from store.test_tasks import finish, submit, task


@pytest.fixture
def other(world: World) -> Caller:
    return world.worker("v")


@pytest.mark.parametrize("order", list(permutations(["client", "worker", "other"])), ids=" ".join)
def test_what_only_a_container_holds_comes_back(
    world: World, client: Caller, worker: Caller, other: Caller, order: tuple[str, ...]
) -> None:
    """The client has a Future of the container alone; container and content lie on two workers."""
    inner = scatter(client, other, "inner")
    box = scatter(client, worker, "box", "inner")
    client.ok(C.ledger([("inner", 0)]))
    forget_everything(world)

    def clients() -> None:
        client.register()
        client.ok(C.ledger([("box", 1)]))
        client.ok(C.registered())

    def workers() -> None:
        worker.register(attempt=box)
        worker.ok(C.add_replicas([C.Replica("box", box, 10_000, "list", ["inner"])], found=True))

    def others() -> None:
        other.register(attempt=inner)
        other.ok(C.add_replicas([C.Replica("inner", inner, 20_000, "ndarray")], found=True))

    parts = {"client": clients, "worker": workers, "other": others}
    for who in order:
        parts[who]()
        world.check()
    over(world, client)
    world.check()
    assert [world.state(n) for n in ("box", "inner")] == ["memory"] * 2
    record = world.record("inner")
    assert (record["pins"], record["nbytes"], record["type"]) == ("1", "20000", "ndarray")
    assert (world.record("box")["contains"], world.record("box")["type"]) == (str(box), "list")
    client.ok(C.ledger([("box", 0)]))
    assert [world.state(n) for n in ("box", "inner")] == ["gone"] * 2


@pytest.mark.parametrize("first", ["client", "worker"])
def test_an_inline_container_comes_back_with_its_content(
    world: World, client: Caller, worker: Caller, first: str
) -> None:
    inner = scatter(client, worker, "inner")
    scatter(client, None, "box", "inner")
    client.ok(C.ledger([("inner", 0)]))
    forget_everything(world)
    for who in (client, worker) if first == "client" else (worker, client):
        who.register(attempt=inner)
        if who is client:
            client.ok(C.commit([C.Value("box", 1, 0, 0, 1, "list", b"v", contains=["inner"])]))
        else:
            worker.ok(C.add_replicas([C.Replica("inner", inner, 1, "int")], found=True))
        world.check()
    over(world, client)
    assert [world.state(n) for n in ("box", "inner")] == ["memory"] * 2
    client.ok(C.ledger([("box", 0)]))
    assert world.state("inner") == "gone"


def test_copies_of_a_container_pin_once(world: World, client: Caller, worker: Caller, other: Caller) -> None:
    """One copy was fetched and is told of without what it contains, and a container comes in parts."""
    names = [f"i{k}" for k in range(5)]
    for name in names:
        scatter(client, None, name)
    box = scatter(client, worker, "box", *names)
    forget_everything(world)
    client.register()
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"v") for n in names]))
    client.ok(C.ledger([("box", 1)]))
    other.register(attempt=box)
    other.ok(C.add_replicas([C.Replica("box", box, 7)]))
    worker.register(attempt=box)
    for part in (names[:3], names[3:], names[:3]):
        worker.ok(C.add_replicas([C.Replica("box", box, 7, "list", part)], found=True))
    assert [world.record(n)["pins"] for n in names] == ["1"] * 5
    assert world.record("box")["type"] == "list"
    over(world, client)
    client.ok(C.ledger([(n, 0) for n in names]))
    assert [world.state(n) for n in names] == ["memory"] * 5
    client.ok(C.ledger([("box", 0)]))
    assert [world.state(n) for n in names] == ["gone"] * 5


@pytest.mark.parametrize("order", list(permutations(["client", "worker", "other"])), ids=" ".join)
def test_wanted_copies_come_back(
    world: World, client: Caller, worker: Caller, other: Caller, order: tuple[str, ...]
) -> None:
    """A client says again how many copies it had asked for; one of two is gone, and made again."""
    data = scatter(client, worker, "data")
    client.ok(copying.replicate(["data"], 3, again=True))
    assert "copies" not in world.record("data")  # the server knows better: it has lost nothing
    forget_everything(world)

    def clients() -> None:
        client.register()
        client.ok(C.ledger([("data", 1)]))
        client.ok(copying.replicate(["data", "released"], 2, again=True))
        client.ok(C.registered())

    def workers() -> None:
        worker.register(attempt=data)
        worker.ok(C.add_replicas([C.Replica("data", data, 10_000, "bytes")], found=True))

    parts = {"client": clients, "worker": workers, "other": lambda: other.register(attempt=data)}
    for who in order:
        parts[who]()
        world.drain()
        world.check()
    over(world, client)
    world.check()
    assert world.record("data")["copies"] == "2"
    assert f"c:{other.ordinal}" in world.record("data")
    other.ok(C.add_replicas([C.Replica("data", data, 10_000)]))
    record = world.record("data")
    assert record[f"w:{worker.ordinal}"] == record[f"w:{other.ordinal}"] == str(data)
    client.ok(C.ledger([("data", 0)]))
    assert world.state("data") == world.state("released") == "gone"


@pytest.mark.parametrize("newer_first", [True, False])
def test_the_newest_of_several_files_is_the_value(
    world: World, client: Caller, worker: Caller, other: Caller, newer_first: bool
) -> None:
    """An older one lay there because the word to drop it was lost with the server."""
    forget_everything(world)
    client.register()
    client.ok(C.ledger([("box", 1)]))
    brought = [
        (worker, C.Replica("box", 9, 10, "list", ["new"])),
        (other, C.Replica("box", 5, 11, "list", ["old"])),
    ]
    for who, replica in brought if newer_first else reversed(brought):
        who.register(attempt=9)
        who.ok(C.add_replicas([replica], found=True))
        world.check()
    assert {f for f in world.record("box") if f.startswith("w:")} == {f"w:{worker.ordinal}"}
    assert world.record("box")["contains"] == "9"
    other.listen_up()
    assert other.evicted == [("box", 5)]
    over(world, client)
    assert world.state("old") == "gone"


def test_a_newcomer_hides_no_loss(world: World, client: Caller, worker: Caller) -> None:
    """Who registers with an empty server first uses up the numbers by which others would see that it is empty."""
    secret = world.command("HGET", "meta", "secret").decode()
    data = scatter(client, worker, "data")
    forget_everything(world)
    for _ in range(5):
        world.client()
    worker.register(secret=secret)
    worker.ok(C.add_replicas([C.Replica("data", data, 5, "int")], found=True))
    assert world.state("data") == "memory"
    client.register(secret=secret)
    client.ok(C.ledger([("data", 1)]))
    over(world, client)
    assert world.state("data") == "memory"


def test_found_copies_put_off_the_end_of_the_recovery(world: World, client: Caller, worker: Caller) -> None:
    """A worker with many files is not through with them when the lease has passed."""
    scatter(client, worker, "data")
    forget_everything(world)
    worker.register(attempt=9, lease_ms=10)
    client.register()
    client.ok(C.ledger([("late", 1)]))
    world.command("HSET", "meta", "recovering", 1)
    worker.ok(C.add_replicas([C.Replica("data", 1, 5, "int")], found=True))
    until = int(world.command("HGET", "meta", "recovering"))
    seconds, _ = world.store.command("TIME")
    assert 0 < until - int(seconds) * 1000 < 5000
    client.do(C.client_heartbeat(0, 0, 0, 0))
    assert world.state("late") == "released"
    over(world, client)


def test_a_long_lease_makes_no_long_recovery(world: World, client: Caller) -> None:
    client.register(lost=True, lease_ms=3_600_000)
    seconds, _ = world.store.command("TIME")
    assert int(world.command("HGET", "meta", "recovering")) < (int(seconds) + 15) * 1000
    over(world, client)


@pytest.mark.parametrize("before", ["waiting", "queued", "processing", "memory"])
def test_a_value_comes_back_to_a_server_that_still_has_its_task(
    world: World, client: Caller, worker: Caller, before: str
) -> None:
    """A replica missed the end of the task: what the client brings is the task's value, no scatter under its key."""
    inner = scatter(client, worker, "inner")
    submit(client, task("first"), task("a", "first") if before == "waiting" else task("a"))
    if before in ("processing", "memory"):
        x = world.executor(worker)
        if before == "memory":
            finish(x, "first")
            finish(x, "a", b"another")
        else:
            finish(x, "first")
    client.register(lost=True)
    client.ok(C.ledger([("inner", 1), ("first", 1)]))
    client.ok(C.commit([C.Value("a", 1, 0, 0, 1, "list", b"v", contains=["inner"], again=True)]))
    client.ok(C.registered())
    assert world.state("a") == "memory"
    assert world.record("a")["data"] == ("another" if before == "memory" else "v")
    assert world.record("inner").get("pins") == (None if before == "memory" else "1")
    over(world, client)
    client.listen_up()
    assert client.told["a"].state == "memory"
    if before == "processing":
        x.listen_up()
        x.turn([C.Result(t.name, t.attempt, "memory", 1, "int", b"late") for t in list(x.tasks)])
        assert world.record("a")["data"] == "v"
    client.ok(C.ledger([("a", 0), ("first", 0)]))
    assert world.state("a") == "gone"
    assert world.record("inner")["attempt"] == str(inner)


def test_a_value_that_is_brought_anew_while_others_compute_it(
    world: World, client: Caller, worker: Caller
) -> None:
    """The client was gone for longer than its lease, and somebody else submitted the same call."""
    other = world.client()
    submit(other, task("a"))
    client.register()
    client.ok(C.commit([C.Value("a", 1, 0, 0, 1, "list", b"v", again=True)]))
    client.ok(C.registered())
    assert world.state("a") == "queued"
    assert world.record("a")[f"refs:{client.ordinal}"] == "1"
