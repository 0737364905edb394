"""How a key stands, in plain words: what a state means, and what a queued task waits for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

__all__ = ["standing"]

_SHOWN = 100
"""Workers that are read to find one that is not paused."""


class _Hashes(Protocol):
    def hash(self, key: str) -> dict[str, str]: ...


def standing(reader: _Hashes, record: Mapping[str, str]) -> str:
    """Return the state of a key in plain words.

    Parameters
    ----------
    reader : Reader
        Reads the namespace.
    record : mapping
        The key's record, ``key:NAME``.
    """
    state, _, more = record["state"].partition(" ")
    if state == "memory":
        return f"in memory, {int(record.get('nbytes', 0)):,} bytes"
    if state == "erred":
        kind = record.get("type")
        return f"failed with {kind}" if kind else "failed"
    if state == "waiting":
        missing = int(record.get("missing", 0))
        return f"waiting for {missing:,} key{'' if missing == 1 else 's'}"
    if state == "queued":
        return f"queued: {_queued(reader, record.get('class', ''))}"
    if state == "processing":
        class_ = record.get("class", "")
        if class_ and reader.hash(f"class:{class_}").get("strict") == "2":
            return f"given to {_where(reader, more)}, which has the actor"  # it may wait there for its turn
        return f"running on {_where(reader, more)}"
    if state == "released":
        return "released: its value is gone, and can be computed again"
    return record["state"]


def _where(reader: _Hashes, place: str) -> str:
    ordinal = place.partition(".")[0].removeprefix("e")
    executor = reader.hash(f"caller:{ordinal}")
    worker = reader.hash(f"caller:{executor['worker']}") if "worker" in executor else {}
    if not worker:
        return "a worker that is gone"
    where = f"worker {worker.get('name', executor['worker'])}"
    details = [f"process {executor['pid']}"] if "pid" in executor else []
    if worker.get("host"):
        details.append(f"on {worker['host']}")
    return f"{where} ({' '.join(details)})" if details else where


def _queued(reader: _Hashes, class_: str) -> str:
    workers = reader.hash("workers")
    if not workers:
        return "no worker is registered"
    eligible = reader.hash(f"class:{class_}") if class_ else {}
    if class_ and not eligible:
        return "waits for ever: which workers may run it is not known any more"
    if eligible.get("strict") == "2":
        executor = eligible.get("workers", "")
        if executor in reader.hash("executors"):
            return f"waits for {_where(reader, f'e{executor}')}, which has the actor"
        return "waits for any free thread, to say that the actor is lost"
    named = [name for name in eligible.get("workers", "").split("\n") if name]
    wanted = _amounts(eligible.get("resources", ""))
    ordinals = list(workers) if eligible else list(workers)[:_SHOWN]
    records = {ordinal: reader.hash(f"caller:{ordinal}") for ordinal in ordinals}
    may = {ordinal: worker for ordinal, worker in records.items() if worker}
    who = "a worker"
    if named and eligible.get("strict") != "0":
        who = f"a worker named {_alternatives(named)}"
        may = {ordinal: worker for ordinal, worker in may.items() if _is_named(named, ordinal, worker)}
        if not may:
            return f"waits for {who}; none is registered"
    if wanted:
        text = ", ".join(f"{name}={amount:g}" for name, amount in wanted.items())
        may = {
            ordinal: worker
            for ordinal, worker in may.items()
            if _covers(_amounts(worker.get("resources", "")), wanted)
        }
        if not may:
            return f"waits for {who} with the resources {text}; none is registered"
        free = [
            worker
            for worker in may.values()
            if _covers({name: float(worker.get(f"free:{name}", 0)) for name in wanted}, wanted)
        ]
        if not free:
            return f"waits until the resources {text} are free on {_some(may)}"
    if may and all(worker.get("status", "running") != "running" for worker in may.values()):
        return f"waits for {_some(may)}, which takes no tasks now ({next(iter(may.values()))['status']})"
    return f"waits for a free thread of {_some(may)}" if eligible and may else "waits for a free thread"


def _is_named(named: list[str], ordinal: str, worker: Mapping[str, str]) -> bool:
    return not {worker.get("name"), worker.get("address"), worker.get("host"), ordinal}.isdisjoint(named)


def _amounts(text: str) -> dict[str, float]:
    pairs = (part.partition("=") for part in text.split(",") if part)
    return {name: float(amount) for name, _, amount in pairs}


def _covers(offered: Mapping[str, float], wanted: Mapping[str, float]) -> bool:
    return all(offered.get(name, 0) >= amount for name, amount in wanted.items())


def _some(workers: Mapping[str, Mapping[str, str]]) -> str:
    names = [worker.get("name", ordinal) for ordinal, worker in workers.items()]
    if len(names) == 1:
        return f"worker {names[0]}"
    return f"worker {names[0]} or {len(names) - 1:,} more"


def _alternatives(names: list[str]) -> str:
    shown = " or ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} or {len(names) - 3:,} more"
