"""Every invariant notices what breaks it: a healthy namespace, and for each rule a few commands that break it."""

from __future__ import annotations

import ast
import inspect
import shlex
import sys
from collections.abc import Iterator, Sequence
from types import FrameType, ModuleType
from typing import Any, NamedTuple

import pytest

import servers
from redist.diagnostics import (
    invariants,
    invariants_of_callers,
    invariants_of_coordination,
    invariants_of_copies,
)
from redist.diagnostics.invariants import Violation, check
from redist.store import calls as C
from redist.store import coordination as K
from redist.store import replies as R
from store.kit import World

ALWAYS, SETTLED, CLOSED = {}, {"quiescent": True}, {"closed": True}
F = [("f", b"FUNCTION")]
GPU = [C.EligibilityClass(f"gpu{count}", "", f"GPU={count}") for count in (1, 2)]


class Row(NamedTuple):
    """Commands that break a rule, each with a key of the namespace after its name, and what must be reported."""

    commands: str
    rule: str
    subject: str
    message: str
    when: dict[str, bool] = ALWAYS


# In `healthy` the client ada is 1, the session bob 2, the worker 3, its busy executor 4 and its idle one 5.
TABLE = [
    # form
    Row("SET nonsense 1", "schema", "nonsense", "not a key"),
    Row("SET data:nobody 1", "orphan", "data:nobody", "no record"),
    Row("SADD holds:9 inline", "orphan", "holds:9", "no caller"),
    Row("HINCRBY meta keys 1", "count", "meta", "keys, there are"),
    Row("HSET key:inline state nonsense", "state", "inline", "has the state 'nonsense'"),
    Row("HSET key:inline colour red", "field", "inline", "has the field 'colour'"),
    Row("HSET key:inline since 1", "field", "inline", "has the field 'since'"),
    Row("HSET key:inline nbytes many", "field", "inline", "has nbytes='many'"),
    Row("HSET key:long pins 0", "field", "long", "an empty pins"),
    Row("HSET key:long state forgetting", "forgetting", "long", "is wanted"),
    Row("HDEL key:inline data", "value", "inline", "without a value"),
    Row("HDEL key:inline nbytes", "value", "inline", "without a size"),
    Row("HSET key:bad w:3 1", "value", "bad", "has copies: ['w:3']"),
    Row("DEL data:long", "value", "long", "does not fit"),
    Row("DEL error:bad", "error", "bad", "error stored: False"),
    Row("HDEL key:later missing", "stuck", "later", "waits for nothing"),
    Row("HSET key:queued missing 1", "stuck", "queued", "misses dependencies"),
    Row("HSET key:running reviving 1", "state", "running", "being revived"),
    Row("HDEL key:later fn", "state", "later", "without a function"),
    # who wants what
    Row("HSET key:inline refs:h 2", "handoffs", "inline", "refs:h=2, but 1"),
    Row("HDEL key:inline refs:h", "handoffs", "inline", "without refs:h"),
    Row("SREM holds:1 inline", "references", "inline", "not in holds:1"),
    Row("HSET key:inline refs:9 1", "references", "inline", "a caller that is not known"),
    Row("SADD holds:2 inline", "references", "inline", "is in holds:2 without"),
    Row("HSET caller:1 sum 99", "sum", "caller:1", "says 99"),
    Row("HSET datasets other 2", "datasets", "@other@2", "without a record"),
    Row("HDEL datasets market", "datasets", "@market@1", "and is not"),
    Row("HDEL has:3 segment", "replicas", "segment", "has:3 says None"),
    Row("HSET has:3 inline 7", "replicas", "inline", "is in has:3 as 7"),
    Row("HSET key:inline pins 2", "pins", "inline", "pins=2, but 1"),
    Row("SADD containers:inline '9 box'", "pins", "inline", "is not in contains:9 box"),
    Row("SREM containers:inline '0 @market@1'", "pins", "inline", "does not name"),
    # copies that are wanted, and what counts for quotas
    Row("ZADD short 0 segment", "copies", "segment", "is in short, and its record does not"),
    Row("HSET key:segment tries 1", "copies", "segment", "is not in short"),
    Row("HSET key:segment c:3 1", "copies", "segment", "is to be copied (['c:3'])"),
    Row("HSET key:segment copies 2", "copies", "segment", "has too few copies", SETTLED),
    Row("HSET key:segment counted 5", "quota", "segment", "is counted or not"),
    Row("HSET key:segment counted 5 owner 1", "quota", "segment", "is counted with another size than it has"),
    Row("ZADD sizes:1 5 segment", "quota", "sizes:1", "it should be {}"),
    Row("ZADD bytes 5 1", "quota", "bytes", "it should be {}"),
    Row("HSET meta bytes 5", "quota", "meta", "says bytes=5, they are 0"),
    # dependencies
    Row("SADD dependents:inline second", "edges", "second", "does not depend on"),
    Row("HSET key:inline needed 9", "edges", "inline", "needed=9, but 3"),
    Row("HSET key:later missing 2", "edges", "later", "missing=2, but it waits for 1"),
    Row("SADD waiters:inline queued", "edges", "inline", "two sets"),
    Row("HDEL key:inline fan", "edges", "inline", "no mark"),
    Row("SADD deps:long inline", "edges", "long", "deps=None"),
    Row("DEL deps:later", "edges", "later", "deps:later is None", SETTLED),
    Row("SADD deps:later nobody", "edges", "later", "'nobody', which is not known"),
    Row("SREM users:inline later", "edges", "later", "no set of its dependency"),
    Row("SMOVE users:inline dependents:inline later", "edges", "later", "takes it for finished"),
    Row("SMOVE dependents:inline users:inline bad", "edges", "bad", "still in users:inline", SETTLED),
    Row("SMOVE users:inline waiters:inline later", "edges", "later", "in waiters of 'inline'", SETTLED),
    # when all work is done
    Row("RPUSH work 'forget nobody'", "work", "work", "not empty", SETTLED),
    Row("RPUSH deferred 'forget nobody'", "work", "deferred", "not empty", SETTLED),
    Row("HSET meta wiping 1", "work", "meta", "a restart", SETTLED),
    Row("SADD stale:1 inline", "work", "stale:1", "left of a registration", SETTLED),
    Row("SADD 'contains:9 box' inline", "pins", "box", "anything as 9", SETTLED),
    Row("DEL error:bad", "error", "after bad", "whose error is not known", SETTLED),
    Row("HSET key:later reviving 1", "work", "later", "half done", SETTLED),
    Row("HSET key:later linking 2 missing 2", "work", "later", "nobody tells of", SETTLED),
    Row("HSET meta forgetting 1", "count", "meta", "1 are forgotten, not 0"),
    Row("HSET key:segment w:9 1", "replicas", "segment", "on worker 9, which is gone", SETTLED),
    Row("HSET key:inline state released", "memory", "inline", "nothing computes it", SETTLED),
    Row("HDEL key:long refs:1", "memory", "long", "is memory and nothing wants it", SETTLED),
    Row(
        "HDEL key:fired refs:0 refs:1; SADD dependents:fired second",
        "memory",
        "fired",
        "is waiting, and nothing wants its value",
        SETTLED,
    ),
    Row("HSET key:first state memory w:3 2", "memory", "first", "stays in memory", SETTLED),
    # when everybody has left
    Row("ZADD idle 1 9", "closed", "idle", "is left", CLOSED),
    Row("RPUSH queue:0 '7 1 inline'; ZADD queues 0 0", "queues", "0", "a void entry of 'inline'", CLOSED),
    Row("SADD holds:0 inline", "closed", "holds:0", "is left", CLOSED),
    Row("DEL datasets", "closed", "keys", "are left", CLOSED),
    # who may run what
    Row("ZREM queues 0:gpu2", "queues", "0:gpu2", "queues has it with None"),
    Row("HSET key:queued state 'queued 2'", "queues", "queued", "the entry is None"),
    Row("HSET key:running state 'processing e9.1'", "processing", "running", "executor 9 is not there"),
    Row("DEL batches:4", "processing", "running", "not in batches:4"),
    Row("ZADD idle 0 5", "idle", "executor 5", "0.0 threads"),
    Row("ZADD idle 1 9", "idle", "executor 9", "is idle"),
    Row("HSET caller:5 paused 1", "idle", "executor 5", "is idle"),
    Row("HSET caller:5 claim:77 GPU=1", "resources", "executor 5", "a batch that is over"),
    Row("HSET caller:3 free:GPU 2", "resources", "worker 3", "GPU: 2.0 free, 1.0 taken"),
    Row("HINCRBY fns f 1", "functions", "f", "times, used"),
    Row("SET fn:g 1", "functions", "g", "without a user"),
    Row("DEL class:gpu2", "functions", "queued", "nobody may run it"),
    # who lives
    Row("HSET caller:1 inc ''", "callers", "client 1", "has the record"),
    Row("ZREM leases 1", "callers", "client 1", "no lease"),
    Row("HSET caller:5 worker 9", "callers", "executor 5", "no worker: 9"),
    Row("SREM executors:3 5", "callers", "executor 5", "not in its worker's set"),
    Row("HDEL caller:2 kind", "callers", "2", "half a record"),
    Row("HDEL clients 2", "callers", "2", "is not registered"),
    Row("ZADD leases 1 9", "callers", "9", "has a lease"),
    Row("SADD executors:3 9", "callers", "executor 9", "in executors:3 and not registered", SETTLED),
    Row("HSET hosts 9 here", "callers", "9", "is no worker"),
    Row("HSET named carl 9", "callers", "carl", "a named session of 9"),
    # what callers coordinate by
    Row("HSET asks:1 z nonsense", "asks", "1 z", "of the kind 'nonsense'"),
    Row("ZREM lock:x '2 b'", "asks", "2 b", "does not stand in lock:x"),
    Row("ZADD lock:x 99 '1 z'", "asks", "lock:x", "did not ask for it"),
    Row("HSET asks:9 a 'done '", "asks", "9 a", "of a caller that is gone", SETTLED),
    Row("HSET asks:2 b 'line 2\nx'", "locks", "2 b", "misses 2 of ['x'], and is behind in 1"),
    Row("HDEL limits 'lock x'", "limits", "lock x", "its bound is not known"),
    Row("HSET limits 'lock nobody' 1", "limits", "lock nobody", "is not in use"),
    Row("HDEL asks:1 'open lock s'", "limits", "lock s", "was opened by 1, which does not say so"),
    Row("ZADD 'waits:get jobs' 1 '2 z'", "queues of items", "jobs", "somebody waits for them"),
    Row("HSET variables best 99", "values", "@@variable@best@99", "has no record"),
    Row("HDEL variables best", "values", "@@variable@best@1", "belongs to nothing"),
]


