"""The model test: random events from several clients and workers, against the scripts and against `memory_rule.Model`.

``python -m tests.store.model --steps 100000 --seed 1`` runs it at length on a real server; ``test_model.py`` runs it
shortly. After every step the work list is drained, and presence, states, counts of every holder, pins, needed, missing,
copies, evictions and all invariants are compared. ``--racing`` leaves slices of work behind between events, and compares
invariants only.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))

import msgpack
from hypothesis import HealthCheck, Phase, Verbosity, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from redist.store import calls as C
from redist.store import coordination as N
from redist.store import copying as K
from redist.store import replies as R
from store.kit import Caller, World
from store.memory_rule import Key, Model

TASKS = [f"t{i}" for i in range(9)]
DATA = [f"d{i}" for i in range(4)]
FUNCTIONS = [("f", b"F"), ("g", b"G")]

Draw = Callable[[random.Random], Any]


def NUMBER(r: random.Random) -> int:
    return r.getrandbits(20)


def one_of(values: Sequence[Any]) -> Draw:
    return lambda r: r.choice(values)


def several(least: int, most: int) -> Draw:
    return lambda r: [r.getrandbits(20) for _ in range(r.randint(least, most))]


steps = 0  # of all machines of this process
kinds: Counter[str] = Counter()  # what they were


STATUSES = ["inline", "segment"] * 3 + ["erred", "retry", "elsewhere", "missing", "back"]
EVENTS: dict[str, tuple[Callable[[Any], bool] | None, dict[str, Draw]]] = {}
CHOICES: list[str] = []  # each event as often as it weighs


def event(
    weight: int = 1, when: Callable[[Any], bool] | None = None, **arguments: Draw
) -> Callable[[Any], Any]:
    """Make a method an event that is chosen `weight` times as often as others; rules would come evenly."""

    def add(method: Any) -> Any:
        EVENTS[method.__name__] = (when, arguments)
        CHOICES.extend([method.__name__] * weight)
        return method

    return add


class Machine(RuleBasedStateMachine):
    """Subclasses give it a server and say how the work list is carried out."""

    server: Any = None
    slice = 0
    racing = False

    def __init__(self) -> None:
        super().__init__()
        import servers

        self.namespace = servers.fresh_namespace()
        self.store = servers.WireStore(self.server.endpoint(self.namespace), self.server.kind)
        self.world = World(self.store, slice=self.slice, checking=False, repeating=False)
        self.model = Model()
        self.clients: list[Caller] = []
        self.workers: list[Caller] = []
        self.executors: list[Caller] = []
        self.outbox: dict[int, list[tuple[C.Call, int, Callable[[list[Any]], None], bool]]] = {}
        self.tokens = 0
        self.handed: list[tuple[str, str]] = []
        self.readers: dict[str, int] = {}  # token -> who reads a dataset under it
        self.attempts: set[int] = set()
        self.ahead: set[tuple[int, str]] = (
            set()
        )  # (batch, name): inline values that the rest of a batch can be run with
        self.add_client()
        self.add_client()
        self.add_worker()
        self.model.evicted.clear()
        self.world.draining = not self.racing

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:
                for client in list(self.clients):
                    self._flush(client, 100)
                if self.racing:
                    self.world.drain()
                    self.world.check()
                    return
                self._compare()
                for client in self.clients:
                    client.do(C.close())
                self.world.drain()
                held = self.model
                for client in self.clients:
                    held.gone_client(client.ordinal)
                held.settle()
                for name in list(held.datasets):
                    last = self._unregistered()
                    last.ok(C.unpublish(name))
                    last.ok(C.close())
                for call in (*map(N.delete_variable, held.variables), N.close_queue("q")):
                    last = self._unregistered()
                    last.ok(call)
                    last.ok(C.close())
        finally:
            for caller in (*self.clients, *self.workers, *self.executors):
                caller.deaf()
            self.store.close()
            self.server.forget(self.namespace)

    def _unregistered(self) -> Caller:
        self.world.listening = False
        caller = self.world.client()
        self.world.listening = True
        return caller

    # --- callers ----------------------------------------------------------------------------------------------------

    def add_client(self) -> None:
        client = self.world.client()
        client.do(C.submit([], FUNCTIONS))
        self.clients.append(client)
        self.outbox[client.ordinal] = []

    def add_worker(self) -> None:
        worker = self.world.worker()
        self.workers.append(worker)
        self.model.workers.add(worker.ordinal)
        self.add_executor(worker)

    def add_executor(self, worker: Caller) -> None:
        self.model.parents[0] = worker.ordinal
        x = self.world.executor(worker)
        del self.model.parents[0]
        self.executors.append(x)
        self.model.parents[x.ordinal] = worker.ordinal

    def _remove(self, caller: Caller, callers: list[Caller]) -> None:
        caller.deaf()
        callers.remove(caller)
        self.world.callers.remove(caller)

    # --- the lane: calls are made, and applied later ----------------------------------------------------------------

    def _post(
        self,
        client: Caller,
        call: C.Call,
        effect: Callable[[list[Any]], None],
        *,
        now: bool,
        ageless: bool = False,
    ) -> None:
        self.outbox[client.ordinal].append((call, client.generation, effect, ageless))
        if now:
            self._flush(client, 100)

    def _flush(self, client: Caller, count: int) -> None:
        queue = self.outbox[client.ordinal]
        while queue and count:
            call, generation, effect, ageless = queue.pop(0)
            count -= 1
            old = generation < self.model.generation and not ageless
            repeat = client.n % 3 == 0
            reply = client.do(call, generation=generation)
            if self.racing:
                while reply[0] == b"WAIT":
                    self.world.drain()
                    reply = client.do(call, generation=generation)
            assert (reply[0] == b"OLD") == old, (call.script.name, reply, generation, self.model.generation)
            if repeat:
                again = client.send(call, generation=generation)
                assert again[0] in (b"REPEAT", b"NO", *([b"OLD"] if old else [])), again
            if not old and not self.racing:
                effect(reply)
            self._settle()

    def _settle(self) -> None:
        """All consequences, in the model and on the server; then compare."""
        if self.racing:
            for _ in range(steps % 3):
                self.world.reader.send(C.continue_())
            self.world.check(quiescent=False)
            return
        self.model.settle()
        self.world.drain()
        self._compare()

    def _step(self, kind: str) -> None:
        global steps
        steps += 1
        kinds[kind] += 1

    def _pick(self, items: list[Any], number: int) -> Any:
        return items[number % len(items)]

    # --- comparing --------------------------------------------------------------------------------------------------

    def _compare(self) -> None:
        model = self.model
        snapshot = self.world.snapshot()
        found = {key[4:]: snapshot.hgetall(key) for key in snapshot.keys() if key.startswith("key:")}  # noqa: SIM118
        for name, h in found.items():
            k = model.keys.get(name)
            if k is not None and k.cause and h["state"] == "released" and not model.wanted(k):
                # Who needed it erred first, for the same cause: then it is let go instead.
                k.state, k.cause = "released", ""
        expected = {name: self._expected(k) for name, k in model.keys.items()}
        actual = {name: self._actual(name, h) for name, h in found.items()}
        if expected != actual:
            lines = [
                f"{name}: expected {expected.get(name)}\n{' ' * len(name)}  found    {actual.get(name)}  {found.get(name)}"
                for name in sorted(expected.keys() | actual.keys())
                if expected.get(name) != actual.get(name)
            ]
            raise AssertionError("\n".join(lines))
        assert {n: f"@{n}@{v}" for n, v in snapshot.hgetall("datasets").items()} == model.datasets
        self.world.check()
        self._evictions()
        for name, h in found.items():
            self._adopt(name, h, snapshot)

    def _evictions(self) -> None:
        told: Counter[tuple[int, str, int]] = Counter()
        for worker in self.workers:
            worker.listen_up()
            told.update((worker.ordinal, name, attempt) for name, attempt in worker.evicted)
            worker.evicted.clear()
        expected = Counter({e: n for e, n in self.model.evicted.items() if e[0] in self.model.workers})
        assert told == expected, f"evicted {told - expected} too much, {expected - told} not"
        self.model.evicted.clear()

    def _expected(self, k: Key) -> dict[str, Any]:
        model = self.model
        return {
            "state": k.state,
            "refs": dict(k.refs),
            "fired": k.fired,
            "published": k.published,
            "shared": k.shared,
            "tokens": len(k.tokens),
            "pins": model.pins(k.name),
            "needed": model.needed(k.name),
            "missing": model.missing(k),
            "copies": dict(k.copies),
            "wanted copies": k.wanted_copies,
            "type": k.type if k.state == "erred" and not k.cause else "",
        }

    def _actual(self, name: str, h: dict[str, str]) -> dict[str, Any]:
        state, _, detail = h["state"].partition(" ")
        k = self.model.keys.get(name)
        missing = int(h.get("missing", 0))
        if state == "queued":
            state = "ready"
        elif state == "processing":
            x, attempt = map(int, detail[1:].split("."))
            state = "ready"
            if k is not None and k.run is not None:
                assert k.run == (x, attempt), (name, k.run, h)
            elif k is not None and k.state == "waiting" and missing:
                state = "waiting"  # handed out while its dependency was being lost
        return {
            "state": state,
            "refs": {int(f[5:]): int(v) for f, v in h.items() if re.fullmatch("refs:[1-9][0-9]*", f)},
            "fired": "refs:0" in h,
            "published": "refs:d" in h,
            "shared": "refs:c" in h,
            "tokens": int(h.get("refs:h", 0)),
            "pins": int(h.get("pins", 0)),
            "needed": int(h.get("needed", 0)),
            "missing": missing,
            "copies": {int(f[2:]): int(v) for f, v in h.items() if f.startswith("w:")},
            "wanted copies": int(h.get("copies", 1)),
            "type": h.get("type", "") if state == "erred" and "cause" not in h else "",
        }  # fmt: skip

    def _adopt(self, name: str, h: dict[str, str], snapshot: Any) -> None:
        """Take over what is the server's choice: who runs a task, and which cause is named."""
        k = self.model.keys[name]
        state, _, detail = h["state"].partition(" ")
        if state == "processing":
            x, attempt = map(int, detail[1:].split("."))
            if k.run is None:
                assert attempt not in self.attempts, f"attempt {attempt} of {name} was given before"
                self.attempts.add(attempt)
            k.state, k.run = "ready", (x, attempt)
        elif state == "queued":
            assert not snapshot.zrange("idle"), (
                f"{name} is queued and executors are idle: {snapshot.zrange('idle')}"
            )
        elif state == "erred":
            cause = h.get("cause", "")
            if cause:
                roots = {self.model.keys[d].cause or d for d in k.deps if self.model.keys[d].state == "erred"}
                assert cause in roots, f"{name} erred because of {cause}, expected one of {roots}"
            else:
                assert not k.cause, f"{name} erred by itself, expected {k.cause}"
            k.cause, k.type = cause, h.get("type", "")

    # --- what clients do --------------------------------------------------------------------------------------------

    @event(12, who=NUMBER, which=NUMBER, deps=several(0, 3), count=one_of([1, 1, 1, 2, 0]),
          retries=one_of([0, 0, 0, 1]), fired=one_of([False, False, False, True]),
          fn=one_of(["f"] * 7 + ["g"]), now=one_of([False, True]), parts=one_of([False, False, True]),
          stop=one_of([False, True]))  # fmt: skip
    def submit(
        self,
        who: int,
        which: int,
        deps: list[int],
        count: int,
        retries: int,
        fired: bool,
        fn: str,
        now: bool,
        parts: bool,
        stop: bool,
    ) -> None:
        self._step("submit")
        client, name = self._pick(self.clients, who), self._pick(TASKS, which)
        needs = self._needs(name, deps)
        self._tell(
            client, name, needs, count, parts=parts, now=now, fn=fn, stop=stop, retries=retries, fired=fired
        )

    def _needs(self, name: str, deps: list[int]) -> set[str]:
        smaller = DATA + TASKS[: TASKS.index(name)]
        known = [n for n in smaller if n in self.model.keys] or smaller
        return {self._pick(known if d % 8 else smaller, d >> 3) for d in deps}

    @event(24, when=lambda self: self._half_told(), who=NUMBER, which=NUMBER, deps=several(0, 2),
           parts=one_of([False, True]), stop=one_of([False, True]), now=one_of([False, True]))  # fmt: skip
    def tell_again(self, who: int, which: int, deps: list[int], parts: bool, stop: bool, now: bool) -> None:
        """Somebody submits a task that another has told a part of, and may have left so; he may stop half-way, too."""
        self._step("tell again")
        k = self._pick(self._half_told(), which)
        needs = k.deps | self._needs(k.name, deps)
        client = self._pick(self.clients, who)
        self._tell(client, k.name, needs, 1, parts=parts, now=now, fn=k.fn, stop=stop)

    def _half_told(self) -> list[Key]:
        return [k for k in self.model.keys.values() if (k.untold or k.linking) and k.fn]

    def _tell(
        self, client: Caller, name: str, among: set[str], count: int, *, parts: bool, now: bool, fn: str,
        retries: int = 0, fired: bool = False, stop: bool = False,
    ) -> None:  # fmt: skip
        needs = sorted(among)
        first = needs[:1] if parts and len(needs) > 1 else needs
        more = len(first) < len(needs)
        count = max(count, int(more))  # a client keeps what it has not wholly told of
        task = C.Task(name, fn, b"spec", first, count, retries, flags=int(fired) + C.MORE * more)

        def effect(_: list[Any]) -> None:
            self.model.submit(
                client.ordinal, name, fn, set(first), count=count, retries=retries, fired=fired, more=more
            )

        self._post(client, C.submit([task], FUNCTIONS), effect, now=now)
        for before in range(1, len(needs) - stop if more else 0):
            self._link(client, name, before, needs[before : before + 1], before + 1 == len(needs), now=now)

    def _link(
        self, client: Caller, name: str, before: int, deps: list[str], last: bool, *, now: bool
    ) -> None:
        def effect(_: list[Any]) -> None:
            self.model.link(client.ordinal, name, before, deps, last=last)

        self._post(client, C.link(name, before, deps, last=last), effect, now=now)

    @event(8, who=NUMBER, which=NUMBER, count=one_of([0, 0, 0, 1, 2]), now=one_of([False, True]))
    def count(self, who: int, which: int, count: int, now: bool) -> None:
        self._step("bind" if count else "release")
        client = self._pick(self.clients, who)
        mine = [k.name for k in self.model.keys.values() if client.ordinal in k.refs] if not count else []
        name = self._pick(mine or TASKS + DATA, which)
        self._post(
            client,
            C.ledger([(name, count)]),
            lambda _: self.model.ledger(client.ordinal, name, count),
            now=now,
        )

    @event(2, who=NUMBER, now=one_of([False, True]))
    def release_all(self, who: int, now: bool) -> None:
        self._step("release all")
        client = self._pick(self.clients, who)
        mine = [k.name for k in self.model.keys.values() if client.ordinal in k.refs]

        def effect(_: list[Any]) -> None:
            for name in mine:
                self.model.ledger(client.ordinal, name, 0)

        self._post(client, C.ledger([(name, 0) for name in mine]), effect, now=now)

    @event(5, who=NUMBER, which=NUMBER, where=NUMBER, inline=one_of([False, True]), count=one_of([1, 1, 1, 0]),
          keep=one_of([False, False, True]), contains=several(0, 2), now=one_of([False, True]),
          taken=one_of([False] * 5 + [True]))  # fmt: skip
    def scatter(
        self,
        who: int,
        which: int,
        where: int,
        inline: bool,
        count: int,
        keep: bool,
        contains: list[int],
        now: bool,
        taken: bool,
    ) -> None:
        self._step("scatter")
        alive = [n for n in self.model.keys if n in TASKS] or TASKS
        client, name = self._pick(self.clients, who), self._pick(alive if taken else DATA, which)
        worker = attempt = 0
        if not inline and self.workers:
            self._flush(client, 100)
            client.generation = self.model.generation
            call = C.place(1, 100, [str(self._pick(self.workers, where).ordinal)])
            while (reply := client.do(call))[0] == b"WAIT":
                self.world.drain()
            ((attempt, worker),) = R.parse_place(reply)
            assert attempt not in self.attempts
            self.attempts.add(attempt)
        names = (DATA + TASKS)[: (DATA + TASKS).index(name)]
        inside = {self._pick(names, c) for c in contains} if names else set()
        value = C.Value(name, count, attempt, worker, 100, "x", b"" if worker else b"v", keep, sorted(inside))

        def effect(_: list[Any]) -> None:
            self.model.commit(client.ordinal, name, worker, attempt, count=count, keep=keep, contains=inside)

        self._post(client, C.commit([value]), effect, now=now)

    @event(2, who=NUMBER, which=NUMBER, now=one_of([False, True]))
    def fire(self, who: int, which: int, now: bool) -> None:
        self._step("fire")
        name = self._pick(TASKS, which)

        def effect(_: list[Any]) -> None:
            k = self.model.keys.get(name)
            if k is not None and k.state not in ("memory", "erred"):
                k.fired = True

        self._post(self._pick(self.clients, who), C.fire([name]), effect, now=now)

    @event(2, who=NUMBER, which=several(1, 2), force=one_of([False, True]), now=one_of([False, True]))
    def cancel(self, who: int, which: list[int], force: bool, now: bool) -> None:
        self._step("cancel")
        client = self._pick(self.clients, who)
        names = [self._pick(TASKS + DATA, i) for i in which]
        self._post(
            client,
            C.cancel(names, force=force),
            lambda _: self.model.cancel(client.ordinal, names, force=force),
            now=now,
        )

    @event(3, who=NUMBER, which=NUMBER, now=one_of([False, True]))
    def retry(self, who: int, which: int, now: bool) -> None:
        self._step("retry")
        erred = [k.name for k in self.model.keys.values() if k.state == "erred"]
        name = self._pick(erred or TASKS, which)
        self._post(
            self._pick(self.clients, who), C.retry([name]), lambda _: self.model.retry([name]), now=now
        )

    @event(2, who=NUMBER, which=NUMBER, now=one_of([False, True]))
    def hand_off(self, who: int, which: int, now: bool) -> None:
        self._step("hand off")
        name = self._pick(list(self.model.keys) or TASKS, which)
        self.tokens += 1
        token = f"k{self.tokens}"

        def effect(_: list[Any]) -> None:
            if name in self.model.keys:
                self.model.keys[name].tokens.add(token)
                self.handed.append((token, name))

        self._post(self._pick(self.clients, who), C.handoff([(token, name)]), effect, now=now)

    @event(2, when=lambda self: self.handed, who=NUMBER, which=NUMBER, expire=one_of([False, True]))
    def end_hand_off(self, who: int, which: int, expire: bool) -> None:
        self._step("end hand-off")
        token, name = self._pick(self.handed, which)
        client = self._pick(self.clients, who)

        def effect(_: list[Any] | None = None) -> None:
            if (token, name) in self.handed:
                self.handed.remove((token, name))
            if name in self.model.keys:
                self.model.keys[name].tokens.discard(token)

        if expire:
            if self.world.command("ZSCORE", "handoffs", f"{token} {name}") is not None:
                self.world.command("ZADD", "handoffs", 1, f"{token} {name}")
            self._beat(client)
            effect()
            self._settle()
        else:
            self._post(client, C.drop_handoffs([(token, name)]), effect, now=True)

    @event(
        3,
        who=NUMBER,
        which=NUMBER,
        contains=several(1, 2),
        override=one_of([False, True]),
        now=one_of([False, True]),
    )
    def publish(self, who: int, which: int, contains: list[int], override: bool, now: bool) -> None:
        self._step("publish")
        name = f"s{which % 2}"
        inside = self._inside(contains)

        def effect(reply: list[Any]) -> None:
            model = self.model
            if not inside <= model.keys.keys() or (name in model.datasets and not override):
                assert reply[0] == b"NO", reply
                return
            assert reply[0] == b"OK", reply
            record = f"@{name}@{int(reply[2])}"
            model.keys[record] = Key(
                record, state="memory", inline=True, published=True, contains=frozenset(inside)
            )
            if name in model.datasets:
                model.keys[model.datasets[name]].published = False
            model.datasets[name] = record

        call = C.publish(name, b"x", sorted(inside), override=override)
        self._post(self._pick(self.clients, who), call, effect, now=now)

    @event(1, who=NUMBER, which=NUMBER, now=one_of([False, True]))
    def unpublish(self, who: int, which: int, now: bool) -> None:
        self._step("unpublish")
        name = f"s{which % 2}"

        def effect(reply: list[Any]) -> None:
            record = self.model.datasets.pop(name, None)
            assert (reply[0] == b"NO") == (record is None), reply
            if record is not None:
                self.model.keys[record].published = False

        self._post(self._pick(self.clients, who), C.unpublish(name), effect, now=now)

    @event(1, who=NUMBER, which=NUMBER)
    def get_dataset(self, who: int, which: int) -> None:
        self._step("get dataset")
        name = f"s{which % 2}"
        client = self._pick(self.clients, who)
        self.tokens += 1
        token = f"k{self.tokens}"
        self.readers[token] = client.ordinal

        def effect(reply: list[Any]) -> None:
            record = self.model.datasets.get(name)
            if record is None:
                assert reply[:2] == [b"NO", b"unknown"], reply
            else:
                assert R.parse_dataset(reply) == (record, b"x")
                self.model.keys[record].tokens.add(token)
                self.handed.append((token, record))

        self._post(client, C.get_dataset(name, token), effect, now=True)

    @event(2, who=NUMBER, which=NUMBER, contains=several(1, 2), now=one_of([False, True]))
    def set_variable(self, who: int, which: int, contains: list[int], now: bool) -> None:
        self._step("set variable")
        name, inside = f"v{which % 2}", self._inside(contains)

        def effect(reply: list[Any]) -> None:
            if not self._refused(reply, inside):
                self.model.drop(self.model.variables.get(name))
                record = f"@@variable@{name}@{self.world.command('HGET', 'variables', name).decode()}"
                self.model.keep(record, inside)
                self.model.variables[name] = record

        self._post(self._pick(self.clients, who), N.set_variable(name, b"x", sorted(inside)), effect, now=now)

    @event(1, who=NUMBER, which=NUMBER, now=one_of([False, True]))
    def delete_variable(self, who: int, which: int, now: bool) -> None:
        self._step("delete variable")
        name = f"v{which % 2}"

        def effect(_: list[Any]) -> None:
            self.model.drop(self.model.variables.pop(name, None))

        self._post(self._pick(self.clients, who), N.delete_variable(name), effect, now=now)

    @event(2, who=NUMBER, contains=several(1, 2), now=one_of([False, True]))
    def put(self, who: int, contains: list[int], now: bool) -> None:
        self._step("put")
        inside = self._inside(contains)
        self.tokens += 1

        def effect(reply: list[Any]) -> None:
            if not self._refused(reply, inside):
                assert reply[2] == 1, reply
                newest = self.world.command("ZRANGE", "items:q", -1, -1)[0].decode()
                self.model.queue.append(f"@@queue@q@{newest}")
                self.model.keep(self.model.queue[-1], inside)

        call = N.put(f"k{self.tokens}", "q", b"x", sorted(inside))
        self._post(self._pick(self.clients, who), call, effect, now=now)

    @event(2, who=NUMBER, now=one_of([False, True]))
    def get(self, who: int, now: bool) -> None:
        self._step("get")
        client = self._pick(self.clients, who)
        self.tokens += 1
        token = f"k{self.tokens}"

        def effect(reply: list[Any]) -> None:
            assert len(reply) - 2 == bool(self.model.queue), (reply, self.model.queue)
            if self.model.queue:
                self.model.got[token] = client.ordinal, self.model.queue.pop(0)

        self._post(client, N.get(token, "q", wait=False), effect, now=now)

    @event(
        12,
        when=lambda self: self.model.got,
        which=NUMBER,
        taken=one_of([False, True]),
        now=one_of([False, True]),
    )
    def leave(self, which: int, taken: bool, now: bool) -> None:
        """Who got an item takes it, or gives it back."""
        self._step("take item" if taken else "give item back")
        token = self._pick(list(self.model.got), which)
        (client,) = [c for c in self.clients if c.ordinal == self.model.got[token][0]]
        self._post(
            client,
            N.leave([token], taken=taken),
            lambda _: self.model.leave(token, taken=taken),
            now=now,
            ageless=True,
        )

    def _inside(self, contains: list[int]) -> set[str]:
        known = [n for n in self.model.keys if not n.startswith("@")]
        return {self._pick(known or TASKS, c) for c in contains}

    def _refused(self, reply: list[Any], inside: set[str]) -> bool:
        """Whether a value was refused since something in it is not known, which is to be so only then."""
        refused = not inside <= self.model.keys.keys()
        assert (reply[0] == b"NO") == refused, reply
        return refused

    @event(3, who=NUMBER, much=one_of(range(1, 5 + 1)))
    def flush(self, who: int, much: int) -> None:
        self._step("flush")
        self._flush(self._pick(self.clients, who), much)

    # --- what executors and workers do ------------------------------------------------------------------------------

    @event(30, when=lambda self: self.executors, who=NUMBER, status=one_of(STATUSES),
          contains=several(0, 2), more=one_of([1, 1, 64, 64, 64, 0]))  # fmt: skip
    def finish(self, who: int, status: str, contains: list[int], more: int) -> None:
        for x in self.executors:
            x.listen_up()
        busy = [x for x in self.executors if x.tasks]
        if not busy:
            return
        self._step("finish " + status)
        x = self._pick(busy, who)
        task = x.tasks[who % len(x.tasks)]
        if any(where == "+" and (task.batch, d) not in self.ahead for d, where, _ in task.deps):
            status = "back"  # what is ahead of it in its batch did not come to a value
        names = (DATA + TASKS)[: (DATA + TASKS).index(task.name)]
        inside = (
            {self._pick(names, c) for c in contains} if status in ("inline", "segment") and names else set()
        )
        copy = None
        value = b""
        if status == "missing":
            far = [d for d in task.deps if d[1] not in ("", "+")]  # "+": made by the same executor just now
            if far:
                d, where, _ = self._pick(far, who >> 4)
                worker, attempt = where.split(" ")[0].split(".")
                copy = (d, int(worker), int(attempt))
                value = f"{d}\n{where.split(' ')[0]}".encode()
        elif status == "inline":
            value = b"v"
        elif status == "erred":
            value = b"error"
        told = {"inline": "memory", "segment": "memory"}.get(status, status)
        kind = "ValueError" if status == "erred" else "x"
        result = C.Result(task.name, task.attempt, told, 100, kind, value, sorted(inside))
        self.model.hand_in(x.ordinal, task.name, task.attempt, status, contains=inside, copy=copy)
        if status == "inline":
            self.ahead.add((task.batch, task.name))
        x.turn([result], want=more or int(status == "missing"), quick=["f", "g"] if more > 1 else [])
        self._settle()

    @event(1, when=lambda self: self.executors, who=NUMBER)
    def resync(self, who: int) -> None:
        """An executor that heard nothing reads its list."""
        self._step("resync")
        x = self._pick(self.executors, who)
        x.listen_up()
        before = {task.attempt for task in x.tasks}
        x.tasks = [t for t in x.tasks if self._void(x, t)]
        void = {t.attempt for t in x.tasks}
        got = x.turn(want=C.RESYNC)
        assert self.racing or before - void <= {task.attempt for task in got}, (before, void, got)
        self._settle()

    def _void(self, x: Caller, task: R.HandOut) -> bool:
        k = self.model.keys.get(task.name)
        return k is None or k.run != (x.ordinal, task.attempt)

    @event(5, who=NUMBER)
    def join(self, who: int) -> None:
        if len(self.executors) < 4:
            self._step("join")
            if len(self.workers) < 3:
                self.add_worker()
            else:
                self.add_executor(self._pick(self.workers, who))
            self._settle()

    @event(
        when=lambda self: self.executors,
        who=NUMBER,
        blamed=one_of([False, True]),
        closed=one_of([False, False, True]),
    )
    def lose_executor(self, who: int, blamed: bool, closed: bool) -> None:
        self._step("lose executor")
        x = self._pick(self.executors, who)
        x.listen_up()
        running = {x.tasks[0].attempt} if x.tasks and blamed and not closed else set()
        self.model.lost_executor(x.ordinal, running)
        if closed:
            x.do(C.close())
        else:
            (worker,) = [w for w in self.workers if w.ordinal == x.options["parent"]]
            worker.do(C.lost_executor(x.ordinal, "signal 9", sorted(running)))
        self._remove(x, self.executors)
        self._settle()

    @event(
        when=lambda self: self.workers,
        who=NUMBER,
        closed=one_of([False, False, True]),
        reported=one_of([False, True]),
    )
    def lose_worker(self, who: int, closed: bool, reported: bool) -> None:
        self._step("lose worker")
        worker = self._pick(self.workers, who)
        executors = [x for x in self.executors if x.options["parent"] == worker.ordinal]
        if reported and not closed:
            for x in executors:
                self.model.lost_executor(x.ordinal, set())
            self._pick(self.clients, who).do(C.lost_worker(worker.ordinal, worker.incarnation))
            self._settle()
        self._evictions_of(worker)
        self.model.lost_worker(worker.ordinal)
        self._remove(worker, self.workers)
        for x in executors:
            self._remove(x, self.executors)
        if closed:
            worker.do(C.close())
        else:
            self.world.expire(worker, self.clients[0])
        self._settle()

    def _evictions_of(self, worker: Caller) -> None:
        for entry in [e for e in self.model.evicted if e[0] == worker.ordinal]:
            del self.model.evicted[entry]

    @event(3, when=lambda self: len(self.workers) > 1, who=NUMBER, which=NUMBER, wrong=one_of([0, 0, 0, 1]))
    def replicate(self, who: int, which: int, wrong: int) -> None:
        self._step("replicate")
        worker = self._pick(self.workers, who)
        spread = [k for k in self.model.keys.values() if k.copies]
        if not spread:
            return
        k = self._pick(spread, which)
        self._bring(worker, k.name, next(iter(k.copies.values())) + wrong)
        self._settle()

    def _bring(self, worker: Caller, name: str, attempt: int) -> None:
        """A worker says that it has a copy; if it was a move, the sender's goes."""
        plan = self.world.record(name).get(f"c:{worker.ordinal}", "")
        self.model.add_copy(name, attempt, worker.ordinal, int(plan.partition(" ")[2] or 0))
        worker.do(C.add_replicas([C.Replica(name, attempt)]))

    @event(2, who=NUMBER, which=NUMBER, count=one_of([1, 2, 2, 3]))
    def want_copies(self, who: int, which: int, count: int) -> None:
        self._step("want copies")
        name = self._pick(TASKS + DATA, which)
        self.model.want_copies(name, count)
        self._pick(self.clients, who).do(K.replicate([name], count))
        self._settle()

    @event(
        2, when=lambda self: len(self.workers) > 1, who=NUMBER, sender=NUMBER, receiver=NUMBER, which=NUMBER
    )
    def move(self, who: int, sender: int, receiver: int, which: int) -> None:
        self._step("move")
        to = self._pick(self.workers, receiver).ordinal
        name = self._pick(TASKS + DATA, which)
        self._pick(self.clients, who).do(K.move([(name, self._pick(self.workers, sender).ordinal, to)]))
        self._settle()

    @event(4, when=lambda self: self.workers, who=NUMBER, how=several(1, 4))
    def obey(self, who: int, how: list[int]) -> None:
        """A worker makes the copies that it was asked for, cannot, or never does."""
        self._step("obey")
        worker = self._pick(self.workers, who)
        orders = []
        for data in self.world.command("LPOP", f"inbox:{worker.ordinal}", 100) or ():
            op, *rest = msgpack.unpackb(data)
            orders += K.parse_order(rest) if op == "copy" else []
        for i, order in enumerate(orders):
            kind = how[i % len(how)] % 4
            if kind < 2:
                self._bring(worker, order.name, order.attempt)
            elif kind == 2:
                worker.do(K.not_copied([order.name]))
            self._settle()

    @event(2, when=lambda self: self.workers, who=NUMBER, which=NUMBER, wrong=one_of([0, 0, 0, 1]))
    def drop_surplus(self, who: int, which: int, wrong: int) -> None:
        self._step("drop surplus")
        worker = self._pick(self.workers, who)
        mine = [k for k in self.model.keys.values() if worker.ordinal in k.copies]
        if not mine:
            return
        k = self._pick(mine, which)
        copy = (k.name, k.copies[worker.ordinal] + wrong)
        goes = self.model.is_surplus(k, worker.ordinal) and not wrong
        if goes:
            del k.copies[worker.ordinal]
        reply = worker.do(K.drop_surplus([copy]))
        if not self.racing:
            assert K.parse_surplus(reply, [copy]) == [copy] * goes
        self._settle()

    @event(when=lambda self: self.workers, who=NUMBER, which=NUMBER)
    def remove_replica(self, who: int, which: int) -> None:
        self._step("remove replica")
        worker = self._pick(self.workers, who)
        mine = [k for k in self.model.keys.values() if worker.ordinal in k.copies]
        if not mine:
            return
        k = self._pick(mine, which)
        attempt = k.copies[worker.ordinal]
        self.model.lose_copy(k, worker.ordinal)
        worker.do(C.remove_replicas([(k.name, attempt)]))
        self._settle()

    # --- life and death ---------------------------------------------------------------------------------------------

    @event(1, who=NUMBER)
    def heartbeat(self, who: int) -> None:
        self._step("heartbeat")
        caller = self._pick(self.clients + self.workers, who)
        self._beat(caller)
        if caller.kind == "client":
            caller.generation = self.model.generation
        self._settle()

    def _beat(self, caller: Caller) -> None:
        self.world.tick()
        if caller.kind == "worker":
            files = sum(caller.ordinal in k.copies for k in self.model.keys.values())
            beat = R.parse_heartbeat(caller.do(C.worker_heartbeat(files, caller.n)))
        else:
            counts = [k.refs[caller.ordinal] for k in self.model.keys.values() if caller.ordinal in k.refs]
            beat = R.parse_heartbeat(caller.do(C.client_heartbeat(len(counts), sum(counts), 0, caller.n)))
        assert beat.generation == self.model.generation
        assert beat.n == caller.n
        if not self.racing:
            assert beat.agree, (caller, beat)

    @event(when=lambda self: len(self.clients) > 1, who=NUMBER, closed=one_of([False, True]))
    def lose_client(self, who: int, closed: bool) -> None:
        self._step("lose client")
        client = self._pick(self.clients, who)
        self._remove(client, self.clients)
        self.outbox[client.ordinal].clear()
        self.model.gone_client(client.ordinal)
        for token, name in [pair for pair in self.handed if self.readers.get(pair[0]) == client.ordinal]:
            self.handed.remove((token, name))  # what it read goes with it
            if name in self.model.keys:
                self.model.keys[name].tokens.discard(token)
        if closed:
            client.do(C.close())
        else:
            self.world.expire(client, self.clients[0])
        self._settle()

    @event(2, when=lambda self: len(self.clients) < 3)
    def new_client(self) -> None:
        self._step("new client")
        self.add_client()
        self._settle()

    @event(1, who=NUMBER, really=one_of(range(8)))
    def restart(self, who: int, really: int) -> None:
        if really:
            return
        self._step("restart")
        client = self._pick(self.clients, who)
        self._flush(client, 100)
        self.model.restart()
        client.do(C.restart())
        client.generation = self.model.generation
        self.handed.clear()
        self._settle()


