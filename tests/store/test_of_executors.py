"""Tasks for one executor, by an eligibility class that names it: what calls of actors are."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from store.kit import Caller, World

F = [("f", b"FUNCTION")]


def task(name: str, *deps: str, cls: str = "") -> C.Task:
    return C.Task(name, "f", b"spec of " + name.encode() * 100, deps, cls=cls)


def finish(x: Caller, name: str, value: bytes = b"v") -> None:
    """Finish one task of an executor; without `value`, as a segment."""
    x.listen_up()
    (attempt,) = [t.attempt for t in x.tasks if t.name == name]
    x.turn([C.Result(name, attempt, "memory", len(value) or 10_000, "int", value)])


@pytest.fixture
def y(world: World, worker: Caller) -> Caller:
    return world.executor(worker)


def of(x: Caller) -> list[C.EligibilityClass]:
    return [C.EligibilityClass("k", "", "", executor=x.ordinal)]


def test_they_run_there_though_another_is_idle(world: World, client: Caller, x: Caller, y: Caller) -> None:
    client.ok(C.submit([task("a", cls="k"), task("b", cls="k")], F, of(x)))
    x.listen_up(), y.listen_up()
    assert [t.name for t in x.tasks] == ["a"]
    assert not y.tasks
    assert world.state("b") == "queued"
    y.turn()
    assert not y.tasks
    finish(x, "a")
    assert [t.name for t in x.tasks] == ["b"]


def test_anybody_runs_what_was_for_one_that_is_gone(
    world: World, client: Caller, worker: Caller, x: Caller, y: Caller
) -> None:
    client.ok(C.submit([task("a", cls="k"), task("b", cls="k"), task("c", "b", cls="k")], F, of(x)))
    x.listen_up()
    worker.ok(C.lost_executor(x.ordinal, "signal 9", [t.attempt for t in x.tasks]))
    world.callers.remove(x)
    for _ in "abc":  # y was idle all the time: it is told, and need not ask
        y.listen_up()
        finish(y, y.tasks[0].name)
    assert [world.state(n) for n in ("a", "b", "c")] == ["memory"] * 3
    client.ok(C.submit([task("d", cls="k")], F, of(x)))
    y.listen_up()
    assert [t.name for t in y.tasks] == ["d"]


def test_anybody_runs_what_was_for_one_that_left_or_whose_worker_went(
    world: World, client: Caller, worker: Caller, x: Caller, y: Caller
) -> None:
    other = world.worker("v")
    z = world.executor(other)
    classes = [C.EligibilityClass(f"k{e.ordinal}", "", "", executor=e.ordinal) for e in (x, z)]
    client.ok(C.submit([task("x1", cls=f"k{x.ordinal}"), task("x2", cls=f"k{x.ordinal}")], F, classes))
    client.ok(C.submit([task("z1", cls=f"k{z.ordinal}"), task("z2", cls=f"k{z.ordinal}")], F, classes))
    x.do(C.close())
    world.callers.remove(x)
    world.expire(other, by=client)
    world.drain()
    world.callers.remove(other), world.callers.remove(z)
    for _ in range(4):
        y.listen_up()
        finish(y, y.tasks[0].name)
    assert [world.state(n) for n in ("x1", "x2", "z1", "z2")] == ["memory"] * 4


def test_a_value_that_is_lost_is_not_computed_again(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("d"), task("a", "d", cls="k")], F, of(x)))
    finish(x, "d")
    finish(x, "a", b"")
    assert not {"data", "class", "deps"} & world.record("a").keys()
    client.ok(C.ledger([("d", 0)]))
    assert world.state("d") == "gone"  # nothing will need it again
    client.ok(C.submit([task("b", "a")], F))
    x.listen_up()
    where = x.tasks[0].deps[0][1]
    x.turn([C.Result("b", x.tasks[0].attempt, "missing", value=f"a\n{where}".encode())])
    client.listen_up()
    assert client.told["a"].type == "DataLost"
    assert client.told["b"].where == "a"


def test_idle_executors_take_turns_with_what_stays(world: World, client: Caller, worker: Caller) -> None:
    executors = [world.executor(worker, threads=4) for _ in range(3)]
    for i in range(6):
        name = f"a{i}"
        client.ok(C.submit([task(name)._replace(flags=C.SPREAD)], F))
        for e in executors:
            e.listen_up()
            if e.tasks:
                e.got = [*getattr(e, "got", []), name]  # type: ignore[attr-defined]
                finish(e, name)
    assert [len(e.got) for e in executors] == [2, 2, 2]  # type: ignore[attr-defined]


def test_calls_in_a_row_come_in_one_batch(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("busy")], F))
    client.ok(C.submit([task("a", cls="k"), *(task(n, p, cls="k") for p, n in zip("abc", "bcd"))], F, of(x)))
    x.listen_up()
    x.turn([C.Result("busy", x.tasks[0].attempt, "memory", 1, "int", b"v")], want=8, quick=["f"])
    assert [t.name for t in x.tasks] == ["a", "b", "c", "d"]
    assert len({t.batch for t in x.tasks}) == 1
    for name in "abcd":
        finish(x, name)
    assert world.state("d") == "memory"
