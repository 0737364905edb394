"""Every kind of holder of a key is named, by scripts alone and on a living cluster."""

from __future__ import annotations

import inspect
import pickle
import time
from collections.abc import Iterator
from typing import Any

import pytest

from redist import Client, LocalCluster, Pub, Queue, Sub, Variable, as_completed, get_client, wait
from redist.diagnostics.why import SHOWN, Holder, Why, WireReader, explain, why
from redist.errors import InvalidKey
from redist.session.states import MOST_SITES
from redist.store import calls as C
from servers import Server, WireStore, full, wait_until
from store.kit import World


@pytest.fixture
def world(valkey: Server, namespace: str) -> Iterator[World]:
    store = WireStore(valkey.endpoint(namespace), "valkey")
    yield World(store, checking=False, repeating=False)
    store.close()
    valkey.forget(namespace)


def ask(world: World, name: str, **options: object) -> Why:
    return why(WireReader(world.store.command, world.store.prefix), name, **options)  # type: ignore[arg-type]


def kinds(answer: Why) -> list[tuple[str, str]]:
    return sorted((holder.kind, holder.name) for holder in answer.holders)


def test_a_key_that_is_not_known(world: World) -> None:
    answer = ask(world, "nothing")
    assert answer == Why("nothing", "forgotten")
    assert not answer
    assert "not known" in str(answer)


def test_clients_are_named_with_counts(world: World) -> None:
    ada, bob = world.client("ada", details={"pid": "4711", "host": "here"}), world.client("bob")
    ada.ok(C.commit([C.Value("x", 2, 0, 0, 3, "int", b"abc")]))
    bob.ok(C.ledger([("x", 1)]))
    answer = ask(world, "x", ask=lambda ordinal, name: [(f"line of {name} in {ordinal}", 1e9)])
    assert kinds(answer) == [("client", "ada"), ("client", "bob")]
    first = next(holder for holder in answer.holders if holder.name == "ada")
    assert first.count == 2
    assert first.since == 1e9
    assert first.detail == (
        f"caller:{ada.ordinal} in Redis",
        "process 4711 on here",
        f"line of x in {ada.ordinal}",
    )
    assert "client ada x2" in str(answer)
    assert answer.replicas == (Holder("replica", "the server", detail=("inline",)),)


def test_copies_are_named(world: World) -> None:
    ada, w = world.client("ada"), world.worker("store-1")
    ada.ok(C.commit([C.Value("x", 1, 7, w.ordinal, 8000, "ndarray")]))
    answer = ask(world, "x")
    assert (answer.nbytes, answer.state) == (8000, "memory")
    assert [(copy.name, copy.detail) for copy in answer.replicas] == [("worker store-1", ("version 7",))]


def test_containers_datasets_and_hand_offs(world: World) -> None:
    ada = world.client("ada")
    ada.ok(
        C.commit(
            [
                C.Value("x", 1, 0, 0, 3, "int", b"abc"),
                C.Value("box", 1, 0, 0, 3, "list", b"abc", False, ("x",)),
            ]
        )
    )
    ada.ok(C.publish("market", b"value", ["x"]))
    ada.ok(C.handoff([("token", "x")]))
    ada.ok(C.ledger([("x", 0)]))
    answer = ask(world, "x")
    assert kinds(answer) == [("container", "box"), ("dataset", "market"), ("hand-off", "token")]
    assert "s left" in str(answer)
    assert kinds(ask(world, "@market@1")) == [("dataset", "market")]


def test_tasks_that_need_it(world: World) -> None:
    ada, w = world.client("ada"), world.worker("w")
    ada.ok(C.commit([C.Value("x", 1, 3, w.ordinal, 8000, "ndarray")]))
    ada.ok(C.submit([C.Task("soon", "f", b"s", ("x",)), C.Task("fired", "f", b"s", flags=1)], [("f", b"F")]))
    assert ("unfinished dependent", "soon") in kinds(ask(world, "x"))
    assert ("fire and forget", "until it is finished") in kinds(ask(world, "fired"))
    x = world.executor(w)
    x.listen_up()
    (task,) = x.tasks
    assert task.name == "soon"
    x.turn([C.Result("soon", task.attempt, "memory", 5000, "ndarray")])
    assert ("known dependent", "soon") in kinds(ask(world, "x"))


