"""The invariants of a namespace's state, as code.

`check` reads everything and says what is broken. It holds after every script, whatever is on the work list; more must hold
once the work list is drained (`quiescent`), and more yet once everybody has left (`closed`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from redist.diagnostics.invariants_of_callers import callers, functions, hand_outs
from redist.diagnostics.invariants_of_coordination import coordination, persistent
from redist.diagnostics.invariants_of_copies import copies, counted, replicas
from redist.diagnostics.namespace import Namespace, Violation
from redist.diagnostics.reading import KINDS, OF_CALLERS, Fields, Reader

__all__ = ["Violation", "check"]

_STATE = re.compile(r"waiting|queued \d+|processing e\d+\.\d+|memory|erred|released|forgetting")
_FIELD = re.compile(
    r"state|refs:(\d+|d|h|c)|pins|missing|needed|deps|w:\d+|data|nbytes|type|fn|retries|deaths|class|prio|home|cause|keep|meta|contains|"
    r"attempt|lost|fan|reviving|linking|untold|ahead|c:\d+|copies|branching|tries|owner|counted|spoilt"
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
    "copies",
    "branching",
    "tries",
    "owner",
    "counted",
    "spoilt",
)
_UNFINISHED = ("waiting", "queued", "processing")
_OF_RECORDS = ("data", "error", "deps", "waiters", "users", "dependents", "containers")


def check(read: Reader, *, quiescent: bool = False, closed: bool = False) -> list[Violation]:
    """Return every broken invariant of a namespace.

    Parameters
    ----------
    read : Reader
        What reads the namespace; a `Snapshot`, as a rule.
    quiescent : bool
        No work is left to be done: nothing may be half finished.
    closed : bool
        Everybody has left: nothing may be there but ``meta``, published datasets, variables and queues with what they pin,
        and events that are set. Implies `quiescent`.

    Returns
    -------
    list of Violation
        Empty when all is well.
    """
    space = Namespace(read)
    settled = quiescent or closed
    found = [
        *_schema(space),
        *_records(space),
        *_references(space),
        *_datasets(space),
        *replicas(space),
        *copies(space, settled),
        *counted(space),
        *_pins(space),
        *_edges(space, settled),
        *hand_outs(space, settled),
        *functions(space),
        *callers(space, settled),
        *coordination(space, settled),
    ]
    if settled:
        found += _when_settled(space)
    if closed:
        found += _when_closed(space)
    return found


# --- form -------------------------------------------------------------------------------------------------------------


def _schema(space: Namespace) -> Iterator[Violation]:
    """Check that every Redis key belongs to a record, a caller, or is one of the namespace's own."""
    for family in space.keys:
        if family.rstrip(":") not in KINDS:
            yield Violation("schema", family, "is not a key of the schema")
    for family in _OF_RECORDS:
        for name in space.keys[f"{family}:"]:
            if name not in space.known:
                yield Violation("orphan", f"{family}:{name}", "has no record")
    for family in OF_CALLERS:
        for ordinal in space.keys[f"{family}:"]:
            if ordinal not in space.caller and ordinal not in ("0", "d", "c"):
                yield Violation("orphan", f"{family}:{ordinal}", "belongs to no caller")


def _records(space: Namespace) -> Iterator[Violation]:
    """Check that a record's fields are legal and agree with its state."""
    if int(space.meta.get("keys", "0")) != len(space.known):
        yield Violation("count", "meta", f"says {space.meta.get('keys')} keys, there are {len(space.known)}")
    forgetting = sum(h.get("state") == "forgetting" for h in space.known.values())
    if int(space.meta.get("forgetting", "0")) != forgetting:
        yield Violation(
            "count", "meta", f"says {space.meta.get('forgetting')} are forgotten, not {forgetting}"
        )
    for name, h in space.known.items():
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
        yield from _value(space, name, h)


def _value(space: Namespace, name: str, h: Fields) -> Iterator[Violation]:
    state = h["state"]
    copies = [field for field in h if field.startswith("w:")]
    if state == "memory":
        if not copies and "data" not in h:
            yield Violation("value", name, "is in memory without a value")
        if "nbytes" not in h:
            yield Violation("value", name, "is in memory without a size")
    elif copies:
        yield Violation("value", name, f"is {state} and has copies: {copies}")
    if (h.get("data") == "") != (space.read.get(f"data:{name}") is not None):
        yield Violation("value", name, f"data is {h.get('data')!r:.40}, and data:{name} does not fit")
    error = space.read.get(f"error:{name}") is not None
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


# --- who wants what ---------------------------------------------------------------------------------------------------


