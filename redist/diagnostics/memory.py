"""What memory holds: by worker and by host, as the workers' last heartbeats said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

from redist.markup import table

if TYPE_CHECKING:
    from redist.store.side import Side

__all__ = ["Memory", "Use", "WorkerMemory", "cannot_work", "read_memory"]

#: Columns of names, before those of figures.
_NAMES = 3
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes of memory and disk, by what they are used for.

    Attributes
    ----------
    limit : int
        What may be used, of `managed` and `unmanaged`; 0 for no limit.
    managed : int
        Payloads in shared memory.
    unmanaged : int
        Memory that the processes which run tasks have of their own.
    spilled : int
        Payloads on disk, and dropped ones that somebody still maps there.
    lingering : int
        Dropped payloads that somebody still maps.
    pooled : int
        Files that wait to be written: those of dropped payloads, and what is ready for the next large one (the setting
        ``worker.memory.ready``). They go when nobody used them for a while, and as soon as memory is short.
    granted : int
        What was granted and is being written.
    overhead : int
        What small payloads take beyond their own bytes: the rest of pages, files that are being filled, and the index that
        tells where they lie.
    """

    limit: int = 0
    managed: int = 0
    unmanaged: int = 0
    spilled: int = 0
    lingering: int = 0
    pooled: int = 0
    granted: int = 0
    overhead: int = 0

    @property
    def memory(self) -> int:
        """All of it that is memory."""
        return self.managed + self.unmanaged + self.lingering + self.pooled + self.granted + self.overhead


def _sum(uses: Iterable[Use]) -> Use:
    listed = list(uses)
    return Use(**{one.name: sum(getattr(use, one.name) for use in listed) for one in fields(Use)})


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """One worker.

    Attributes
    ----------
    name, address, host, status : str
        Which, where, and whether it is ``running``, ``paused``, ``closing``, or ``late``: it was not heard of for longer
        than its lease, and is given up as soon as somebody looks.
    use : Use
        What it uses.
    executors : dict
        Bytes of their own by the name of a process that runs tasks.
    """

    name: str
    address: str
    host: str
    status: str
    use: Use
    executors: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Memory:
    """All workers; as text, and in a notebook, a table.

    Attributes
    ----------
    workers : tuple of WorkerMemory
        By name.
    """

    workers: tuple[WorkerMemory, ...]

    @property
    def total(self) -> Use:
        """All workers together."""
        return _sum(worker.use for worker in self.workers)

    @property
    def hosts(self) -> dict[str, Use]:
        """The workers of each host together."""
        names = sorted({worker.host for worker in self.workers})
        return {name: _sum(w.use for w in self.workers if w.host == name) for name in names}

    def _rows(self) -> list[list[str]]:
        """Return the cells: a head, a row a worker and host, and the sum."""
        columns = [one.name for one in fields(Use)]
        rows = [["", "", "", *columns]]

        def add(kind: str, name: str, status: str, use: Use) -> None:
            limit, *amounts = (_size(getattr(use, column)) for column in columns)
            figures = [limit if use.limit else "none", *amounts]
            rows.append([kind, name, status, *figures])

        for worker in self.workers:
            add("worker", worker.name, worker.status, worker.use)
        for host, use in self.hosts.items():
            add("host", host, "", use)
        count = len(self.workers)
        add("total", f"{count} worker{'' if count == 1 else 's'}", "", self.total)
        return rows

    def __str__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < _NAMES else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        )

    def _repr_html_(self) -> str:
        heads, *rows = self._rows()
        return table(heads, rows, figures=_NAMES)


def _size(nbytes: int) -> str:
    size = float(nbytes)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def read_memory(side: Side) -> Memory:
    """Read what the workers said last; they do so every 2 s, and within a second of a change that counts."""
    now = _now(side)
    records = (side.fields(f"caller:{ordinal}") for ordinal in side.fields("workers"))
    found = (_worker(record, now) for record in records if record.get("inc"))
    return Memory(tuple(sorted(found, key=lambda worker: worker.name)))


def cannot_work(side: Side, ordinals: Iterable[str]) -> str:
    """Say why none of these workers takes tasks: what is wrong with the first; empty if one of them does."""
    now = _now(side)
    first, count = "", 0
    for ordinal in ordinals:
        record = side.fields(f"caller:{ordinal}")
        if not record.get("inc"):
            continue
        worker, silent = _worker(record, now), _silent(record, now)
        if worker.status == "late":
            why = f"was not heard of for {silent:.0f} s: its lease has run out"
        elif worker.status == "paused":
            use = worker.use
            why = f"is paused: memory {_size(use.memory)}" + (f" of {_size(use.limit)}" if use.limit else "")
        elif worker.status != "running":
            why = f"is {worker.status}"
        elif silent > _lease(record) / 2:  # it says something every 2 s, a fifth of it
            why = f"was not heard of for {silent:.0f} s"
        else:
            return ""
        first, count = first or f"worker {worker.name} {why}", count + 1
    more = f"; nor do{'es' if count == 2 else ''} {count - 1:,} more take tasks" if count > 1 else ""
    return f"{first}{more}"


def _now(side: Side) -> float:
    """Return the time of the server's clock, s."""
    seconds, micros = side.command("TIME")
    return int(seconds) + int(micros) / 1e6


def _silent(record: Mapping[str, str], now: float) -> float:
    """Return for how many seconds a worker was not heard of."""
    return now - int(record.get("seen") or 1000 * now) / 1000


def _lease(record: Mapping[str, str]) -> float:
    return int(record.get("lease") or 0) / 1000


def _worker(record: Mapping[str, str], now: float) -> WorkerMemory:
    try:
        metrics = json.loads(record.get("metrics") or "{}")
    except ValueError:
        metrics = {}
    said = {name: int(metrics.get(name, 0)) for name in (one.name for one in fields(Use))}
    said["limit"] = int(record.get("memory_limit") or 0)
    status = record.get("status", "running").replace("strained", "running")
    if _silent(record, now) > _lease(record) > 0:
        status = "late"
    executors = {
        str(one.get("name", "")): int(one.get("unmanaged", 0)) for one in metrics.get("executors", ())
    }
    name, address, host = (record.get(key, "") for key in ("name", "address", "host"))
    return WorkerMemory(name, address, host, status, Use(**said), executors)
