"""More queues and more idle executors than one script looks at: work is found all the same."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

import pytest

import servers
from redist.store import calls as C
from redist.store.scripts import load, names
from store.kit import Caller, World
from store.test_bounds import MOST, commands
from store.test_tasks import F, submit, task

QUEUES, EXECUTORS = 300, 200


@pytest.fixture(params=["valkey", "redis7"])
def many(request: pytest.FixtureRequest, namespace: str) -> Iterator[World]:
    """A namespace whose callers tell of every script that runs too many commands."""
    server: servers.Server = request.getfixturevalue(request.param)
    store = servers.WireStore(server.endpoint(namespace), request.param)
    world = World(store, checking=False, repeating=False)
    world.listening = False
    yield world
    world.end()
    store.close()
    server.forget(namespace)


def bounded(world: World, caller: Caller, call: C.Call) -> None:
    """Do a call and what it leaves; no script of it may run too much."""
    before = commands(world)
    reply = caller.do(call)
    assert commands(world) - before < MOST
    while reply[1]:
        before = commands(world)
        reply = world.reader.send(C.continue_())
        assert reply[0] == b"OK", reply
        assert commands(world) - before < MOST
    world.check()


def executors(world: World, count: int, threads: int = 1) -> list[Caller]:
    """So many idle executors, each of a worker of its own, `w0`, `w1`..."""
    return [world.executor(world.worker(f"w{i}"), threads) for i in range(count)]


def runs(world: World) -> dict[str, str]:
    """Return which executor runs each task."""
    found = {}
    for key in list(world.store.keys()):
        if key.startswith("key:"):
            state = world.record(key[4:])["state"]
            if state.startswith("processing e"):
                found[key[4:]] = state[12:].partition(".")[0]
    return found


def only(name: str, strict: bool = True) -> C.EligibilityClass:
    return C.EligibilityClass(f"c-{name}", name, "", strict)


def test_one_of_many_idle_executors_may_run_it(many: World) -> None:
    client = many.client()
    xs = executors(many, EXECUTORS)
    order = list(range(EXECUTORS))
    random.Random(1).shuffle(order)
    for i in order[:60]:
        bounded(many, client, C.submit([task(f"t{i}", cls=f"c-w{i}")], F, [only(f"w{i}")]))
    assert runs(many) == {f"t{i}": str(xs[i].ordinal) for i in order[:60]}


def test_more_tasks_than_one_script_gives_out(many: World) -> None:
    client = many.client()
    executors(many, EXECUTORS)
    bounded(many, client, C.submit([task(f"t{i}") for i in range(EXECUTORS + 50)], F))
    assert len(runs(many)) == EXECUTORS
    assert not many.exists("idle")


def test_a_call_with_tasks_of_both_kinds(many: World) -> None:
    client, worker = many.client(), many.worker()
    for _ in range(135):
        many.executor(worker)
    reply = client.do(C.submit([*(task(f"t{i}") for i in range(134)), task("last", retries=1)], F))
    while reply[1]:
        reply = many.reader.send(C.continue_())
    assert not many.lines("work")
    assert {many.state(f"t{i}") for i in range(134)} | {many.state("last")} == {"processing"}


def test_more_tasks_become_ready_than_one_script_gives_out(many: World) -> None:
    client = many.client()
    executors(many, EXECUTORS)
    submit(client, task("root"))
    bounded(many, client, C.submit([task(f"t{i}", "root") for i in range(EXECUTORS + 50)], F))
    ((name, x),) = runs(many).items()
    attempt = int(many.record(name)["state"].partition(".")[2])
    (runner,) = [caller for caller in many.callers if str(caller.ordinal) == x]
    result = C.Result("root", attempt, "memory", 1, "int", b"v")
    bounded(many, runner, C.turn(1, 1, [], [attempt], [result]))
    assert len(runs(many)) == EXECUTORS
    assert not many.exists("idle")


@pytest.mark.parametrize("mine", [0, 127, 200, QUEUES - 1])
def test_the_only_queue_that_an_executor_may_serve(many: World, mine: int) -> None:
    client = many.client()
    classes = [C.EligibilityClass(f"c{i:03}", "w0" if i == mine else f"v{i}", "") for i in range(QUEUES)]
    client.do(C.submit([task(f"t{i}", cls=f"c{i:03}") for i in range(QUEUES)], F, classes))
    (x,) = executors(many, 1)
    bounded(many, x, C.turn(1, 1))
    assert runs(many) == {f"t{mine}": str(x.ordinal)}


def test_no_queue_is_passed_over_for_ever(many: World) -> None:
    """All may be served; those that are looked at first never run empty."""
    client = many.client()
    classes = [C.EligibilityClass(f"c{i:03}", "", "GPU=1") for i in range(QUEUES)]
    for k in range(5):
        tasks = [task(f"t{i}.{k}", cls=f"c{i:03}") for i in range(QUEUES)]
        bounded(many, client, C.submit(tasks[:150], F, classes[:150]))
        bounded(many, client, C.submit(tasks[150:], F, classes[150:]))
    many.listening = True
    x = many.executor(many.worker("w", resources="GPU=1"))
    served = set()
    for _ in range(3 * QUEUES):
        results = [C.Result(t.name, t.attempt, "memory", 1, "int", b"v") for t in x.tasks]
        x.turn(results)
        served |= {t.name.partition(".")[0] for t in x.tasks}
        if len(served) == QUEUES:
            break
    assert len(served) == QUEUES


def test_resources_come_free_for_one_of_many(many: World) -> None:
    """The worker's other executor is far behind among the idle ones."""
    client = many.client()
    executors(many, EXECUTORS)
    worker = many.worker("g", resources="GPU=1")
    x, y = many.executor(worker), many.executor(worker)
    classes = [C.EligibilityClass("c", "", "GPU=1")]
    bounded(many, client, C.submit([task("a", cls="c"), task("b", cls="c")], F, classes))
    runner, other = (x, y) if runs(many)["a"] == str(x.ordinal) else (y, x)
    bounded(many, worker, C.lost_executor(runner.ordinal, "signal 9"))
    many.callers.remove(runner)
    (held,) = runs(many).items()
    assert held[1] == str(other.ordinal)


@pytest.mark.parametrize("name", sorted(set(names()) - {"drop_functions"}))  # which never comes to it
def test_scripts_can_carry_out_the_work_that_they_put_off(name: str) -> None:
    text = load(name).text
    verbs = set(re.findall(r"S\.later\('([a-z_]+) ", text))
    assert verbs <= set(re.findall(r"function S\.([a-z_]+)\(", text))