@rule(r=st.randoms(use_true_random=True))
def act(self: Machine, r: random.Random) -> None:
    """One event. Its generator is drawn as a seed: hypothesis would draw the same few events again and again."""
    kind = r.choice(CHOICES)
    when, arguments = EVENTS[kind]
    if when is None or when(self):
        values = {name: draw(r) for name, draw in arguments.items()}
        note(f"  {kind}({', '.join(f'{name}={value}' for name, value in values.items())})")
        getattr(self, kind)(**values)


Machine.act = act  # type: ignore[attr-defined]


def machine(server: Any, slice_: int = 0, racing: bool = False) -> type[Machine]:
    """Return a machine that runs on a server."""
    return type("Machine", (Machine,), {"server": server, "slice": slice_, "racing": racing})


def run(
    server: Any,
    wanted: int,
    seed_: int,
    *,
    slice_: int = 0,
    length: int = 100,
    racing: bool = False,
    shrink: bool = True,
) -> int:
    """Run machines until at least `wanted` steps were made; returns how many."""
    begun = steps
    while steps - begun < wanted:
        made = machine(server, slice_ if slice_ >= 0 else (2, 0)[seed_ % 2], racing)
        seed(seed_)(made)
        examples = max(10, min(200, (wanted - (steps - begun)) // length))
        run_state_machine_as_test(
            made,
            settings=settings(
                max_examples=examples,
                stateful_step_count=length,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
                verbosity=Verbosity.normal,
                print_blob=False,
                report_multiple_bugs=False,
            ),
            _min_steps=length * 3 // 4,  # hypothesis would end most of them early, with hardly anything there
        )
        seed_ += 1
    return steps - begun


def main() -> None:
    import servers

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--server", choices=["valkey", "redis7"], default="valkey")
    parser.add_argument(
        "--slice",
        type=int,
        default=0,
        help="items of a slice of long work; 0: the true 200, -1: 2 and 200 in turn",
    )
    parser.add_argument("--length", type=int, default=100, help="steps of one namespace")
    parser.add_argument("--racing", action="store_true")
    parser.add_argument(
        "--no-shrink", action="store_true", help="report the first failing sequence as it is, at once"
    )
    options = parser.parse_args()
    begun = time.monotonic()
    small = {"set-max-listpack-entries": 0, "hash-max-listpack-entries": 0} if options.slice == 2 else {}
    with servers.running(options.server, **({"settings": small} if small else {})) as server:
        made = run(
            server,
            options.steps,
            options.seed,
            slice_=options.slice,
            length=options.length,
            racing=options.racing,
            shrink=not options.no_shrink,
        )
    print(
        f"seed {options.seed}, {made} steps on {options.server} in {time.monotonic() - begun:.0f} s: no difference"
    )
    for kind, count in kinds.most_common():
        print(f"  {count:7} {kind}")


if __name__ == "__main__":
    main()
