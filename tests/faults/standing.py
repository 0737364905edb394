"""The state of a namespace in a form that two runs can be compared in."""

from __future__ import annotations

import re
from typing import Any

from redist.diagnostics.reading import OF_CALLERS, Snapshot, kind_of

__all__ = ["normalised"]

#: Fields that tell how it came about, not how it stands.
_HISTORY = frozenset((
    "since", "seen", "n", "inc", "pushed", "checked", "checksum", "enqueued",
    "attempt", "ordinal", "secret", "swept", "revivals", "version", "placed",
    "grown", "quiet_until", "lease", "metrics", "asked", "plugin",
))  # fmt: skip
#: Words in front of an ordinal.
_CALLERS = frozenset((*OF_CALLERS, "refs", "w", "c", "caller"))
_TOKEN = r"\b[0-9a-f]{10}\.[0-9a-f]+"


class _Names:
    """Replaces what differs from run to run: ordinals by names, and numbers of attempts and requests."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.names = {
            key[7:]: snapshot.hgetall(key).get("name", "?")
            for key in snapshot.keys()  # noqa: SIM118
            if key.startswith("caller:")
        }

    def holder(self, ordinal: str) -> str:
        return f"<{self.names.get(ordinal, ordinal)}>"

    def plain(self, text: str) -> str:
        text = re.sub(r"^queued \d+$", "queued", text)
        text = re.sub(r"^processing e(\d+)\.\d+$", lambda m: f"processing {self.holder(m[1])}", text)
        return re.sub(r"^(@.*@)\d+$", r"\1#", text)

    def request(self, text: str) -> str:
        """A place in a line, ``ORD TOKEN``."""
        ordinal, _, token = text.partition(" ")
        return f"{self.holder(ordinal)} {re.sub(_TOKEN, 'TOKEN', token)}"

    def asked(self, text: str) -> str:
        """What a request has come to; items have numbers."""
        return re.sub(r"^(put|in|got)( \d+)+", lambda m: m[1] + " #" * m[0].count(" "), text)

    def key(self, key: str) -> str:
        family, _, rest = key.partition(":")
        if family == "contains":
            return f"contains:{self.plain(rest.partition(' ')[2])}"
        if not rest:
            return key
        return f"{family}:{self.holder(rest) if family in _CALLERS else self.plain(rest)}"

    def field(self, field: str, value: str) -> str:
        if field.startswith(("w:", "c:")) or field == "contains":
            return "#"
        return self.holder(value) if field == "worker" else self.plain(value)


def normalised(snapshot: Snapshot) -> dict[str, Any]:
    """Return the state without numbers of attempts, ordinals, tokens, and times."""
    names = _Names(snapshot)
    state: dict[str, Any] = {}
    for key in sorted(snapshot.keys()):
        family = key.partition(":")[0]
        if family == "answers":
            continue
        name = names.key(key)
        while name in state:
            name += "'"
        state[name] = _value(names, snapshot, key, family)
    return state


def _value(names: _Names, snapshot: Snapshot, key: str, family: str) -> Any:
    kind = kind_of(key)
    if kind == "hash":
        fields = snapshot.hgetall(key)
        if family in ("has", "datasets", "variables"):
            return sorted(fields)
        if family in ("clients", "workers", "executors", "batches"):
            return sorted(fields.values())
        if family == "asks":
            return sorted(map(names.asked, fields.values()))
        if family == "plugins":
            return {name: plugin.partition(" ")[2] for name, plugin in fields.items()}
        if family == "named":
            return {name: names.holder(ordinal) for name, ordinal in fields.items()}
        return {
            names.key(field): names.field(field, value)
            for field, value in fields.items()
            if field not in _HISTORY and not field.startswith("claim") and (field, value) != ("sum", "0")
        }
    if kind == "set":
        members = snapshot.smembers(key)
        if family in ("executors", "openers"):
            return sorted(map(names.holder, members))
        return sorted(names.plain(m.partition(" ")[2] if family == "containers" else m) for m in members)
    if kind == "zset":
        scores = snapshot.zrange(key)
        if family in ("idle", "leases"):
            return sorted(map(names.holder, scores))
        if family in ("lock", "waits", "subscribers"):
            return [
                names.request(place) for place in sorted(scores, key=lambda place: (scores[place], place))
            ]
        return len(scores) if family in ("items", "topic") else sorted(scores)
    if family == "inbox":
        return sorted(set(snapshot.lrange(key)))  # who reads it passes over what comes again
    if kind == "list":
        return [item.rpartition(" ")[2] for item in snapshot.lrange(key)]
    return snapshot.get(key)
