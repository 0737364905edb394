"""Tasks for one executor, by an eligibility class that names it: what calls of actors are."""

from __future__ import annotations

from typing import Any

import pytest

from redist.store import calls as C
from store.kit import Caller, World

F = [("f", b"FUNCTION")]


def task(name: str, *deps: str, cls: str = "") -> C.Task:
    return C.Task(name, "f", b"spec of " + name.encode() * 100, deps, cls=cls)


def finish(x: Caller, name: str, value: bytes = b"v", **how: Any) -> None:
    """Finish one task of an executor; without `value`, as a segment."""
    x.listen_up()
    (attempt,) = [t.attempt for t in x.tasks if t.name == name]
    x.turn([C.Result(name, attempt, "memory", len(value) or 10_000, "int", value)], **how)


@pytest.fixture
def y(world: World, worker: Caller) -> Caller:
    return world.executor(worker)


def of(x: Caller) -> list[C.EligibilityClass]:
    return [C.EligibilityClass("k", "", "", executor=x.ordinal)]


def test_they_run_there_though_another_is_idle(world: World, client: Caller, x: Caller, y: Caller) -> None:
    client.ok(C.submit([task("a", cls="k"), task("b", cls="k")], F, of(x)))
    x.listen_up(), y.listen_up()
    assert [t.name for t in x.tasks] == ["a", "b"]
    y.turn()
    assert not y.tasks
    finish(x, "a"), finish(x, "b")


def test_they_wait_for_no_thread(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("busy")], F))
    client.ok(C.submit([task("a", cls="k"), task("c"), task("b", "a", cls="k")], F, of(x)))
    x.listen_up()
    assert [t.name for t in x.tasks] == ["busy", "a"]
    finish(x, "a", want=C.OWN)  # what is for anybody stays in its queue
    x.listen_up()
    assert [t.name for t in x.tasks] == ["busy", "b"]
    assert world.state("c") == "queued"
    finish(x, "b", want=0)
    finish(x, "busy")
    assert [t.name for t in x.tasks] == ["c"]
    finish(x, "c")


def test_what_another_executor_made_ready_goes_there_at_once(
    world: World, client: Caller, x: Caller, y: Caller
) -> None:
    client.ok(C.submit([task("busy"), task("d")], F))
    x.listen_up(), y.listen_up()
    doing, other = (x, y) if y.tasks[0].name == "d" else (y, x)
    client.ok(C.submit([task("a", "d", cls="k"), task("b", "d", cls="k")], F, of(doing)))
    finish(other, "d")
    doing.listen_up()
    assert sorted(t.name for t in doing.tasks) == ["a", "b", "busy"]


def test_what_was_given_back_is_not_sent_again_at_once(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("busy"), task("e")], F))
    client.ok(C.submit([task("a", cls="k")], F, of(x)))
    x.listen_up()
    (attempt,) = [t.attempt for t in x.tasks if t.name == "a"]
    x.turn([C.Result("a", attempt, "back")], want=0)
    x.listen_up()
    assert [t.name for t in x.tasks] == ["busy"]
    assert world.state("a") == "queued"
    x.turn(want=C.OWN)
    assert sorted(t.name for t in x.tasks) == ["a", "busy"]
    finish(x, "a")


def test_one_that_is_paused_gets_none(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    worker.do(C.worker_heartbeat(0, worker.n, status="closing"))
    client.ok(C.submit([task("a", cls="k")], F, of(x)))
    x.listen_up()
    assert not x.tasks
    worker.do(C.worker_heartbeat(0, worker.n, status="running"))
    x.turn(want=C.OWN)
    finish(x, "a")


def test_one_that_comes_behind_gets_no_more(world: World, client: Caller, x: Caller) -> None:
    names = [f"n{i}" for i in range(270)]
    client.ok(C.submit([task(name, cls="k") for name in names], F, of(x)))
    x.listen_up()
    assert len(x.tasks) == 256
    assert world.state("n269") == "queued"
    while x.tasks:
        x.turn([C.Result(t.name, t.attempt, "memory", 1, "int", b"v") for t in x.tasks[:200]], want=C.OWN)
        x.listen_up()
    assert {world.state(name) for name in names} == {"memory"}


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
    finish(x, "busy")
    assert [t.name for t in x.tasks] == ["a"]
    finish(x, "a", want=8, quick=["f"])
    assert [t.name for t in x.tasks] == ["b", "c", "d"]
    assert len({t.batch for t in x.tasks}) == 1
    for name in "bcd":
        finish(x, name)
    assert world.state("d") == "memory"
