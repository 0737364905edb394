"""Tasks with so many dependencies that they are told of in several calls, and names that are still being forgotten."""

from __future__ import annotations

from typing import Any

import pytest

from redist.store import calls as C
from redist.store import replies as R
from store.kit import Caller, World
from store.test_bounds import MOST, commands
from store.test_data import scatter
from store.test_failures import forget_everything, over
from store.test_tasks import F, fail, finish, submit, task

MANY = 20_000
PART = 500


def begin(client: Caller, name: str, *deps: str, **options: object) -> None:
    """Submit a task that has more dependencies than these."""
    submit(client, task(name, *deps, flags=C.MORE, **options))


def link(client: Caller, name: str, before: int, *deps: str, last: bool = False) -> None:
    client.ok(C.link(name, before, deps, last=last))


def inline(client: Caller, *names: str) -> None:
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names]))


def test_it_runs_when_all_were_told_of(world: World, client: Caller, x: Caller) -> None:
    inline(client, "a", "b", "c")
    begin(client, "all", "a")
    assert (world.state("all"), world.record("all")["missing"]) == ("waiting", "1")
    link(client, "all", 1, "b")
    assert world.state("all") == "waiting"
    link(client, "all", 2, "c", last=True)
    x.listen_up()
    assert [(t.name, sorted(d[0] for d in t.deps)) for t in x.tasks] == [("all", ["a", "b", "c"])]
    assert "linking" not in world.record("all")


def test_what_is_missing_is_waited_for(world: World, client: Caller, x: Caller) -> None:
    inline(client, "a")
    submit(client, task("t"), task("u"))
    begin(client, "all", "t")
    link(client, "all", 1, "a", "u", last=True)
    assert world.record("all")["missing"] == "2"
    finish(x, "t")
    finish(x, "u")
    assert world.state("all") == "processing"


def test_what_comes_meanwhile_does_not_start_it(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("t"))
    begin(client, "all", "t")
    finish(x, "t")
    assert (world.state("all"), world.record("all")["missing"]) == ("waiting", "1")
    inline(client, "a")
    link(client, "all", 1, "a", last=True)
    assert world.state("all") == "processing"


def test_parts_may_be_said_again(world: World, client: Caller, x: Caller) -> None:
    """After a registration anew the task is submitted as before, and behind it comes what was unanswered."""
    inline(client, "a", "b", "c")
    begin(client, "all", "a")
    link(client, "all", 1, "b")
    client.register()
    client.ok(C.ledger([(n, 1) for n in "abc"]))
    begin(client, "all", "a")
    link(client, "all", 1, "b")
    link(client, "all", 2, "c", last=True)
    link(client, "all", 1, "b")
    link(client, "all", 2, "c", last=True)
    client.ok(C.registered())
    assert world.state("all") == "processing"
    finish(x, "all")


def test_a_dependency_that_erred_before_and_one_that_errs_meanwhile(
    world: World, client: Caller, x: Caller
) -> None:
    submit(client, task("bad"), task("late"), task("fine"))
    begin(client, "one", "fine")
    begin(client, "two", "late")
    fail(x, "bad")
    fail(x, "late") if any(t.name == "late" for t in x.tasks) else (finish(x, "fine"), fail(x, "late"))
    link(client, "one", 1, "bad")
    link(client, "two", 1, "fine")
    assert [world.state(n) for n in ("one", "two")] == ["erred"] * 2
    link(client, "one", 2, "late", last=True)
    link(client, "two", 2, "bad", last=True)
    assert world.record("one")["cause"] == "bad"
    assert world.record("two")["cause"] == "late"
    client.ok(C.retry(["one", "two"]))
    assert [world.state(n) for n in ("one", "two")] == ["waiting"] * 2
    while world.state("two") != "memory" or world.state("one") != "memory":
        x.listen_up()
        finish(x, x.tasks[0].name)


@pytest.mark.parametrize("where", ["first", "between", "last"])
def test_an_unknown_dependency_cancels_it(world: World, client: Caller, where: str) -> None:
    inline(client, "a", "b")
    parts = {"first": ["?", "a", "b"], "between": ["a", "?", "b"], "last": ["a", "b", "?"]}[where]
    other = world.client()
    begin(client, "all", parts[0])
    if where != "first":
        submit(other, task("all", *parts), task("on", "all"))
    link(client, "all", 1, parts[1])
    link(client, "all", 2, parts[2], last=True)
    client.listen_up(), other.listen_up()
    assert client.told["all"].state == "cancelled"
    assert b"dependency ? is not known" in client.told["all"].value
    if where != "first":
        assert other.told["all"].type == "DataLost"
        assert other.told["on"].where == "all"
        other.ok(C.retry(["all"]))
        assert world.state("all") == "erred"


