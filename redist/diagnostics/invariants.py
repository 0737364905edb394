"""The invariants of a namespace's state, as code.

`check` reads everything and says what is broken. It holds after every script, whatever is on the work list; more must hold
once the work list is drained (`quiescent`), and more yet once everybody has left (`closed`).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from redist.diagnostics.reading import KINDS, OF_CALLERS, Fields, Reader

__all__ = ["Violation", "check"]

_STATE = re.compile(r"waiting|queued \d+|processing e\d+\.\d+|memory|erred|released|forgetting")
_FIELD = re.compile(
    r"state|refs:(\d+|d|h)|pins|missing|needed|deps|w:\d+|data|nbytes|type|fn|retries|deaths|class|prio|home|cause|keep|since|"
    r"contains|attempt|lost|fan|reviving|home"
)
_COUNTS = (
    "pins",
    "missing",
    "needed",
    "deps",
    "retries",
    "deaths",
    "reviving",
    "attempt",
    "nbytes",
    "contains",
)
_UNFINISHED = ("waiting", "queued", "processing")
_OF_RECORDS = ("data", "error", "deps", "waiters", "users", "dependents", "containers")


class Violation(NamedTuple):
    """One broken invariant: the rule's name, the key or caller that breaks it, and what was found."""

    rule: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject!r} {self.message}"


def check(read: Reader, *, quiescent: bool = False, closed: bool = False) -> list[Violation]:
    """Return every broken invariant of a namespace.

    Parameters
    ----------
    read : Reader
        What reads the namespace; a `Snapshot`, as a rule.
    quiescent : bool
        No work is left to be done: nothing may be half finished.
    closed : bool
        Everybody has left: nothing may be there but ``meta``, and published datasets with what they pin. Implies
        `quiescent`.

    Returns
    -------
    list of Violation
        Empty when all is well.
    """
    namespace = _Namespace(read)
    settled = quiescent or closed
    found = [
        *namespace.schema(),
        *namespace.records(),
        *namespace.references(),
        *namespace.replicas(),
        *namespace.pins(),
        *namespace.edges(settled),
        *namespace.hand_outs(settled),
        *namespace.functions(),
        *namespace.callers(settled),
        *namespace.datasets(),
    ]
    if settled:
        found += namespace.settled()
    if closed:
        found += namespace.closed()
    return found