def healthy(world: World) -> None:
    """Somebody of every kind, and a key in every state and of every way to be wanted."""
    ada, bob = world.client("ada"), world.client("bob", named=True)
    worker = world.worker("w", address="tcp://h:1", host="h", memory="here", resources="GPU=2")
    x = world.executor(worker)
    ((attempt, _),) = R.parse_place(ada.ok(C.place(1, 10_000)))
    values = [
        C.Value("segment", 1, attempt, worker.ordinal, 10_000, "int"),
        C.Value("inline", 1, 0, 0, 1, "int", b"v"),
        C.Value("long", 1, 0, 0, 300, "bytes", b"v" * 300),
        C.Value("box", 1, 0, 0, 1, "list", b"v", False, ("segment",)),
    ]
    ada.ok(C.commit(values))
    ada.ok(C.publish("market", b"value", ["inline"]))
    ada.ok(C.handoff([("token", "inline")]))
    ada.ok(K.set_variable("best", b"value"))
    ada.ok(K.acquire("a", ["x"]))
    bob.ok(K.acquire("b", ["x"]))
    ada.ok(K.acquire("s", ["s"], leases=2, how=K.MAY_OPEN))
    ada.ok(K.put("p", "jobs", b"item"))
    bob.ok(K.await_event("e", "ready"))
    bob.ok(K.hark("t", "news"))

    def finished(name: str, *deps: str, **result: Any) -> None:
        ada.ok(C.submit([C.Task(name, "f", b"spec", deps)], F))
        x.listen_up()
        (got,) = x.tasks
        x.turn([C.Result(name, got.attempt, **result)])

    finished("first", "segment", status="memory", nbytes=10_000, type="int")
    finished("second", "first", status="memory", nbytes=10_000, type="int")
    ada.ok(C.ledger([("first", 0)]))
    finished("bad", "inline", status="erred", type="ValueError", value=b"E")
    tasks = [
        C.Task("after bad", "f", b"spec", ["bad"]),
        C.Task("running", "f", b"spec", ["inline"], cls="gpu1"),
        C.Task("queued", "f", b"spec", ["inline"], cls="gpu2"),
        C.Task("later", "f", b"spec", ["running", "inline"]),
        C.Task("fired", "f", b"spec", ["later"]),
    ]
    for task in tasks:  # one by one: the executor is given the one that it may run
        ada.ok(C.submit([task], F, [cls for cls in GPU if cls.hash == task.cls]))
    ada.ok(C.fire(["fired"]))
    world.executor(worker)
    assert {world.state(task.name) for task in tasks} == {"erred", "processing", "queued", "waiting"}
    assert world.state("first") == "released"