def _references(space: Namespace) -> Iterator[Violation]:
    """Check counts against the indices of their holders, and a caller's sum against its counts."""
    sums: Counter[str] = Counter()
    handed = Counter(member.partition(" ")[2] for member in space.read.zrange("handoffs"))
    held, stale = space.sets("holds"), space.sets("stale")
    for name, h in space.known.items():
        for field, value in h.items():
            if not field.startswith("refs:"):
                continue
            holder = field[5:]
            if holder == "h":
                if int(value) != handed[name] and not space.wiping:
                    yield Violation("handoffs", name, f"refs:h={value}, but {handed[name]} hand-offs")
                continue
            sums[holder] += int(value)
            if name not in held.get(holder, ()) and name not in stale.get(holder, ()):
                yield Violation("references", name, f"{field}={value}, but it is not in holds:{holder}")
            if holder not in ("0", "d", "c") and holder not in space.caller:
                yield Violation("references", name, f"{field}={value} of a caller that is not known")
    for holder, names in held.items():
        for name in names:
            if f"refs:{holder}" not in space.known.get(name, {}):
                yield Violation("references", name, f"is in holds:{holder} without refs:{holder}")
    for name in handed:
        if "refs:h" not in space.known.get(name, {}) and not space.wiping:
            yield Violation("handoffs", name, "is handed off without refs:h")
    for ordinal, c in space.caller.items():
        said = int(c.get("sum", "0"))
        if c.get("inc") and said != sums[ordinal] and not space.wiping:
            yield Violation("sum", f"caller:{ordinal}", f"says {said}, its counts sum to {sums[ordinal]}")


def _datasets(space: Namespace) -> Iterator[Violation]:
    """Check that each dataset has the record of its version, and holds no other."""
    current = {f"@{name}@{version}" for name, version in space.read.hgetall("datasets").items()}
    for record in current:
        if "refs:d" not in space.known.get(record, {}) and not space.wiping:
            yield Violation("datasets", record, "is published without a record")
    for record in space.read.smembers("holds:d") - current:
        if not space.wiping:
            yield Violation("datasets", record, "is held as published, and is not")


def _pins(space: Namespace) -> Iterator[Violation]:
    """Check pins against the containers of a key and what containers hold."""
    contains, containers = space.sets("contains"), space.sets("containers")
    for name, h in space.known.items():
        ids = containers.get(name, set())
        if int(h.get("pins", "0")) != len(ids):
            yield Violation("pins", name, f"pins={h.get('pins')}, but {len(ids)} containers: {sorted(ids)}")
        for container in ids:
            if name not in contains.get(container, ()):
                yield Violation("pins", name, f"is not in contains:{container}")
    for container, names in contains.items():
        for name in names:
            if container not in containers.get(name, ()):
                yield Violation(
                    "pins", name, f"is in contains:{container}, which containers:{name} does not name"
                )


def _edges(space: Namespace, settled: bool) -> Iterator[Violation]:
    """Check that each dependency has each dependent in exactly one set, and the sizes of the sets."""
    deps = space.sets("deps")
    families = {family: space.sets(family) for family in ("waiters", "users", "dependents")}
    missing: Counter[str] = Counter()
    for family, by_name in families.items():
        for d, members in by_name.items():
            for member in members:
                if family == "waiters":
                    missing[member] += 1
                if d not in deps.get(member, ()):
                    yield Violation("edges", member, f"is in {family}:{d}, which it does not depend on")
    for name, h in space.known.items():
        where = {family: by_name.get(name, set()) for family, by_name in families.items()}
        needed = len(where["waiters"]) + len(where["users"])
        if int(h.get("needed", "0")) != needed:
            yield Violation("edges", name, f"needed={h.get('needed')}, but {needed} unfinished dependents")
        # What `link` is still to tell of counts as one more.
        if int(h.get("missing", "0")) != missing[name] + ("linking" in h):
            yield Violation(
                "edges", name, f"missing={h.get('missing')}, but it waits for {missing[name]}: {h}"
            )
        if len(set().union(*where.values())) != sum(map(len, where.values())):
            yield Violation("edges", name, f"has a dependent in two sets: {where}")
        if where["dependents"] and "fan" not in h:
            yield Violation("edges", name, "has known dependents and no mark of it")
        if h["state"] != "forgetting" and ("deps" in h) != (name in deps) and (settled or "deps" not in h):
            yield Violation("edges", name, f"deps={h.get('deps')}, but deps:{name} is {deps.get(name)}")
        yield from _edges_of(space, name, h, deps.get(name, set()), families, settled)


