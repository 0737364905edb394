"""The actors of an executor, by themselves: which are kept, and what never runs twice."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from redist.errors import ActorLost, DataLost
from redist.store.calls import Call
from redist_worker import actors as module
from redist_worker.actors import Actors
from redist_worker.orders import Loop
from redist_worker.places import Places
from servers import wait_until


class Counter:
    def __init__(self, start: int = 0) -> None:
        if start < 0:
            raise ValueError("negative")
        self.n = start

    def increment(self) -> int:
        self.n += 1
        return self.n


class Executor:
    """As much of an executor as actors need."""

    def __init__(self) -> None:
        self.session: Any = SimpleNamespace(ordinal=7)
        self.states: dict[str, tuple[str, bytes]] = {}
        self.actors = Actors(self.session, self.read, Places(lambda _: None, lambda _: None), Loop())

    def read(self, call: Call) -> list[Any]:
        reply: list[Any] = [b"OK", b"0"]
        for name in call.body[1:]:
            state, value = self.states.get(name, ("forgotten", b""))
            reply += [name.encode(), state.encode(), b"1", b"1", b"", b"", value]
        return reply

    def make(self, name: str, *args: Any) -> str:
        token: str = self.actors.make(name, Counter, args, {})._token
        self.states[name] = ("memory", b"... " + token.encode())
        return token

    def call(self, name: str, token: str, key: str) -> Any:
        return self.actors.call(name, token, "increment", key, (), {})


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Executor]:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.02)
    executor = Executor()
    yield executor
    executor.states.clear()
    wait_until(lambda: not len(executor.actors), what="all actors are dropped")
    wait_until(
        lambda: "redist-actor" not in [t.name for t in threading.enumerate()], what="their threads end"
    )


def test_a_call_never_runs_twice(executor: Executor) -> None:
    token = executor.make("a")
    assert executor.call("a", token, "first") == 1
    with pytest.raises(DataLost, match="first"):
        executor.call("a", token, "first")
    assert executor.call("a", token, "second") == 2


def test_what_is_not_here_is_lost(executor: Executor) -> None:
    token = executor.make("a")
    for name, other in (("a", "another token"), ("b", token)):
        with pytest.raises(ActorLost, match=repr(name)):
            executor.call(name, other, "x")
        with pytest.raises(ActorLost):
            executor.actors.read(name, other, "n")
    assert executor.actors.read("a", token, "n") == 0
    executor.session.ordinal = 8  # registered anew as another one: who calls it is not led here any more
    with pytest.raises(ActorLost):
        executor.call("a", token, "y")


def test_it_is_dropped_when_its_key_is_forgotten(executor: Executor) -> None:
    token = executor.make("a")
    other = executor.make("b")
    gone = weakref.ref(executor.actors._actors["a"].instance)
    del executor.states["a"]
    wait_until(lambda: (gc.collect(), gone() is None)[1])
    with pytest.raises(ActorLost):
        executor.call("a", token, "x")
    assert executor.call("b", other, "x") == 1


def test_it_is_dropped_when_its_key_was_made_elsewhere(executor: Executor) -> None:
    executor.make("a")
    executor.states["a"] = ("processing", b"")
    threading.Event().wait(0.1)
    assert len(executor.actors) == 1
    executor.states["a"] = ("memory", b"another token")
    wait_until(lambda: not len(executor.actors))


def test_made_again_under_its_key(executor: Executor) -> None:
    before = executor.make("a")
    token = executor.make("a", 5)
    assert executor.call("a", token, "x") == 6
    with pytest.raises(ActorLost):
        executor.call("a", before, "y")


def test_one_that_cannot_be_made(executor: Executor) -> None:
    with pytest.raises(ValueError, match="negative"):
        executor.actors.make("a", Counter, (-1,), {})
    assert not len(executor.actors)
