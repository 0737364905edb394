"""Data: scattered values, containers, datasets, hand-offs, copies."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from redist.store import coordination as K
from redist.store import replies as R
from store.kit import Caller, World
from store.test_tasks import F, fail, finish, submit, task


@pytest.fixture
def worker(world: World) -> Caller:
    return world.worker("w", address="tcp://h:1", host="h", memory="here")


def scatter(
    client: Caller, worker: Caller | None, name: str, *contains: str, count: int = 1, keep: bool = False
) -> int:
    """Scatter a value to a worker, or inline; returns the attempt."""
    attempt = 0
    if worker is not None:
        ((attempt, ordinal),) = R.parse_place(client.ok(C.place(1, 10_000, [str(worker.ordinal)])))
        assert ordinal == worker.ordinal
    value = C.Value(
        name,
        count,
        attempt,
        worker.ordinal if worker else 0,
        10_000,
        "int",
        b"" if worker else b"v",
        keep,
        contains,
    )
    assert R.parse_commit(client.ok(C.commit([value]))) == []
    return attempt


def test_scatter_and_release(world: World, client: Caller, worker: Caller) -> None:
    attempt = scatter(client, worker, "a")
    client.listen_up()
    assert client.told["a"].where == f"{worker.ordinal}.{attempt}"
    assert world.command("HGET", f"has:{worker.ordinal}", "a") == str(attempt).encode()
    client.ok(C.ledger([("a", 0)]))
    worker.listen_up()
    assert worker.evicted == [("a", attempt)]


def test_values_are_placed_in_turn_and_on_the_host(world: World, client: Caller, worker: Caller) -> None:
    other = world.worker("v", memory="there")
    placed = [w for _, w in R.parse_place(client.ok(C.place(4, 100)))]
    assert sorted(placed) == sorted([worker.ordinal, other.ordinal] * 2)
    local = [w for _, w in R.parse_place(client.ok(C.place(3, 100, local="here")))]
    assert local == [worker.ordinal] * 3
    assert [w for _, w in R.parse_place(client.ok(C.place(1, 100, ["v"], local="here")))] == [other.ordinal]
    assert client.do(C.place(1, 1, ["nowhere"]))[:2] == [b"NO", b"workers"]


def test_no_worker_to_scatter_to(world: World, client: Caller) -> None:
    assert client.do(C.place(1, 1))[:2] == [b"NO", b"workers"]


def test_a_second_value_under_a_name_is_not_taken(world: World, client: Caller, worker: Caller) -> None:
    first = scatter(client, worker, "a")
    ((attempt, _),) = R.parse_place(client.ok(C.place(1, 10)))
    reply = client.ok(C.commit([C.Value("a", 2, attempt, worker.ordinal, 10, "int")]))
    assert R.parse_commit(reply) == ["a"]
    worker.listen_up()
    assert worker.evicted == [("a", attempt)]
    assert world.record("a")[f"w:{worker.ordinal}"] == str(first)
    assert world.record("a")[f"refs:{client.ordinal}"] == "2"


def test_a_task_keeps_its_key(world: World, client: Caller, worker: Caller) -> None:
    submit(client, task("a"))
    assert R.parse_commit(client.ok(C.commit([C.Value("a", 1, 0, 0, 1, "int", b"v")]))) == ["a"]
    client.listen_up()
    assert client.told["a"].value.startswith(b"!KeyTaken")


def test_a_value_for_a_worker_that_is_gone(world: World, client: Caller, worker: Caller) -> None:
    ((attempt, ordinal),) = R.parse_place(client.ok(C.place(1, 10)))
    worker.ok(C.close())
    client.ok(C.commit([C.Value("a", 1, attempt, ordinal, 10, "int")]))
    client.listen_up()
    assert client.told["a"].type == "DataLost"
    # nobody knows its name any more
    assert f"went with a worker that is gone, caller:{ordinal}, and".encode() in client.told["a"].value


def test_a_value_without_a_reference_leaves_nothing(world: World, client: Caller, worker: Caller) -> None:
    attempt = scatter(client, worker, "a", count=0)
    assert world.state("a") == "gone"
    worker.listen_up()
    assert worker.evicted == [("a", attempt)]


def test_scattered_data_is_freed_and_its_loss_named(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    scatter(client, worker, "a")
    submit(client, task("b", "a"))
    finish(x, "b", b"")
    client.ok(C.ledger([("a", 0)]))
    assert world.state("a") == "released"
    attempt = int(world.record("b")["attempt"])
    worker.ok(C.remove_replicas([("b", attempt)]))
    client.listen_up()
    assert (client.told["b"].type, client.told["b"].where) == ("DataLost", "a")
    # Scattered again, it makes up for everything that was lost for want of it.
    scatter(client, worker, "a")
    assert world.state("b") == "processing"
    finish(x, "b")


def test_an_argument_payload_stays_while_a_task_may_need_it(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    scatter(client, worker, "arg", keep=True)
    submit(client, task("b", "arg"))
    finish(x, "b", b"")
    client.ok(C.ledger([("arg", 0)]))
    assert world.state("arg") == "memory"
    client.ok(C.ledger([("b", 0)]))
    assert world.state("arg") == "gone"


def test_containers_pin_what_they_hold(world: World, client: Caller, worker: Caller, x: Caller) -> None:
    scatter(client, worker, "a")
    submit(client, task("box"))
    finish(x, "box", b"pickle", contains=["a", "none", "box"])
    client.ok(C.ledger([("a", 0)]))
    assert world.record("a")["pins"] == "1"
    scatter(client, None, "outer", "box")
    client.ok(C.ledger([("box", 0)]))
    assert [world.state(n) for n in ("a", "box", "outer")] == ["memory"] * 3
    client.ok(C.ledger([("outer", 0)]))
    assert [world.state(n) for n in ("a", "box", "outer")] == ["gone"] * 3


def test_a_container_of_more_than_lua_can_unpack(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    if world.store.kind == "fake":
        pytest.skip("fakeredis takes a minute for it")
    world.checking = world.repeating = False
    names = [f"n{i}" for i in range(9000)]
    for i in range(0, 9000, 500):
        client.ok(C.commit([C.Value(n, 1, 0, 0, 1, "int", b"1") for n in names[i : i + 500]]))
    scatter(client, None, "outer", *names)
    submit(client, task("box"))
    finish(x, "box", b"pickle", contains=names)
    assert world.record("n8999")["pins"] == "2"
    client.ok(C.ledger([(n, 0) for n in [*names, "outer", "box"]]))
    assert world.state("n8999") == "gone"


def test_a_container_holds_again_what_was_released(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    submit(client, task("a"), task("b", "a"), task("box"))
    finish(x, "a", b"")
    x.listen_up()
    while x.tasks:
        finish(x, x.tasks[0].name, b"", **({"contains": ["a"]} if x.tasks[0].name == "box" else {}))
    client.ok(C.ledger([("a", 0), ("b", 0)]))
    assert world.state("a") == "memory"
    client.ok(C.ledger([("box", 0)]))
    assert world.state("a") == "gone"


def test_datasets(world: World, client: Caller, worker: Caller) -> None:
    reader = world.client()
    attempts = [scatter(client, worker, "a"), scatter(client, worker, "b")]
    reply = client.do(C.publish("ds", b"x" * 100, ["a"]))
    assert reply == [b"OK", 0, 1]
    assert client.do(C.publish("ds", b"y", ["b"]))[:2] == [b"NO", b"exists"]
    assert client.do(C.publish("other", b"y", ["none"])) == [b"NO", b"unknown", b"none"]
    client.ok(C.ledger([("a", 0)]))
    record, value = R.parse_dataset(reader.ok(C.get_dataset("ds", "t1")))
    assert (record, value) == ("@ds@1", b"x" * 100)
    client.ok(C.publish("ds", b"z", ["b"], override=True))
    client.ok(C.ledger([("b", 0)]))
    assert world.state("a") == "memory"  # the reader has not bound it yet
    reader.ok(C.ledger([("a", 1)]))
    assert R.parse_dataset(reader.ok(C.get_dataset("ds", "t1"))) == (
        record,
        b"x" * 100,
    )  # asked again: the same
    reader.ok(K.leave(["t1"]))
    assert world.state(record) == "gone"
    assert world.state("a") == "memory"
    reader.ok(C.ledger([("a", 0)]))
    client.ok(C.unpublish("ds"))
    worker.listen_up()
    assert worker.evicted == [("a", attempts[0]), ("b", attempts[1])]
    assert reader.do(C.get_dataset("ds", "t2")) == [b"NO", b"unknown", b"ds"]
    assert client.do(C.unpublish("ds")) == [b"NO", b"unknown", b"ds"]


def test_a_dataset_outlives_its_publisher(world: World, client: Caller, worker: Caller) -> None:
    scatter(client, worker, "a")
    client.ok(C.publish("ds", b"x", ["a"]))
    client.ok(C.close())
    assert world.state("a") == "memory"
    world.client().ok(C.unpublish("ds"))
    assert world.state("a") == "gone"


def test_what_is_published_runs(world: World, client: Caller, x: Caller) -> None:
    submit(client, task("a"))
    client.ok(C.publish("ds", b"x", ["a"]))
    client.ok(C.ledger([("a", 0)]))
    finish(x, "a", b"")
    assert world.state("a") == "memory"
    client.ok(C.unpublish("ds"))


def test_hand_offs_end_by_word_or_by_time(world: World, client: Caller, worker: Caller) -> None:
    scatter(client, worker, "a")
    client.ok(C.handoff([("t1", "a"), ("t2", "a"), ("t3", "none")]))
    client.ok(C.ledger([("a", 0)]))
    assert world.record("a")["refs:h"] == "2"
    client.ok(C.drop_handoffs([("t1", "a"), ("t1", "a"), ("t3", "none")]))
    assert world.state("a") == "memory"
    world.command("ZADD", "handoffs", 1, "t2 a")
    client.do(C.client_heartbeat(0, 0, 0, client.n))
    assert world.state("a") == "gone"


def test_copies_come_and_go(world: World, client: Caller, worker: Caller) -> None:
    other = world.worker("v")
    attempt = scatter(client, worker, "a")
    other.ok(C.add_replicas([C.Replica("a", attempt), C.Replica("a", attempt + 5), C.Replica("none", 7)]))
    other.listen_up()
    assert other.evicted == [("a", attempt + 5), ("none", 7)]
    assert R.parse_heartbeat(other.do(C.worker_heartbeat(1, other.n))).agree
    worker.ok(C.remove_replicas([("a", attempt), ("a", attempt + 1), ("none", 1)]))
    (state,) = R.parse_states(client.send(C.states(["a"])))
    assert state.where == f"{other.ordinal}.{attempt}"
    other.ok(C.remove_replicas([("a", attempt)]))
    client.listen_up()
    assert client.told["a"].type == "DataLost"
    assert client.told["a"].value.startswith(
        b"!DataLost\0the data of a is lost: its last copy went with its file on worker v"
    )


def test_a_damaged_copy_that_is_all_there_was(world: World, client: Caller, worker: Caller) -> None:
    """It is lost in the words of who has seen its file, and so is what needs it; scattered again it is there again."""
    attempt = scatter(client, worker, "a")
    submit(client, task("b", "a"))
    worker.ok(C.remove_replicas([("a", attempt)], ["/a/path: too short"]))
    client.listen_up()
    assert {n: client.told[n].type for n in "ab"} == dict.fromkeys("ab", "DataLost")
    assert client.told["a"].value == (
        b"!DataLost\0the data of a is lost: its last copy went with its file on worker w (/a/path: too short), and nothing "
        b"can compute it again: scatter or publish it again, or have copies kept (replicas=2)"
    )
    scatter(client, worker, "a")
    assert "spoilt" not in world.record("a")


def test_a_damaged_copy_of_several(world: World, client: Caller, worker: Caller) -> None:
    other = world.worker("v")
    attempt = scatter(client, worker, "a")
    other.ok(C.add_replicas([C.Replica("a", attempt)]))
    worker.ok(C.remove_replicas([("a", attempt)], ["it is gone"]))
    assert world.state("a") == "memory"
    assert "spoilt" not in world.record("a")


def test_a_value_that_is_damaged_again_and_again(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    """It is computed again a few times; a retry begins anew."""
    submit(client, task("d"), task("a", "d"), task("b", "a"))
    finish(x, "d", b"")
    for wrong in ("damaged", "gone", "gone", "empty"):
        finish(x, "a", b"")
        worker.ok(C.remove_replicas([("a", int(world.record("a")["attempt"]))], [wrong]))
        fail(x, "b", "missing", b"")
    client.listen_up()
    assert {n: client.told[n].type for n in "ab"} == dict.fromkeys("ab", "DataLost")
    assert client.told["a"].value.endswith(b"(empty), and that for the 4th time: it is not computed again")
    client.ok(C.retry(["b"]))
    finish(x, "a", b"")
    finish(x, "b")
    assert "spoilt" not in world.record("a")


def test_a_copy_that_cannot_be_read_is_computed_again(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    submit(client, task("a"), task("b", "a"))
    finish(x, "a", b"")
    x.listen_up()
    (b,) = x.tasks
    where = b.deps[0][1]
    x.turn([C.Result("b", b.attempt, "missing", 0, "", f"a\n{where}".encode())])
    assert [world.state(n) for n in "ab"] == ["processing", "waiting"]
    finish(x, "a", b"")
    finish(x, "b")


def test_a_copy_that_cannot_be_read_and_is_all_there_was(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    scatter(client, worker, "a")
    submit(client, task("b", "a"))
    x.listen_up()
    (b,) = x.tasks
    x.turn([C.Result("b", b.attempt, "missing", 0, "", f"a\n{b.deps[0][1]}".encode())])
    client.listen_up()
    assert {n: client.told[n].type for n in "ab"} == dict.fromkeys("ab", "DataLost")
    assert b"went with worker w (the copy could not be read), and nothing" in client.told["a"].value
    assert client.told["a"].value.endswith(b"have copies kept (replicas=2)")


def test_a_lost_container_is_revived_from_what_only_it_pinned(
    world: World, client: Caller, worker: Caller, x: Caller
) -> None:
    other = world.worker("v")
    scatter(client, other, "a")
    submit(client, task("b", "a"), task("c", "b"))
    finish(x, "b", b"")
    finish(x, "c", b"", contains=["a"])
    client.ok(C.ledger([("a", 0), ("b", 0)]))
    assert [world.state(n) for n in "abc"] == ["memory", "released", "memory"]
    worker.ok(C.remove_replicas([("c", int(world.record("c")["attempt"]))]))
    assert [world.state(n) for n in "abc"] == ["memory", "processing", "waiting"]
    finish(x, "b", b"")
    finish(x, "c", b"")
    assert world.state("a") == "released"


@pytest.mark.parametrize("how", ["left", "closed", "dead"])
def test_what_was_read_goes_with_its_reader(world: World, client: Caller, how: str) -> None:
    reader = world.client()
    client.ok(C.commit([C.Value("v", 1, 0, 0, 1, "int", b"v")]))
    client.ok(C.publish("ds", b"x", ["v"]))
    client.ok(K.set_variable("x", b"x", ["v"]))
    client.ok(C.ledger([("v", 0)]))
    reader.ok(C.get_dataset("ds", "t1"))
    first = reader.n
    reader.ok(K.get_variable("t2", "x"))
    client.ok(C.unpublish("ds"))
    client.ok(K.delete_variable("x"))
    assert world.state("v") == "memory"
    if how == "left":  # nothing was heard of the answers: the reader was interrupted
        reader.ok(K.leave(["t1", "t2"]))
        assert reader.send(C.get_dataset("ds", "t1"), first)[0] == b"NO"
        assert reader.send(K.get_variable("t2", "x"), first + 1) == [b"REPEAT", 0]
    elif how == "closed":
        reader.do(C.close())
    else:
        reader.deaf()
        world.callers.remove(reader)
        world.expire(reader, client)
    world.drain()
    assert world.state("v") == "gone"
    assert world.command("EXISTS", "handoffs") == 0


@pytest.mark.parametrize("name", ["a b c", "../x", "ключ", "('t', 1)", "x" * 3000, "a:b 7.8", "%d\\n"])
def test_odd_names(world: World, client: Caller, x: Caller, name: str) -> None:
    submit(client, task(name), task("after " + name, name))
    finish(x, name, b"")
    finish(x, "after " + name, b"", contains=[name])
    client.ok(C.publish(name, b"x", [name]))
    client.ok(C.handoff([("t", name)]))
    client.ok(C.cancel(["after " + name]))
    client.ok(C.drop_handoffs([("t", name)]))
    client.ok(C.unpublish(name))
    client.ok(C.ledger([(name, 0)]))
    assert F


def test_a_task_key_is_not_scattered_to(world: World, client: Caller, worker: Caller) -> None:
    x = world.executor(worker)
    client.ok(C.submit([C.Task("t", "f", b"spec")], [("f", b"FUNCTION")]))
    x.listen_up()
    x.turn([C.Result("t", x.tasks[0].attempt, "memory", 2, "int", b"v2")])
    other = world.client("other")
    other.ok(C.commit([C.Value("t", 1, 0, 0, 4, "int", b"else")]))
    other.listen_up()
    assert (other.told["t"].state, other.told["t"].type) == ("erred", "KeyTaken")
    # A client that registers anew brings the very value that the task computed.
    other.ok(C.commit([C.Value("t", 1, 0, 0, 2, "int", b"v2")]))
    other.listen_up()
    assert other.told["t"].value == b"v2"


def test_a_repeat_of_before_a_restart_hands_nothing_off(world: World) -> None:
    client, other = world.client(), world.client()
    other.ok(C.restart())
    other.generation = 2
    other.ok(C.publish("ds", b"x", []))
    client.n += 1
    for _ in range(2):
        assert client.send(C.get_dataset("ds", "token"), generation=1) == [b"OLD", 2]
    assert world.command("EXISTS", "handoffs") == 0
