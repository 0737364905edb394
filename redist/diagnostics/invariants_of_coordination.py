"""The invariants of what callers coordinate by: who stands in which line, and which values are kept for whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from redist.diagnostics.namespace import Namespace, Violation

__all__ = ["coordination", "persistent"]


class _Ask(NamedTuple):
    """One request: ``KIND STATE`` and names."""

    kind: str
    state: str
    names: list[str]


def coordination(space: Namespace, settled: bool) -> Iterator[Violation]:
    """Check requests against the lines that they stand in, and lines against requests."""
    asks = {
        f"{ordinal} {token}": _ask(text)
        for ordinal in space.keys["asks:"]
        for token, text in space.read.hgetall(f"asks:{ordinal}").items()
    }
    limits = space.read.hgetall("limits")
    yield from _requests(space, asks)
    yield from _locks(space, asks, limits)
    yield from _limits(space, asks, limits)
    yield from _values(space, asks)
    for member in asks if settled else ():
        if not space.caller.get(member.partition(" ")[0], {}).get("inc"):
            yield Violation("asks", member, "is of a caller that is gone")


def persistent(space: Namespace) -> bool:
    """Whether there are values that stay when everybody has left: of variables, and in queues."""
    return bool(space.read.hgetall("variables") or space.keys["items:"])


def _ask(text: str) -> _Ask:
    head, *names = text.split("\n")
    kind, _, state = head.partition(" ")
    return _Ask(kind, state, [name for name in names if name])


def _requests(space: Namespace, asks: dict[str, _Ask]) -> Iterator[Violation]:
    """Check that each request is of a kind, and stands where it says; and that nobody else does."""
    stands = {
        family: {key: space.read.zrange(f"{family}:{key}") for key in space.keys[f"{family}:"]}
        for family in ("lock", "waits", "subscribers")
    }
    for member, (kind, state, names) in asks.items():
        if kind == "line":
            places = [("lock", name) for name in names]
        elif kind == "wait":
            places = [("waits", state)]
        elif kind in ("get", "put"):
            places = [("waits", f"{kind} {names[0]}")]
        elif kind == "sub":
            places = [("subscribers", names[0])]
        elif kind in ("got", "in", "done", "open", "read"):  # who closes a semaphore takes all openers away
            continue
        else:
            yield Violation("asks", member, f"is of the kind {kind!r}")
            continue
        for family, key in places:
            if member not in stands[family].get(key, {}):
                yield Violation("asks", member, f"does not stand in {family}:{key}")
    for family, by_key in stands.items():
        for key, members in by_key.items():
            for member in members:
                ask = asks.get(member)
                if ask is None or key not in (*ask.names, ask.state, *(f"{ask.kind} {n}" for n in ask.names)):
                    yield Violation(
                        "asks", f"{family}:{key}", f"has {member}, which did not ask for it: {ask}"
                    )


def _locks(space: Namespace, asks: dict[str, _Ask], limits: dict[str, str]) -> Iterator[Violation]:
    """Check that who is at the front holds, and that nobody else does."""
    front: dict[str, set[str]] = {}
    for name in space.keys["lock:"]:
        line = space.read.zrange(f"lock:{name}")
        limit = abs(int(limits.get(f"lock {name}", "1")))
        front[name] = set(sorted(line, key=lambda member: (line[member], member))[:limit])
    for member, (kind, state, names) in asks.items():
        if kind != "line":
            continue
        behind = sum(member not in front.get(name, ()) for name in names)
        if (state == "0" and behind) or int(state) > behind:
            yield Violation("locks", member, f"misses {state} of {names}, and is behind in {behind}")


def _limits(space: Namespace, asks: dict[str, _Ask], limits: dict[str, str]) -> Iterator[Violation]:
    """Check that bounds are known where they are needed, and nowhere else."""
    used = {f"lock {name}" for name in space.keys["lock:"]}
    used |= {f"queue {name}" for name in space.keys["items:"]}
    used |= {f"queue {line[4:]}" for line in space.keys["waits:"] if line[:4] in ("get ", "put ")}
    for what in used - limits.keys():
        yield Violation("limits", what, "is in use, and its bound is not known")
    for what in limits.keys() - used - set(space.keys["openers:"]):
        yield Violation("limits", what, "is not in use, and has a bound")
    for what in space.keys["openers:"]:
        kind, _, name = what.partition(" ")
        for ordinal in space.read.smembers(f"openers:{what}"):
            if asks.get(f"{ordinal} open {what}") != _Ask("open", kind, [name]):
                yield Violation("limits", what, f"was opened by {ordinal}, which does not say so")
    for name in space.keys["items:"]:
        if f"get {name}" in space.keys["waits:"]:
            yield Violation("queues of items", name, "has items, and somebody waits for them")


def _values(space: Namespace, asks: dict[str, _Ask]) -> Iterator[Violation]:
    """Check that each value has its record, and that no other is kept."""
    wanted = {f"@@variable@{name}@{id_}" for name, id_ in space.read.hgetall("variables").items()}
    for kind, family in (("queue", "items"), ("topic", "topic")):
        wanted |= {
            f"@@{kind}@{name}@{id_}"
            for name in space.keys[f"{family}:"]
            for id_ in space.read.zrange(f"{family}:{name}")
        }
    # What was got or is to be put may be forgotten by a restart; then nobody gets it.
    maybe = {
        f"@@queue@{ask.names[0]}@{id_}"
        for ask in asks.values()
        if ask.kind in ("got", "put")
        for id_ in ask.state.split()
    }
    maybe |= {record for record in wanted if record.startswith("@@topic@")}
    for record in wanted - maybe:
        if "refs:c" not in space.known.get(record, {}) and not space.wiping:
            yield Violation("values", record, "has no record")
    for record in space.read.smembers("holds:c") - wanted - maybe:
        if not space.wiping:
            yield Violation("values", record, "is kept, and belongs to nothing")