def test_what_a_running_task_holds(world: World) -> None:
    w = world.worker("w")
    x = world.executor(w)
    x.ok(C.commit([C.Value("x", 1, 0, 0, 3, "int", b"abc")]))
    assert kinds(ask(world, "x")) == [("task", x.name)]
    x.listen_up()
    world.client("ada").ok(C.submit([C.Task("t", "f", b"s")], [("f", b"F")]))
    x.listen_up()
    (holder,) = ask(world, "x").holders
    assert (holder.kind, holder.name) == ("task", "t")
    assert f"executor {x.name}" in holder.detail


def test_many_holders_are_counted(world: World) -> None:
    ada = world.client("ada")
    ada.ok(C.commit([C.Value("x", 1, 0, 0, 3, "int", b"abc")]))
    ada.ok(C.submit([C.Task(f"t{i}", "f", b"s", ("x",)) for i in range(SHOWN + 20)], [("f", b"F")]))
    answer = ask(world, "x")
    assert len(answer.holders) == 1 + SHOWN + 1
    assert answer.holders[-1].name == "and 20 more"


# --- how a key stands ---------------------------------------------------------------------------------------------------


def first_line(world: World, name: str) -> str:
    return str(ask(world, name)).splitlines()[0]


def test_states_in_plain_words(world: World) -> None:
    ada = world.client("ada")
    ada.ok(C.commit([C.Value("x", 1, 0, 0, 3000, "int", b"abc")]))
    tasks = [C.Task("t", "f", b"s"), C.Task("u", "f", b"s"), C.Task("v", "f", b"s", ("t", "u"))]
    ada.ok(C.submit(tasks, [("f", b"F")]))
    assert first_line(world, "x") == "x: in memory, 3,000 bytes"
    assert first_line(world, "t") == "t: queued: no worker is registered"
    assert first_line(world, "v") == "v: waiting for 2 keys"
    w = world.worker("w1")
    x = world.executor(w)
    x.listen_up()
    running = x.tasks[0]
    assert first_line(world, running.name).startswith(f"{running.name}: running on worker w1")
    x.turn([C.Result(running.name, running.attempt, "erred", 3, "ValueError", b"abc")])
    assert first_line(world, running.name) == f"{running.name}: failed with ValueError"


def test_tasks_that_no_worker_may_run(world: World) -> None:
    ada = world.client("ada")
    world.worker("w1")
    classes = [
        C.EligibilityClass("nowhere", "nowhere", "", True),
        C.EligibilityClass("gpu", "", "GPU=1", True),
        C.EligibilityClass("both", "w1", "GPU=1", True),
        C.EligibilityClass("w1", "w1", "", True),
    ]
    tasks = [C.Task(c.hash, "f", b"s", (), cls=c.hash) for c in classes]
    ada.ok(C.submit([*tasks, C.Task("any", "f", b"s")], [("f", b"F")], classes))
    answers = {
        name: first_line(world, name).partition(": queued: ")[2] for name in ("nowhere", "gpu", "both", "w1")
    }
    assert answers == {
        "nowhere": "waits for a worker named 'nowhere'; none is registered",
        "gpu": "waits for a worker with the resources GPU=1; none is registered",
        "both": "waits for a worker named 'w1' with the resources GPU=1; none is registered",
        "w1": "waits for a free thread of worker w1",
    }
    assert first_line(world, "any") == "any: queued: waits for a free thread"


def test_calls_of_an_actor(world: World) -> None:
    ada, worker = world.client("ada"), world.worker("w1")
    x = world.executor(worker)
    of_x = [C.EligibilityClass("x", "", "", executor=x.ordinal)]
    ada.ok(
        C.submit([C.Task(name, "f", b"s", (), cls="x") for name in ("first", "next")], [("f", b"F")], of_x)
    )
    assert first_line(world, "next") == "next: given to worker w1, which has the actor"
    worker.ok(C.lost_executor(x.ordinal, "signal 9"))
    world.callers.remove(x)
    assert (
        first_line(world, "next") == "next: queued: waits for any free thread, to say that the actor is lost"
    )


