"""Scripts: events, variables, queues, topics; on fakeredis and real servers, every call sent twice."""

from __future__ import annotations

from typing import Any

import pytest

from coordination.test_lines import leave, nothing_is_left, standing, told
from redist.store import calls as C
from redist.store import coordination as K
from store.kit import Caller, World


@pytest.fixture
def ada(world: World) -> Caller:
    return world.client("ada")


@pytest.fixture
def bob(world: World) -> Caller:
    return world.client("bob")


def inline(caller: Caller, name: str) -> None:
    """Make a value whose only reference is the caller's."""
    caller.ok(C.commit([C.Value(name, 1, 0, 0, 1, "int", b"v")]))


def let_go(caller: Caller, name: str) -> None:
    caller.ok(C.ledger([(name, 0)]))


# --- events -----------------------------------------------------------------------------------------------------------


def await_event(caller: Caller, token: str, **options: Any) -> int:
    answer: int = caller.ok(K.await_event(token, "x", **options))[2]
    return answer


def test_an_event(world: World, ada: Caller, bob: Caller) -> None:
    assert await_event(ada, "n", wait=False) == -1
    assert await_event(ada, "a") == 0
    assert await_event(bob, "b") == 0
    assert standing(ada, "event", "x") == 0
    bob.ok(K.set_event("x", True))
    assert standing(ada, "event", "x") == 1
    assert told(ada) == ["a"]
    bob.ok(K.set_event("x", False))
    assert await_event(ada, "a") == 1  # it was set
    assert await_event(ada, "c") == 0
    assert leave(ada, "a", "c") == 2
    leave(bob, "b")
    nothing_is_left(world)
    bob.ok(K.set_event("x", True))
    assert await_event(ada, "d") == 1
    assert leave(ada, "d") == 0


def test_an_event_stays_set_when_all_have_left(world: World, ada: Caller, bob: Caller) -> None:
    ada.ok(K.set_event("x", True))
    ada.do(C.close())
    assert standing(bob, "event", "x") == 1


def test_many_wait_for_an_event(store: Any) -> None:
    world = World(store, slice=20, checking=False, repeating=False)
    ada = world.client("ada")
    for i in range(100):
        await_event(ada, f"a{i}")
    ada.ok(K.set_event("x", True))
    assert sorted(told(ada)) == sorted(f"a{i}" for i in range(100))
    world.check()
    world.end()


# --- variables --------------------------------------------------------------------------------------------------------


def read(caller: Caller, token: str, **options: Any) -> bytes | None:
    """Read the variable, and let go of it at once."""
    reply = caller.ok(K.get_variable(token, "x", **options))
    if len(reply) == 2:
        return None
    leave(caller, token)
    value: bytes = reply[3]
    return value


def test_a_variable(world: World, ada: Caller, bob: Caller) -> None:
    assert read(ada, "n", wait=False) is None
    assert read(ada, "a") is None
    bob.ok(K.set_variable("x", b"1"))
    assert told(ada) == ["a"]
    assert read(ada, "a") == b"1"
    bob.ok(K.set_variable("x", b"2" * 100))
    assert read(ada, "b") == b"2" * 100
    bob.ok(K.delete_variable("x"))
    bob.ok(K.delete_variable("x"))
    assert read(ada, "c") is None
    leave(ada, "c")
    assert not world.exists("asks:1")


def test_what_a_variable_holds_lives(world: World, ada: Caller, bob: Caller) -> None:
    inline(ada, "v")
    ada.ok(K.set_variable("x", b"value", ["v"]))
    let_go(ada, "v")
    reply = bob.ok(K.get_variable("b", "x"))
    ada.ok(K.set_variable("x", b"other"))
    assert bob.ok(K.get_variable("b", "x"))[2:] == reply[2:]  # asked again: the same
    assert world.state("v") == "memory"  # the reader has not bound it yet
    bob.ok(C.ledger([("v", 1)]))
    leave(bob, "b")
    assert world.state("v") == "memory"
    let_go(bob, "v")
    assert world.state("v") == "gone"
    assert ada.do(K.set_variable("x", b"value", ["v"]))[:3] == [b"NO", b"unknown", b"v"]


def test_a_restart_forgets_a_variable(world: World, ada: Caller, bob: Caller) -> None:
    inline(ada, "v")
    ada.ok(K.set_variable("x", b"value", ["v"]))
    ada.ok(C.restart())
    world.drain()
    assert world.state("v") == "gone"
    bob.generation += 1
    assert read(bob, "b", wait=False) is None


# --- queues -----------------------------------------------------------------------------------------------------------


def put(caller: Caller, token: str, value: bytes, *contains: str, **options: Any) -> int:
    answer: int = caller.ok(K.put(token, "x", value, contains, **options))[2]
    return answer


def get(caller: Caller, token: str, **options: Any) -> list[bytes]:
    return caller.ok(K.get(token, "x", **options))[2:]


