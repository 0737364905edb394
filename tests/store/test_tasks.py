"""Tasks: submission, dependencies, hand-out, results, errors, retries, cancelling."""

from __future__ import annotations

import itertools
import math

import pytest

from redist.store import calls as C
from redist.store import replies as R
from store.kit import Caller, World

F = [("f", b"FUNCTION")]
BIG = b"v" * 300


def submit(client: Caller, *tasks: C.Task) -> None:
    client.ok(C.submit(tasks, F))


def task(name: str, *deps: str, **options: object) -> C.Task:
    return C.Task(name, "f", b"spec of " + name.encode(), deps, **options)  # type: ignore[arg-type]


def finish(x: Caller, name: str, value: bytes = b"v", **options: object) -> None:
    """Finish one task of an executor; without `value`, as a segment."""
    x.listen_up()
    (attempt,) = [t.attempt for t in x.tasks if t.name == name]
    x.turn([C.Result(name, attempt, "memory", len(value) or 10_000, "int", value, **options)])  # type: ignore[arg-type]


def fail(x: Caller, name: str, status: str = "erred", value: bytes = b"E") -> None:
    x.listen_up()
    (attempt,) = [t.attempt for t in x.tasks if t.name == name]
    x.turn([C.Result(name, attempt, status, 0, "ValueError", value)])


@pytest.fixture
def worker(world: World) -> Caller:
    return world.worker("w", address="tcp://h:1", host="h", resources="GPU=2,MEM=1.5")


