"""Metadata and events: what is kept beside keys. Every call of a world is repeated, and must then change nothing."""

from __future__ import annotations

from redist.store import beside
from redist.store import calls as C
from store.kit import Caller, World


def test_metadata_is_set_if_it_is_as_it_was_seen(world: World, client: Caller) -> None:
    client.ok(beside.set_metadata("x", b"one", seen=b""))
    assert client.do(beside.set_metadata("x", b"two", seen=b""))[:2] == [b"NO", b"changed"]
    client.ok(beside.set_metadata("x", b"two", seen=b"one"))
    client.ok(beside.set_metadata("x", b"three"))
    assert world.command("HGET", "metadata", "x") == b"three"


def test_metadata_of_a_key_go_with_it(world: World, client: Caller) -> None:
    client.ok(C.commit([C.Value("a", 1, 0, 0, 10, "int", b"v")]))
    client.ok(beside.set_metadata("a", b"one"))
    client.ok(beside.set_metadata("b", b"other"))
    assert world.record("a")["meta"] == "1"
    client.ok(C.ledger([("a", 0)]))
    world.drain()
    assert not world.exists("key:a")
    assert world.command("HGETALL", "metadata") == [b"b", b"other"]


def test_events_are_kept_and_read_from_where_one_was(world: World, client: Caller) -> None:
    for i in range(5):
        client.ok(beside.log_event(b"%d" % i, ["t", "u"] if i % 2 else ["t"]))
    assert client.ok(beside.events("t", -1)) == [b"OK", 5]
    _, count, *events = client.ok(beside.events("t", 3))
    assert count == 5
    assert [event.partition(b" ")[2] for event in events] == [b"3", b"4"]
    assert len(client.ok(beside.events("u", 0))) == 4
    assert client.ok(beside.events("nothing", 0)) == [b"OK", 0]
    assert client.ok(beside.events("t", 7)) == [b"OK", 5]


def test_a_topic_keeps_its_newest(world: World, client: Caller) -> None:
    call = beside.log_event(b"", ["t"])
    call.body[0] = 3
    for i in range(7):
        call.body[1] = b"%d" % i
        client.ok(call)
    _, count, *events = client.ok(beside.events("t", 0))
    assert count == 7
    assert [event.partition(b" ")[2] for event in events] == [b"4", b"5", b"6"]


def test_plugins_are_numbered(world: World, client: Caller) -> None:
    _, _, first = client.ok(beside.put_plugin("p", b"one", once=False))
    assert client.do(beside.put_plugin("p", b"two", once=True))[2] == 0
    _, _, second = client.ok(beside.put_plugin("q", b"three", once=True))
    _, _, third = client.ok(beside.put_plugin("p", b"four", once=False))
    assert 0 < first < second < third
    assert world.command("HGET", "plugins", "p") == b"%d four" % third
    client.ok(beside.drop_plugin("p"))
    assert client.do(beside.drop_plugin("p"))[:2] == [b"NO", b"unknown"]
    assert world.command("HKEYS", "plugins") == [b"q"]
