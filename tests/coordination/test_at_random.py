"""Scripts: locks, events and queues used at random, beside a plain model; a failing example is printed as its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import servers
from coordination.test_lines import leave, standing
from coordination.test_values import get, put
from redist.store import calls as C
from redist.store import coordination as K
from store.kit import Caller, World

CALLERS = 3
often = settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate], database=None
)  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[servers.Server]:
    """A server that scans even small hashes in steps."""
    with servers.running("valkey", settings={"hash-max-listpack-entries": 0}) as server:
        yield server


@pytest.fixture
def new_world(server: servers.Server) -> Iterator[Callable[[], World]]:
    """Makes worlds in namespaces of their own."""
    made = []

    def make() -> World:
        namespace = servers.fresh_namespace()
        store = servers.WireStore(server.endpoint(namespace), "valkey")
        made.append((namespace, store))
        return World(store, slice=3, repeating=False)

    yield make
    for namespace, store in made:
        store.close()
        server.forget(namespace)


@dataclass
class Locks:
    """The model of lines: tokens in the order of asking."""

    lines: dict[str, list[str]] = field(default_factory=lambda: {"x": [], "y": [], "z": []})
    limits: dict[str, int] = field(default_factory=lambda: {"x": 1, "y": 1, "z": 1})

    def missing(self, token: str) -> int:
        return sum(token in line[self.limits[name] :] for name, line in self.lines.items())

    def leave(self, token: str) -> None:
        for line in self.lines.values():
            if token in line:
                line.remove(token)


Step = tuple[str, int, Any]
lock_steps = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "try", "leave", "leave", "die", "restart"]),
        st.integers(0, CALLERS - 1),
        st.one_of(st.sets(st.sampled_from("xyz"), min_size=1), st.integers(0, 99)),
    ),
    max_size=40,
)


@often
@given(steps=lock_steps)
def test_locks(new_world: Callable[[], World], steps: list[Step]) -> None:
    world = new_world()
    callers = [world.client() for _ in range(CALLERS)]
    model = Locks()
    living: dict[str, tuple[Caller, list[str]]] = {}
    for number, (step, who, what) in enumerate(steps):
        caller, token = callers[who], f"t{number}"
        if step in ("ask", "try") and isinstance(what, set):
            names = sorted(what)
            missing = sum(len(model.lines[name]) >= model.limits[name] for name in names)
            answer = caller.ok(K.acquire(token, names, wait=step == "ask"))[2]
            if step == "try" and missing:
                assert answer == -1
                continue
            assert answer == missing
            living[token] = caller, names
            for name in names:
                model.lines[name].append(token)
        elif step == "leave" and isinstance(what, int) and living:
            token = sorted(living)[what % len(living)]
            caller, _ = living.pop(token)
            assert leave(caller, token) == 1
            model.leave(token)
        elif step == "die":
            caller.do(C.close())
            world.drain()
            for token in [token for token, (holder, _) in living.items() if holder is caller]:
                del living[token]
                model.leave(token)
            callers[who] = world.client()
        elif step == "restart":
            caller.do(C.restart())
            world.drain()
        for token, (caller, names) in living.items():
            assert caller.ok(K.acquire(token, names))[2] == model.missing(token)
        for name, line in model.lines.items():
            assert standing(callers[0], "lock", name) == min(len(line), model.limits[name])
    world.end()


event_steps = st.lists(
    st.tuples(
        st.sampled_from(["wait", "wait", "look", "set", "clear", "leave", "die", "restart"]),
        st.integers(0, CALLERS - 1),
        st.sampled_from("xy"),
        st.integers(0, 99),
    ),
    max_size=40,
)


@often
@given(steps=event_steps)
def test_events(new_world: Callable[[], World], steps: list[tuple[str, int, str, int]]) -> None:
    world = new_world()
    callers = [world.client() for _ in range(CALLERS)]
    are_set: set[str] = set()
    waits: dict[str, tuple[Caller, str, bool]] = {}  # by token: whose, for which, and whether it came
    for number, (step, who, name, what) in enumerate(steps):
        caller, token = callers[who], f"t{number:02}"
        if step in ("wait", "look"):
            answer = caller.ok(K.await_event(token, name, wait=step == "wait"))[2]
            assert answer == (1 if name in are_set else 0 if step == "wait" else -1)
            if answer == 0:
                waits[token] = caller, name, False
        elif step in ("set", "clear"):
            caller.ok(K.set_event(name, step == "set"))
            world.drain()
            are_set.discard(name)
            if step == "set":
                are_set.add(name)
                waits = {t: (c, n, came or n == name) for t, (c, n, came) in waits.items()}
        elif step == "leave" and waits:
            token = sorted(waits)[what % len(waits)]
            assert leave(waits.pop(token)[0], token) == 1
        elif step == "die":
            caller.do(C.close())
            world.drain()
            waits = {token: wait for token, wait in waits.items() if wait[0] is not caller}
            callers[who] = world.client()
        elif step == "restart":
            caller.do(C.restart())
            world.drain()
        for token, (caller, name, came) in waits.items():
            assert caller.ok(K.await_event(token, name))[2] == came
        for name in "xy":
            assert standing(callers[0], "event", name) == (name in are_set)
    for name in "xy":
        callers[0].ok(K.set_event(name, False))
    world.end()


@dataclass
class Items:
    """The model of a queue."""

    limit: int
    items: list[tuple[int, bytes]] = field(default_factory=list)
    gets: list[tuple[str, int]] = field(default_factory=list)
    puts: list[tuple[str, tuple[int, bytes]]] = field(default_factory=list)
    got: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    came_in: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def serve(self) -> None:
        while self.items and self.gets:
            self.give(*self.gets.pop(0))

    def give(self, token: str, most: int) -> None:
        self.got[token], self.items = self.items[:most], self.items[most:]
        self.admit()

    def admit(self) -> None:
        while self.puts and len(self.items) < self.limit:
            token, item = self.puts.pop(0)
            self.items = sorted([*self.items, item])
            self.came_in[token] = item

    def put(self, token: str, item: tuple[int, bytes]) -> bool:
        if len(self.items) >= self.limit:
            self.puts.append((token, item))
            return False
        self.items.append(item)
        self.serve()
        return True

    def get(self, token: str, most: int) -> list[bytes]:
        if self.items:
            self.give(token, most)
        else:
            self.gets.append((token, most))
        return [value for _, value in self.got.get(token, ())]

    def leave(self, token: str, taken: bool) -> None:
        self.gets = [entry for entry in self.gets if entry[0] != token]
        self.puts = [entry for entry in self.puts if entry[0] != token]
        item = self.came_in.pop(token, None)
        if item in self.items and not taken:
            self.items.remove(item)  # type: ignore[arg-type]
            self.admit()
        back = self.got.pop(token, [])
        if not taken:
            self.items = sorted([*self.items, *back])
            self.serve()


queue_steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "get", "get", "leave", "take", "take", "die"]),
        st.integers(0, CALLERS - 1),
        st.integers(0, 99),
    ),
    max_size=50,
)


@often
@given(steps=queue_steps, limit=st.sampled_from([1, 2, 5]))
def test_queues(new_world: Callable[[], World], steps: list[Step], limit: int) -> None:
    world = new_world()
    callers = [world.client() for _ in range(CALLERS)]
    callers[0].ok(K.open_queue("x", limit))
    callers[1].ok(K.open_queue("x", 99))
    callers[2].ok(K.open_queue("x", 99))
    model = Items(limit)
    living: dict[str, tuple[Caller, int]] = {}  # with how many items it asked for, 0: a put
    for number, (step, who, what) in enumerate(steps):
        caller, token = callers[who], f"t{number:02}"
        value = b"%d" % number
        if step == "put":
            room = model.put(token, (number, value))
            assert put(caller, token, value) == room
            if not room:
                living[token] = caller, 0
        elif step == "get":
            most = what % 3 + 1
            assert get(caller, token, most=most) == model.get(token, most)
            living[token] = caller, most
        elif step in ("leave", "take") and living:
            token = sorted(living)[what % len(living)]
            caller, _ = living.pop(token)
            known = any(token in (entry[0] for entry in line) for line in (model.gets, model.puts))
            if step == "take" and known:
                living[token] = caller, _  # who waits does not take
                continue
            assert leave(caller, token, taken=step == "take") == 1
            model.leave(token, step == "take")
        elif step == "die":
            new = world.client()
            new.ok(K.open_queue("x", 99))
            caller.do(C.close())
            world.drain()
            left = [token for token, (holder, _) in living.items() if holder is caller]
            for token in left:
                del living[token]
            # in no order that counts: what goes back finds its place
            for token in sorted(left, key=lambda token: token in model.got):
                model.leave(token, False)
            callers[who] = new
            check_settled(world, model, living)
            continue
        check_settled(world, model, living)
    end(world, callers[0], model)


def check_settled(world: World, model: Items, living: dict[str, tuple[Caller, int]]) -> None:
    """Compare what everybody is told with the model, as far as the order in which a dead caller's requests end allows."""
    for token, (caller, most) in living.items():
        if most:
            values = [value for _, value in model.got.get(token, ())]
            assert get(caller, token, most=most) == values
        else:
            assert put(caller, token, b"") == (token in model.came_in)
    assert standing(world.callers[-1], "queue", "x") == len(model.items)


def end(world: World, caller: Caller, model: Items) -> None:
    """All leave; what was not taken is there."""
    for other in list(world.callers):
        if other is not caller:
            other.do(C.close())
    world.drain()
    caller.ok(K.close_queue("x"))
    world.check()