def test_an_idle_executor_gets_the_task_at_once(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"))
    assert world.state("a") == "processing"
    x.listen_up()
    (got,) = x.tasks
    assert got == R.HandOut(got.batch, got.attempt, "a", "f", b"spec of a", [], 0)
    assert world.record("a")["state"] == f"processing e{x.ordinal}.{got.attempt}"
    finish(x, "a", b"value")
    client.listen_up()
    told = client.told["a"]
    assert (told.state, told.value, told.type, told.where) == ("memory", b"value", "int", "")
    assert set(world.record("a")) == {"state", "fn", "data", "nbytes", "type", f"refs:{client.ordinal}"}


def test_a_task_waits_for_its_dependencies(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b"), task("c", "a", "b", "a"))
    assert world.record("c")["missing"] == "2"
    finish(x, "a", b"A")
    assert world.state("c") == "waiting"
    finish(x, "b", BIG)
    (got,) = x.tasks
    assert got.name == "c"
    assert sorted(got.deps) == [("a", "", b"A"), ("b", "", BIG)]
    finish(x, "c", b"")
    where = f"{x.options['parent']}.{got.attempt}"
    client.listen_up()
    assert client.told["c"].where == where
    submit(client, task("d", "c"))
    x.listen_up()
    assert x.tasks[0].deps == [("c", where, b"10000")]


def test_many_dependencies_are_not_sent_along(world: World, client: Caller, x: Caller) -> None:
    names = [f"d{i}" for i in range(70)]
    client.ok(C.commit([C.Value(name, 1, 0, 0, 1, "int", b"1") for name in names]))
    submit(client, task("all", *names))
    x.listen_up()
    assert x.tasks[0].more_deps == 70
    read, cursor = [], 0
    while True:
        _, cursor, *some = world.reader.send(C.dependencies("all", cursor))
        read += some
        if not cursor:
            break
    assert sorted(name.decode() for name in read) == sorted(names)


def test_order_and_priority(world: World, client: Caller, worker: Caller) -> None:
    submit(
        client,
        *(
            task(n, priority=p)
            for n, p in (
                ("a", 0), ("b", 0), ("low", -1), ("high", 10), ("c", 0), ("lower", -1.5), ("some", 1e-7),
                ("last", -math.inf), ("first", math.inf), ("more", 0.5), ("most", 1e20), ("little less", -1e-7),
            )
        ),
    )  # fmt: skip
    x = world.executor(worker)
    order = []
    while x.listen_up() or x.tasks:
        order.append(x.tasks[0].name)
        finish(x, x.tasks[0].name)
    assert order == [
        "first", "most", "high", "more", "some", "a", "b", "c", "little less", "low", "lower", "last",
    ]  # fmt: skip


def test_quick_tasks_come_in_batches(world: World, client: Caller, worker: Caller) -> None:
    submit(client, *(task(f"q{i}") for i in range(20)))
    x = world.executor(worker)
    x.listen_up()
    (first,) = x.tasks
    x.tasks.clear()
    result = C.Result(first.name, first.attempt, "memory", 1, "int", b"1")
    reply = x.do(C.turn(1, 8, ["f"], [first.batch], [result]))
    tasks = R.parse_turn(reply).tasks
    assert [t.name for t in tasks] == [f"q{i}" for i in range(1, 9)]
    assert [t.attempt for t in tasks] == list(range(tasks[0].batch, tasks[0].batch + 8))
    # Half of them come back, as one that was not started; the rest are done.
    results = [C.Result(t.name, t.attempt, "memory", 1, "int", b"1") for t in tasks[:4]]
    results += [C.Result(t.name, t.attempt, "back") for t in tasks[4:]]
    x.do(C.turn(1, 1, [], [tasks[0].batch], results))
    assert [world.state(f"q{i}") for i in range(1, 5)] == ["memory"] * 4
    assert world.state("q5") in ("queued", "processing")
    world.check()


def test_a_repeated_turn_brings_what_is_assigned(world: World, client: Caller, x: Caller) -> None:
    world.repeating = False
    submit(client, task("a"))
    x.listen_up()
    x.do(C.turn(1, 0))
    assert [t.name for t in R.parse_turn(x.send(C.turn(1, 1))).tasks] == ["a"]
    assert [t.name for t in R.parse_turn(x.do(C.turn(1, C.RESYNC))).tasks] == ["a"]


def test_a_late_result_is_discarded_and_its_payload_dropped(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    submit(client, task("a"))
    x.listen_up()
    attempt = x.tasks[0].attempt
    client.ok(C.ledger([("a", 0)]))
    submit(client, task("a"))
    x.turn([C.Result("a", attempt, "memory", 5, "int", b"")])
    worker.listen_up()
    assert worker.evicted == [("a", attempt)]
    x.listen_up()
    assert x.tasks[-1].attempt > attempt


def test_an_error_reaches_everybody_who_waits(world: World, client: Caller, x: Caller) -> None:
    other = world.client()
    submit(client, task("a"), task("b", "a"))
    submit(other, task("c", "b"))
    fail(x, "a")
    client.listen_up(), other.listen_up()
    assert (client.told["a"].type, client.told["a"].value, client.told["a"].where) == ("ValueError", b"E", "")
    assert (client.told["b"].state, client.told["b"].value, client.told["b"].where) == ("erred", b"E", "a")
    assert other.told["c"].where == "a"
    submit(other, task("late", "b"))
    other.listen_up()
    assert other.told["late"].where == "a"
    client.ok(C.ledger([("a", 0), ("b", 0)]))
    assert [world.state(n) for n in "abc"] == ["erred"] * 3  # the chain of causes stays
    other.ok(C.ledger([("c", 0), ("late", 0)]))
    assert world.state("a") == "gone"


def test_retries_are_used_up(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a", retries=2))
    for _ in range(2):
        fail(x, "a")
        assert world.state("a") in ("queued", "processing")
        x.turn()
    fail(x, "a")
    assert world.state("a") == "erred"
    assert "retries" not in world.record("a")


def test_reschedule_takes_no_retry(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"))
    fail(x, "a", "retry")
    x.listen_up(), x.turn()
    finish(x, "a")


def test_what_is_to_run_elsewhere_goes_to_another_idle_executor(
    world: World, client: Caller, x: Caller
) -> None:
    y = world.executor(world.worker())
    submit(client, task("a"))
    x.listen_up()
    first, second = (x, y) if x.tasks else (y, x)
    fail(first, "a", "elsewhere")
    finish(second, "a")
    assert world.state("a") == "memory"


def test_what_is_to_run_elsewhere_goes_behind_what_is_queued(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b"))
    fail(x, "a", "elsewhere")
    assert [t.name for t in x.tasks] == ["b"]
    finish(x, "b")
    finish(x, "a")


def test_retry_runs_what_erred_and_what_it_depends_on(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b", "a"), task("c", "b"))
    fail(x, "a")
    client.ok(C.retry(["c"]))
    assert [world.state(n) for n in "abc"] == ["processing", "waiting", "waiting"]
    for name in "abc":
        finish(x, name)
    assert world.state("c") == "memory"


def test_retry_of_the_root_runs_what_erred_because_of_it(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b", "a"), task("c", "b"), task("other", "a"))
    client.ok(C.ledger([("b", 0)]))
    fail(x, "a")
    client.ok(C.ledger([("other", 0)]))
    client.ok(C.retry(["a"]))
    assert [world.state(n) for n in "abc"] == ["processing", "waiting", "waiting"]
    assert world.state("other") == "gone"
    for name in "abc":
        finish(x, name)


def test_a_key_taken_by_another_function(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"))
    client.ok(C.submit([C.Task("a", "g", b"s")], [("g", b"G")]))
    client.listen_up()
    assert client.told["a"].value.startswith(b"!KeyTaken\0")
    finish(x, "a")


@pytest.mark.parametrize("deps", [("none",), ("a",)])
def test_a_dependency_that_is_not_known(world: World, client: Caller, deps: tuple[str, ...]) -> None:
    submit(client, task("a", *deps))
    client.listen_up()
    assert client.told["a"].state == "cancelled"
    assert world.state("a") == "gone"


def test_letting_go_stops_what_nobody_wants(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b", "a"), task("c", "b"))
    client.ok(C.ledger([("a", 0), ("b", 0)]))
    assert world.state("a") == "processing"
    client.ok(C.ledger([("c", 0)]))
    assert [world.state(n) for n in "abc"] == ["gone"] * 3


def test_a_count_for_an_unknown_key_cancels(world: World, client: Caller) -> None:
    client.ok(C.ledger([("none", 2)]))
    client.listen_up()
    assert client.told["none"].state == "cancelled"
    assert world.state("none") == "gone"


@pytest.mark.parametrize("counts", [(1, 0), (2, 0), (0, 1), (0, 0), (2, 1, 0)])
def test_several_counts_of_a_key_in_one_call(world: World, client: Caller, counts: tuple[int, ...]) -> None:
    """The last one decides; of a key that is gone by then nothing is left."""
    other = world.client()
    client.ok(C.submit([task("a"), task("b")], F))
    other.ok(C.ledger([("a", 1)]))
    client.ok(C.ledger([(name, count) for count in counts for name in "ab"]))
    known = counts[-1] > 0
    held = world.command("SMEMBERS", f"holds:{client.ordinal}")
    assert held == ([b"a"] if known else [])
    assert world.record("a").get(f"refs:{client.ordinal}") == ("1" if known else None)
    assert world.state("b") == "gone"


def test_a_submission_without_a_reference_leaves_nothing(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a", count=0))
    assert world.state("a") == "gone"
    submit(client, task("a", count=0), task("b", "a"))
    assert [world.state(n) for n in "ab"] == ["queued", "waiting"]


def test_fire_and_forget(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a", count=0, flags=C.FIRE_AND_FORGET), task("b"), task("c"))
    client.ok(C.fire(["b"]))
    client.ok(C.ledger([("b", 0)]))
    finish(x, "a"), finish(x, "b")
    assert [world.state(n) for n in "ab"] == ["gone"] * 2
    client.ok(C.fire(["c"]))
    fail(x, "c")
    assert world.state("c") == "erred"
    submit(client, task("c", flags=C.FIRE_AND_FORGET))  # finished: there is nothing to fire
    client.ok(C.ledger([("c", 0)]))
    assert world.state("c") == "gone"


def test_values_that_can_be_computed_again_are_dropped_and_revived(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    submit(client, task("a"), task("b", "a"))
    finish(x, "a", b"")
    finish(x, "b", b"")
    attempt = int(world.record("a")["attempt"])
    client.ok(C.ledger([("a", 0)]))
    assert world.state("a") == "released"
    worker.listen_up()
    assert worker.evicted == [("a", attempt)]
    submit(client, task("c", "a"))  # wants it again
    assert [world.state(n) for n in "ac"] == ["processing", "waiting"]
    finish(x, "a", b"")
    finish(x, "c", b"")
    assert world.state("a") == "released"
    client.ok(C.ledger([("a", 1)]))
    assert world.state("a") == "processing"
    finish(x, "a")


def test_lineage_ends_at_an_inline_value(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("s0"))
    finish(x, "s0")
    for i in range(1, 6):
        submit(client, task(f"s{i}", f"s{i - 1}"))
        client.ok(C.ledger([(f"s{i - 1}", 0)]))
        finish(x, f"s{i}")
    assert [world.state(f"s{i}") for i in range(6)] == ["gone"] * 5 + ["memory"]


@pytest.mark.parametrize("how", ["cancel", "release"])
def test_an_executor_hears_what_it_need_not_start(
    world: World, client: Caller, worker: Caller, how: str
) -> None:
    x = world.executor(worker, 3)
    submit(client, task("a"), task("b"), task("c"))
    x.listen_up()
    attempts = {t.name: t.attempt for t in x.tasks}
    client.ok(C.cancel(["a", "b"]) if how == "cancel" else C.ledger([("a", 0), ("b", 0)]))
    (message,) = x.listen_up()
    assert message[0] == b"x"
    assert sorted(map(int, message[1:])) == sorted([attempts["a"], attempts["b"]])
    x.turn([C.Result("a", attempts["a"], "back")])
    assert not world.record("a")


def test_cancel_drops_ones_own_references(world: World, client: Caller, x: Caller) -> None:
    other = world.client()
    submit(client, task("a"), task("b", "a"), task("c", "b"))
    submit(other, task("b", "a"))
    client.ok(C.cancel(["a"], reason="no more"))
    client.listen_up(), other.listen_up()
    assert {n: client.told[n].value for n in "abc"} == dict.fromkeys("abc", b"no more")
    assert "b" not in other.told
    assert [world.state(n) for n in "abc"] == ["processing", "waiting", "gone"]
    finish(x, "a"), finish(x, "b")


def test_cancel_with_force_takes_everybodys(world: World, client: Caller, x: Caller) -> None:
    other = world.client()
    submit(client, task("a"), task("b", "a"))
    submit(other, task("c", "b"))
    client.ok(C.fire(["a"]))
    client.ok(C.cancel(["a"], force=True))
    other.listen_up()
    assert other.told["c"].state == "cancelled"
    assert [world.state(n) for n in "abc"] == ["gone"] * 3


def test_functions_and_classes_are_counted(world: World, client: Caller, x: Caller) -> None:
    cls = C.EligibilityClass("k", "w", "", True)
    client.ok(C.submit([task("a", cls="k"), task("b", cls="k")], F, [cls]))
    finish(x, "a"), finish(x, "b", b"")
    assert world.exists("fn:f")
    assert world.exists("class:k")
    client.ok(C.drop_functions(["f", "k"]))
    assert world.exists("class:k")  # b may be computed again
    client.ok(C.ledger([("b", 0)]))
    assert not world.exists("class:k")
    assert world.exists("fn:f")  # a's record names it
    client.ok(C.ledger([("a", 0)]))
    assert not world.exists("fn:f")


@pytest.mark.parametrize(("workers", "fits"), [("w", 1), ("tcp://h:1", 1), ("h", 1), ("v", 0), ("v\nw", 1)])
def test_classes_name_workers(world: World, client: Caller, x: Caller, workers: str, fits: bool) -> None:
    client.ok(C.submit([task("a", cls="k"), task("b")], F, [C.EligibilityClass("k", workers, "")]))
    x.listen_up()
    assert [t.name for t in x.tasks] == (["a"] if fits else ["b"])
    finish(x, x.tasks[0].name)
    assert [t.name for t in x.tasks] == (["b"] if fits else [])


def test_a_task_whose_class_is_lost_waits_for_it(world: World, client: Caller, x: Caller) -> None:
    world.checking = False
    client.ok(C.submit([task("a", cls="k")], F))
    x.listen_up()
    x.ok(C.turn(1, 0))
    assert not x.tasks
    assert world.state("a") == "queued"
    client.ok(C.submit([task("b", cls="k")], F, [C.EligibilityClass("k", "w", "")]))
    world.checking = True
    x.listen_up()
    finish(x, "b")
    assert [t.name for t in x.tasks] == ["a"]


def test_a_lost_class_that_comes_again_wakes_those_who_may_run_it(
    world: World, client: Caller, x: Caller
) -> None:
    world.checking = False
    client.ok(C.submit([task("a", cls="k"), task("b", cls="k")], F))
    x.listen_up()
    assert world.state("a") == world.state("b") == "queued"
    # as a client that registers anew says it again
    client.ok(C.submit([task("a", cls="k"), task("b", cls="k")], F, [C.EligibilityClass("k", "w", "")]))
    world.checking = True
    x.listen_up()
    assert [t.name for t in x.tasks] == ["a"]
    finish(x, "a")
    assert [t.name for t in x.tasks] == ["b"]


def test_others_may_run_what_names_a_worker_loosely(world: World, client: Caller, x: Caller) -> None:
    y = world.executor(world.worker("v"))
    client.ok(
        C.submit([task("a", cls="k"), task("b", cls="k")], F, [C.EligibilityClass("k", "v", "", False)])
    )
    x.listen_up(), y.listen_up()
    assert [t.name for t in y.tasks] == ["a"]
    assert [t.name for t in x.tasks] == ["b"]


def test_resources_are_taken_and_given_back(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    y, z = world.executor(worker), world.executor(worker)
    client.ok(C.submit([task(n, cls="g") for n in "abc"], F, [C.EligibilityClass("g", "", "GPU=1,MEM=0.5")]))
    for executor in (x, y, z):
        executor.listen_up()
    assert sorted(len(e.tasks) for e in (x, y, z)) == [0, 1, 1]
    assert world.state("c") == "queued"
    first = next(e for e in (x, y, z) if e.tasks)
    second = next(e for e in (x, y, z) if e.tasks and e is not first)
    finish(first, first.tasks[0].name)
    assert world.state("c") == "processing"
    worker.ok(C.lost_executor(second.ordinal, "signal 9", [second.tasks[0].attempt]))
    world.callers.remove(second)
    world.check()


def test_a_worker_that_restarts_with_other_resources(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    """What an executor of before has taken of them comes back when that is reported dead."""
    client.ok(C.submit([task("a", cls="g")], F, [C.EligibilityClass("g", "", "GPU=1,MEM=0.5")]))
    assert world.record("a")["state"].startswith(f"processing e{x.ordinal}")
    worker.options["details"] = {**worker.options["details"], "resources": "GPU=3,DISK=1.25"}
    worker.register()
    fields = [f"free:{resource}" for resource in ("GPU", "MEM", "DISK")]
    assert world.command("HMGET", f"caller:{worker.ordinal}", *fields) == [b"2", b"-0.5", b"1.25"]
    world.check()
    worker.ok(C.lost_executor(x.ordinal, "died with its worker"))
    world.callers.remove(x)
    assert world.command("HMGET", f"caller:{worker.ordinal}", *fields) == [b"3", b"0", b"1.25"]
    worker.register()
    assert world.command("HMGET", f"caller:{worker.ordinal}", *fields) == [b"3", b"0", b"1.25"]


def test_a_dead_executors_resources_serve_others_at_once(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    y = world.executor(worker)
    client.ok(C.submit([task("a", cls="g"), task("b", cls="g")], F, [C.EligibilityClass("g", "", "GPU=2")]))
    x.listen_up(), y.listen_up()
    dead, other = (x, y) if x.tasks else (y, x)
    worker.ok(C.lost_executor(dead.ordinal, "signal 9"))
    world.callers.remove(dead)
    other.listen_up()
    assert len(other.tasks) == 1


def test_a_paused_workers_executors_get_nothing(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    worker.do(C.worker_heartbeat(0, worker.n, status="paused"))
    submit(client, task("a"))
    assert world.state("a") == "queued"
    assert x.turn() == []
    worker.do(C.worker_heartbeat(0, worker.n, status="running"))
    assert x.listen_up()[-1] == [b"t", 0]
    assert [t.name for t in x.turn()] == ["a"]


def test_a_strained_workers_executors_take_what_has_dependencies_first(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    submit(client, task("made"))
    finish(x, "made")
    worker.do(C.worker_heartbeat(0, worker.n, status="paused"))
    roots = [f"r{i:03}" for i in range(200)]
    submit(
        client,
        *map(task, roots[:150]),
        task("low", "made"),
        *map(task, roots[150:]),
        task("urgent", priority=5),
    )
    submit(client, task("near", "made"), *map(task, ("last",)))
    worker.do(C.worker_heartbeat(0, worker.n, status="strained"))
    assert x.listen_up()[-1] == [b"t", 0]
    taken = [task.name for task in x.turn()]
    for _ in range(4):
        finish(x, taken[-1])
        taken += [task.name for task in x.tasks]
    assert taken == ["near", "low", "urgent", "r000", "r001"]
    worker.do(C.worker_heartbeat(0, worker.n, status="running"))
    finish(x, "r001")
    assert x.tasks[-1].name == "r002"


def test_executors_of_a_paused_worker_that_come_later_get_nothing(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    worker.do(C.worker_heartbeat(0, worker.n, status="paused"))
    y = world.executor(worker)
    submit(client, task("a"))
    assert world.state("a") == "queued"
    assert y.turn() == []
    worker.do(C.worker_heartbeat(0, worker.n, status="running"))
    assert [t.name for t in y.turn()] == ["a"]


def test_void_queue_entries_do_not_stay(world: World, client: Caller) -> None:
    submit(client, *(task(f"t{i}") for i in range(500)))
    client.ok(C.ledger([(f"t{i}", 0) for i in reversed(range(500))]))
    assert not world.exists("queue:0")
    assert not world.exists("queues")


def test_states_tell_everything(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"), task("b"), task("c", "b"))
    finish(x, "a", b"v" * 3000)
    fail(x, "b", value=b"E" * 5000)
    names = ["a", "b", "c", "none"]
    short, full = (
        {s.name: s for s in R.parse_states(world.reader.send(C.states(names, full=full)))}
        for full in (False, True)
    )
    assert [short[n].state for n in names] == ["memory", "erred", "erred", "forgotten"]
    assert [short[n].value for n in names] == [b""] * 4
    assert [full[n].value for n in names] == [b"v" * 3000, b"E" * 5000, b"E" * 5000, b""]
    assert full["c"].where == "b"


def again(world: World, client: Caller, call: C.Call) -> int:
    """Do a call that is told to wait for what is left of a name; returns how often it was."""
    for waits in itertools.count():
        if client.do(call) != [b"WAIT"]:
            return waits
        assert world.reader.send(C.continue_())[0] == b"OK"
    raise AssertionError


def test_a_name_comes_again_while_its_edges_are_cut(world: World, client: Caller, x: Caller) -> None:
    """A slice of the old record's end must not touch the new one's edges."""
    world.slice = 2
    names = [f"d{i}" for i in range(5)]
    client.ok(C.commit([C.Value(name, 1, 0, 0, 1, "int", b"1") for name in names]))
    submit(client, task("never"), task("a", "never", *names))
    client.do(C.ledger([("a", 0)]))  # its end is left on the work list
    assert again(world, client, C.submit([task("a", "never", *names)], F)) > 1
    world.drain()
    world.check()
    assert world.record("a")["missing"] == "1"
    assert world.record("d0")["needed"] == "1"
    finish(x, "never"), finish(x, "a")


def test_a_task_is_wanted_again_before_it_was_let_go_wholly(world: World, client: Caller, x: Caller) -> None:
    world.slice = 2
    names = [f"d{i}" for i in range(5)]
    submit(client, *(task(name) for name in names), task("a", *names), task("b", "a"))
    finish(x, "d0")
    submit(client, task("keeps-a-known", "a"))
    fail_all = C.ledger([("a", 0), ("b", 0), ("keeps-a-known", 0)])
    client.do(fail_all)
    again(world, client, C.submit([task("a", *names), task("b", "a")], F))
    client.do(C.ledger([("a", 0)]))
    client.do(C.ledger([("a", 1)]))
    world.drain()
    world.check()
    for name in (*names[1:], "a", "b"):
        finish(x, name)


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_what_goes_ahead_runs_before_what_is_queued(world: World, client: Caller, x: Caller) -> None:
    roots = [task(f"r{i}") for i in range(3)]
    submit(client, *roots, task("d0", "r0", flags=C.AHEAD), task("d1", "r1"))
    assert world.record("d0")["ahead"] == "1"
    ran = []
    for _ in range(5):
        x.listen_up()
        (got,) = [t for t in x.tasks if t.name not in ran]
        ran.append(got.name)
        finish(x, got.name)
    assert ran == ["r0", "d0", "r1", "r2", "d1"]
    assert "ahead" not in world.record("d0")


def test_what_only_tasks_of_its_call_need_is_not_counted(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a", count=0), task("b", "a", count=0), task("c", "b"), task("nobody's", count=0))
    assert world.state("nobody's") == "gone"
    assert not {field for name in "ab" for field in world.record(name) if field.startswith("refs:")}
    finish(x, "a", b"")
    finish(x, "b", b"")
    assert world.record("a")["state"] == "released"
    finish(x, "c")
    assert (world.state("a"), world.state("b")) == ("gone", "gone")
    client.listen_up()
    assert set(client.told) == {"c"}


def test_what_is_released_is_not_computed_again_for_nobody(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a", count=0), task("b", "a"))
    finish(x, "a", b"")
    finish(x, "b", b"")
    assert world.state("a") == "released"
    submit(client, task("a", count=0), task("b", "a"))
    assert world.state("a") == "released"
    submit(client, task("a", count=0), task("b", "a"), task("c", "a"))
    assert world.state("a") == "processing"
    finish(x, "a", b"")
    finish(x, "c", b"")
    assert world.state("a") == "released"
