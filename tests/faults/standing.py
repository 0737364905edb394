"""The state of a namespace in a form that two runs can be compared in."""

from __future__ import annotations

import re
from typing import Any

from redist.diagnostics.reading import Snapshot, kind_of

__all__ = ["normalised"]

#: Fields that tell how it came about, not how it stands.
_HISTORY = frozenset((
    "since", "seen", "n", "inc", "pushed", "checked", "checksum", "enqueued",
    "attempt", "ordinal", "secret", "swept", "revivals", "version", "placed",
    "grown", "quiet_until", "lease", "metrics",
))  # fmt: skip


def normalised(snapshot: Snapshot) -> dict[str, Any]:
    """Return the state without numbers of attempts, ordinals, and times."""
    names = {}
    for key in snapshot.keys():  # noqa: SIM118
        if key.startswith("caller:"):
            names[key[7:]] = snapshot.hgetall(key).get("name", "?")

    def holder(ordinal: str) -> str:
        return f"<{names.get(ordinal, ordinal)}>"

    def plain(text: str) -> str:
        text = re.sub(r"^queued \d+$", "queued", text)
        text = re.sub(r"^processing e(\d+)\.\d+$", lambda m: f"processing {holder(m[1])}", text)
        return re.sub(r"^(@.*@)\d+$", r"\1#", text)

    def named(key: str) -> str:
        family, _, rest = key.partition(":")
        if family == "contains":
            return f"contains:{plain(rest.partition(' ')[2])}"
        if family in (
            "refs",
            "w",
            "caller",
            "holds",
            "has",
            "batches",
            "functions",
            "executors",
            "inbox",
            "stale",
        ):
            return f"{family}:{holder(rest)}" if rest else key
        return f"{family}:{plain(rest)}" if rest else key

    state: dict[str, Any] = {}
    for key in snapshot.keys():  # noqa: SIM118
        kind = kind_of(key)
        family = key.partition(":")[0]
        if family == "answers":
            continue
        if kind == "hash":
            fields = snapshot.hgetall(key)
            if family in ("has", "datasets"):
                value: Any = sorted(fields)
            elif family in ("clients", "workers", "executors", "batches"):
                value = sorted(fields.values())
            else:
                value = {
                    named(f): "#"
                    if f.startswith("w:") or f == "contains"
                    else holder(v)
                    if f == "worker"
                    else plain(v)
                    for f, v in fields.items()
                    if f not in _HISTORY and not f.startswith("claim")
                }
        elif kind == "set":
            members = snapshot.smembers(key)
            if family == "executors":
                value = sorted(map(holder, members))
            else:
                value = sorted(plain(m.partition(" ")[2] if family == "containers" else m) for m in members)
        elif kind == "zset":
            ordinals = family in ("idle", "leases")
            value = sorted(holder(member) if ordinals else member for member in snapshot.zrange(key))
        elif kind == "list":
            value = [item.rpartition(" ")[2] for item in snapshot.lrange(key)]
        else:
            value = snapshot.get(key)
        state[named(key)] = value
    return state
