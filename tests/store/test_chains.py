"""A quick task takes along its only dependent, if nothing else is missing there."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from redist.store.replies import HandOut
from store.kit import Caller, World

F = [("f", b"FUNCTION"), ("slow", b"FUNCTION")]


def task(name: str, *deps: str, fn: str = "f", **options: object) -> C.Task:
    return C.Task(name, fn, b"spec of " + name.encode(), deps, **options)  # type: ignore[arg-type]


@pytest.fixture
def x(world: World) -> Caller:
    x = world.executor(world.worker("w"))
    x.turn(want=0)
    world.command("DEL", "idle")  # busy, so that everything is queued
    return x


def take(x: Caller, want: int = 64) -> list[HandOut]:
    return x.turn(want=want, quick=["f"])


def done(t: HandOut, status: str = "memory", value: bytes = b"v") -> C.Result:
    return C.Result(t.name, t.attempt, status, len(value), "int", value)


def chain(client: Caller, length: int) -> list[str]:
    names = [f"t{i}" for i in range(length)]
    client.ok(C.submit([task(n, *names[:i][-1:]) for i, n in enumerate(names)], F))
    return names


def test_a_chain_is_taken_at_once(world: World, client: Caller, x: Caller) -> None:
    names = chain(client, 5)
    got = take(x)
    assert [t.name for t in got] == names
    assert [t.deps for t in got] == [[], *([(name, "+", b"")] for name in names[:-1])]
    assert len({t.batch for t in got}) == 1
    assert [t.attempt - t.batch for t in got] == [0, 1, 2, 3, 4]
    x.turn([done(t) for t in got], want=0)
    assert {world.state(name) for name in names} == {"memory"}
    client.listen_up()
    assert {client.told[name].state for name in names} == {"memory"}


def test_a_chain_is_limited_by_the_batch(world: World, client: Caller, x: Caller) -> None:
    chain(client, 10)
    assert [t.name for t in take(x, 4)] == ["t0", "t1", "t2", "t3"]
    assert world.state("t4") == "waiting"
    assert [t.name for t in x.turn([done(t) for t in x.tasks], want=64, quick=["f"])] == [
        "t4", "t5", "t6", "t7", "t8", "t9",
    ]  # fmt: skip


def test_what_else_is_needed_comes_along(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("a")], F))
    take(x)
    x.turn([done(x.tasks[0], value=b"A")], want=0)
    world.command("DEL", "idle")
    client.ok(C.submit([task("b"), task("c", "a", "b")], F))
    _, c = take(x)
    assert sorted(c.deps) == [("a", "", b"A"), ("b", "+", b"")]


@pytest.mark.parametrize(
    "others",
    [
        [task("b", "a", fn="slow")],
        [task("b", "a"), task("c", "a")],
        [task("z", fn="slow"), task("b", "a", "z")],
        [task("b", "a", priority=1)],
        [task("b", "a", cls="k")],
    ],
)
def test_what_is_not_taken_along(world: World, client: Caller, x: Caller, others: list[C.Task]) -> None:
    client.ok(C.submit([task("a"), *others], F, [C.EligibilityClass("k", "w", "")]))
    assert [t.name for t in take(x)] == ["a"]


def test_only_with_several_tasks_a_turn(world: World, client: Caller, x: Caller) -> None:
    chain(client, 3)
    assert [t.name for t in x.turn(want=1)] == ["t0"]


def test_an_error_goes_down_the_chain(world: World, client: Caller, x: Caller) -> None:
    chain(client, 4)
    a, b, c, d = take(x)
    x.turn([done(a), done(b, "erred", b"E"), done(c, "back", b""), done(d, "back", b"")], want=0)
    assert [world.state(f"t{i}") for i in range(4)] == ["memory", "erred", "erred", "erred"]
    client.listen_up()
    assert client.told["t3"].value == b"E"


@pytest.mark.parametrize("status", ["retry", "missing", "back"])
def test_the_rest_waits_when_one_runs_again(world: World, client: Caller, x: Caller, status: str) -> None:
    names = chain(client, 3)
    a, b, c = take(x)
    got = x.turn([done(a, status, b""), done(b, "back", b""), done(c, "back", b"")], want=64, quick=["f"])
    assert [t.name for t in got] == names
    x.turn([done(t) for t in got], want=0)
    assert {world.state(name) for name in names} == {"memory"}


def test_retries_of_a_leader(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("a", retries=1), task("b", "a")], F))
    a, b = take(x)
    got = x.turn([done(a, "erred", b"E"), done(b, "back", b"")], want=64, quick=["f"])
    assert [t.name for t in got] == ["a", "b"]


def test_a_tail_is_handed_in_before_its_leader(world: World, client: Caller, x: Caller) -> None:
    chain(client, 3)
    a, b, c = take(x)
    x.turn([done(b, "back", b""), done(c, "back", b"")], want=0)
    assert [world.state(f"t{i}") for i in range(3)] == ["processing", "waiting", "waiting"]
    got = x.turn([done(a)], want=64, quick=["f"])
    assert [t.name for t in got] == ["t1", "t2"]


def test_a_large_value_ends_the_chain(world: World, client: Caller, x: Caller) -> None:
    chain(client, 2)
    a, b = take(x)
    got = x.turn([done(a, value=b""), done(b, "back", b"")], want=64, quick=["f"])
    (dep,) = got[0].deps
    assert (dep[0], dep[1]) == ("t0", f"{x.options['parent']}.{a.attempt}")


def test_results_may_come_in_two_calls(world: World, client: Caller, x: Caller) -> None:
    names = chain(client, 3)
    a, b, c = take(x)
    x.turn([done(a)], want=0)
    assert [world.state(name) for name in names] == ["memory", "processing", "processing"]
    x.turn([done(b), done(c)], want=0)
    assert {world.state(name) for name in names} == {"memory"}


def test_an_executor_that_dies_in_a_chain(world: World, client: Caller, x: Caller) -> None:
    names = chain(client, 3)
    a, b, _ = take(x)
    x.turn([done(a)], want=0)
    y = world.executor(next(c for c in world.callers if c.kind == "worker"))
    worker = next(c for c in world.callers if c.kind == "worker")
    worker.ok(C.lost_executor(x.ordinal, "signal 9", [b.attempt]))
    world.callers.remove(x)
    y.listen_up()
    got = y.tasks or y.turn(want=64, quick=["f"])
    assert got[0].name == "t1"
    assert world.state("t2") in ("waiting", "processing")
    while y.tasks:
        y.turn([done(t) for t in list(y.tasks)], want=64, quick=["f"])
    assert {world.state(name) for name in names} == {"memory"}


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("force", [False, True])
def test_cancelling_in_a_chain(world: World, client: Caller, x: Caller, which: int, force: bool) -> None:
    names = chain(client, 3)
    got = take(x)
    client.ok(C.cancel([names[which]], force=force))
    assert {world.state(name) for name in names[which:]} == {"gone"}
    x.turn([done(t) for t in got], want=0)
    assert {world.state(name) for name in names[:which]} <= {"memory"}
    assert {world.state(name) for name in names[which:]} == {"gone"}


def test_releasing_in_a_chain(world: World, client: Caller, x: Caller) -> None:
    names = chain(client, 3)
    got = take(x)
    client.ok(C.ledger([(name, 0) for name in names[:2]]))
    x.turn([done(t) for t in got], want=0)
    assert [world.state(name) for name in names] == ["gone", "gone", "memory"]


def test_what_is_assigned_is_read_again(world: World, client: Caller, x: Caller) -> None:
    chain(client, 3)
    got = take(x)
    x.tasks.clear()
    again = x.turn(want=C.RESYNC)
    assert [(t.name, t.attempt, t.batch) for t in again] == [(t.name, t.attempt, t.batch) for t in got]
    assert again[1].deps == [("t0", "", b"")]