def test_a_part_that_was_refused_leaves_no_gap(world: World, client: Caller) -> None:
    """A full server refuses one part, and a no-op takes its number; what follows must not complete the task."""
    inline(client, "a", "b", "c")
    begin(client, "all", "a")
    client.ok(C.noop())
    link(client, "all", 2, "c", last=True)
    client.listen_up()
    assert b"a part of its dependencies was refused" in client.told["all"].value
    assert client.told["all"].state == "cancelled"
    assert world.state("all") == "gone"


def test_of_two_submitters_the_first_completes_it(world: World, client: Caller, x: Caller) -> None:
    other = world.client()
    inline(client, "a", "b", "c")
    begin(client, "all", "a")
    begin(other, "all", "c")
    link(other, "all", 1, "c", last=True)
    assert world.state("all") == "waiting"
    link(client, "all", 1, "b", last=True)
    x.listen_up()
    assert sorted(d[0] for d in x.tasks[0].deps) == ["a", "b"]


@pytest.mark.parametrize("how", ["gone", "forced", "released", "closed"])
def test_a_submitter_that_goes_in_between(world: World, client: Caller, how: str) -> None:
    """Others that want the task hear of it, and do not wait for ever."""
    other = world.client()
    inline(client, "a", "b")
    begin(client, "all", "a")
    other.ok(C.ledger([("all", 1)]))
    submit(other, task("on", "all"))
    if how == "gone":
        client.deaf()
        world.expire(client, by=other)
        world.drain()
        world.callers.remove(client)
    elif how == "closed":
        world.repeating = False
        client.ok(C.close())
        world.callers.remove(client)
    elif how == "released":
        client.ok(C.ledger([("all", 0)]))
    else:
        other.ok(C.cancel(["all"], force=True))
        assert world.state("all") == "gone"
        return
    other.listen_up()
    assert other.told["all"].type == "DataLost"
    assert other.told["on"].where == "all"
    other.ok(C.ledger([("all", 0), ("on", 0)]))
    assert world.state("all") == "gone"


def test_nobody_wants_it_any_more(world: World, client: Caller) -> None:
    inline(client, "a", "b")
    begin(client, "all", "a")
    client.ok(C.ledger([("all", 0)]))
    assert world.state("all") == "gone"
    link(client, "all", 1, "b", last=True)
    assert world.state("all") == "gone"


def test_a_session_of_the_same_name_does_not_wait_for_it(world: World, client: Caller) -> None:
    first = world.client("nightly", named=True)
    inline(first, "a", "b")
    begin(first, "all", "a")
    world.callers.remove(first)
    second = world.client("nightly", named=True)
    assert second.ordinal == first.ordinal
    reply = second.do(C.held(0))
    names = [name.decode() for name in reply[2:]]
    assert sorted(names) == ["a", "all", "b"]
    second.ok(C.ledger([(n, 1) for n in names]))
    second.ok(C.registered())
    world.drain()
    second.listen_up()
    assert second.told["all"].type == "DataLost"


def test_what_a_session_of_the_same_name_submits_again_is_not_given_up(world: World, client: Caller) -> None:
    """What it finds half told is given up when it finds it, and not when somebody comes to the work list."""
    first = world.client("nightly", named=True)
    inline(first, "a", "b")
    begin(first, "all", "a")
    world.callers.remove(first)
    second = world.client("nightly", named=True)
    assert second.do(C.held(0))[0] == b"OK"
    second.do(C.ledger([("a", 1), ("b", 1)]))
    second.do(C.registered())
    assert world.state("all") == "gone"
    second.do(C.submit([task("all", "a", flags=C.MORE)], F))
    world.drain()
    link(second, "all", 1, "b", last=True)
    assert world.state("all") == "queued"