def deserted(world: World) -> None:
    """Everybody has left; a dataset is published."""
    ada = world.client("ada")
    ada.ok(C.commit([C.Value("inline", 1, 0, 0, 1, "int", b"v")]))
    ada.ok(C.publish("market", b"value", ["inline"]))
    ada.ok(C.close())


class Worlds:
    """The two namespaces; what a row broke is mended before the next."""

    def __init__(self, full: World, left: World) -> None:
        self.full, self.left = full, left
        healthy(full)
        deserted(left)

    def broken(self, row: Row) -> list[Violation]:
        world = self.left if row.when is CLOSED else self.full
        commands = [shlex.split(command) for command in row.commands.split(";")]
        keys = [key for words in commands for key in words[1 : 3 if words[0] == "SMOVE" else 2]]
        before = [world.command("DUMP", key) for key in keys]
        try:
            for words in commands:
                move = [world.key(words[2])] if words[0] == "SMOVE" else []
                assert world.command(*words[:2], *move, *words[2 + len(move) :]) is not None
            return check(world.snapshot(), **row.when)
        finally:
            for key, dump in zip(keys, before):
                world.command("DEL", key)
                if dump is not None:
                    world.command("RESTORE", key, 0, dump)


@pytest.fixture(scope="module")
def worlds() -> Iterator[Worlds]:
    stores = [servers.FakeStore(servers.fresh_namespace()) for _ in range(2)]
    yield Worlds(*(World(store, checking=False, repeating=False) for store in stores))
    for store in stores:
        store.close()


