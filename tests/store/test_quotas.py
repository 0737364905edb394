"""Quotas: what counts, when a call is refused, and that a repeat is refused as well."""

from __future__ import annotations

import pytest

from redist.session.refusals import quota_error
from redist.store import calls as C
from redist.store import replies as R
from store.kit import Caller, World
from store.test_failures import forget_everything, over
from store.test_tasks import F, finish, submit, task

QUOTA = 25_000


@pytest.fixture
def ada(world: World) -> Caller:
    return world.client("ada", details={"quota": str(QUOTA)})


@pytest.fixture
def everybody(world: World, worker: Caller) -> Caller:
    return world.client("operator", details={"namespace_quota": str(QUOTA)})


def value(name: str, attempt: int, worker: Caller, nbytes: int = 10_000) -> C.Value:
    return C.Value(name, 1, attempt, worker.ordinal, nbytes, "int")


def store(client: Caller, worker: Caller, name: str, nbytes: int = 10_000) -> None:
    ((attempt, _),) = R.parse_place(client.ok(C.place(1, nbytes)))
    client.ok(C.commit([value(name, attempt, worker, nbytes)]))


def segment(x: Caller, name: str, nbytes: int) -> None:
    """Finish a task, with a value on its worker."""
    x.listen_up()
    (attempt,) = [t.attempt for t in x.tasks if t.name == name]
    x.turn([C.Result(name, attempt, "memory", nbytes, "int")])


def used(world: World) -> dict[int, int]:
    flat = world.command("ZRANGE", "bytes", 0, -1, "WITHSCORES")
    if flat and isinstance(flat[0], list | tuple):
        return {int(o): int(s) for o, s in flat}
    return {int(o): int(float(s)) for o, s in zip(flat[::2], flat[1::2])}


def refused(reply: list[object]) -> str:
    assert reply[:2] == [b"NO", b"quota"], reply
    assert isinstance(reply[2], bytes)
    return reply[2].decode()


def test_values_count_for_who_made_their_key(
    world: World, ada: Caller, client: Caller, worker: Caller
) -> None:
    x = world.executor(worker)
    store(ada, worker, "a")
    store(client, worker, "b", 7_000)
    ada.ok(C.commit([C.Value("small", 1, 0, 0, 5, "int", b"v")]))
    submit(ada, task("t"), task("s"))
    segment(x, "t", 9_000)
    finish(x, "s", b"v")
    client.ok(C.ledger([("a", 1)]))
    assert used(world) == {ada.ordinal: 19_000, client.ordinal: 7_000}
    ada.ok(C.ledger([("a", 0), ("s", 0)]))  # somebody else still wants it
    assert used(world) == {ada.ordinal: 19_000, client.ordinal: 7_000}
    worker.ok(C.remove_replicas([("t", int(world.record("t")["attempt"]))]))
    assert used(world) == {ada.ordinal: 10_000, client.ordinal: 7_000}
    segment(x, "t", 8_000)  # it is run again
    assert used(world) == {ada.ordinal: 18_000, client.ordinal: 7_000}
    client.ok(C.ledger([("a", 0), ("b", 0)]))
    ada.ok(C.ledger([("t", 0), ("small", 0)]))
    assert used(world) == {}
    assert not world.exists(f"sizes:{ada.ordinal}")


def test_a_copy_does_not_count(world: World, ada: Caller, worker: Caller) -> None:
    store(ada, worker, "a")
    other = world.worker("v")
    other.ok(C.add_replicas([C.Replica("a", int(world.record("a")["attempt"]))]))
    worker.ok(C.remove_replicas([("a", int(world.record("a")["attempt"]))]))
    assert used(world) == {ada.ordinal: 10_000}


def test_what_is_too_much_is_refused(world: World, ada: Caller, worker: Caller) -> None:
    store(ada, worker, "a")
    store(ada, worker, "b c", 12_000)
    text = refused(ada.do(C.place(1, 5_000)))
    error = quota_error(text)
    assert (error.need, error.used, error.limit) == (5_000, 22_000, QUOTA)
    assert error.holders == (("b c", 12_000), ("a", 10_000))
    assert "holds 21.5 KiB, 4.9 KiB more is too much; the largest values: 'b c' (11.7 KiB), 'a'" in str(error)
    # Between the place and the commit somebody else may have used it up.
    assert refused(ada.do(C.commit([value("d", 99, worker, 5_000)]))) == text
    assert world.state("d") == "gone"
    store(ada, worker, "d", 3_000)
    submitted = ada.do(C.submit([task("t")], F))
    assert quota_error(refused(submitted)).need == 0
    assert world.state("t") == "gone"
    assert refused(ada.do(C.publish("x", b"v", [])))
    ada.ok(C.ledger([("d", 0)]))
    submit(ada, task("t"))


def test_a_known_value_needs_nothing(world: World, ada: Caller, client: Caller, worker: Caller) -> None:
    store(client, worker, "a", 20_000)
    ((attempt, _),) = R.parse_place(ada.ok(C.place(1, 20_000)))
    store(ada, worker, "b", 20_000)
    assert R.parse_commit(ada.ok(C.commit([value("a", attempt, worker, 20_000)]))) == ["a"]
    assert used(world) == {client.ordinal: 20_000, ada.ordinal: 20_000}


def test_the_namespaces_quota(world: World, everybody: Caller, client: Caller, worker: Caller) -> None:
    store(client, worker, "a")
    store(everybody, worker, "b", 12_000)
    error = quota_error(refused(client.do(C.place(1, 5_000))))
    assert error.holders == (("operator", 12_000), (client.name, 10_000))
    assert "this namespace may hold" in str(error)
    world.client("later")  # says nothing of it
    assert refused(client.do(C.place(1, 5_000)))
    world.client("other", details={"namespace_quota": "0"})
    store(client, worker, "c", 100_000)


def test_who_registers_anew_is_not_refused(world: World, ada: Caller, worker: Caller) -> None:
    store(ada, worker, "a", 20_000)
    again = C.Value("z", 1, 77, worker.ordinal, 20_000, "int", again=True)
    ada.ok(C.commit([again]))
    assert used(world) == {ada.ordinal: 40_000}


@pytest.mark.parametrize("first", ["client", "worker"])
def test_what_is_brought_to_a_server_that_lost_its_memory_counts(
    world: World, ada: Caller, worker: Caller, first: str
) -> None:
    store(ada, worker, "a", 20_000)
    attempt = int(world.record("a")["attempt"])
    forget_everything(world)
    for who in (ada, worker) if first == "client" else (worker, ada):
        who.register(attempt=attempt)
        if who is ada:
            ada.ok(C.ledger([("a", 1)]))
            ada.ok(C.registered())
        else:
            worker.ok(C.add_replicas([C.Replica("a", attempt, 20_000, "int")], found=True))
        world.check()
    assert used(world) == {ada.ordinal: 20_000}
    refused(ada.do(C.place(1, 10_000)))
    over(world, ada)
    world.check()
    ada.ok(C.ledger([("a", 0)]))
    assert used(world) == {}
    assert not world.exists("bytes")


def test_nothing_is_noted_without_a_quota(world: World, client: Caller, worker: Caller) -> None:
    store(client, worker, "a")
    submit(client, task("t"))
    assert "owner" not in world.record("a") | world.record("t")
    assert not world.exists("bytes")
    client.ok(C.cancel(["t"]))
