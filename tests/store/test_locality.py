"""Where tasks go when workers are on several hosts, and what a worker takes back."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from redist.store import replies as R
from store.kit import Caller, World

F = [("f", b"FUNCTION")]
HEAVY = 200_000_000


@pytest.fixture
def two(world: World) -> tuple[Caller, Caller]:
    """An executor on each of two hosts; the first has made the value `data` of 200 MB."""
    here = world.executor(world.worker("here", memory="h1"))
    away = world.executor(world.worker("away", memory="h2"))
    return here, away


def scatter(world: World, client: Caller, worker: int, nbytes: int) -> None:
    reply = client.ok(C.place(1, nbytes, [str(worker)]))
    ((attempt, ordinal),) = R.parse_place(reply)
    assert ordinal == worker
    client.ok(C.commit([C.Value("data", 1, attempt, worker, nbytes, "array")]))


def test_a_task_goes_to_the_host_of_its_inputs(world: World, two: tuple[Caller, Caller]) -> None:
    client = world.client()
    for x, other in (two, two[::-1]):
        scatter(world, client, x.options["parent"], 1000)
        client.ok(C.submit([C.Task("t", "f", b"spec", ["data"])], F))
        assert world.record("t")["state"].startswith(f"processing e{x.ordinal}.")
        x.listen_up()
        (task,) = x.tasks
        x.turn([C.Result("t", task.attempt, "memory", 1, "int", b"1")])
        client.ok(C.ledger([("t", 0), ("data", 0)]))
        assert not other.tasks


def test_small_inputs_move_when_their_host_is_busy(world: World, two: tuple[Caller, Caller]) -> None:
    here, _ = two
    client = world.client()
    scatter(world, client, here.options["parent"], 1000)
    client.ok(C.submit([C.Task(name, "f", b"spec", ["data"]) for name in ("t", "u")], F))
    states = sorted(world.record(name)["state"].split(".")[0] for name in ("t", "u"))
    assert states == sorted(f"processing e{x.ordinal}" for x in two)


def test_large_inputs_wait_50_ms_for_their_host(world: World, two: tuple[Caller, Caller]) -> None:
    here, away = two
    client = world.client()
    scatter(world, client, here.options["parent"], HEAVY)
    client.ok(C.submit([C.Task(name, "f", b"spec", ["data"]) for name in ("t", "u")], F))
    assert world.record("t")["state"].startswith(f"processing e{here.ordinal}.")
    assert world.record("u")["home"] == "h1"
    assert world.exists("queue:0@h1")
    # Another host takes it when it has waited; the entry says since when.
    ((entry),) = world.lines("queue:0@h1")
    number, since, name = entry.split(" ", 2)
    world.command("LSET", "queue:0@h1", 0, f"{number} {int(since) + 60_000} {name}")
    assert away.turn() == []
    world.command("LSET", "queue:0@h1", 0, f"{number} {int(since) - 60} {name}")
    (task,) = away.turn()
    assert task.name == "u"
    away.turn([C.Result("u", task.attempt, "memory", 1, "int", b"1")])
    assert "home" not in world.record("u")


def test_large_inputs_do_not_wait_for_a_host_where_the_task_may_not_run(
    world: World, two: tuple[Caller, Caller]
) -> None:
    here, away = two
    client = world.client()
    scatter(world, client, here.options["parent"], HEAVY)
    named = C.EligibilityClass("only", "away", "")
    client.ok(C.submit([C.Task("t", "f", b"spec", ["data"], cls="only")], F, [named]))
    assert world.record("t")["state"].startswith(f"processing e{away.ordinal}.")
    nowhere = C.EligibilityClass("gpu", "", "GPU=1")
    client.ok(C.submit([C.Task("u", "f", b"spec", ["data"], cls="gpu")], F, [nowhere]))
    assert "home" not in world.record("u")
    # One that had rather run there waits for it.
    rather = C.EligibilityClass("rather", "away", "", False)
    client.ok(C.submit([C.Task(n, "f", b"spec", ["data"], cls="rather") for n in ("v", "w")], F, [rather]))
    assert world.record("w")["home"] == "h1"


def looks(x: Caller) -> list[int]:
    """In how many ms the executor was told to look again."""
    return [message[1] for message in x.listen_up() if message[0] == b"t" and len(message) == 2]


def test_idle_executors_of_other_hosts_are_told_to_look_again(
    world: World, two: tuple[Caller, Caller]
) -> None:
    here, away = two
    client = world.client()
    scatter(world, client, here.options["parent"], HEAVY)
    away.listen_up()
    client.ok(C.submit([C.Task(name, "f", b"spec", ["data"]) for name in ("t", "u")], F))
    assert looks(away) == [50]
    assert looks(here) == []
    # One that asks too early is told again.
    ((entry),) = world.lines("queue:0@h1")
    number, since, name = entry.split(" ", 2)
    world.command("LSET", "queue:0@h1", 0, f"{number} {int(since) + 60_000} {name}")
    assert away.turn() == []
    (ms,) = looks(away)
    assert 50_000 < ms <= 60_050


def test_the_host_of_large_inputs_takes_the_task_at_once(world: World, two: tuple[Caller, Caller]) -> None:
    here, _ = two
    client = world.client()
    scatter(world, client, here.options["parent"], HEAVY)
    client.ok(C.submit([C.Task(name, "f", b"spec", ["data"]) for name in ("t", "u")], F))
    here.listen_up()
    (first,) = here.tasks
    (second,) = here.turn([C.Result("t", first.attempt, "memory", 1, "int", b"1")])
    assert second.name == "u"


def test_a_worker_takes_back_what_will_not_start(world: World) -> None:
    worker = world.worker("w")
    busy, free = world.executor(worker), world.executor(worker)
    client = world.client()
    client.ok(C.submit([C.Task(f"q{i}", "f", b"s") for i in range(2)], F))
    for x in (busy, free):
        x.listen_up()
    held = busy.tasks[0]
    worker.ok(C.hand_in_for(busy.ordinal, [C.Result(held.name, held.attempt, "back")]))
    assert world.state(held.name) == "queued"
    got = free.turn([C.Result(free.tasks[0].name, free.tasks[0].attempt, "memory", 1, "int", b"1")])
    assert [task.name for task in got] == [held.name]
    # What the first executor says of its attempt counts no more.
    busy.turn([C.Result(held.name, held.attempt, "memory", 1, "int", b"2")])
    assert world.record(held.name)["state"].startswith(f"processing e{free.ordinal}.")


def test_only_the_own_worker_takes_back(world: World) -> None:
    x = world.executor(world.worker("w"))
    other = world.worker("other")
    client = world.client()
    client.ok(C.submit([C.Task("q", "f", b"s")], F))
    x.listen_up()
    other.ok(C.hand_in_for(x.ordinal, [C.Result("q", x.tasks[0].attempt, "back")]))
    assert world.state("q") == "processing"


def test_a_worker_hands_in_what_its_executor_has_finished(world: World) -> None:
    worker = world.worker("w")
    x = world.executor(worker, 3)
    client = world.client()
    client.ok(C.submit([C.Task(name, "f", b"s") for name in ("good", "bad", "late")], F))
    x.listen_up()
    attempts = {task.name: task.attempt for task in x.tasks}
    good = C.Result("good", attempts["good"], "memory", 1, "int", b"1")
    bad = C.Result("bad", attempts["bad"], "erred", 1, "ValueError", b"E")
    worker.ok(C.hand_in_for(x.ordinal, [good, bad]))
    client.listen_up()
    assert client.told["good"].state == "memory"
    assert client.told["good"].value == b"1"
    assert client.told["bad"].state == "erred"
    assert world.state("late") == "processing"
    # Whoever comes second is too late.
    late = C.Result("late", attempts["late"], "memory", 1, "int", b"3")
    x.turn([C.Result("good", attempts["good"], "memory", 1, "int", b"2"), bad, late])
    worker.ok(C.hand_in_for(x.ordinal, [C.Result("late", attempts["late"], "back")]))
    assert world.record("good")["data"] == "1"
    assert world.record("late")["data"] == "3"