def test_a_queue(world: World, ada: Caller, bob: Caller) -> None:
    for i in range(5):
        assert put(ada, f"p{i}", b"%d" % i) == 1
    assert standing(bob, "queue", "x") == 5
    assert get(bob, "g0") == [b"0"]
    assert get(bob, "g0") == [b"0"]  # until it is left
    assert get(bob, "g1", most=3) == [b"1", b"2", b"3"]
    assert leave(bob, "g0", "g1", taken=True) == 2
    assert get(bob, "g0") == [b"4"]
    leave(bob, "g0", taken=True)
    assert get(bob, "n", wait=False) == []
    nothing_is_left(world)


def test_gets_wait_in_line(world: World, ada: Caller, bob: Caller) -> None:
    assert get(ada, "a") == get(bob, "b") == get(ada, "c") == []
    leave(bob, "b")
    put(bob, "p0", b"0")
    assert standing(bob, "queue", "x") == 0
    put(bob, "p1", b"1")
    assert told(ada) == ["a", "c"]
    assert get(ada, "c") == [b"1"]
    assert get(ada, "a") == [b"0"]
    leave(ada, "a", "c", taken=True)
    nothing_is_left(world)


def test_what_was_got_and_not_taken_goes_back_to_its_place(world: World, ada: Caller, bob: Caller) -> None:
    for i in range(4):
        put(ada, f"p{i}", b"%d" % i)
    assert get(bob, "g0", most=2) == [b"0", b"1"]
    assert get(bob, "g1") == [b"2"]
    leave(bob, "g0")
    leave(bob, "g1")
    assert get(bob, "g2", most=9) == [b"0", b"1", b"2", b"3"]
    assert get(ada, "a") == []
    bob.do(C.close())  # it may have died
    world.drain()
    assert told(ada) == ["a"]
    assert get(ada, "a") == [b"0"]
    leave(ada, "a", taken=True)
    assert get(ada, "b", most=9) == [b"1", b"2", b"3"]
    leave(ada, "b", taken=True)


def test_puts_wait_in_line(world: World, ada: Caller, bob: Caller) -> None:
    assert put(ada, "p0", b"0", maxsize=2) == 1
    assert put(ada, "p1", b"1") == 1  # the first one's bound counts
    assert put(ada, "n", b"n", wait=False) == -1
    assert put(ada, "p2", b"2") == put(ada, "p3", b"3") == put(ada, "p4", b"4") == 0
    leave(ada, "p3")  # gives up
    assert get(bob, "g0") == [b"0"]
    assert told(ada) == ["p2"]
    assert put(ada, "p2", b"2") == 1
    assert standing(bob, "queue", "x") == 2
    leave(ada, "p2", taken=True)
    assert get(bob, "g1", most=9) == [b"1", b"2"]
    assert told(ada) == ["p4"]
    leave(ada, "p4")  # it has not heard of it, and gives up
    assert standing(bob, "queue", "x") == 0
    leave(bob, "g0", "g1", taken=True)
    nothing_is_left(world)


def test_a_put_that_somebody_got_cannot_be_undone(world: World, ada: Caller, bob: Caller) -> None:
    put(ada, "p0", b"0", maxsize=1)
    assert put(ada, "p1", b"1") == 0
    assert get(bob, "g0") == [b"0"]
    assert get(bob, "g1") == [b"1"]
    reply = ada.ok(K.leave(["p1"]))  # it has not heard of it, and gives up
    assert reply[2:] == [1, 1]
    assert ada.send(K.leave(["p1"]))[2:] == [1, 1]
    leave(bob, "g0", "g1", taken=True)


def test_a_put_that_would_not_wait_is_in_when_it_is_said_again(world: World, ada: Caller) -> None:
    assert put(ada, "p0", b"0", maxsize=1, wait=False) == 1
    assert ada.send(K.put("p0", "x", b"0", maxsize=1, wait=False))[:3] == [b"REPEAT", 0, 1]
    leave(ada, "p0", taken=True)
    assert get(ada, "g") == [b"0"]
    leave(ada, "g", taken=True)


def test_what_an_item_holds_lives(world: World, ada: Caller, bob: Caller) -> None:
    inline(ada, "v")
    put(ada, "p", b"item", "v")
    let_go(ada, "v")
    assert world.state("v") == "memory"
    assert get(bob, "g") == [b"item"]
    assert world.state("v") == "memory"
    bob.ok(C.ledger([("v", 1)]))
    leave(bob, "g", taken=True)
    assert world.state("v") == "memory"
    let_go(bob, "v")
    assert world.state("v") == "gone"
    assert ada.do(K.put("q", "x", b"item", ["v"]))[:3] == [b"NO", b"unknown", b"v"]
    assert ada.send(K.put("q", "x", b"item", ["v"]))[:3] == [b"NO", b"unknown", b"v"]


