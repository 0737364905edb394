"""A namespace with callers in it, driven call by call: what the script tests and the model test share."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgpack

from redist.diagnostics.invariants import check
from redist.diagnostics.reading import Snapshot, kind_of
from redist.store import calls as C
from redist.store import replies as R
from redist.store.scripts import Script

Execute = Callable[[Sequence[tuple[str | int, ...]]], list[Any]]


@cache
def sliced(script: Script, items: int) -> Script:
    """Return the script with slices of `items` instead of 200."""
    text, found = re.subn(r"\blocal SLICE = \d+", f"local SLICE = {items}", script.text)
    assert found == 1
    return Script(script.name, text, f"{script.sha[:-4]}{items:04d}")


@dataclass(slots=True)
class Push:
    """One state as a client is told."""

    state: str
    attempt: int
    nbytes: int
    type: str
    where: str
    value: bytes


class Caller:
    """A client, worker or executor: its lane, and what it was told."""

    def __init__(self, world: World, kind: str, name: str, **options: Any) -> None:
        self.world, self.kind, self.name, self.options = world, kind, name, options
        self.ordinal = 0
        self.generation = 0
        self.capacity = 1
        self.told: dict[str, Push] = {}
        self.tasks: list[R.HandOut] = []
        self.evicted: list[tuple[str, int]] = []
        self.numbers: list[int] = []
        self.subscription: Any = None
        self.register()

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} {self.ordinal}>"

    def register(self, **more: Any) -> R.Registered:
        self.incarnation = os.urandom(8).hex()
        self.n = 0
        options = {"ordinal": self.ordinal, **self.options, **more}
        reply = self.send(C.register(self.kind, self.name, **options))
        assert reply[0] == b"OK", reply
        before = self.ordinal
        registered = R.parse_register(reply)
        self.ordinal, self.generation = registered.ordinal, registered.generation
        if self.ordinal != before and self.world.listening:
            self.listen()
        return registered

    def listen(self) -> None:
        self.deaf()
        self.subscription = self.world.store.subscribe(f"to:{self.ordinal}", f"evict:{self.ordinal}")

    def deaf(self) -> None:
        """Listen no more, as a client whose process died."""
        wire = getattr(self.subscription, "wire", None)
        if wire is not None:
            wire.close()
        elif self.subscription is not None:
            self.subscription._pubsub.close()
        self.subscription = None

    def send(self, call: C.Call, n: int | None = None, generation: int | None = None) -> list[Any]:
        """Send a call under a number, without any of what `do` checks."""
        n = self.n if n is None else n
        generation = self.generation if generation is None else generation
        header = C.Header(
            self.world.store.prefix, self.ordinal, self.incarnation, generation, n, max(0, n - 1)
        )
        if self.world.slice:
            call = C.Call(
                sliced(call.script, self.world.slice), call.body, call.numbered, call.grows, call.ageless
            )
        reply: list[Any] = self.world.store.run(call, header)
        return reply

    def do(self, call: C.Call, *, generation: int | None = None) -> list[Any]:
        """Send the next call of the lane; repeat it, which must change nothing; check the invariants."""
        if call.numbered:
            self.n += 1
        reply = self.send(call, generation=generation)
        if reply[0] == b"WAIT":
            self.n -= 1
            return reply
        world = self.world
        if call.numbered and world.repeating and call.script.name != "close":
            before = world.dump()
            again = self.send(call, generation=generation)
            # What was refused is refused again, also where the first answer was lost.
            expected = {b"NO": (b"NO",), b"OLD": (b"OLD", b"REPEAT")}.get(reply[0], (b"REPEAT",))
            assert again[0] in expected, (call.script.name, reply, again)
            after = world.dump()
            assert before == after, (
                call.script.name,
                {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)},
            )
        if world.checking:
            world.check(quiescent=False)
        return reply

    def ok(self, call: C.Call) -> list[Any]:
        """Do a call that must be applied, and all the work that it leaves."""
        reply = self.do(call)
        assert reply[0] == b"OK", (call.script.name, reply)
        if reply[1]:
            self.world.drain()
        return reply

    def turn(
        self,
        results: Sequence[C.Result] = (),
        *,
        want: int = 1,
        quick: Sequence[str] = (),
        batches: Sequence[int] = (),
    ) -> list[R.HandOut]:
        """Make a turn as an executor that ends the batches of its results; returns what it got."""
        self.listen_up()
        ended = {task.attempt: task for task in self.tasks}
        for result in results:
            task = ended.get(result.attempt)
            if task is not None:
                self.tasks.remove(task)
        left = {task.batch for task in self.tasks}
        over = {ended[r.attempt].batch for r in results if r.attempt in ended} - left
        call = C.turn(self.capacity, want, quick, sorted({*over, *batches}), results)
        reply = self.do(call)
        assert reply[0] == b"OK", reply
        got = R.parse_turn(reply)
        self.tasks += got.tasks
        if got.more and self.world.draining:
            self.world.drain()
        return got.tasks

    def listen_up(self) -> list[Any]:
        """Take in what was published for this caller; returns the messages."""
        messages = []
        for channel, data in self.subscription.messages() if self.subscription else ():
            message = msgpack.unpackb(data, raw=True, strict_map_key=False)
            messages.append(message)
            if channel.startswith("evict:"):
                self.evicted += [(name.decode(), int(a)) for name, a in zip(message[::2], message[1::2])]
            elif message[0] == b"s":
                self.numbers.append(int(message[1]))
                for s in R.parse_push(message, 3):
                    self.told[s.name] = Push(s.state, s.attempt, s.nbytes, s.type, s.where, s.value)
            elif message[0] == b"t":
                self.tasks += R.parse_tasks(message, 2)
        return messages


class World:
    """A namespace of a store, and everybody in it.

    Parameters
    ----------
    store : servers.Store
        Where it lies.
    slice : int
        Items of a slice, 0 for the true ones.
    """

    def __init__(self, store: Any, *, slice: int = 0, checking: bool = True, repeating: bool = True) -> None:  # noqa: A002
        self.store = store
        self.slice = slice
        self.checking, self.repeating, self.listening, self.draining = checking, repeating, True, True
        self.callers: list[Caller] = []
        self.reader = Caller.__new__(Caller)
        self.reader.world, self.reader.ordinal, self.reader.incarnation = self, 0, "-"
        self.reader.n = self.reader.generation = 0

    def _add(self, kind: str, name: str, **options: Any) -> Caller:
        caller = Caller(self, kind, name, **options)
        self.callers.append(caller)
        return caller

    def client(self, name: str = "", **options: Any) -> Caller:
        return self._add("client", name or f"c{len(self.callers)}", **options)

    def worker(self, name: str = "", **details: str) -> Caller:
        return self._add("worker", name or f"w{len(self.callers)}", details=details)

    def executor(self, worker: Caller, threads: int = 1) -> Caller:
        """Add an executor that has made its first turn."""
        x = self._add("executor", f"x{len(self.callers)}", parent=worker.ordinal)
        x.capacity = threads
        x.ok(C.turn(threads, 0))
        return x

    def drain(self, limit: int = 100_000) -> int:
        """Carry out the work list; returns how many calls it took."""
        for count in range(1, limit):
            reply = self.reader.send(C.continue_())
            assert reply[0] == b"OK", reply
            if self.checking:
                self.check(quiescent=False)
            if not reply[1]:
                return count
        raise AssertionError(f"the work list never ends: {self.lines('work')[:10]}")

    # --- looking ----------------------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        return self.store.prefix + name

    def command(self, *args: Any) -> Any:
        """Run a command, the second word of which is a key without prefix."""
        return self.store.command(args[0], self.key(args[1]), *args[2:])

    def record(self, name: str) -> dict[str, str]:
        return self.record_of(f"key:{name}")

    def record_of(self, key: str) -> dict[str, str]:
        flat = self.command("HGETALL", key)
        pairs = flat.items() if isinstance(flat, dict) else zip(flat[::2], flat[1::2])
        return {f.decode(): v.decode("utf-8", "replace") for f, v in pairs}

    def state(self, name: str) -> str:
        """Return the first word of a key's state, 'gone' for a key that is not known."""
        return self.record(name).get("state", "gone").split(" ")[0]

    def lines(self, name: str) -> list[str]:
        return [item.decode() for item in self.command("LRANGE", name, 0, -1)]

    def exists(self, name: str) -> bool:
        return bool(self.command("EXISTS", name))

    def snapshot(self) -> Snapshot:
        return Snapshot(execute_of(self.store), self.store.prefix)

    def dump(self) -> dict[str, Any]:
        """Return the whole namespace, but for times and what a repeat may renew."""
        found: dict[str, Any] = {}
        snapshot = self.snapshot()
        readers = {
            "hash": snapshot.hgetall, "set": snapshot.smembers, "list": snapshot.lrange, "zset": snapshot.zrange,
            "string": snapshot.get,
        }  # fmt: skip
        for key in snapshot.keys():  # noqa: SIM118
            found[key] = readers[kind_of(key)](key)
        if "handoffs" in found:
            found["handoffs"] = set(found["handoffs"])
        return found

    def check(self, *, quiescent: bool = True, closed: bool = False) -> None:
        """Fail if an invariant is broken."""
        broken = check(self.snapshot(), quiescent=quiescent, closed=closed)
        assert not broken, "\n".join(map(str, broken[:20]))

    def end(self) -> None:
        """Everybody leaves; nothing may be left."""
        self.drain()
        self.check()
        self.repeating = False
        for kind in ("executor", "client", "worker"):
            for caller in self.callers:
                if caller.kind == kind:
                    caller.do(C.close())
        self.drain()
        self.check(closed=True)

    def expire(self, caller: Caller, by: Caller) -> None:
        """Let the lease of `caller` pass, and have `by` sweep."""
        self.command("ZADD", "leases", 1, str(caller.ordinal))
        self.tick()
        beat = C.worker_heartbeat(0, by.n) if by.kind == "worker" else C.client_heartbeat(0, 0, 0, by.n)
        by.do(beat)

    def tick(self) -> None:
        """Nobody was away: the sweep may expire whom it finds."""
        seconds, _ = self.store.command("TIME")
        self.command("HSET", "meta", "swept", int(seconds) * 1000)
        self.command("HDEL", "meta", "quiet_until")


def execute_of(store: Any) -> Execute:
    """Return what sends several commands at once to a store."""
    wire = getattr(store, "wire", None)
    if wire is None:
        return lambda commands: [store.command(*command) for command in commands]

    import hiredis

    def execute(commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        wire.send(
            b"".join(
                hiredis.pack_command(tuple(str(a) if isinstance(a, int) else a for a in c)) for c in commands
            )
        )
        return [wire.read_reply() for _ in commands]

    return execute


def spread(items: Sequence[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Group items."""
    groups: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups
