"""Registration and lanes: numbers, repeats, gaps, incarnations, generations."""

from __future__ import annotations

import pytest

from redist.store import calls as C
from redist.store import replies as R
from store.kit import World


def test_everybody_gets_an_ordinal(world: World) -> None:
    client, worker = world.client("c"), world.worker("w", address="tcp://h:1")
    x = world.executor(worker)
    assert [client.ordinal, worker.ordinal, x.ordinal] == [1, 2, 3]
    assert world.record("none") == {}
    assert world.command("HGET", "caller:2", "address") == b"tcp://h:1"
    assert world.command("HGET", "caller:3", "worker") == b"2"


def test_register_says_who_else_is_told(world: World) -> None:
    registered = R.parse_register(world.client().send(C.register("client", "other")))
    assert registered.generation == 1
    assert registered.secret
    assert not registered.adopted
    other = world.client("other", ordinal=registered.ordinal)
    assert other.ordinal == registered.ordinal


def test_an_executor_needs_its_worker(world: World) -> None:
    reply = world.client().send(C.register("executor", "x", parent=77))
    assert reply[:2] == [b"NO", b"worker"]


def test_another_schema_is_refused(world: World) -> None:
    client = world.client()
    world.command("HSET", "meta", "schema", "7")
    assert client.send(C.register("client", "c")) == [b"NO", b"schema", b"7"]
    world.command("HSET", "meta", "schema", "1")


def test_numbers_come_in_order(world: World) -> None:
    client = world.client()
    client.ok(C.noop())
    assert client.send(C.noop(), n=3) == [b"GAP", 1]
    assert client.send(C.noop(), n=1)[0] == b"REPEAT"
    client.ok(C.noop())


def test_a_call_that_came_twice_counts_once(world: World) -> None:
    world.repeating = False
    client = world.client()
    client.ok(C.submit([C.Task("a", "f", b"s", count=2)], [("f", b"F")]))
    client.do(C.ledger([("a", 1)]))
    assert client.send(C.submit([C.Task("a", "f", b"s", count=2)], [("f", b"F")]), n=1)[0] == b"REPEAT"
    assert world.record("a")["refs:1"] == "1"


def test_an_unknown_incarnation_is_told_so(world: World) -> None:
    client = world.client()
    client.incarnation = "another"
    assert client.send(C.noop(), n=1) == [b"UNKNOWN"]
    assert client.send(C.client_heartbeat(0, 0, 0, 0)) == [b"UNKNOWN"]
    client.register()


def test_a_refusal_uses_its_number(world: World) -> None:
    client = world.client()
    assert client.do(C.unpublish("none")) == [b"NO", b"unknown", b"none"]
    client.ok(C.noop())


def test_an_older_generation_is_acknowledged_and_not_applied(world: World) -> None:
    client, other = world.client(), world.client()
    client.ok(C.restart())
    assert other.do(C.submit([C.Task("a", "f", b"s")], [("f", b"F")])) == [b"OLD", 2]
    assert world.state("a") == "gone"
    other.generation = 2
    other.ok(C.submit([C.Task("a", "f", b"s")], [("f", b"F")]))
    assert world.state("a") == "queued"


def test_answers_that_state_cannot_give_are_kept(world: World) -> None:
    world.repeating = False
    client = world.client()
    world.worker(), world.worker()
    first = client.do(C.place(3, 100))
    again = client.send(C.place(3, 100))
    assert again[0] == b"REPEAT"
    assert R.parse_place(again) == R.parse_place(first)
    assert len({attempt for attempt, _ in R.parse_place(first)}) == 3
    client.do(C.place(1, 1))
    assert world.command("HKEYS", "answers:1") == [b"2"]


def test_registering_anew_keeps_the_sum_and_releases_what_is_not_counted_again(world: World) -> None:
    client = world.client()
    tasks = [C.Task(name, "f", b"s", count=2) for name in ("a", "b", "c")]
    client.ok(C.submit(tasks, [("f", b"F")]))
    before = client.ordinal
    client.register()
    assert client.ordinal == before
    world.check(quiescent=False)
    client.ok(C.ledger([("a", 2)]))
    client.register()  # once more, before the first time ended
    client.ok(C.ledger([("a", 1), ("b", 2)]))
    client.ok(C.registered())
    world.check()
    assert world.state("c") == "gone"
    assert world.command("HGET", f"caller:{before}", "sum") == b"3"
    beat = R.parse_heartbeat(client.do(C.client_heartbeat(2, 3, 0, client.n)))
    assert beat.agree


def test_a_client_that_goes_while_it_registers_anew_leaves_nothing(world: World) -> None:
    client = world.client()
    client.ok(C.submit([C.Task("a", "f", b"s")], [("f", b"F")]))
    client.register()
    client.ok(C.close())
    assert world.state("a") == "gone"


def test_heartbeats_compare_counts(world: World) -> None:
    client = world.client()
    client.ok(C.submit([C.Task("a", "f", b"s", count=3)], [("f", b"F")]))
    for keys, total, agree in ((1, 3, True), (1, 2, False), (2, 3, False)):
        beat = R.parse_heartbeat(client.do(C.client_heartbeat(keys, total, 0, client.n)))
        assert beat.agree is agree
        assert beat.n == client.n
    assert R.parse_heartbeat(client.do(C.client_heartbeat(0, 0, 0, client.n + 1))).agree


def test_a_named_session_is_taken_up(world: World) -> None:
    client = world.client("me", named=True)
    client.ok(C.submit([C.Task("a", "f", b"s")], [("f", b"F")]))
    again = world.client("me", named=True)
    assert again.ordinal == client.ordinal
    world.callers.remove(client)
    again.ok(C.ledger([("a", 1)]))
    again.ok(C.registered())
    assert world.state("a") == "queued"
    again.ok(C.close())
    world.callers.remove(again)
    assert not world.exists("named")
    new = world.client("me", named=True)
    assert new.ordinal != again.ordinal


def test_who_was_gone_for_long_gets_another_ordinal(world: World) -> None:
    client, other = world.client(), world.client()
    client.deaf()
    world.expire(client, other)
    world.drain()
    before = client.ordinal
    assert client.send(C.noop(), n=1) == [b"UNKNOWN"]
    client.register()
    assert client.ordinal != before
    assert world.command("HGET", "meta", "recovering") is None


@pytest.mark.parametrize("size", [1, 5000])
def test_inboxes(world: World, size: int) -> None:
    client, worker = world.client(), world.worker()
    reply = client.do(C.send([worker.ordinal, 99], b"x" * size))
    assert reply == [b"OK", 0, worker.ordinal]
    assert worker.listen_up() == [[b"c"]]
    assert world.command("LRANGE", f"inbox:{worker.ordinal}", 0, -1) == [b"x" * size]


def test_close_is_said_once(world: World) -> None:
    client = world.client()
    client.ok(C.submit([C.Task("a", "f", b"s")], [("f", b"F")]))
    client.ok(C.close())
    assert client.send(C.close()) == [b"UNKNOWN"]