def test_what_is_healthy_breaks_nothing(worlds: Worlds) -> None:
    assert check(worlds.full.snapshot()) == []
    assert check(worlds.full.snapshot(), **SETTLED) == []
    assert check(worlds.left.snapshot(), **CLOSED) == []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.rule}-{row.message}".replace(" ", "-"))
def test_what_breaks_a_rule_is_found(worlds: Worlds, row: Row) -> None:
    found = worlds.broken(row)
    hits = [v for v in found if (v.rule, v.subject) == (row.rule, row.subject) and row.message in v.message]
    assert hits, found
    assert all(row.message in str(v) for v in hits)


def test_while_a_restart_is_carried_out_counts_may_be_half_gone(worlds: Worlds) -> None:
    rows = [row for row in TABLE if row.rule in ("handoffs", "sum", "datasets")]
    for row in rows:
        found = worlds.broken(row._replace(commands=f"{row.commands};HSET meta wiping 1"))
        assert row.rule not in {violation.rule for violation in found}


def test_every_rule_is_in_the_table(worlds: Worlds) -> None:
    modules = (invariants, invariants_of_callers, invariants_of_coordination, invariants_of_copies)
    said: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in {module.__file__ for module in modules}:
            return None
        said.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        for row in TABLE:
            worlds.broken(row)
    finally:
        sys.settrace(before)
    assert [line for module in modules for line in yields(module) if not said.issuperset([line])] == []


def yields(module: ModuleType) -> Sequence[tuple[str, int]]:
    """Return file and line of each `yield Violation`."""
    nodes = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Yield)]
    lines = [
        node.lineno
        for node in nodes
        if isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "Violation"
    ]
    assert len(lines) >= 10
    return [(module.__file__ or "", line) for line in lines]
