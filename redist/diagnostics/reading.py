"""Read a whole namespace with plain commands, for diagnosis: no script, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

__all__ = ["KINDS", "OF_CALLERS", "Execute", "Reader", "Snapshot", "kind_of", "pipelined", "text"]

Fields: TypeAlias = "dict[str, str]"

KINDS: Mapping[str, str] = {
    "meta": "hash", "clients": "hash", "workers": "hash", "executors": "hash", "caller": "hash", "leases": "zset",
    "key": "hash", "data": "string", "error": "string", "deps": "set", "waiters": "set", "users": "set",
    "dependents": "set", "contains": "set", "containers": "set", "holds": "set", "stale": "set", "handoffs": "zset",
    "has": "hash", "batches": "hash", "idle": "zset", "queues": "zset", "queue": "list", "class": "hash", "fns": "hash",
    "fn": "string", "functions": "set", "work": "list", "deferred": "list", "datasets": "hash", "named": "hash",
    "inbox": "list", "answers": "hash", "hosts": "hash",
    "asks": "hash", "lock": "zset", "waits": "zset", "limits": "hash", "openers": "set", "events": "set",
    "variables": "hash", "items": "zset", "topic": "zset", "subscribers": "zset",
    "metadata": "hash", "logs": "hash", "log": "list", "plugins": "hash", "short": "zset", "sizes": "zset", "bytes": "zset",
}  # fmt: skip
"""Type of every Redis key, by the first word of its name (``executors:W`` is a set, ``executors`` a hash)."""

OF_CALLERS = ("holds", "stale", "has", "batches", "functions", "inbox", "answers", "executors", "asks")
"""Redis keys that a caller has under its ordinal."""

_CHUNK = 500  # commands that are sent at once
_SLICE = 1000  # items that one command reads

Execute: TypeAlias = "Callable[[Sequence[tuple[str | int, ...]]], list[Any]]"


def text(value: Any) -> str:
    """Return bytes of a reply as str; what is not UTF-8 (pickles) keeps its bytes as surrogates."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


class Reader(Protocol):
    """How the checks read: names of Redis keys are without the namespace's prefix; a missing key reads as empty."""

    def keys(self) -> Iterable[str]:
        """Return the names of all Redis keys."""

    def hgetall(self, key: str) -> Fields:
        """Return a hash."""

    def smembers(self, key: str) -> set[str]:
        """Return a set."""

    def lrange(self, key: str) -> list[str]:
        """Return a whole list."""

    def zrange(self, key: str) -> dict[str, float]:
        """Return a sorted set with its scores."""

    def get(self, key: str) -> str | None:
        """Return a string."""