class _Namespace:
    """What was read, by kind."""

    def __init__(self, read: Reader) -> None:
        self.read = read
        self.keys: dict[str, list[str]] = defaultdict(list)
        for key in read.keys():  # noqa: SIM118
            family, colon, rest = key.partition(":")
            self.keys[family + colon].append(rest)
        self.known = {name: read.hgetall(f"key:{name}") for name in self.keys["key:"]}
        self.meta = read.hgetall("meta")
        self.caller = {ordinal: read.hgetall(f"caller:{ordinal}") for ordinal in self.keys["caller:"]}
        self.living = {kind: read.hgetall(f"{kind}s") for kind in ("client", "worker", "executor")}
        self.wiping = "wiping" in self.meta
        self.recovering = "recovering" in self.meta

    def sets(self, family: str) -> dict[str, set[str]]:
        """Return the sets of one family by what follows the colon."""
        return {name: self.read.smembers(f"{family}:{name}") for name in self.keys[f"{family}:"]}

    # --- form -----------------------------------------------------------------------------------------------------

    def schema(self) -> Iterator[Violation]:
        """Check that every Redis key belongs to a record, a caller, or is one of the namespace's own."""
        for family in self.keys:
            if family.rstrip(":") not in KINDS:
                yield Violation("schema", family, "is not a key of the schema")
        for family in _OF_RECORDS:
            for name in self.keys[f"{family}:"]:
                if name not in self.known:
                    yield Violation("orphan", f"{family}:{name}", "has no record")
        for family in OF_CALLERS:
            for ordinal in self.keys[f"{family}:"]:
                if ordinal not in self.caller and ordinal not in ("0", "d"):
                    yield Violation("orphan", f"{family}:{ordinal}", "belongs to no caller")

    def records(self) -> Iterator[Violation]:
        """Check that a record's fields are legal and agree with its state."""
        if int(self.meta.get("keys", "0")) != len(self.known):
            yield Violation(
                "count", "meta", f"says {self.meta.get('keys')} keys, there are {len(self.known)}"
            )
        for name, h in self.known.items():
            state = h.get("state", "")
            if not _STATE.fullmatch(state):
                yield Violation("state", name, f"has the state {state!r}")
                continue
            for field, value in h.items():
                if not _FIELD.fullmatch(field):
                    yield Violation("field", name, f"has the field {field!r}")
                elif (field in _COUNTS or field.startswith(("refs:", "w:"))) and not value.isdigit():
                    yield Violation("field", name, f"has {field}={value!r}")
                elif value == "0" and (field in ("pins", "missing", "needed") or field.startswith("refs:")):
                    yield Violation("field", name, f"has an empty {field}")
            if state == "forgetting":
                if _wanted(h):
                    yield Violation("forgetting", name, f"is wanted: {h}")
                continue
            yield from self._value(name, h)

    def _value(self, name: str, h: Fields) -> Iterator[Violation]:
        state = h["state"]
        copies = [field for field in h if field.startswith("w:")]
        if state == "memory":
            if not copies and "data" not in h:
                yield Violation("value", name, "is in memory without a value")
            if "nbytes" not in h:
                yield Violation("value", name, "is in memory without a size")
        elif copies:
            yield Violation("value", name, f"is {state} and has copies: {copies}")
        if (h.get("data") == "") != (self.read.get(f"data:{name}") is not None):
            yield Violation("value", name, f"data is {h.get('data')!r:.40}, and data:{name} does not fit")
        error = self.read.get(f"error:{name}") is not None
        if error != (state == "erred" and "cause" not in h):
            yield Violation("error", name, f"is {state}, cause {h.get('cause')!r}, error stored: {error}")
        if state == "waiting" and "missing" not in h and "reviving" not in h:
            yield Violation("stuck", name, "waits for nothing")
        if state.startswith("queued") and "missing" in h:
            yield Violation("stuck", name, "is queued and misses dependencies")
        if "reviving" in h and state != "waiting":
            yield Violation("state", name, f"is {state} and being revived")
        if state not in ("memory", "released") and not h.get("fn") and "erred" not in state:
            yield Violation("state", name, f"is {state} without a function")

    # --- who wants what -------------------------------------------------------------------------------------------

    def references(self) -> Iterator[Violation]:
        """Check counts against the indices of their holders, and a caller's sum against its counts."""
        sums: Counter[str] = Counter()
        handed = Counter(member.partition(" ")[2] for member in self.read.zrange("handoffs"))
        held, stale = self.sets("holds"), self.sets("stale")
        for name, h in self.known.items():
            for field, value in h.items():
                if not field.startswith("refs:"):
                    continue
                holder = field[5:]
                if holder == "h":
                    if int(value) != handed[name] and not self.wiping:
                        yield Violation("handoffs", name, f"refs:h={value}, but {handed[name]} hand-offs")
                    continue
                sums[holder] += int(value)
                if name not in held.get(holder, ()) and name not in stale.get(holder, ()):
                    yield Violation("references", name, f"{field}={value}, but it is not in holds:{holder}")
                if holder not in ("0", "d") and holder not in self.caller:
                    yield Violation("references", name, f"{field}={value} of a caller that is not known")
        for holder, names in held.items():
            for name in names:
                if f"refs:{holder}" not in self.known.get(name, {}):
                    yield Violation("references", name, f"is in holds:{holder} without refs:{holder}")
        for name in handed:
            if "refs:h" not in self.known.get(name, {}) and not self.wiping:
                yield Violation("handoffs", name, "is handed off without refs:h")
        for ordinal, c in self.caller.items():
            said = int(c.get("sum", "0"))
            if c.get("inc") and said != sums[ordinal] and not self.wiping:
                yield Violation("sum", f"caller:{ordinal}", f"says {said}, its counts sum to {sums[ordinal]}")

    def replicas(self) -> Iterator[Violation]:
        """Check copies against the indices of workers."""
        has = {ordinal: self.read.hgetall(f"has:{ordinal}") for ordinal in self.keys["has:"]}
        for name, h in self.known.items():
            if h.get("state") == "forgetting":
                continue
            for field, attempt in h.items():
                if field.startswith("w:") and has.get(field[2:], {}).get(name) != attempt:
                    said = has.get(field[2:], {}).get(name)
                    yield Violation("replicas", name, f"{field}={attempt}, has:{field[2:]} says {said}")
        for ordinal, names in has.items():
            for name, attempt in names.items():
                h = self.known.get(name, {})
                if h.get(f"w:{ordinal}") != attempt or h.get("state") != "memory":
                    yield Violation(
                        "replicas", name, f"is in has:{ordinal} as {attempt}, the record says {h}"
                    )

    def pins(self) -> Iterator[Violation]:
        """Check pins against the containers of a key and what containers hold."""
        contains, containers = self.sets("contains"), self.sets("containers")
        for name, h in self.known.items():
            ids = containers.get(name, set())
            if int(h.get("pins", "0")) != len(ids):
                yield Violation(
                    "pins", name, f"pins={h.get('pins')}, but {len(ids)} containers: {sorted(ids)}"
                )
            for container in ids:
                if name not in contains.get(container, ()):
                    yield Violation("pins", name, f"is not in contains:{container}")
        for container, names in contains.items():
            for name in names:
                if container not in containers.get(name, ()):
                    yield Violation(
                        "pins", name, f"is in contains:{container}, which containers:{name} does not name"
                    )

    def edges(self, settled: bool) -> Iterator[Violation]:
        """Check that each dependency has each dependent in exactly one set, and the sizes of the sets."""
        deps = self.sets("deps")
        families = {family: self.sets(family) for family in ("waiters", "users", "dependents")}
        missing: Counter[str] = Counter()
        for family, by_name in families.items():
            for d, members in by_name.items():
                for member in members:
                    if family == "waiters":
                        missing[member] += 1
                    if d not in deps.get(member, ()):
                        yield Violation("edges", member, f"is in {family}:{d}, which it does not depend on")
        for name, h in self.known.items():
            where = {family: by_name.get(name, set()) for family, by_name in families.items()}
            needed = len(where["waiters"]) + len(where["users"])
            if int(h.get("needed", "0")) != needed:
                yield Violation(
                    "edges", name, f"needed={h.get('needed')}, but {needed} unfinished dependents"
                )
            if int(h.get("missing", "0")) != missing[name]:
                yield Violation(
                    "edges", name, f"missing={h.get('missing')}, but it waits for {missing[name]}"
                )
            if len(set().union(*where.values())) != sum(map(len, where.values())):
                yield Violation("edges", name, f"has a dependent in two sets: {where}")
            if where["dependents"] and "fan" not in h:
                yield Violation("edges", name, "has known dependents and no mark of it")
            if (
                h["state"] != "forgetting"
                and ("deps" in h) != (name in deps)
                and (settled or "deps" not in h)
            ):
                yield Violation("edges", name, f"deps={h.get('deps')}, but deps:{name} is {deps.get(name)}")
            yield from self._edges_of(name, h, deps.get(name, set()), families, settled)

    def _edges_of(
        self, name: str, h: Fields, deps: set[str], families: dict[str, dict[str, set[str]]], settled: bool
    ) -> Iterator[Violation]:
        unfinished = h["state"].split(" ")[0] in _UNFINISHED
        for d in deps:
            inside = [family for family, by_name in families.items() if name in by_name.get(d, ())]
            if d not in self.known:
                yield Violation("edges", name, f"depends on {d!r}, which is not known")
            elif len(inside) != 1:
                yield Violation("edges", name, f"is in {inside or 'no set'} of its dependency {d!r}")
            elif unfinished and "reviving" not in h and inside == ["dependents"]:
                yield Violation("edges", name, f"is {h['state']}, but {d!r} takes it for finished")
            elif settled and not unfinished and inside != ["dependents"]:
                yield Violation("edges", name, f"is {h['state']}, but still in {inside[0]}:{d}")
            elif settled and inside != ["dependents"]:
                there = self.known[d]["state"] == "memory"
                if there != (inside == ["users"]):
                    yield Violation(
                        "edges", name, f"is in {inside[0]} of {d!r}, which is {self.known[d]['state']}"
                    )

    # --- who runs what --------------------------------------------------------------------------------------------

    def hand_outs(self, settled: bool) -> Iterator[Violation]:
        """Check that queued tasks are in their queue, and processing ones with an executor that lives."""
        queues = self.read.zrange("queues")
        entries = {}
        for suffix in self.keys["queue:"]:
            if queues.get(suffix) != -float(suffix.partition("@")[0].partition(":")[0]):
                yield Violation(
                    "queues", suffix, f"is not empty, and queues has it with {queues.get(suffix)}"
                )
            for item in self.read.lrange(f"queue:{suffix}"):
                number, _, name = item.split(" ", 2)
                entries[number] = (suffix, name)
        batches = {x: self.read.hgetall(f"batches:{x}") for x in self.keys["batches:"]}
        assigned = {
            (x, int(batch) + i): name
            for x, by_number in batches.items()
            for batch, names in by_number.items()
            for i, name in enumerate(names.split("\n"))
        }
        for name, h in self.known.items():
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
                if x not in self.living["executor"] and (settled or x not in self.caller):
                    yield Violation("processing", name, f"is {h['state']}, and executor {x} is not there")
                if assigned.get((x, int(attempt))) != name:
                    yield Violation("processing", name, f"is {h['state']}, which is not in batches:{x}")
        for x, free in self.read.zrange("idle").items():
            if x not in self.living["executor"] or free <= 0 or "paused" in self.caller.get(x, {}):
                yield Violation("idle", f"executor {x}", f"is idle with {free} threads: {self.caller.get(x)}")
        yield from self._resources(batches)

    def _resources(self, batches: dict[str, Fields]) -> Iterator[Violation]:
        taken: Counter[tuple[str, str]] = Counter()
        for x in self.living["executor"]:
            c = self.caller.get(x, {})
            for field, claim in c.items():
                if field.startswith("claim:"):
                    if field[6:] not in batches.get(x, {}):
                        yield Violation(
                            "resources", f"executor {x}", f"claims {claim} for a batch that is over: {field}"
                        )
                    for resource, amount in _amounts(claim):
                        taken[c.get("worker", ""), resource] += amount  # type: ignore[assignment]
        for w in self.living["worker"]:
            c = self.caller.get(w, {})
            for resource, amount in _amounts(c.get("resources", "")):
                free = float(c.get(f"free:{resource}", "nan"))
                if abs(free + taken[w, resource] - amount) > 1e-6:
                    yield Violation(
                        "resources", f"worker {w}", f"{resource}: {free} free, {taken[w, resource]} taken"
                    )

    def functions(self) -> Iterator[Violation]:
        """Check that functions and classes are counted by the callers that brought them and the specs that name them."""
        uses: Counter[str] = Counter()
        for hashes in self.sets("functions").values():
            uses.update(hashes)
        for h in self.known.values():
            state = h.get("state", "")
            if state == "forgetting":
                continue
            if "fn" in h:
                uses[h["fn"]] += 1
            if "class" in h:
                uses[h["class"]] += 1
        counted = {hash_: int(count) for hash_, count in self.read.hgetall("fns").items()}
        for hash_ in counted.keys() | uses.keys():
            if counted.get(hash_, 0) != uses[hash_]:
                yield Violation(
                    "functions", hash_, f"is counted {counted.get(hash_, 0)} times, used {uses[hash_]} times"
                )
        for hash_ in {*self.keys["fn:"], *self.keys["class:"]} - counted.keys():
            yield Violation("functions", hash_, "is kept without a user")

    def callers(self, settled: bool) -> Iterator[Violation]:
        """Check callers against their kinds, leases and workers."""
        leases = self.read.zrange("leases")
        for kind, ordinals in self.living.items():
            for ordinal in ordinals:
                c = self.caller.get(ordinal, {})
                if c.get("kind") != kind or not c.get("inc"):
                    yield Violation("callers", f"{kind} {ordinal}", f"has the record {c}")
                if kind != "executor" and ordinal not in leases:
                    yield Violation("callers", f"{kind} {ordinal}", "has no lease")
                if kind == "executor" and c.get("worker", "") not in self.living["worker"]:
                    yield Violation("callers", f"executor {ordinal}", f"has no worker: {c.get('worker')}")
                if kind == "executor" and ordinal not in self.read.smembers(f"executors:{c.get('worker')}"):
                    yield Violation("callers", f"executor {ordinal}", "is not in its worker's set")
        for ordinal, c in self.caller.items():
            alive = ordinal in self.living.get(c.get("kind", ""), {})
            if not c.get("kind"):
                yield Violation("callers", ordinal, f"is only half a record: {c}")
            elif not alive and (c.get("inc") or settled):
                yield Violation("callers", ordinal, f"is not registered, and has the record {c}")
        for ordinal in leases:
            if ordinal not in self.living["client"] and ordinal not in self.living["worker"]:
                yield Violation("callers", ordinal, "has a lease and is not registered")
        for worker in self.keys["executors:"] if settled else ():
            for x in self.read.smembers(f"executors:{worker}") - self.living["executor"].keys():
                yield Violation("callers", f"executor {x}", f"is in executors:{worker} and not registered")
        for ordinal in self.read.hgetall("hosts").keys() - self.living["worker"].keys():
            yield Violation("callers", ordinal, "has a host and is no worker")
        for name, ordinal in self.read.hgetall("named").items():
            if self.living["client"].get(ordinal) != name:
                yield Violation("callers", name, f"is a named session of {ordinal}, which is not there")

    def datasets(self) -> Iterator[Violation]:
        """Check that each dataset has the record of its version, and holds no other."""
        current = {f"@{name}@{version}" for name, version in self.read.hgetall("datasets").items()}
        for record in current:
            if "refs:d" not in self.known.get(record, {}) and not self.wiping:
                yield Violation("datasets", record, "is published without a record")
        for record in self.read.smembers("holds:d") - current:
            if not self.wiping:
                yield Violation("datasets", record, "is held as published, and is not")

    # --- when all work is done ------------------------------------------------------------------------------------

    def settled(self) -> Iterator[Violation]:
        """Check that nothing is half finished, and the memory rule for every key."""
        for key in ("work", "deferred"):
            items = self.read.lrange(key)
            if items and not (key == "deferred" and self.recovering):
                yield Violation("work", key, f"is not empty: {items[:5]}")
        if self.wiping:
            yield Violation("work", "meta", "says that a restart is being carried out")
        for ordinal in self.keys["stale:"]:
            if not self.recovering:
                yield Violation("work", f"stale:{ordinal}", "is left of a registration")
        for container in self.keys["contains:"]:
            attempt, _, name = container.partition(" ")
            if self.known.get(name, {}).get("contains") != attempt:
                yield Violation(
                    "pins", name, f"does not contain anything as {attempt}, contains:{container} is there"
                )
        for name, h in self.known.items():
            state = h["state"].split(" ")[0]
            if state == "erred" and "cause" in h and self.read.get(f"error:{h['cause']}") is None:
                yield Violation("error", name, f"erred because of {h['cause']!r}, whose error is not known")
            if state == "forgetting" or "reviving" in h:
                yield Violation("work", name, f"is half done: {h}")
            elif not self.recovering:
                yield from self._reason(name, h, state)
            for field in h:
                if field.startswith("w:") and field[2:] not in self.living["worker"]:
                    yield Violation("replicas", name, f"has a copy on worker {field[2:]}, which is gone")

    def _reason(self, name: str, h: Fields, state: str) -> Iterator[Violation]:
        if _wanted(h):
            if state == "released":
                yield Violation("memory", name, "is wanted, and nothing computes it")
            return
        if not self.read.smembers(f"dependents:{name}"):
            yield Violation("memory", name, f"is {state} and nothing wants it")
        elif state in _UNFINISHED:
            yield Violation("memory", name, f"is {state}, and nothing wants its value")
        elif state == "memory" and "keep" not in h and any(field.startswith("w:") for field in h):
            yield Violation("memory", name, "stays in memory, and nothing wants its value")

    def closed(self) -> Iterator[Violation]:
        """Check that nothing is left but what published datasets pin."""
        for family in self.keys:
            if (
                not self.keys[family]
                or family in ("holds:", "contains:", "containers:")
                or family.rstrip(":") in _OF_PUBLISHED
            ):
                continue
            yield Violation("closed", family, f"is left: {self.keys[family][:5]}")
        for suffix in self.keys["queue:"]:
            number, _, name = self.read.lrange(f"queue:{suffix}")[0].split(" ", 2)
            if self.known.get(name, {}).get("state") != f"queued {number}":
                yield Violation("queues", suffix, f"begins with a void entry of {name!r}")
        for ordinal in self.keys["holds:"]:
            if ordinal != "d":
                yield Violation("closed", f"holds:{ordinal}", "is left")
        if not self.read.hgetall("datasets") and self.known:
            yield Violation("closed", "keys", f"are left: {sorted(self.known)[:5]}")


_OF_PUBLISHED = (
    "meta", "datasets", "key", "data", "error", "deps", "waiters", "users", "dependents", "fns", "fn", "class",
    "queues", "queue",
)  # fmt: skip


def _wanted(h: Fields) -> bool:
    return "pins" in h or "needed" in h or any(field.startswith("refs:") for field in h)


def _amounts(text: str) -> Iterator[tuple[str, float]]:
    for item in filter(None, text.split(",")):
        resource, _, amount = item.partition("=")
        yield resource, float(amount)