def test_after_a_loss_parts_wait_for_their_dependencies(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    data = scatter(client, worker, "data")
    forget_everything(world)
    client.register()
    client.ok(C.ledger([("data", 1)]))
    begin(client, "all", "data")
    link(client, "all", 1, "elsewhere", last=True)
    client.ok(C.registered())
    assert world.record("all")["missing"] == "2"
    worker.register(attempt=data)
    worker.ok(C.add_replicas([C.Replica("data", data, 5, "int")], found=True))
    world.callers.remove(x)
    assert world.record("all")["missing"] == "1"
    over(world, client)
    assert world.record("all")["cause"] == "elsewhere"


# --- much -----------------------------------------------------------------------------------------------------------


def bounded(world: World, caller: Caller, call: C.Call) -> list[Any]:
    """Do a call and what it leaves, no script of which may run too much; returns the reply."""
    before = commands(world)
    reply = caller.do(call)
    assert commands(world) - before < MOST, call.script.name
    assert reply[0] == b"OK", reply
    more = reply[1]
    while more:
        before = commands(world)
        _, more = world.reader.send(C.continue_())
        assert commands(world) - before < MOST, "continue"
    return reply


def test_no_script_does_too_much(big: World) -> None:
    client = big.client()
    x = big.executor(big.worker())
    names = [f"d{i}" for i in range(MANY)]
    for i in range(0, MANY, PART):
        client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names[i : i + PART]]))
    bounded(big, client, C.submit([task("all", *names[:PART], flags=C.MORE)], F))
    for i in range(PART, MANY, PART):
        bounded(big, client, C.link("all", i, names[i : i + PART], last=i + PART >= MANY))
    assert big.state("all") == "processing"
    x.listen_up()
    (got,) = x.tasks
    assert got.more_deps == MANY
    big.check()
    bounded(big, x, C.turn(1, 1, [], [got.batch], [C.Result("all", got.attempt, "memory", 9, "int", b"")]))
    # The name comes again while it is being forgotten.
    reply = client.do(C.ledger([("all", 0)]))
    assert (reply[0], big.state("all")) == (b"OK", "forgetting")
    slices = 0
    for call in (
        C.submit([task("other"), task("all", "d1")], F),
        C.commit([C.Value("more", 1, 0, 0, 1, "int", b"1"), C.Value("all", 1, 0, 0, 1, "int", b"1")]),
    ):
        before = commands(big)
        assert client.do(call) == [b"WAIT"]
        assert commands(big) - before < 100
    big.check(quiescent=False)
    while True:
        before = commands(big)
        reply = client.do(C.submit([task("other"), task("all", "d1")], F))
        if reply[0] != b"WAIT":
            break
        assert big.reader.send(C.continue_())[0] == b"OK"
        assert commands(big) - before < MOST
        slices += 1
    assert slices > MANY / 500
    assert big.record("all")["deps"] == "1"
    assert [big.state(n) for n in ("more", "d1")] == ["gone", "memory"]
    big.check()


def test_a_name_that_is_forgotten_comes_back_with_a_registration_anew(big: World) -> None:
    client = big.client()
    names = [f"d{i}" for i in range(1000)]
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names]))
    client.ok(C.submit([task("all", *names)], F))
    client.do(C.ledger([("all", 0)]))
    assert big.state("all") == "forgetting"
    client.register(lost=True)
    assert client.do(C.ledger([("all", 1)])) == [b"WAIT"]
    assert client.do(C.ledger([("all", 0), ("d1", 1)]))[0] == b"OK"
    big.drain()
    client.ok(C.ledger([("all", 1), *((n, 1) for n in names)]))
    client.ok(C.registered())
    assert big.state("all") == "released"
    over(big, client)
    client.listen_up()
    assert client.told["all"].type == "DataLost"


def test_what_was_cancelled_for_an_unknown_dependency_may_be_submitted_again_at_once(big: World) -> None:
    client = big.client()
    names = [f"d{i}" for i in range(PART)]
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names]))
    client.do(C.submit([task("all", *names, flags=C.MORE)], F))
    client.do(C.link("all", PART, ["?"], last=True))
    while client.do(C.submit([task("all", "d1")], F)) == [b"WAIT"]:
        assert big.reader.send(C.continue_())[0] == b"OK"
    big.drain()
    assert big.state("all") == "queued"
    big.check()