def test_a_queue_outlives_its_clients_if_it_has_items(world: World, ada: Caller, bob: Caller) -> None:
    for client in (ada, bob):
        client.ok(K.open_queue("x", 3))
        client.ok(K.open_queue("empty", 3))
    put(ada, "p", b"0", maxsize=9)
    ada.do(C.close())
    bob.do(C.close())
    world.drain()
    carl = world.client("carl")
    assert world.command("HGETALL", "limits") in ([b"queue x", b"3"], {b"queue x": b"3"})
    assert standing(carl, "queue", "x") == 1
    carl.ok(K.close_queue("x"))
    nothing_is_left(world)


def test_the_last_who_closes_a_queue_empties_it(world: World, ada: Caller, bob: Caller) -> None:
    inline(ada, "v")
    for client in (ada, bob):
        client.ok(K.open_queue("x", 1))
    put(ada, "p0", b"0", "v")
    put(ada, "p1", b"1")
    let_go(ada, "v")
    ada.ok(K.close_queue("x"))
    assert standing(ada, "queue", "x") == 1
    bob.ok(K.close_queue("x"))
    assert world.state("v") == "gone"
    assert told(ada) == ["p1"]  # who waits waits on
    leave(ada, "p1", taken=True)
    assert get(bob, "g") == [b"1"]
    leave(bob, "g", taken=True)
    nothing_is_left(world)


def test_a_restart_empties_a_queue(world: World, ada: Caller, bob: Caller) -> None:
    inline(ada, "v")
    put(ada, "p0", b"0", "v", maxsize=2)
    put(ada, "p1", b"1")
    put(ada, "p2", b"2")
    assert get(bob, "g") == [b"0"]
    assert get(bob, "w", most=5) == [b"1", b"2"]
    assert get(bob, "z") == []
    ada.ok(C.restart())
    world.drain()
    assert world.state("v") == "gone"
    bob.generation += 1
    assert get(bob, "g") == []  # asked again it waits for others
    leave(bob, "w")
    assert standing(bob, "queue", "x") == 0
    ada.generation += 1
    put(ada, "p3", b"3")
    assert told(bob) == ["z"]


def test_many_items_go_in_slices(store: Any) -> None:
    world = World(store, slice=20, checking=False, repeating=False)
    ada = world.client("ada")
    for i in range(100):
        put(ada, f"p{i}", b"1")
    for i in range(50):
        assert put(ada, f"w{i}", b"2", maxsize=9) == 1
    world.draining = False
    ada.do(K.close_queue("x"))
    assert world.drain() > 3
    assert standing(ada, "queue", "x") == 0
    world.check()
    world.end()


# --- topics -----------------------------------------------------------------------------------------------------------


def hark(caller: Caller, token: str, last: int = 0) -> tuple[int, list[bytes]]:
    reply = caller.ok(K.hark(token, "x", last))
    return reply[2], reply[3:]


def announce(caller: Caller, value: bytes, *contains: str) -> int:
    subscribers: int = caller.ok(K.announce("x", value, contains))[2]
    return subscribers


def test_a_topic(world: World, ada: Caller, bob: Caller) -> None:
    assert announce(ada, b"nobody hears") == 0
    last, values = hark(bob, "b")
    assert values == []
    inline(ada, "v")
    assert announce(ada, b"1", "v") == 1
    let_go(ada, "v")
    assert told(bob) == ["b"]
    late, values = hark(ada, "a")
    assert values == []
    announce(ada, b"2")
    assert told(bob) == ["b"]
    assert hark(bob, "b", last)[1] == [b"1", b"2"]
    assert world.state("v") == "memory"
    last, values = hark(bob, "b", last)  # not yet said to have been read
    assert values == [b"1", b"2"]
    assert hark(bob, "b", last)[1] == []
    assert world.state("v") == "gone"
    assert world.command("ZCARD", "topic:x") == 1
    assert standing(ada, "topic", "x") == 2
    assert hark(ada, "a", late)[1] == [b"2"]
    leave(ada, "a")
    leave(bob, "b")
    nothing_is_left(world)


def test_messages_go_with_the_last_who_wants_them(world: World, ada: Caller, bob: Caller) -> None:
    hark(bob, "b")
    for i in range(5):
        announce(ada, b"%d" % i)
    bob.do(C.close())
    world.drain()
    nothing_is_left(world)


def test_a_restart_drops_messages(world: World, ada: Caller, bob: Caller) -> None:
    last, _ = hark(bob, "b")
    announce(ada, b"1")
    ada.ok(C.restart())
    world.drain()
    ada.generation += 1
    announce(ada, b"2")
    assert hark(bob, "b", last)[1] == [b"2"]


def test_who_subscribed_and_left_is_not_subscribed_by_a_repeat(world: World, ada: Caller) -> None:
    hark(ada, "a")
    said = ada.n
    leave(ada, "a")
    assert ada.send(K.hark("a", "x"), said)[0] == b"REPEAT"  # both answers were lost with a connection
    nothing_is_left(world)
