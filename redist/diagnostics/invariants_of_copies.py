"""The invariants of copies: what workers have, and what they are still to have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from redist.diagnostics.namespace import Namespace, Violation

__all__ = ["copies", "counted", "replicas"]


def replicas(space: Namespace) -> Iterator[Violation]:
    """Check copies against the indices of workers."""
    has = {ordinal: space.read.hgetall(f"has:{ordinal}") for ordinal in space.keys["has:"]}
    for name, h in space.known.items():
        if h.get("state") == "forgetting":
            continue
        for field, attempt in h.items():
            if field.startswith("w:") and has.get(field[2:], {}).get(name) != attempt:
                said = has.get(field[2:], {}).get(name)
                yield Violation("replicas", name, f"{field}={attempt}, has:{field[2:]} says {said}")
    for ordinal, names in has.items():
        for name, attempt in names.items():
            h = space.known.get(name, {})
            if h.get(f"w:{ordinal}") != attempt or h.get("state") != "memory":
                yield Violation("replicas", name, f"is in has:{ordinal} as {attempt}, the record says {h}")


def copies(space: Namespace, settled: bool) -> Iterator[Violation]:
    """Check that what has too few copies, or is to get one, is looked at again; where all is `settled`, every such key."""
    short = space.read.zrange("short")
    for name in short:
        if "tries" not in space.known.get(name, {}):
            yield Violation("copies", name, "is in short, and its record does not say so")
    for name, h in space.known.items():
        planned = [field for field in h if field.startswith("c:")]
        if "tries" in h and name not in short:
            yield Violation("copies", name, "is not in short, and its record says so")
        elif planned and "tries" not in h:
            yield Violation("copies", name, f"is to be copied ({planned}), and nobody looks at it")
        if not settled or h.get("state") != "memory" or "tries" in h:
            continue
        there = [field for field in h if field.startswith("w:")]
        if there and sum(field[2:] in space.living["worker"] for field in there) < int(h.get("copies", "1")):
            yield Violation("copies", name, f"has too few copies, and nobody looks at it: {h}")


def counted(space: Namespace) -> Iterator[Violation]:
    """Check what callers are said to hold, for quotas, against the values on workers that they made."""
    sizes: dict[str, dict[str, float]] = defaultdict(dict)
    for name, h in space.known.items():
        there = h.get("state") == "memory" and any(field.startswith("w:") for field in h)
        if ("counted" in h) != (there and "owner" in h):
            yield Violation("quota", name, f"is counted or not, and should not be so: {h}")
        elif "counted" in h:
            if h["counted"] != h.get("nbytes"):
                yield Violation("quota", name, f"is counted with another size than it has: {h}")
            sizes[h["owner"]][name] = float(h["counted"])
    said = {ordinal: space.read.zrange(f"sizes:{ordinal}") for ordinal in space.keys["sizes:"]}
    for ordinal in said.keys() | sizes.keys():
        held, right = said.get(ordinal, {}), sizes.get(ordinal, {})
        if held != right:
            yield Violation("quota", f"sizes:{ordinal}", f"is {held}, it should be {right}")
    totals = {ordinal: sum(values.values()) for ordinal, values in sizes.items()}
    if space.read.zrange("bytes") != totals:
        yield Violation("quota", "bytes", f"is {space.read.zrange('bytes')}, it should be {totals}")
    if int(space.meta.get("bytes", "0")) != sum(totals.values()):
        yield Violation(
            "quota", "meta", f"says bytes={space.meta.get('bytes')}, they are {sum(totals.values()):.0f}"
        )
