"""Failures: executors, workers and clients that go, restarts, and a server that lost writes."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from store.kit import Caller, World
from store.test_data import scatter
from store.test_tasks import F, finish, submit, task


def lose(world: World, worker: Caller, x: Caller, *running: int) -> None:
    worker.ok(C.lost_executor(x.ordinal, "signal 9", running))
    world.callers.remove(x)


def test_only_what_ran_is_blamed(world: World, client: Caller, worker: Caller) -> None:
    submit(client, *(task(n) for n in ("a", "b")))
    x = world.executor(worker, threads=1)
    x.listen_up()
    reply = x.do(C.turn(2, 1, [], [], []))
    assert reply[0] == b"OK"
    ran = x.tasks[0].attempt
    lose(world, worker, x, ran)
    assert world.record("a")["deaths"] == "1"
    assert "deaths" not in world.record("b")


def test_a_task_that_kills_is_given_up(world: World, client: Caller, worker: Caller) -> None:
    submit(client, task("a"), task("b", "a"))
    for _ in range(4):
        x = world.executor(worker)
        x.listen_up()
        lose(world, worker, x, x.tasks[0].attempt)
    client.listen_up()
    assert client.told["a"].type == "KilledWorker"
    assert b"4 times; the last time: signal 9" in client.told["a"].value
    assert client.told["b"].where == "a"


def test_a_foreign_or_unknown_executor_is_not_given_up(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    other = world.worker("v")
    other.ok(C.lost_executor(x.ordinal, "no"))
    other.ok(C.lost_executor(999, "no"))
    submit(client, task("a"))
    finish(x, "a")


def test_an_executors_own_references_go_with_it(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    x.do(C.submit([task("inner")], F))
    assert world.state("inner") == "processing"
    lose(world, worker, x)
    assert world.state("inner") == "gone"


def test_a_worker_that_goes_takes_its_copies(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b", "a"), task("c", "b"), task("inline"))
    scatter(client, worker, "only-here")
    scatter(client, worker, "copied")
    for name in ("a", "inline", "b"):
        finish(x, name, b"v" if name == "inline" else b"")
    submit(client, task("d", "only-here"))
    other = world.worker("v")
    other.ok(C.add_replicas([C.Replica("copied", int(world.record("copied")["attempt"]))]))
    y = world.executor(other)
    world.expire(worker, by=client)
    world.drain()
    world.callers.remove(worker), world.callers.remove(x)
    client.listen_up()
    assert client.told["only-here"].type == "DataLost"
    assert b"worker w (no heartbeat for" in client.told["only-here"].value
    assert client.told["d"].where == "only-here"
    assert world.state("copied") == "memory"
    y.listen_up()
    assert [t.name for t in y.tasks] == ["d"]  # it ran while what it needs was lost
    y.turn(
        [C.Result("d", y.tasks[0].attempt, "missing", value=f"only-here\n{y.tasks[0].deps[0][1]}".encode())]
    )
    for name in ("a", "b", "c"):
        finish(y, name)
    assert [world.state(n) for n in ("a", "b", "c", "inline")] == ["memory"] * 4


def test_two_workers_go_in_one_sweep(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    """What the one had must not be given to the other, whose turn to go is in the same script."""
    other = world.worker("v")
    ys = [world.executor(other), world.executor(other)]
    z = world.executor(worker)
    submit(client, *(task(f"t{i}") for i in range(3)))
    world.command("ZADD", "leases", 1, str(other.ordinal))
    world.expire(worker, by=client)
    world.drain()
    for gone in (worker, other, x, z, *ys):
        world.callers.remove(gone)
    assert not world.exists("idle")
    assert [world.state(f"t{i}") for i in range(3)] == ["queued"] * 3


def report(by: Caller, worker: Caller, *incarnation: str) -> None:
    """Say that a worker is dead for certain."""
    by.ok(C.lost_worker(worker.ordinal, *incarnation or (worker.incarnation,)))


def test_executors_of_a_worker_that_is_dead_for_certain_go_before_its_lease_ends(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    y = world.executor(worker)
    scatter(client, worker, "kept")
    submit(client, task("a"), task("b"))
    for each in (x, y):
        each.listen_up()
    (late,) = x.tasks
    assert {late.name} | {t.name for t in y.tasks} == {"a", "b"}
    z = world.executor(world.worker("v"), threads=2)
    report(client, worker)
    world.drain()
    world.callers.remove(x), world.callers.remove(y)
    result = C.Result(late.name, late.attempt, "memory", 1, "x", b"late")
    assert x.send(C.turn(1, 1, [], [], [result])) == [b"UNKNOWN"]
    for name in ("a", "b"):
        finish(z, name)
        assert "deaths" not in world.record(name)
        assert world.record(name)["data"] == "v"
    assert world.state("kept") == "memory"
    assert world.command("HEXISTS", "workers", str(worker.ordinal)) == 1


def test_one_that_registers_under_a_dead_worker_gets_nothing(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    report(client, worker)
    world.drain()
    world.callers.remove(x)
    again = world.executor(worker)
    submit(client, task("a"))
    again.turn()
    again.listen_up()
    assert not again.tasks
    assert world.state("a") == "queued"
    assert client.do(C.place(1, 100))[:2] == [b"NO", b"workers"]


@pytest.mark.parametrize("incarnation", ["another", ""])
def test_a_worker_that_has_registered_anew_is_left_alone(
    world: World, client: Caller, worker: Caller, x: Caller, incarnation: str
) -> None:
    report(client, worker, incarnation)
    submit(client, task("a"))
    finish(x, "a")


def test_a_worker_leaves(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    submit(client, task("a"))
    worker.ok(C.close())
    world.callers.remove(worker), world.callers.remove(x)
    assert world.state("a") == "queued"
    assert x.send(C.turn(1, 1), n=99) == [b"UNKNOWN"]


def test_a_client_that_listens_is_not_gone(world: World, client: Caller) -> None:
    other = world.client()
    submit(client, task("a"))
    world.expire(client, by=other)
    assert world.state("a") == "queued"
    client.deaf()
    world.expire(client, by=other)
    world.drain()
    assert world.state("a") == "gone"
    world.callers.remove(client)


def test_a_client_says_how_long_it_may_be_silent(world: World, client: Caller) -> None:
    other = world.client(details={"silence": "60000"})
    submit(other, task("a"))
    seen = int(world.command("HGET", f"caller:{other.ordinal}", "seen"))
    world.command("HSET", f"caller:{other.ordinal}", "seen", seen - 55_000)
    world.expire(other, by=client)
    assert world.state("a") == "queued"
    due = int(world.command("ZSCORE", "leases", str(other.ordinal)))
    assert due == seen + 5000  # before its next lease would end
    world.command("HSET", f"caller:{other.ordinal}", "seen", seen - 61_000)
    world.expire(other, by=client)
    world.drain()
    assert world.state("a") == "gone"
    world.callers.remove(other)


def test_nobody_expires_before_a_lease_when_nobody_swept(
    world: World, client: Caller, worker: Caller
) -> None:
    world.tick()
    worker.do(C.worker_heartbeat(0, 0))
    world.command("HSET", "meta", "swept", 1)
    world.command("ZADD", "leases", 1, str(worker.ordinal))
    client.do(C.client_heartbeat(0, 0, 0, 0))
    assert world.command("HEXISTS", "workers", str(worker.ordinal)) == 1


def test_restart_forgets_everything(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    other = world.client()
    attempt = scatter(client, worker, "a")
    client.ok(C.publish("ds", b"x", ["a"]))
    submit(other, task("b", "a"), task("c", "b"))
    other.ok(C.handoff([("t", "c")]))
    other.ok(C.fire(["c"]))
    reply = client.ok(C.restart())
    assert reply[2] == 2
    assert [world.state(n) for n in ("a", "b", "c", "@ds@1")] == ["gone"] * 4
    worker.listen_up()
    assert worker.evicted == [("a", attempt)]
    client.generation = 2
    submit(client, task("b"))
    x.listen_up()
    x.turn([C.Result(t.name, t.attempt, "memory", 1, "int", b"old") for t in list(x.tasks)])
    finish(x, "b", b"new")
    assert world.record("b")["data"] == "new"


def test_a_restart_makes_no_record_of_a_caller_that_is_gone(world: World, client: Caller) -> None:
    world.command("RPUSH", "work", "wipe 4711")
    world.drain()
    assert not world.exists("caller:4711")


def test_calls_wait_while_a_restart_is_carried_out(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    world.slice = 2
    for i in range(4):
        submit(client, *(task(f"t{i}.{k}") for k in range(5)))
    client.do(C.restart())
    client.generation = 2
    assert client.do(C.submit([task("new")], F)) == [b"WAIT"]
    assert x.do(C.turn(1, 1))[0] == b"OK"  # what tells of processes goes on
    again = world.client()
    assert again.do(C.restart())[0] == b"OK"  # another one, before the first is over
    world.drain()
    assert world.command("HGET", "meta", "wiping") is None
    assert not [key for key in list(world.store.keys()) if key.startswith("key:")]
    client.generation = again.generation = 3
    submit(client, task("new"))


# --- a server that lost writes --------------------------------------------------------------------------------------


def forget_everything(world: World) -> None:
    for key in list(world.store.keys()):
        world.command("UNLINK", key)


def over(world: World, caller: Caller) -> None:
    """The lease after the loss has passed."""
    world.command("HSET", "meta", "recovering", 1)
    world.tick()
    for _ in range(3):
        caller.do(C.client_heartbeat(0, 0, 0, 0))
        world.drain()


@pytest.mark.parametrize("order", ["client first", "worker first"])
def test_an_empty_server_is_filled_again(
    world: World, client: Caller, worker: Caller, x: Caller, order: str
) -> None:
    """Counts, run specs and files may come in any order; nothing is freed or lost meanwhile."""
    submit(client, task("mid"), task("top", "mid"))
    data = scatter(client, worker, "data")
    scatter(client, worker, "nowhere")
    finish(x, "mid", b"")
    mid = int(world.record("mid")["attempt"])
    forget_everything(world)
    assert client.send(C.noop()) == [b"UNKNOWN"]

    def clients() -> None:
        client.register(attempt=mid)
        client.ok(C.ledger([("data", 1), ("nowhere", 1), ("mid", 1), ("top", 1)]))
        client.ok(C.submit([task("top", "mid", "elsewhere")], F))
        client.ok(C.registered())

    def workers() -> None:
        worker.register(attempt=mid)
        worker.ok(C.add_replicas([C.Replica("data", data), C.Replica("mid", mid), C.Replica("unwanted", 1)]))
        x.options["parent"] = worker.ordinal
        x.register(attempt=mid)
        x.tasks.clear()
        x.ok(C.turn(1, 0))
        worker.ok(C.registered())

    for part in (clients, workers) if order == "client first" else (workers, clients):
        part()
        world.check()
    assert [world.state(n) for n in ("data", "mid", "unwanted")] == ["memory"] * 3
    assert [world.state(n) for n in ("nowhere", "elsewhere")] == ["released"] * 2
    assert world.state("top") == "waiting"
    over(world, client)
    assert world.state("unwanted") == "gone"
    client.listen_up(), worker.listen_up()
    assert worker.evicted == [("unwanted", 1)]
    assert client.told["nowhere"].type == "DataLost"
    assert client.told["top"].where == "elsewhere"
    assert world.state("data") == "memory"


def test_a_lane_that_went_back_says_so(world: World, client: Caller) -> None:
    """The server lost the last calls of this lane only: what is not known is waited for."""
    submit(client, task("a"))
    client.n = 7
    assert client.send(C.noop()) == [b"GAP", 1]
    client.register(lost=True)
    client.ok(C.ledger([("a", 1), ("b", 1)]))
    client.ok(C.registered())
    assert world.state("b") == "released"
    submit(client, task("b"))
    assert world.state("b") == "queued"
    over(world, client)
    assert world.state("b") == "queued"


def test_restart_ends_a_recovery(world: World, client: Caller) -> None:
    client.register(lost=True)
    client.ok(C.ledger([("a", 1)]))
    client.ok(C.ledger([("a", 0)]))
    client.ok(C.restart())
    assert world.state("a") == "gone"


def test_counters_are_raised_to_what_callers_saw(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    client.register(attempt=500, generation=9)
    assert client.generation == 9
    worker.generation = 9
    submit(client, task("a"))
    x.listen_up()
    assert x.tasks[0].attempt > 500
    over(world, client)
