"""Values that contain so many keys that they are told to contain bundles of them."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from redist.store import replies as R
from redist.store.calls import MOST_CONTAINED
from store.kit import World
from store.test_data import scatter
from store.test_failures import forget_everything, over
from store.test_linking import bounded
from store.test_tasks import submit, task

MANY = 20_000


def value(name: str, *contains: str) -> C.Value:
    return C.Value(name, 1, 0, 0, 1, "int", b"1", contains=contains)


def cut(names: list[str]) -> list[list[str]]:
    return [names[at : at + MOST_CONTAINED] for at in range(0, len(names), MOST_CONTAINED)]


@pytest.mark.parametrize("how", ["scatter", "publish", "result"])
def test_no_script_does_too_much(big: World, how: str) -> None:
    client = big.client()
    x = big.executor(big.worker())
    maker = x if how == "result" else client
    leaves = [f"d{i}" for i in range(MANY)]
    for part in cut(leaves):
        maker.ok(C.commit([value(n) for n in part]))
    bundles = [f"@@bundle@{i}" for i in range(len(cut(leaves)))]
    for bundle, part in zip(bundles, cut(leaves)):
        bounded(big, maker, C.commit([value(bundle, *part)]))
    if how == "scatter":
        bounded(big, maker, C.commit([value("all", *bundles)]))
    elif how == "publish":
        bounded(big, maker, C.publish("all", b"v", bundles))
    else:
        submit(client, task("all"))
        x.listen_up()
        (got,) = x.tasks
        result = C.Result("all", got.attempt, "memory", 9, "list", b"", bundles)
        bounded(big, x, C.turn(1, 0, [], [got.batch], [result]))
    for part in cut([*leaves, *bundles]):
        bounded(big, maker, C.ledger([(n, 0) for n in part]))
    big.check()
    assert {big.state(n) for n in (leaves[0], leaves[-1], *bundles)} == {"memory"}
    bounded(big, client, C.unpublish("all") if how == "publish" else C.ledger([("all", 0)]))
    assert {big.state(n) for n in (*leaves[::100], *bundles)} == {"gone"}
    big.check()


@pytest.mark.parametrize("told", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["client", "executor"])
def test_a_maker_that_dies(world: World, kind: str, told: bool) -> None:
    """Before it tells of the value, its bundles go; after that the value holds them, and they the keys."""
    other = world.client()
    worker = world.worker()
    maker = world.executor(worker) if kind == "executor" else world.client()
    maker.ok(C.commit([value("a"), value("b")]))
    maker.ok(C.commit([value("@@bundle@1", "a")]))
    maker.ok(C.commit([value("@@bundle@2", "b")]))
    if told:
        maker.ok(C.commit([value("all", "@@bundle@1", "@@bundle@2")]))
        other.ok(C.ledger([("all", 1)]))
    maker.deaf()
    if kind == "executor":
        worker.ok(C.lost_executor(maker.ordinal, "it died", []))
    else:
        world.expire(maker, by=other)
    world.drain()
    world.callers.remove(maker)
    there = "memory" if told else "gone"
    assert [world.state(n) for n in ("a", "b", "@@bundle@1", "@@bundle@2", "all")] == [there] * 5
    if told:
        other.ok(C.ledger([("all", 0)]))
    assert [world.state(n) for n in ("a", "b", "@@bundle@1", "@@bundle@2", "all")] == ["gone"] * 5


@pytest.mark.parametrize("order", ["client first", "worker first"])
def test_after_a_loss_the_value_contains_the_keys_themselves(world: World, order: str) -> None:
    """Its file lists them; its bundles, which nobody holds, were lost with the server."""
    client, worker = world.client(), world.worker()
    leaves = {name: scatter(client, worker, name) for name in ("a", "b", "c")}
    client.ok(C.commit([value("@@bundle@1", "a", "b")]))
    client.ok(C.commit([value("@@bundle@2", "c")]))
    box = scatter(client, worker, "box", "@@bundle@1", "@@bundle@2")
    client.ok(C.ledger([(n, 0) for n in (*leaves, "@@bundle@1", "@@bundle@2")]))
    assert [world.state(n) for n in leaves] == ["memory"] * 3
    forget_everything(world)
    for who in (client, worker) if order == "client first" else (worker, client):
        who.register(attempt=box)
        if who is client:
            client.ok(C.ledger([("box", 1)]))
        else:
            copies = [C.Replica(name, attempt, 10_000, "int") for name, attempt in leaves.items()]
            worker.ok(C.add_replicas(copies, found=True))
            worker.ok(C.add_replicas([C.Replica("box", box, 9, "list", ["a", "b"])], found=True))
            worker.ok(C.add_replicas([C.Replica("box", box, 9, "list", ["c"])], found=True))
        who.ok(C.registered())
        world.check()
    over(world, client)
    assert [world.state(n) for n in ("box", *leaves)] == ["memory"] * 4
    assert [world.state(n) for n in ("@@bundle@1", "@@bundle@2")] == ["gone"] * 2
    client.ok(C.ledger([("box", 0)]))
    assert [world.state(n) for n in ("box", *leaves)] == ["gone"] * 4


def test_a_loss_before_the_value_is_told_of(world: World) -> None:
    """Its maker brings the bundles, with what they contain, ahead of it."""
    client, worker = world.client(), world.worker()
    leaf = scatter(client, worker, "a")
    client.ok(C.commit([value("@@bundle@1", "a")]))
    client.ok(C.ledger([("a", 0)]))
    forget_everything(world)
    client.register(attempt=leaf)
    client.ok(C.commit([value("@@bundle@1", "a")._replace(again=True)]))
    client.ok(C.publish("all", b"v", ["@@bundle@1"]))
    client.ok(C.ledger([("@@bundle@1", 0)]))
    client.ok(C.registered())
    worker.register(attempt=leaf)
    worker.ok(C.add_replicas([C.Replica("a", leaf, 10_000, "int")], found=True))
    worker.ok(C.registered())
    over(world, client)
    assert [world.state(n) for n in ("a", "@@bundle@1")] == ["memory"] * 2
    client.ok(C.unpublish("all"))
    assert [world.state(n) for n in ("a", "@@bundle@1")] == ["gone"] * 2


def test_a_value_that_was_known_already_needs_no_bundles(world: World) -> None:
    client, other = world.client(), world.client()
    for caller, bundle in ((client, "@@bundle@1"), (other, "@@bundle@2")):
        caller.ok(C.commit([value("a")]))
        caller.ok(C.commit([value(bundle, "a")]))
        known = R.parse_commit(caller.ok(C.commit([value("all", bundle)])))
        assert known == ([] if caller is client else ["all"])
        caller.ok(C.ledger([(bundle, 0), ("a", 0)]))
    assert [world.state(n) for n in ("a", "@@bundle@1", "@@bundle@2")] == ["memory", "memory", "gone"]
    client.ok(C.ledger([("all", 0)]))
    assert world.state("a") == "memory"
    other.ok(C.ledger([("all", 0)]))
    assert world.state("a") == "gone"


def test_a_bundle_is_brought_whole_or_not_at_all(world: World) -> None:
    """What is to be kept with it is refused: its maker was taken for dead, and a key went."""
    client = world.client()
    client.ok(C.commit([value("a"), value("b")]))
    again = value("@@bundle@1", "a", "gone")._replace(again=True)
    client.ok(C.commit([again, value("@@bundle@2", "a", "b")._replace(again=True)]))
    client.listen_up()
    assert client.told["@@bundle@1"].state == "cancelled"
    assert [world.state(n) for n in ("@@bundle@1", "@@bundle@2")] == ["gone", "memory"]
    assert client.do(C.publish("ds", b"v", ["@@bundle@1", "@@bundle@2"])) == [
        b"NO",
        b"unknown",
        b"@@bundle@1",
    ]
    world.check()
