"""The invariants of callers: who lives, who may run what, and which functions they brought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from redist.diagnostics.namespace import Namespace, Violation
from redist.diagnostics.reading import Fields

__all__ = ["callers", "functions", "hand_outs"]


def hand_outs(space: Namespace, settled: bool) -> Iterator[Violation]:
    """Check that queued tasks are in their queue, and processing ones with an executor that lives."""
    queues = space.read.zrange("queues")
    entries = {}
    for suffix in space.keys["queue:"]:
        if queues.get(suffix) != -float(suffix.partition("@")[0].partition(":")[0]):
            yield Violation("queues", suffix, f"is not empty, and queues has it with {queues.get(suffix)}")
        for item in space.read.lrange(f"queue:{suffix}"):
            number, _, name = item.split(" ", 2)
            entries[number] = (suffix, name)
    batches = {x: space.read.hgetall(f"batches:{x}") for x in space.keys["batches:"]}
    assigned = {
        (x, int(batch) + i): name
        for x, by_number in batches.items()
        for batch, names in by_number.items()
        for i, name in enumerate(names.split("\n"))
    }
    for name, h in space.known.items():
        kind, _, detail = h.get("state", "").partition(" ")
        if kind == "queued":
            suffix = (
                h.get("prio", "0")
                + (f":{h['class']}" if h.get("class") else "")
                + (f"@{h['home']}" if h.get("home") else "")
            )
            if entries.get(detail) != (suffix, name):
                yield Violation("queues", name, f"is {h['state']}, the entry is {entries.get(detail)}")
        elif kind == "processing":
            x, _, attempt = detail[1:].partition(".")
            if x not in space.living["executor"] and (settled or x not in space.caller):
                yield Violation("processing", name, f"is {h['state']}, and executor {x} is not there")
            if assigned.get((x, int(attempt))) != name:
                yield Violation("processing", name, f"is {h['state']}, which is not in batches:{x}")
    for x, free in space.read.zrange("idle").items():
        if x not in space.living["executor"] or free <= 0 or "paused" in space.caller.get(x, {}):
            yield Violation("idle", f"executor {x}", f"is idle with {free} threads: {space.caller.get(x)}")
    yield from _resources(space, batches)


def _resources(space: Namespace, batches: dict[str, Fields]) -> Iterator[Violation]:
    taken: Counter[tuple[str, str]] = Counter()
    for x in space.living["executor"]:
        c = space.caller.get(x, {})
        for field, claim in c.items():
            if field.startswith("claim:"):
                if field[6:] not in batches.get(x, {}):
                    yield Violation(
                        "resources", f"executor {x}", f"claims {claim} for a batch that is over: {field}"
                    )
                for resource, amount in _amounts(claim):
                    taken[c.get("worker", ""), resource] += amount  # type: ignore[assignment]
    for w in space.living["worker"]:
        c = space.caller.get(w, {})
        for resource, amount in _amounts(c.get("resources", "")):
            free = float(c.get(f"free:{resource}", "nan"))
            if abs(free + taken[w, resource] - amount) > 1e-6:
                yield Violation(
                    "resources", f"worker {w}", f"{resource}: {free} free, {taken[w, resource]} taken"
                )


def functions(space: Namespace) -> Iterator[Violation]:
    """Check that functions and classes are counted by the callers that brought them and the specs that name them."""
    uses: Counter[str] = Counter()
    for hashes in space.sets("functions").values():
        uses.update(hashes)
    for h in space.known.values():
        state = h.get("state", "")
        if state == "forgetting":
            continue
        if "fn" in h:
            uses[h["fn"]] += 1
        if "class" in h:
            uses[h["class"]] += 1
    counted = {hash_: int(count) for hash_, count in space.read.hgetall("fns").items()}
    for hash_ in counted.keys() | uses.keys():
        if counted.get(hash_, 0) != uses[hash_]:
            yield Violation(
                "functions", hash_, f"is counted {counted.get(hash_, 0)} times, used {uses[hash_]} times"
            )
    for hash_ in {*space.keys["fn:"], *space.keys["class:"]} - counted.keys():
        yield Violation("functions", hash_, "is kept without a user")
    for name, h in space.known.items():
        lost = h.get("class") and h.get("state") != "forgetting" and h["class"] not in space.keys["class:"]
        if lost:
            yield Violation(
                "functions", name, f"names the class {h['class']}, which is lost: nobody may run it"
            )


def callers(space: Namespace, settled: bool) -> Iterator[Violation]:
    """Check callers against their kinds, leases and workers."""
    leases = space.read.zrange("leases")
    for kind, ordinals in space.living.items():
        for ordinal in ordinals:
            c = space.caller.get(ordinal, {})
            if c.get("kind") != kind or not c.get("inc"):
                yield Violation("callers", f"{kind} {ordinal}", f"has the record {c}")
            if kind != "executor" and ordinal not in leases:
                yield Violation("callers", f"{kind} {ordinal}", "has no lease")
            if kind == "executor" and c.get("worker", "") not in space.living["worker"]:
                yield Violation("callers", f"executor {ordinal}", f"has no worker: {c.get('worker')}")
            if kind == "executor" and ordinal not in space.read.smembers(f"executors:{c.get('worker')}"):
                yield Violation("callers", f"executor {ordinal}", "is not in its worker's set")
    for ordinal, c in space.caller.items():
        alive = ordinal in space.living.get(c.get("kind", ""), {})
        if not c.get("kind"):
            yield Violation("callers", ordinal, f"is only half a record: {c}")
        elif not alive and (c.get("inc") or settled):
            yield Violation("callers", ordinal, f"is not registered, and has the record {c}")
    for ordinal in leases:
        if ordinal not in space.living["client"] and ordinal not in space.living["worker"]:
            yield Violation("callers", ordinal, "has a lease and is not registered")
    for worker in space.keys["executors:"] if settled else ():
        for x in space.read.smembers(f"executors:{worker}") - space.living["executor"].keys():
            yield Violation("callers", f"executor {x}", f"is in executors:{worker} and not registered")
    for ordinal in space.read.hgetall("hosts").keys() - space.living["worker"].keys():
        yield Violation("callers", ordinal, "has a host and is no worker")
    for name, ordinal in space.read.hgetall("named").items():
        if space.living["client"].get(ordinal) != name:
            yield Violation("callers", name, f"is a named session of {ordinal}, which is not there")


def _amounts(text: str) -> Iterator[tuple[str, float]]:
    for item in filter(None, text.split(",")):
        resource, _, amount = item.partition("=")
        yield resource, float(amount)
