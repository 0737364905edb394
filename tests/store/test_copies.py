"""How many copies of a value there are: made, kept, moved, and dropped, never the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from redist.store import calls as C
from redist.store import copying as K
from redist.store import replies as R
from store.kit import Caller, World
from store.test_data import scatter
from store.test_tasks import finish, submit, task


@pytest.fixture
def workers(world: World) -> list[Caller]:
    """Two hosts with two workers each."""
    return [world.worker(f"w{i}", address=f"tcp://h:{i}", memory=f"m{i // 2}") for i in range(4)]


def orders(world: World, worker: Caller) -> list[K.Order]:
    """Take what a worker is asked for out of its inbox."""
    found = []
    for data in world.command("LPOP", f"inbox:{worker.ordinal}", 100) or ():
        op, *rest = msgpack.unpackb(data)
        assert op == "copy"
        found += K.parse_order(rest)
    return found


def obey(world: World, workers: list[Caller]) -> dict[int, list[str]]:
    """Have the workers make what they are asked for; returns what each made."""
    asked = {i: wanted for i, worker in enumerate(workers) if (wanted := orders(world, worker))}
    for i, wanted in asked.items():
        workers[i].ok(C.add_replicas([C.Replica(order.name, order.attempt) for order in wanted]))
    return {i: [order.name for order in wanted] for i, wanted in asked.items()}


def on(world: World, name: str) -> set[int]:
    return {int(field[2:]) for field in world.record(name) if field.startswith("w:")}


def ordinals(workers: list[Caller]) -> set[int]:
    return {worker.ordinal for worker in workers}


def test_a_second_copy_is_made_on_another_host(world: World, client: Caller, workers: list[Caller]) -> None:
    attempt = scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    (order,) = orders(world, workers[2]) + orders(world, workers[3])
    assert order == ("a", attempt, 10_000, ["tcp://h:0"])
    (there,) = K.parse_copies(client.do(K.copies(["a"])))
    assert there == (True, (workers[0].ordinal,), 1, 2)
    workers[2].ok(C.add_replicas([C.Replica("a", attempt)]))
    assert on(world, "a") == ordinals([workers[0], workers[2]])
    assert "tries" not in world.record("a")
    assert not world.exists("short")


def test_a_lost_copy_is_made_again(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    obey(world, workers)
    (second,) = on(world, "a") - {workers[0].ordinal}
    gone = next(worker for worker in workers if worker.ordinal == second)
    world.expire(gone, client)
    world.drain()
    left = [worker for worker in workers if worker is not gone]
    # Who was asked, and goes, is replaced, too.
    asked = next(w for w in left if world.command("EXISTS", f"inbox:{w.ordinal}"))
    left.remove(asked)
    world.expire(asked, client)
    world.drain()
    assert obey(world, left)
    assert len(on(world, "a")) == 2
    assert second not in on(world, "a")
    left[0].ok(C.remove_replicas([("a", int(world.record("a")[f"w:{left[0].ordinal}"]))]))
    assert obey(world, left)
    assert len(on(world, "a")) == 2


def test_copies_are_made_as_a_tree(world: World, client: Caller) -> None:
    workers = [world.worker(f"v{i}", address=f"tcp://h:{i}") for i in range(9)]
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 9))
    assert [len(obey(world, workers)) for _ in range(2)] == [2, 6]
    scatter(client, workers[0], "b")
    client.ok(K.replicate(["b"], 9, branching=1))
    assert [len(obey(world, workers)) for _ in range(4)] == [1, 2, 4, 1]
    assert not obey(world, workers)


def test_sources_share_the_work(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    obey(world, workers)
    client.ok(K.replicate(["a"], 4))
    asked = [order for worker in workers for order in orders(world, worker)]
    assert len({order.addresses[0] for order in asked}) == 2
    assert all(len(order.addresses) == 2 for order in asked)


def test_one_copy_a_host(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], plan="hosts", most=100))
    assert len(obey(world, workers)) == 1
    assert "copies" not in world.record("a")
    client.ok(K.replicate(["a"], plan="hosts", most=100))
    assert not obey(world, workers)


def test_copies_on_named_workers(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2, plan="workers", most=1, workers=["w1"]))
    assert obey(world, workers) == {1: ["a"]}
    assert client.do(K.replicate(["a"], plan="workers", most=1, workers=["nobody"]))[:2] == [
        b"NO",
        b"workers",
    ]


def test_the_number_is_raised_or_set(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    for wanted, at_least, found in ((3, False, "3"), (2, True, "3"), (2, False, "2"), (1, False, None)):
        client.ok(K.replicate(["a"], wanted, at_least=at_least))
        obey(world, workers)
        assert world.record("a").get("copies") == found


def test_inline_and_unknown_keys_are_passed_over(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, None, "a")
    client.ok(K.replicate(["a", "b"], 2))
    assert "copies" not in world.record("a")
    assert [c.there for c in K.parse_copies(client.do(K.copies(["a", "b"])))] == [False, False]


def test_who_cannot_make_a_copy_is_not_asked_again_at_once(
    world: World, client: Caller, workers: list[Caller]
) -> None:
    attempt = scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    asked = []
    for _ in range(3):
        worker = next(w for w in workers if world.command("EXISTS", f"inbox:{w.ordinal}"))
        orders(world, worker)
        asked.append(worker)
        worker.ok(K.not_copied(["a"]))
    assert len(set(map(id, asked))) == 3
    worker = next(w for w in workers if world.command("EXISTS", f"inbox:{w.ordinal}"))
    orders(world, worker)
    worker.ok(K.not_copied(["a"]))  # all have failed, one twice: they get a pause
    assert not any(world.command("EXISTS", f"inbox:{w.ordinal}") for w in workers)
    assert world.command("ZCARD", "short") == 1
    beat(world, client)
    assert not any(world.command("EXISTS", f"inbox:{w.ordinal}") for w in workers)
    due(world, "a")
    beat(world, client)
    assert obey(world, workers)
    assert len(on(world, "a")) == 2
    assert world.record("a")["attempt"] == str(attempt)


def beat(world: World, caller: Caller) -> None:
    reply = caller.do(C.client_heartbeat(0, 0, 0, caller.n))
    if reply[1]:
        world.drain()


def due(world: World, *names: str) -> None:
    """Let time pass until the next look at keys."""
    for name in names:
        world.command("ZADD", "short", 1, name)
        for field, value in world.record(name).items():
            if field.startswith("c:") and value != "0":
                world.command("HSET", f"key:{name}", field, " ".join(["1", *value.split(" ")[1:]]))


def test_who_does_not_answer_is_replaced(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    slow = next(w for w in workers if orders(world, w))
    due(world, "a")
    beat(world, client)
    (made,) = obey(world, workers)
    assert workers[made] is not slow
    # What it brings in the end is one more.
    slow.ok(C.add_replicas([C.Replica("a", int(world.record("a")["attempt"]))]))
    assert len(on(world, "a")) == 3
    assert not world.exists("short")


def test_a_worker_that_comes_later_gets_the_copy(world: World, client: Caller, worker: Caller) -> None:
    scatter(client, worker, "a")
    client.ok(K.replicate(["a"], 2))
    assert world.command("ZCARD", "short") == 1
    late = world.worker("late")
    beat(world, client)
    assert obey(world, [late]) == {0: ["a"]}


def test_the_number_outlives_the_value(world: World, client: Caller, workers: list[Caller]) -> None:
    x = world.executor(workers[0])
    submit(client, task("t"))
    finish(x, "t", b"")
    client.ok(K.replicate(["t"], 2))
    for worker in workers[1:]:
        orders(world, worker)  # nobody gets to it
    workers[0].ok(C.remove_replicas([("t", int(world.record("t")["attempt"]))]))
    assert world.state("t") == "processing"
    assert world.record("t")["copies"] == "2"
    assert not world.exists("short")
    finish(x, "t", b"")
    assert obey(world, workers[1:])
    assert len(on(world, "t")) == 2


def test_a_release_ends_it(world: World, client: Caller, workers: list[Caller]) -> None:
    attempt = scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    (order,) = orders(world, workers[2]) + orders(world, workers[3])
    client.ok(C.ledger([("a", 0)]))
    assert not world.exists("short")
    workers[2].ok(C.add_replicas([C.Replica("a", order.attempt)]))
    workers[2].listen_up()
    assert workers[2].evicted == [("a", attempt)]


# --- surplus ---------------------------------------------------------------------------------------------------------


def surplus(worker: Caller, *copies: tuple[str, int]) -> list[str]:
    return [name for name, _ in K.parse_surplus(worker.ok(K.drop_surplus(copies)), copies)]


def test_surplus_goes_and_never_the_last(world: World, client: Caller, workers: list[Caller]) -> None:
    attempt = scatter(client, workers[0], "a")
    assert surplus(workers[0], ("a", attempt)) == []
    workers[1].ok(C.add_replicas([C.Replica("a", attempt)]))
    assert surplus(workers[0], ("a", attempt), ("b", 7)) == ["a"]
    assert surplus(workers[0], ("a", attempt)) == []
    assert surplus(workers[1], ("a", attempt)) == []
    assert on(world, "a") == {workers[1].ordinal}


def test_wanted_copies_stay(world: World, client: Caller, workers: list[Caller]) -> None:
    attempt = scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    obey(world, workers)
    holder = [w for w in workers if w.ordinal in on(world, "a")]
    assert [surplus(w, ("a", attempt)) for w in holder] == [[], []]
    other = next(w for w in workers if w not in holder)
    other.ok(C.add_replicas([C.Replica("a", attempt)]))
    assert [surplus(w, ("a", attempt)) for w in (*holder, other)] == [["a"], [], []]


def test_a_copy_of_a_worker_that_closes_does_not_count(
    world: World, client: Caller, workers: list[Caller]
) -> None:
    attempt = scatter(client, workers[0], "a")
    workers[1].ok(C.add_replicas([C.Replica("a", attempt)]))
    workers[1].do(C.worker_heartbeat(1, workers[1].n, status="closing"))
    assert surplus(workers[0], ("a", attempt)) == []


def test_nothing_is_surplus_while_it_is_not_certain_what_workers_have(
    world: World, client: Caller, workers: list[Caller]
) -> None:
    """A server that lost writes says of a worker what it had before."""
    attempt = scatter(client, workers[0], "a")
    workers[1].ok(C.add_replicas([C.Replica("a", attempt)]))
    client.ok(K.move([("a", workers[0].ordinal, workers[2].ordinal)]))
    world.command("HSET", "meta", "recovering", 10**15)  # and worker 1, which is to register, has dropped it
    assert surplus(workers[0], ("a", attempt)) == []
    assert obey(world, workers) == {2: ["a"]}
    assert on(world, "a") == ordinals(workers[:3])
    world.command("HDEL", "meta", "recovering")
    assert surplus(workers[0], ("a", attempt)) == ["a"]


# --- moves -----------------------------------------------------------------------------------------------------------


def test_a_copy_moves(world: World, client: Caller, workers: list[Caller]) -> None:
    attempt = scatter(client, workers[0], "a")
    client.ok(K.move([("a", workers[0].ordinal, workers[1].ordinal)]))
    assert on(world, "a") == {workers[0].ordinal}
    assert obey(world, workers) == {1: ["a"]}
    assert on(world, "a") == {workers[1].ordinal}
    workers[0].listen_up()
    assert workers[0].evicted == [("a", attempt)]
    assert not world.exists("short")


def lose_sender(world: World, client: Caller, sender: Caller, receiver: Caller) -> None:
    world.expire(sender, client)


def lose_receiver(world: World, client: Caller, sender: Caller, receiver: Caller) -> None:
    world.expire(receiver, client)


def lose_order(world: World, client: Caller, sender: Caller, receiver: Caller) -> None:
    orders(world, receiver)
    due(world, "a")
    beat(world, client)


def refuse(world: World, client: Caller, sender: Caller, receiver: Caller) -> None:
    orders(world, receiver)
    receiver.ok(K.not_copied(["a"]))


@pytest.mark.parametrize("trouble", [lose_receiver, lose_order, refuse])
def test_a_move_that_fails_leaves_the_copy(
    world: World, client: Caller, workers: list[Caller], trouble: Callable[..., Any]
) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.move([("a", workers[0].ordinal, workers[1].ordinal)]))
    trouble(world, client, *workers[:2])
    world.drain()
    due(world, "a") if world.exists("short") else None
    beat(world, client)
    assert on(world, "a") == {workers[0].ordinal}
    assert not world.exists("short")


def test_a_move_keeps_the_wanted_number(world: World, client: Caller, workers: list[Caller]) -> None:
    scatter(client, workers[0], "a")
    client.ok(K.replicate(["a"], 2))
    obey(world, workers)
    (second,) = on(world, "a") - {workers[0].ordinal}
    client.ok(K.move([("a", workers[0].ordinal, workers[1].ordinal)]))
    world.expire(next(w for w in workers if w.ordinal == second), client)
    world.drain()
    workers = [w for w in workers if w.ordinal != second]
    while obey(world, workers):
        pass
    assert len(on(world, "a")) >= 2


# --- closing workers -------------------------------------------------------------------------------------------------


def left(world: World, caller: Caller, worker: Caller) -> tuple[int, int]:
    sole = K.Sole.nothing().add(caller.do(K.sole(worker.ordinal)))
    assert sole.cursor == 0
    return sole.running, sole.left


def test_what_only_a_retiring_worker_has_is_copied(
    world: World, client: Caller, workers: list[Caller]
) -> None:
    leaving, *others = workers
    x = world.executor(leaving)
    for name in "abc":
        scatter(client, leaving, name)
    workers[1].ok(C.add_replicas([C.Replica("c", int(world.record("c")["attempt"]))]))
    reply = client.ok(K.retire([leaving.ordinal, 999]))
    assert reply[2:] == [leaving.ordinal]
    assert left(world, client, leaving) == (3, 2)
    (message,) = world.command("LPOP", f"inbox:{leaving.ordinal}", 10)
    assert msgpack.unpackb(message) == ["retire", 1]
    submit(client, task("t"))
    assert x.turn() == []
    assert world.state("t") == "queued"
    assert sorted(name for made in obey(world, others).values() for name in made) == ["a", "b"]
    assert left(world, client, leaving) == (3, 0)
    # A heartbeat that was on its way does not call it back.
    leaving.do(C.worker_heartbeat(3, leaving.n, status="running"))
    assert world.record_of(f"caller:{leaving.ordinal}")["status"] == "closing"
    y = world.executor(leaving)
    assert y.turn() == []
    leaving.do(C.close())
    world.drain()
    assert [len(on(world, name)) for name in "abc"] == [1, 1, 1]
    world.executor(others[0])
    assert world.state("t") in ("queued", "processing")


def test_who_retires_last_waits_for_nobody(world: World, client: Caller, worker: Caller) -> None:
    scatter(client, worker, "a")
    worker.ok(K.retire([worker.ordinal]))
    assert left(world, worker, worker) == (0, 1)
    assert not world.command("EXISTS", f"inbox:{worker.ordinal}")
    assert R.parse_heartbeat(client.do(C.client_heartbeat(0, 0, 0, client.n)))
    worker.register()
    assert world.record_of(f"caller:{worker.ordinal}")["status"] == "running"