def test_a_submitter_that_lets_go_and_comes_again(big: World) -> None:
    """What it told by half is given up at once, however much work the letting go leaves, and told again."""
    client, other = big.client(), big.client()
    names = [f"d{i}" for i in range(300)]
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names]))
    client.ok(C.submit([task(f"t{n}", n) for n in names], F))
    client.ok(C.ledger([(n, 0) for n in names[2:]]))
    begin(client, "all", "d0")
    other.ok(C.submit([task("on", "all")], F))
    client.do(C.ledger([*((f"t{n}", 0) for n in names), ("all", 0)]))
    client.do(C.submit([task("all", "d0", "d1")], F))
    big.drain()
    assert not {"linking", "untold"} & big.record("all").keys()
    assert big.state("all") == "queued"
    big.check()


def test_what_is_forgotten_while_it_is_revived_is_not_run(big: World) -> None:
    client, worker = big.client(), big.worker()
    x = big.executor(worker)
    names = [f"d{i}" for i in range(1000)]
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names]))
    client.ok(C.submit([task("all", *names)], F))
    finish(x, "all", b"")
    big.drain()
    worker.do(C.remove_replicas([("all", int(big.record("all")["attempt"]))]))
    assert "reviving" in big.record("all")
    client.do(C.ledger([("all", 0)]))
    assert big.record("all") == {"state": "forgetting", "deps": "1000"}
    big.drain()
    assert big.state("all") == "gone"
    x.listen_up()
    assert x.tasks == []
    big.check()


@pytest.mark.parametrize("how", ["finished", "released"])
def test_no_script_cuts_too_much_of_many_tasks(big: World, how: str) -> None:
    """Each with few enough dependencies to be told of and cut at once."""
    client = big.client()
    x = big.executor(big.worker())
    tasks, each = 100, 190
    needed, names = [f"d{i}" for i in range(each)], [f"t{i}" for i in range(tasks)]
    client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in needed]))
    for i in range(0, tasks, 5):
        bounded(big, client, C.submit([task(n, *needed) for n in names[i : i + 5]], F))
    if how == "finished":
        x.tasks += R.parse_turn(bounded(big, x, C.turn(tasks, tasks, [], [], []))).tasks
        x.listen_up()
        assert len(x.tasks) == tasks
        results = [C.Result(t.name, t.attempt, "memory", 1, "int", b"v") for t in x.tasks]
        bounded(big, x, C.turn(tasks, 0, [], [t.batch for t in x.tasks], results))
        assert not any("deps" in big.record(n) for n in names)
        assert [big.state(n) for n in names] == ["memory"] * tasks
    else:
        bounded(big, client, C.ledger([(n, 0) for n in names]))
        assert [big.state(n) for n in names] == ["gone"] * tasks
    assert "needed" not in big.record("d0")
    big.check()


# --- what a submitter left half told --------------------------------------------------------------------------------


def go(world: World, client: Caller, by: Caller) -> None:
    """The client's lease runs out."""
    client.deaf()
    world.expire(client, by=by)
    world.drain()
    world.callers.remove(client)


def test_somebody_else_who_has_the_task_tells_it_again(world: World, client: Caller, x: Caller) -> None:
    first = world.client()
    inline(client, "a", "b", "c", "d")
    begin(first, "all", "a", "b")
    begin(client, "all", "a", "c")
    link(client, "all", 2, "b", "d", last=True)
    submit(client, task("on", "all"))
    go(world, first, by=client)
    client.listen_up()
    assert (client.told["all"].type, client.told["all"].attempt) == ("DataLost", 1)
    assert client.told["on"].where == "all"
    begin(client, "all", "a", "c")
    assert (world.state("all"), world.record("all")["missing"]) == ("erred", "1")
    link(client, "all", 2, "b", "d", last=True)
    x.listen_up()
    assert [(t.name, sorted(d[0] for d in t.deps)) for t in x.tasks] == [("all", ["a", "b", "c", "d"])]
    finish(x, "all")
    finish(x, "on")
    client.listen_up()
    assert client.told["on"].state == "memory"


def test_in_one_call(world: World, client: Caller, x: Caller) -> None:
    first = world.client()
    inline(client, "a", "b")
    begin(first, "all", "a")
    begin(client, "all", "a")
    go(world, first, by=client)
    submit(client, task("all", "a", "b"))
    x.listen_up()
    assert [sorted(d[0] for d in t.deps) for t in x.tasks] == [["a", "b"]]