# --- on a living cluster ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


def line() -> str:
    frame = inspect.currentframe()
    assert frame is not None
    assert frame.f_back is not None
    return f"{__file__}:{frame.f_back.f_lineno}"


def test_living_clients_say_where_their_futures_were_made(cluster: LocalCluster) -> None:
    with (
        Client(cluster.endpoint, name="ada") as ada,
        Client(cluster.endpoint, name="bob", set_as_default=False) as bob,
    ):
        here, mine = line(), ada.submit(pow, 2, 3, key="eight")
        there, theirs = line(), bob.submit(pow, 2, 3, key="eight")
        wait([mine])
        assert theirs.result() == 8
        answer = ada.why("eight")
        by_name = {holder.name: holder for holder in answer.holders}
        assert here in by_name["ada"].detail
        assert there in by_name["bob"].detail
        assert ada.why(mine) == answer


def test_variables_queues_and_topics(cluster: LocalCluster) -> None:
    """They hold what their values, items and messages hold; a name may have whatever signs."""
    with Client(cluster.endpoint, name="ada") as ada:
        variable, queue, sub = Variable("v@1"), Queue("q"), Sub("t")
        future = ada.scatter({"x": 1})["x"]
        variable.set({"future": future})
        queue.put([future])
        Pub("t").put([future])
        future.release()
        named = {("variable", "v@1"), ("queue", "q"), ("topic", "t")}
        wait_until(lambda: {(holder.kind, holder.name) for holder in ada.why("x").holders} == named)
        assert "held by queue q" in str(ada.why("x"))
        variable.delete()
        queue.close()
        sub.get(timeout=10)
        wait_until(lambda: ada.why("x").state == "forgotten", what="nothing holds it")


def test_a_result_that_no_worker_may_make_says_so(cluster: LocalCluster) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        future = ada.submit(abs, -1, workers="nowhere", key="restricted")
        words = r"'restricted' did not finish in time \(queued: waits for a worker named 'nowhere'; none is registered\)"
        with pytest.raises(TimeoutError, match=words):
            future.result(timeout=0.2)
        with pytest.raises(TimeoutError, match=r"the resources GPU=1; none is registered"):
            ada.submit(abs, -2, resources={"GPU": 1}).exception(timeout=0.2)


def test_a_result_that_comes_late_for_want_of_workers_says_so() -> None:
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        first = client.submit(abs, -1, key="first")
        second = client.submit(abs, first, key="second")
        why = r"did not finish in time \(no worker is registered\)$"
        for future in (first, second):
            with pytest.raises(TimeoutError, match=f"'{future.key}' {why}"):
                future.result(timeout=0.05)
        with pytest.raises(TimeoutError, match=f"^1 Future {why}"):
            wait([first], timeout=0.05)
        with pytest.raises(TimeoutError, match=f"^2 Futures {why}"):
            wait([first, second], timeout=0.05)
        with pytest.raises(TimeoutError, match=f"the rest of the Futures {why}"):
            next(as_completed([first], timeout=0.05))


def test_lines_that_may_still_hold_it(cluster: LocalCluster) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        first, a = line(), ada.submit(pow, 2, 4, key="sixteen")
        second, b = line(), ada.submit(pow, 2, 4, key="sixteen")
        assert {first, second} <= set(ada.why("sixteen").holders[0].detail)
        del a
        wait_until(lambda: ada.why("sixteen").holders[0].count == 1)
        assert f"{first} or {second}" in ada.why("sixteen").holders[0].detail
        third, (c, *_) = line(), ada.map(pow, [2], [4], key=["sixteen"])
        assert f"2 of these: {first}, {second}, {third}" in ada.why("sixteen").holders[0].detail
        del b, c, _
        wait_until(lambda: not ada.futures)
        here, d = line(), ada.scatter({"sixteen": 16})["sixteen"]
        assert ada.why("sixteen").holders[0].detail[-1] == here
        del d
        b = ada.submit(pow, 2, 5, key="thirty-two")
        del b
        here, _b = line(), ada.submit(pow, 2, 5, key="thirty-two")
        assert ada.why("thirty-two").holders[0].detail[-1] == here