def _edges_of(
    space: Namespace,
    name: str,
    h: Fields,
    deps: set[str],
    families: dict[str, dict[str, set[str]]],
    settled: bool,
) -> Iterator[Violation]:
    unfinished = h["state"].split(" ")[0] in _UNFINISHED
    for d in deps:
        inside = [family for family, by_name in families.items() if name in by_name.get(d, ())]
        if d not in space.known:
            yield Violation("edges", name, f"depends on {d!r}, which is not known")
        elif len(inside) != 1:
            yield Violation("edges", name, f"is in {inside or 'no set'} of its dependency {d!r}")
        elif unfinished and "reviving" not in h and inside == ["dependents"]:
            yield Violation("edges", name, f"is {h['state']}, but {d!r} takes it for finished")
        elif settled and not unfinished and inside != ["dependents"]:
            yield Violation("edges", name, f"is {h['state']}, but still in {inside[0]}:{d}")
        elif settled and inside != ["dependents"]:
            there = space.known[d]["state"] == "memory"
            if there != (inside == ["users"]):
                yield Violation(
                    "edges", name, f"is in {inside[0]} of {d!r}, which is {space.known[d]['state']}"
                )


# --- when all work is done --------------------------------------------------------------------------------------------


def _when_settled(space: Namespace) -> Iterator[Violation]:
    """Check that nothing is half finished, and the memory rule for every key."""
    for key in ("work", "deferred"):
        items = space.read.lrange(key)
        if items and not (key == "deferred" and space.recovering):
            yield Violation("work", key, f"is not empty: {items[:5]}")
    if space.wiping:
        yield Violation("work", "meta", "says that a restart is being carried out")
    for ordinal in space.keys["stale:"]:
        if not space.recovering:
            yield Violation("work", f"stale:{ordinal}", "is left of a registration")
    for container in space.keys["contains:"]:
        attempt, _, name = container.partition(" ")
        if space.known.get(name, {}).get("contains") != attempt:
            yield Violation(
                "pins", name, f"does not contain anything as {attempt}, contains:{container} is there"
            )
    for name, h in space.known.items():
        state = h["state"].split(" ")[0]
        if state == "erred" and "cause" in h and space.read.get(f"error:{h['cause']}") is None:
            yield Violation("error", name, f"erred because of {h['cause']!r}, whose error is not known")
        if state == "forgetting" or "reviving" in h:
            yield Violation("work", name, f"is half done: {h}")
        elif "linking" in h and f"refs:{h['linking']}" not in h:
            yield Violation("work", name, f"waits for dependencies that nobody tells of: {h}")
        elif not space.recovering:
            yield from _reason(space, name, h, state)
        for field in h:
            if field.startswith("w:") and field[2:] not in space.living["worker"]:
                yield Violation("replicas", name, f"has a copy on worker {field[2:]}, which is gone")


def _reason(space: Namespace, name: str, h: Fields, state: str) -> Iterator[Violation]:
    if _wanted(h):
        if state == "released":
            yield Violation("memory", name, "is wanted, and nothing computes it")
        return
    if not space.read.smembers(f"dependents:{name}"):
        yield Violation("memory", name, f"is {state} and nothing wants it")
    elif state in _UNFINISHED:
        yield Violation("memory", name, f"is {state}, and nothing wants its value")
    elif state == "memory" and "keep" not in h and any(field.startswith("w:") for field in h):
        yield Violation("memory", name, "stays in memory, and nothing wants its value")


def _when_closed(space: Namespace) -> Iterator[Violation]:
    """Check that nothing is left but what has a name of its own, and what that pins."""
    for family in space.keys:
        if (
            not space.keys[family]
            or family in ("holds:", "contains:", "containers:")
            or family.rstrip(":") in _OF_NAMED
        ):
            continue
        yield Violation("closed", family, f"is left: {space.keys[family][:5]}")
    for suffix in space.keys["queue:"]:
        number, _, name = space.read.lrange(f"queue:{suffix}")[0].split(" ", 2)
        if space.known.get(name, {}).get("state") != f"queued {number}":
            yield Violation("queues", suffix, f"begins with a void entry of {name!r}")
    for ordinal in space.keys["holds:"]:
        if ordinal not in ("d", "c"):
            yield Violation("closed", f"holds:{ordinal}", "is left")
    if not space.read.hgetall("datasets") and not persistent(space) and space.known:
        yield Violation("closed", "keys", f"are left: {sorted(space.known)[:5]}")


_OF_NAMED = (
    "meta", "datasets", "key", "data", "error", "deps", "waiters", "users", "dependents", "fns", "fn", "class",
    "queues", "queue", "events", "variables", "items", "limits",
    "metadata", "logs", "log", "plugins", "short", "sizes", "bytes",
)  # fmt: skip


def _wanted(h: Fields) -> bool:
    return "pins" in h or "needed" in h or any(field.startswith("refs:") for field in h)