@pytest.mark.parametrize("fault", ["unknown", "others"])
def test_told_again_with_dependencies_that_cannot_be(world: World, client: Caller, fault: str) -> None:
    first = world.client()
    inline(client, "a", "b")
    begin(first, "all", "a")
    begin(client, "all", "a")
    go(world, first, by=client)
    submit(client, task("all", "a", "nothing") if fault == "unknown" else task("all", "b"))
    client.listen_up()
    assert client.told["all"].state == "cancelled"
    assert world.state("all") == "gone"


def test_what_depends_on_a_task_that_is_half_told_is_cancelled_with_it(world: World, client: Caller) -> None:
    """Nobody hears of an error instead."""
    other = world.client()
    inline(client, "a")
    begin(client, "all", "a")
    submit(other, task("on", "all"), task("last", "on"))
    other.ok(C.ledger([("on", 0)]))
    other.ok(C.cancel(["all"], force=True))
    other.listen_up()
    assert other.told["last"].state == "cancelled"
    assert [world.state(n) for n in ("all", "on", "last")] == ["gone"] * 3


@pytest.mark.parametrize("then", ["goes", "goes on"])
def test_who_tells_it_wholly_waits_for_nobody(world: World, client: Caller, x: Caller, then: str) -> None:
    """What it needs is kept for it although another began to tell it, and may never end."""
    first = world.client()
    inline(client, "a", "b")
    begin(first, "all", "a")
    submit(client, task("all", "a", "b"))
    client.ok(C.ledger([("a", 0), ("b", 0)]))
    if then == "goes":
        go(world, first, by=client)
    else:
        link(first, "all", 1, "b", last=True)
    x.listen_up()
    assert [(t.name, sorted(d[0] for d in t.deps)) for t in x.tasks] == [("all", ["a", "b"])]
    finish(x, "all")
    client.listen_up()
    assert client.told["all"].state == "memory"
    world.check()


def test_who_tells_it_wholly_while_another_tells_it_again(world: World, client: Caller, x: Caller) -> None:
    first, second = world.client(), world.client()
    inline(client, "a", "b")
    for caller in (first, second):
        begin(caller, "all", "a")
    go(world, first, by=client)
    begin(second, "all", "a")
    submit(client, task("all", "a", "b"))
    x.listen_up()
    assert [t.name for t in x.tasks] == ["all"]
    link(second, "all", 1, "b", last=True)
    finish(x, "all")
    client.listen_up()
    assert client.told["all"].state == "memory"


@pytest.mark.parametrize("deps", [("b", "c"), ("a", "?")])
def test_who_tells_it_otherwise_leaves_it_as_it_is(
    world: World, client: Caller, x: Caller, deps: Any
) -> None:
    first = world.client()
    inline(client, "a", "b", "c")
    begin(first, "all", "a")
    submit(client, task("all", *deps))
    assert world.record("all")["linking"] == str(first.ordinal)
    link(first, "all", 1, "b", last=True)
    x.listen_up()
    assert [sorted(d[0] for d in t.deps) for t in x.tasks] == [["a", "b"]]
    world.check()


def test_what_is_told_wholly_errs_with_what_it_needs(world: World, client: Caller, x: Caller) -> None:
    first = world.client()
    inline(client, "a")
    submit(client, task("bad"), task("late"))
    fail(x, "bad")
    begin(first, "all", "a")
    submit(client, task("all", "a", "late", "bad"))
    client.listen_up()
    assert (client.told["all"].state, client.told["all"].where) == ("erred", "bad")
    world.check()


def test_two_who_tell_it_again(world: World, client: Caller, x: Caller) -> None:
    """The second is told nothing while the first is at it, and tries when that goes as well."""
    first, second = world.client(), world.client()
    inline(client, "a", "b")
    begin(first, "all", "a")
    for caller in (second, client):
        begin(caller, "all", "a")
    go(world, first, by=client)
    begin(second, "all", "a")
    client.listen_up()
    client.told.clear()
    begin(client, "all", "a")
    link(client, "all", 1, "b", last=True)
    client.listen_up()
    assert client.told == {}
    assert world.state("all") == "erred"
    go(world, second, by=client)
    client.listen_up()
    assert client.told["all"].attempt == 1
    begin(client, "all", "a")
    link(client, "all", 1, "b", last=True)
    x.listen_up()
    assert [t.name for t in x.tasks] == ["all"]
