"""What has to be told again with a task: what it needs, in order, as deep as it goes."""

from __future__ import annotations

from redist.session.lineage import in_turns, with_needs
from redist.session.states import FutureState
from redist.store.calls import Task, Value


def task(name: str, *needs: FutureState, count: int = 0) -> FutureState:
    state = FutureState(name, 1, "f")
    state.task = Task(name, "f", b"spec", [need.name for need in needs])
    state.needs = needs
    state.count = count
    return state


def names(states: list[FutureState]) -> list[str]:
    return [state.name for state in states]


def test_what_is_needed_comes_first_and_once() -> None:
    a = task("a")
    b, c = task("b", a), task("c", a)
    d = task("d", c, b, count=1)
    e = task("e", b, count=1)
    assert names(with_needs([e, d], {"d": d, "e": e})) == ["a", "b", "e", "c", "d"]


def test_what_is_referred_to_is_told_of_by_itself() -> None:
    a = task("a")
    held, again = task("held", a, count=1), task("again")
    last = task("last", held, again, count=1)
    records = {"held": held, "last": last, "again": task("again", count=1)}
    assert names(with_needs([last], records)) == ["a", "last"]
    assert names(with_needs([last, held], records)) == ["a", "held", "last"]


def test_values_that_are_here_are_and_those_elsewhere_are_not() -> None:
    inline, segment, failed = task("inline"), task("segment"), task("failed")
    inline.finish(1, "int", "", b"v")
    segment.finish(100_000, "bytes", "3.4711", b"")
    failed.err("ValueError", "", b"!x")
    last = task("last", inline, segment, failed, count=1)
    assert names(with_needs([last], {})) == ["inline", "last"]


def test_what_the_server_alone_has_is_computed_again() -> None:
    a = task("a")
    long = task("long", a)
    long.finish(2_000, "bytes", "", b"")
    assert names(with_needs([task("last", long, count=1)], {})) == ["a", "long", "last"]
    long.finish(2_000, "bytes", "", b"v" * 2_000)
    assert names(with_needs([task("last", long, count=1)], {})) == ["long", "last"]


def test_a_long_chain() -> None:
    state = task("0")
    for i in range(1, 100_000):
        state = task(str(i), state)
    assert len(with_needs([state], {})) == 100_000
    state.finish(1, "int", "", b"v")
    assert with_needs([state], {}) == [state]


def value(name: str, *contains: str) -> Value:
    return Value(name, 1, 0, 0, 1, "list", b"v", contains=contains)


def turns(values: list[Value], *tasks: FutureState) -> list[tuple[list[str], list[str]]]:
    cut = in_turns(values, [(state, state.task) for state in tasks if state.task is not None])
    return [
        ([value.name for value in part], names([state for state, _ in following])) for part, following in cut
    ]


def test_values_come_ahead_of_tasks_and_behind_those_that_they_contain() -> None:
    assert turns([]) == [([], [])]
    a = task("a")
    box = FutureState("box", 1)
    b = task("b", box)
    plain = [value("v"), value("of v", "v")]
    assert turns(plain, a, b) == [(["v", "of v"], ["a", "b"])]
    inside = [value("outer", "b", "box"), *plain, value("box", "a", "v"), value("of outer", "outer")]
    assert turns(inside, a, b) == [(["v", "of v"], ["a"]), (["box"], ["b"]), (["outer", "of outer"], [])]


def test_a_long_row_of_values() -> None:
    values = [value(str(i), str(i + 1)) for i in range(20_000)]
    (only,) = in_turns([*values, value("x", "t")], [(state := task("t"), state.task)])[:1]  # type: ignore[list-item]
    assert [value.name for value in only[0][:2]] == ["19999", "19998"]