def test_lines_are_few(cluster: LocalCluster) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        names: dict[str, Any] = {"ada": ada, "futures": []}
        for _ in range(3):
            exec("futures.append(ada.submit(pow, 3, 2, key='nine'))\n" * 50, names)
        (holder,) = ada.why("nine").holders
        assert holder.count == 150
        lines = [text for text in holder.detail if text.startswith("<string>:")]
        assert len(lines) == MOST_SITES
        assert (lines[0], lines[-1]) == ("<string>:1", "<string>:50")


def test_since_when_there_is_a_reference(cluster: LocalCluster) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        time.sleep(0.3)
        before = time.time()
        futures = ada.map(abs, [-5], key=["five"])
        (holder,) = ada.why(futures[0]).holders
        assert holder.since is not None
        assert before <= holder.since <= time.time()


def test_a_running_task_that_holds_a_future(cluster: LocalCluster) -> None:
    def holds(seconds: float) -> None:
        future = get_client().submit(abs, -3, key="three")
        time.sleep(seconds)
        del future

    with Client(cluster.endpoint, name="ada") as ada:
        holder = ada.submit(holds, 2, key="holds")
        wait_until(lambda: [h.name for h in ada.why("three").holders if h.kind == "task"] == ["holds"])
        holder.result(timeout=20)


def test_scattered_and_unpickled_futures_have_lines_too(cluster: LocalCluster) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        here, scattered = line(), ada.scatter({"data": 1})["data"]
        assert here in ada.why("data").holders[0].detail
        letter = pickle.dumps(scattered)
        assert ("hand-off") in {holder.kind for holder in ada.why("data").holders}
        scattered.release()
        there, again = line(), pickle.loads(letter)
        wait_until(lambda: len(ada.why("data").holders) == 1)
        assert there in ada.why("data").holders[0].detail
        del again


def test_who_is_no_client_can_ask_too(cluster: LocalCluster) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        here, f = line(), ada.submit(pow, 3, 3, key=("power", 3))
        wait([f])
        answer = explain(cluster.endpoint, ("power", 3))
        (holder,) = answer.holders
        assert holder.name == "ada"
        assert here in holder.detail
        assert ada.why(f) == answer
        assert explain(cluster.endpoint, "nothing").state == "forgotten"
        with pytest.raises(InvalidKey):
            explain(cluster.endpoint, ("power", object()))


def test_a_hand_off_among_very_many(world: World) -> None:
    """The one that ends last is found, too."""
    ada = world.client("ada")
    ada.ok(C.commit([C.Value(name, 1, 0, 0, 3, "int", b"abc") for name in ("x", "y")]))
    for i in range(0, 12_000, 500):
        ada.ok(C.handoff([(f"t{k}", "x") for k in range(i, i + 500)]))
    ada.ok(C.handoff([("last", "y")]))
    ada.ok(C.ledger([("y", 0)]))
    assert kinds(explain(world.store.endpoint, "y")) == [("hand-off", "last")]


def test_asking_a_full_server(valkey: Server, world: World) -> None:
    ada = world.client("ada")
    ada.ok(C.commit([C.Value("x", 1, 0, 0, 3, "int", b"abc")]))
    with full(valkey.admin):
        assert kinds(explain(world.store.endpoint, "x")) == [("client", "ada")]


def test_a_client_that_does_not_answer_is_named_all_the_same(cluster: LocalCluster, valkey: Server) -> None:
    with Client(cluster.endpoint, name="ada") as ada:
        store = WireStore(cluster.endpoint, "valkey")
        world = World(store, checking=False, repeating=False)
        mute = world.client("mute")
        mute.ok(C.commit([C.Value("silent", 1, 0, 0, 3, "int", b"abc")]))
        began = time.monotonic()
        (holder,) = ada.why("silent").holders
        assert holder.name == "mute"
        assert time.monotonic() - began < 5
        ada._inbox.obey(["made", "a token", ["file:1", 1.0]])  # its answer, late: nobody waits for it
        assert not ada._inbox._answers
        mute.do(C.close())
        world.drain()
        store.close()
