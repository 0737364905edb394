"""Why a key lives: every holder of it, by name.

A key is kept by references (callers, fire-and-forget, datasets, hand-offs), by containers that hold it, and by unfinished
tasks that need it; its record also stays while a known task depends on it. `why` reads all of these and says who they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from redist.diagnostics.standing import standing
from redist.errors import RedistError
from redist.markup import page, table
from redist.store.keys import BUNDLE, Key, encode_key

if TYPE_CHECKING:
    from redist.store.connect import Endpoint

__all__ = ["Holder", "Reader", "Why", "WireReader", "explain", "why"]

#: Asks a client, by ordinal, where and when (seconds of the epoch) it made its Futures of a key.
Ask: TypeAlias = Callable[[int, str], list[tuple[str, float]]]

SHOWN = 100
"""Members of one set that are listed; the rest is counted."""


class Reader(Protocol):
    """Reads of one namespace; keys are given without the prefix."""

    def hash(self, key: str) -> dict[str, str]:
        """Return a hash, or its text fields."""
        ...

    def members(self, key: str, limit: int) -> tuple[list[str], int]:
        """Return up to about `limit` members of a set, and how many it has."""
        ...

    def tokens(self, name: str) -> list[tuple[str, float]]:
        """Return (token, deadline in ms) of the hand-offs of a key."""
        ...


class WireReader:
    """A `Reader` on a connection of `redist.store`.

    Parameters
    ----------
    call : callable
        Sends one command and returns its reply, bytes undecoded.
    prefix : str
        ``redist:{NAMESPACE}:``.
    """

    def __init__(self, call: Callable[..., Any], prefix: str) -> None:
        self._call = call
        self._prefix = prefix

    def hash(self, key: str) -> dict[str, str]:
        """Return a hash; values that are no text are replaced."""
        flat = self._call("HGETALL", self._prefix + key)
        return {_text(flat[i]): _text(flat[i + 1]) for i in range(0, len(flat), 2)}

    def members(self, key: str, limit: int) -> tuple[list[str], int]:
        """Return up to about `limit` members of a set, and how many it has."""
        count = int(self._call("SCARD", self._prefix + key))
        found: list[str] = []
        cursor = b"0"
        while count:
            cursor, part = self._call("SSCAN", self._prefix + key, cursor, "COUNT", limit)
            found += map(_text, part)
            if cursor == b"0" or len(found) >= limit:
                break
        return found[:limit], count

    def tokens(self, name: str) -> list[tuple[str, float]]:
        """Return (token, deadline in ms) of the hand-offs of a key."""
        found: dict[str, float] = {}  # a scan may say one twice
        cursor = b"0"
        while True:
            cursor, flat = self._call("ZSCAN", self._prefix + "handoffs", cursor, "COUNT", 1000)
            for member, deadline in zip(flat[::2], flat[1::2]):
                token, _, key = _text(member).partition(" ")
                if key == name:
                    found[token] = float(deadline)
            if cursor == b"0":
                return sorted(found.items(), key=lambda item: item[1])


@dataclass(frozen=True, slots=True)
class Holder:
    """One reason why a key lives.

    Attributes
    ----------
    kind : str
        ``client``, ``task`` (Futures of a task that runs), ``fire and forget``, ``dataset``, ``variable``, ``queue`` (an
        item that is in it, was got from it or is to be put), ``topic`` (a message), ``hand-off``, ``container``,
        ``unfinished dependent``, ``known dependent`` or ``replica``.
    name : str
        Who: a client's or worker's name, a dataset, a key, a token.
    count : int
        How many Futures, or 1.
    since : float or None
        Since when the holder refers to the key, seconds of the epoch, where that is known.
    detail : tuple of str
        More about it: process and host of a client, the lines that made its Futures, the version of a copy.
    """

    kind: str
    name: str
    count: int = 1
    since: float | None = None
    detail: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.kind} {self.name}"
        if self.count != 1:
            text += f" x{self.count}"
        if self.since is not None:
            text += f", since {_clock(self.since)}"
        return ", ".join([text, *self.detail])


@dataclass(frozen=True, slots=True)
class Why:
    """The answer to `why`; printing it gives a line a holder.

    Attributes
    ----------
    name : str
        The key as it is written in Redis.
    state : str
        Its state, or ``forgotten``.
    nbytes : int
        Size of its value, bytes; 0 while there is none.
    holders : tuple of Holder
        What keeps it.
    replicas : tuple of Holder
        Where its value is.
    standing : str
        Its state in plain words: where a task runs, and what a queued one waits for.
    """

    name: str
    state: str
    nbytes: int = 0
    holders: tuple[Holder, ...] = ()
    replicas: tuple[Holder, ...] = field(default=())
    standing: str = ""

    def __bool__(self) -> bool:
        return bool(self.holders)

    def __str__(self) -> str:
        if self.state == "forgotten":
            return f"{self.name} is not known: nothing holds it."
        lines = [f"{self.name}: {self.standing or self.state}"]
        lines += [f"  held by {holder}" for holder in self.holders] or [
            "  held by nothing: it is about to go"
        ]
        lines += [f"  copy on {copy.name}, {copy.detail[0]}" for copy in self.replicas]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        if self.state == "forgotten":
            return page("Why", self.name, [("State", "not known: nothing holds it")])
        facts: list[tuple[str, object]] = [("State", self.standing or self.state)]
        if not self.holders:
            facts.append(("Held by", "nothing: it is about to go"))
        facts += [("Copy on", f"{copy.name}, {copy.detail[0]}") for copy in self.replicas]
        rows = [
            (holder.kind, holder.name, holder.count, _clock(holder.since), ", ".join(holder.detail))
            for holder in self.holders
        ]
        heads = ("Held by", "Name", "Count", "Since", "Details")
        return page("Why", self.name, facts, below=table(heads, rows) if rows else "")


def _clock(since: float | None) -> str:
    return "" if since is None else time.strftime("%H:%M:%S", time.localtime(since))


def why(reader: Reader, name: str, ask: Ask | None = None) -> Why:
    """Return every holder of a key.

    Parameters
    ----------
    reader : Reader
        Reads the namespace.
    name : str
        The key's wire name, as in ``key:NAME``.
    ask : callable, optional
        Asks a living client (by ordinal) for the lines of code that made its Futures of the key, and when.
    """
    record = reader.hash(f"key:{name}")
    if not record:
        return Why(name, "forgotten")
    holders = [
        *_references(reader, name, record, ask),
        *_containers(reader, name),
        *_dependents(reader, name),
    ]
    replicas = tuple(_replicas(reader, record))
    inline = record["state"] == "memory" and not replicas
    if inline:
        replicas = (Holder("replica", "the server", detail=("inline",)),)
    return Why(
        name,
        record["state"],
        int(record.get("nbytes", 0)),
        tuple(holders),
        replicas,
        standing(reader, record),
    )


def explain(endpoint: Endpoint, key: Key) -> Why:
    """Return every holder of a key to who is no client, and the lines that made the Futures of living clients.

    A client is registered for the question. Where the server takes none (it is full, or read-only), no lines are known.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace.
    key : str, tuple, number or bytes
        The user's key.

    Raises
    ------
    InvalidKey
        If it is none.
    ConnectionLost
        If the server cannot be reached.
    """
    from redist.client import Client

    name = encode_key(key)
    try:
        with Client(endpoint, name="redist why", set_as_default=False) as client:
            found: Why = client.why(key)
            return found
    except RedistError:
        wire = endpoint.open()
        try:
            return why(WireReader(wire.call, endpoint.prefix), name)
        finally:
            wire.close()


def _references(reader: Reader, name: str, record: dict[str, str], ask: Ask | None) -> Iterator[Holder]:
    for entry, value in record.items():
        if not entry.startswith("refs:"):
            continue
        who = entry[5:]
        if who == "0":
            yield Holder("fire and forget", "until it is finished")
        elif who == "d":
            dataset, _, version = name[1:].rpartition("@")
            yield Holder("dataset", dataset, detail=(f"version {version}",))
        elif who == "c":
            yield _shared(name)
        elif who == "h":
            for token, deadline in reader.tokens(name):
                left = max(0, deadline / 1000 - time.time())
                yield Holder("hand-off", token, detail=(f"{left:.0f} s left",))
        else:
            caller = reader.hash(f"caller:{who}")
            kind, holder = "client", caller.get("name", "gone")
            detail = [f"caller:{who} in Redis"]
            if caller.get("kind") == "executor":
                kind, running = "task", _running(reader, who)
                if running:
                    detail.insert(0, f"executor {holder}")
                    holder = running
            if "pid" in caller:
                detail.append(f"process {caller['pid']} on {caller.get('host', '?')}")
            since = None
            if ask is not None and kind == "client" and caller.get("inc") and (made := ask(int(who), name)):
                since = min(time_ for _, time_ in made)
                detail += _lines([line for line, _ in made], int(value))
            yield Holder(kind, holder, int(value), since, tuple(detail))


def _lines(lines: list[str], count: int) -> list[str]:
    """Return the lines that made `count` references; which of more lines made those that are left nobody knows."""
    if len(lines) <= count:
        return lines
    return [" or ".join(lines) if count == 1 else f"{count} of these: {', '.join(lines)}"]


def _running(reader: Reader, executor: str) -> str:
    """Return the keys of the tasks that an executor runs."""
    given = [
        name for batch in reader.hash(f"batches:{executor}").values() for name in batch.split("\n") if name
    ]
    names = [
        name for name in given[:SHOWN] if reader.hash(f"key:{name}").get("state", "").startswith("processing")
    ]
    more = f" or {len(names) - 3:,} more" if len(names) > 3 else ""
    return " or ".join(names[:3]) + more


def _containers(reader: Reader, name: str) -> Iterator[Holder]:
    ids, count = reader.members(f"containers:{name}", SHOWN)
    for container in ids:
        key = container.partition(" ")[2]
        if key.startswith(BUNDLE):
            yield from _of_bundle(reader, key)
        elif key.startswith("@@"):
            yield _shared(key)
        elif key.startswith("@"):
            dataset, _, version = key[1:].rpartition("@")
            yield Holder("dataset", dataset, detail=(f"version {version}",))
        else:
            yield Holder("container", key)
    if count > len(ids):
        yield Holder("container", f"and {count - len(ids):,} more")


def _shared(record: str) -> Holder:
    """Return the variable, queue or topic that a record ``@@KIND@NAME@ID`` is a value of."""
    kind, _, rest = record[2:].partition("@")
    return Holder(kind, rest.rpartition("@")[0])


def _of_bundle(reader: Reader, name: str) -> Iterator[Holder]:
    """Yield what holds the keys of a bundle: the values that contain it, or who is about to make one known."""
    containers = list(_containers(reader, name))
    yield from containers
    if not containers:
        for holder in _references(reader, name, reader.hash(f"key:{name}"), None):
            yield Holder("container", f"that {holder.kind} {holder.name} is storing", detail=holder.detail)


def _dependents(reader: Reader, name: str) -> Iterator[Holder]:
    for kind, sets in (("unfinished dependent", ("waiters", "users")), ("known dependent", ("dependents",))):
        for which in sets:
            keys, count = reader.members(f"{which}:{name}", SHOWN)
            for key in keys:
                yield Holder(kind, key, detail=(reader.hash(f"key:{key}").get("state", "forgotten"),))
            if count > len(keys):
                yield Holder(kind, f"and {count - len(keys):,} more")


def _replicas(reader: Reader, record: dict[str, str]) -> Iterator[Holder]:
    for entry, attempt in record.items():
        if entry.startswith("w:"):
            worker = reader.hash(f"caller:{entry[2:]}")
            yield Holder("replica", f"worker {worker.get('name', entry[2:])}", detail=(f"version {attempt}",))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