class Snapshot:
    """A `Reader` of a copy, taken in few round trips.

    Parameters
    ----------
    execute : callable
        Sends several commands at once and returns their raw replies; `pipelined` makes one of a redis-py client.
    prefix : str
        ``redist:{NAMESPACE}:``.
    scan : bool
        Whether SCAN may be used. Otherwise the indices are walked, and keys that no index leads to are not seen.

    Notes
    -----
    The copy is atomic only if nobody writes meanwhile: a live namespace has to be looked at twice.
    """

    def __init__(self, execute: Execute, prefix: str, *, scan: bool = True) -> None:
        self._execute = execute
        self._prefix = prefix
        self._values: dict[str, Any] = {}
        if scan:
            self._load(self._scan())
        else:
            for keys in self._walk():
                self._load(keys)

    def keys(self) -> Iterable[str]:
        """Return the names of all Redis keys."""
        return self._values.keys()

    def as_dict(self) -> dict[str, Any]:
        """Return everything by the name of its Redis key."""
        return dict(self._values)

    def hgetall(self, key: str) -> Fields:
        """Return a hash."""
        value: Fields = self._values.get(key, {})
        return value

    def smembers(self, key: str) -> set[str]:
        """Return a set."""
        value: set[str] = self._values.get(key, set())
        return value

    def lrange(self, key: str) -> list[str]:
        """Return a whole list."""
        value: list[str] = self._values.get(key, [])
        return value

    def zrange(self, key: str) -> dict[str, float]:
        """Return a sorted set with its scores."""
        value: dict[str, float] = self._values.get(key, {})
        return value

    def get(self, key: str) -> str | None:
        """Return a string."""
        value: str | None = self._values.get(key)
        return value

    def _scan(self) -> set[str]:
        keys: set[str] = set()
        cursor = "0"
        while True:
            (reply,) = self._execute(
                [("SCAN", cursor, "MATCH", f"{_escape(self._prefix)}*", "COUNT", _SLICE)]
            )
            keys.update(text(key)[len(self._prefix) :] for key in reply[1])
            cursor = text(reply[0])
            if cursor == "0":
                return keys

    def _load(self, keys: Iterable[str]) -> None:
        todo = [(key, kind_of(key), "0") for key in sorted(set(keys) - self._values.keys())]
        while todo:
            chunk, todo = todo[:_CHUNK], todo[_CHUNK:]
            commands = [_read(kind, self._prefix + key, cursor) for key, kind, cursor in chunk]
            for (key, kind, cursor), reply in zip(chunk, self._execute(commands), strict=True):
                if isinstance(reply, Exception):
                    raise reply
                cursor, value = _parse(kind, cursor, reply)
                if value:
                    known = self._values.get(key)
                    if known is None:
                        self._values[key] = value
                    elif isinstance(known, list):
                        known += value
                    else:
                        known.update(value)
                elif kind == "string" and value is not None:
                    self._values[key] = value
                if cursor != "0":
                    todo.append((key, kind, cursor))

    def _walk(self) -> Iterator[set[str]]:
        yield {key for key in KINDS if key not in _FAMILIES} | {"holds:0", "holds:d", "holds:c"}
        ordinals = {o for kind in ("clients", "workers", "executors") for o in self.hgetall(kind)}
        ordinals |= self.zrange("leases").keys()
        families: tuple[str, ...] = ("caller", *OF_CALLERS)
        yield {f"{family}:{ordinal}" for family in families for ordinal in ordinals}
        yield {f"log:{topic}" for topic in self.hgetall("logs")}
        yield {f"sizes:{ordinal}" for ordinal in self.zrange("bytes")}
        yield {f"queue:{suffix}" for suffix in self.zrange("queues")} | {
            f"fn:{hash_}" for hash_ in self.hgetall("fns")
        }
        yield self._coordination()
        names = {member.partition(" ")[2] for member in self.zrange("handoffs")}
        for key, value in list(self._values.items()):
            family = key.partition(":")[0]
            if family in ("holds", "stale", "has"):
                names |= set(value)
            elif family == "batches":
                names |= {name for batch in value.values() for name in batch.split("\n")}
        seen: set[str] = set()
        while names:
            yield {f"key:{name}" for name in names}
            families = ("data", "error", "deps", "waiters", "users", "dependents", "containers")
            contains = {f"contains:{self.hgetall(f'key:{name}').get('contains')} {name}" for name in names}
            yield {f"{family}:{name}" for family in families for name in names} | contains
            seen |= names
            near = [self.smembers(f"{family}:{name}") for family in families[2:-1] for name in names]
            near += [self.smembers(key) for key in contains]
            near += [{c.partition(" ")[2] for c in self.smembers(f"containers:{name}")} for name in names]
            names = set().union(*near) - seen

    def _coordination(self) -> set[str]:
        """Return the keys that requests and bounds lead to."""
        keys = {f"openers:{what}" for what in self.hgetall("limits")}
        for ordinal in [key[5:] for key in self._values if key.startswith("asks:")]:
            for text_ in self.hgetall(f"asks:{ordinal}").values():
                head, *names = text_.split("\n")
                keys |= {f"waits:{head.partition(' ')[2]}"}
                for name in names:
                    keys |= {f"{family}:{name}" for family in ("lock", "items", "topic", "subscribers")}
                    keys |= {f"waits:get {name}", f"waits:put {name}"}
        return keys | {f"items:{what[6:]}" for what in self.hgetall("limits") if what.startswith("queue ")}


_FAMILIES = frozenset(
    ("caller", "key", "data", "error", "deps", "waiters", "users", "dependents", "contains", "containers", "holds",
     "stale", "has", "batches", "queue", "class", "fn", "functions", "inbox", "answers", "asks",
     "lock", "waits", "openers", "items", "topic", "subscribers", "log", "sizes")
)  # fmt: skip


def kind_of(key: str) -> str:
    """Return the type of a Redis key from its name; ``string`` for one that is not of the schema."""
    family, colon, _ = key.partition(":")
    if family == "executors" and colon:
        return "set"
    return KINDS.get(family, "string")


def _read(kind: str, key: str, cursor: str) -> tuple[str | int, ...]:
    if kind == "hash":
        return ("HSCAN", key, cursor, "COUNT", _SLICE)
    if kind == "set":
        return ("SSCAN", key, cursor, "COUNT", _SLICE)
    if kind == "list":
        return ("LRANGE", key, int(cursor), int(cursor) + _SLICE - 1)
    if kind == "zset":
        return ("ZSCAN", key, cursor, "COUNT", _SLICE)
    return ("GET", key)


def _parse(kind: str, cursor: str, reply: Any) -> tuple[str, Any]:
    """Return the next cursor (0 at the end) and what a slice brought."""
    if kind == "string":
        return "0", None if reply is None else text(reply)
    if kind == "list":
        items = [text(item) for item in reply]
        return str(int(cursor) + _SLICE) if len(items) == _SLICE else "0", items
    following, items = text(reply[0]), reply[1]
    if kind == "set":
        return following, {text(member) for member in items}
    if isinstance(items, Mapping):
        pairs = list(items.items())
    elif items and isinstance(items[0], tuple):
        pairs = list(items)
    else:
        pairs = list(zip(items[::2], items[1::2], strict=True))
    if kind == "hash":
        return following, {text(field): text(value) for field, value in pairs}
    return following, {text(member): float(text(score)) for member, score in pairs}


def pipelined(client: Any) -> Execute:
    """Return the `execute` of a `Snapshot` for a redis-py client that does not decode replies."""

    def execute(commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies

    return execute


def _escape(prefix: str) -> str:
    return "".join(f"\\{c}" if c in "*?[]\\" else c for c in prefix)
