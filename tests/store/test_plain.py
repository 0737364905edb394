"""The short ways of `submit`, `turn` and `ledger` do to plain keys what the general ones do, also within one call."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from redist.store import calls as C
from redist.store.scripts import load
from store.kit import Caller, World

F = [("f", b"FUNCTION")]
LONG = b"v" * 300


def task(name: str, *deps: str, **options: object) -> C.Task:
    return C.Task(name, "f", b"spec of " + name.encode(), deps, **options)  # type: ignore[arg-type]


@pytest.fixture
def x(world: World) -> Caller:
    return world.executor(world.worker("w"), threads=2)


def records(world: World, names: str) -> dict[str, dict[str, str]]:
    """The records, but for what numbers a hand-out."""
    found = {name: world.record(name) for name in names}
    for record in found.values():
        record["state"] = record.get("state", "gone").split(" ")[0]
    return found


SUBMITS = [
    task("a"),
    task("b", flags=C.FRESH),
    C.Task("c", "f", LONG),
    task("d", "a"),
    task("e"),
    task("a"),
    task("g", retries=2),
    task("h"),
]


def one_call(client: Caller) -> None:
    client.ok(C.submit(SUBMITS, F))


def one_by_one(client: Caller) -> None:
    for number, one in enumerate(SUBMITS):
        client.ok(C.submit([one], [] if number else F))


def no_short_way(client: Caller) -> None:
    # a class in the call leads to the general way
    client.ok(C.submit(SUBMITS, F, [C.EligibilityClass("k", "", "")]))


@pytest.mark.parametrize("how", [one_call, one_by_one, no_short_way])
def test_submits(world: World, client: Caller, x: Caller, how: Callable[[Caller], None]) -> None:
    how(client)
    assert {name: r["state"] for name, r in records(world, "abcdegh").items()} == {
        "a": "processing", "b": "processing", "c": "queued", "d": "waiting", "e": "queued", "g": "queued",
        "h": "queued",
    }  # fmt: skip
    mine = f"refs:{client.ordinal}"
    assert world.record("h") == {
        **world.record("e"),
        "state": world.record("h")["state"],
        "data": "spec of h",
    }
    assert set(world.record("e")) == {"state", "fn", "data", mine}
    assert [entry.split(" ")[2] for entry in world.lines("queue:0")] == ["c", "e", "g", "h"]
    x.listen_up()
    assert [(t.name, t.spec) for t in x.tasks] == [("a", b"spec of a"), ("b", b"spec of b")]
    while x.tasks:
        t = x.tasks[0]
        x.turn([C.Result(t.name, t.attempt, "memory", 1, "int", b"1")])
    client.listen_up()
    assert {name: push.state for name, push in client.told.items()} == dict.fromkeys("abcdegh", "memory")


def test_a_name_twice_in_a_call(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("a"), task("b"), task("a")], F))
    x.listen_up()
    assert [t.name for t in x.tasks] == ["a", "b"]
    assert world.record("a")[f"refs:{client.ordinal}"] == "1"


def test_a_name_that_is_there_ends_the_short_way(world: World, client: Caller, x: Caller) -> None:
    other = world.client()
    other.ok(C.submit([task("b")], F))
    client.ok(C.submit([task("a"), task("b"), task("c")], F))
    assert {name for name in world.record("b") if name.startswith("refs:")} == {
        f"refs:{client.ordinal}", f"refs:{other.ordinal}",
    }  # fmt: skip
    x.listen_up()
    assert sorted(t.name for t in x.tasks) == ["a", "b"]


@pytest.mark.parametrize("first", ["plain", "segment", "erred", "long"])
def test_results(world: World, client: Caller, x: Caller, first: str) -> None:
    other = world.client()
    client.ok(C.submit([task(name) for name in "abcdefgh"] + [C.Task("long", "f", LONG)], F))
    other.ok(C.ledger([("b", 1)]))
    world.command("DEL", "idle")
    x.listen_up()
    by = {t.name: t for t in x.tasks}
    for t in x.turn(want=64, quick=["f"]):
        by[t.name] = t
    for t in x.turn(want=64, quick=["f"]):
        by[t.name] = t
    kinds = {
        "plain": lambda t: C.Result(t.name, t.attempt, "memory", 5, "int", b"value"),
        "long": lambda t: C.Result(t.name, t.attempt, "memory", 300, "bytes", LONG),
        "segment": lambda t: C.Result(t.name, t.attempt, "memory", 10_000, "bytes", b""),
        "erred": lambda t: C.Result(t.name, t.attempt, "erred", 1, "ValueError", b"E"),
    }
    order = [first, *(kind for kind in ("plain", "long", "segment", "erred", "plain") if kind != first)]
    given = {name: order[i % len(order)] for i, name in enumerate(sorted(by))}
    x.turn([kinds[kind](by[name]) for name, kind in given.items()], want=0)
    client.listen_up(), other.listen_up()
    for name, kind in given.items():
        push = client.told[name]
        assert push.state == ("erred" if kind == "erred" else "memory")
        assert push.value == {"plain": b"value", "long": LONG, "segment": b"", "erred": b"E"}[kind]
        assert world.exists(f"data:{name}") == (
            kind == "long" or (name == "long" and kind in ("segment", "erred"))
        )
    assert other.told["b"] == client.told["b"]


def test_a_void_result_is_discarded(world: World, client: Caller, x: Caller) -> None:
    client.ok(C.submit([task("a"), task("b")], F))
    x.listen_up()
    a, b = x.tasks
    x.turn(
        [
            C.Result("a", a.attempt + 100, "memory", 5, "int", b"wrong"),
            C.Result("gone", 7, "memory", 5, "int", b"wrong"),
            C.Result("b", b.attempt, "memory", 5, "int", b"right"),
        ],
        want=0,
    )
    assert world.state("a") == "processing"
    assert world.state("gone") == "gone"
    assert world.record("b")["data"] == "right"


@pytest.mark.parametrize("order", ["abcde", "bacde", "cdeab", "edcba"])
def test_releases(world: World, client: Caller, x: Caller, order: str) -> None:
    other = world.client()
    client.ok(C.submit([task(name) for name in "abcd"], F))
    client.ok(C.submit([task("e", "d")], F))
    other.ok(C.ledger([("b", 2)]))
    for _ in range(3):
        x.listen_up()
        for t in list(x.tasks):
            if t.name != "e":
                x.turn([C.Result(t.name, t.attempt, "memory", 300, "bytes", LONG)])
    client.ok(C.ledger([(name, 0) for name in order]))
    assert {name: r["state"] for name, r in records(world, "abcde").items()} == {
        "a": "gone", "b": "memory", "c": "gone", "d": "gone", "e": "gone",
    }  # fmt: skip
    assert not world.exists("data:a")
    assert world.exists("fn:f")
    other.ok(C.ledger([("b", 0)]))
    client.ok(C.drop_functions(["f"]))
    other.ok(C.drop_functions(["f"]))
    assert not world.exists("fn:f")


def test_the_short_ways_create_no_closures() -> None:
    for name in ("submit", "turn", "ledger"):
        text = load(name).text
        assert 0 < text.index("plain") < re.search(r"\bfunction\b", text).start()  # type: ignore[union-attr]
