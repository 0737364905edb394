"""The payload files of this host, compared with the keys that they are for: what is missing, too many, or not whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from redist.diagnostics.namespace import Violation
from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.headers import SPILL_LINK, file_name, find_header, is_file_name, spilled_path
from redist.memory.host import same_host
from redist.memory.locks import owner_is_gone
from redist.memory.payloads import list_payloads
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.diagnostics.reading import Fields, Snapshot
    from redist.memory.headers import Header

__all__ = ["Leftovers", "files"]


class Leftovers(NamedTuple):
    """Payloads that no key has any more, of a worker that cannot drop them: it is dead, or does not answer."""

    who: str
    path: str
    names: Sequence[str]
    dead: bool

    def __str__(self) -> str:
        count = len(self.names)
        more = f" and {count - 1:,} more" if count > 1 else ""
        whose = "is dead, and left" if self.dead else "is past its lease, and has"
        end = (
            "they go when it is started again under its name, or with its directory"
            if self.dead
            else "it drops them when it is heard of again"
        )
        return f"{self.who} {whose} payloads that no key needs in {self.path} ({decode_key(self.names[0])!r}{more}): {end}"


def files(snapshot: Snapshot, now: float) -> Iterator[Violation | Leftovers]:
    """Compare the payload files of workers on this host with the keys that they are for.

    Parameters
    ----------
    snapshot : Snapshot
        The namespace.
    now : float
        Milliseconds of the server's clock.
    """
    leases = snapshot.zrange("leases")
    for ordinal, worker, path in _workers_here(snapshot):
        who = f"worker {worker.get('name', '')} (caller:{ordinal})"
        expected = {
            file_name(name, int(attempt)): name
            for name, attempt in snapshot.hgetall(f"has:{ordinal}").items()
            if attempt.isdigit()
        }
        try:
            listed = os.listdir(path)
            if SPILL_LINK in listed:
                with contextlib.suppress(FileNotFoundError):
                    listed += os.listdir(f"{path}/{SPILL_LINK}")
            there = {entry for entry in listed if is_file_name(entry)}
            small = list_payloads(path)
        except (OSError, SegmentGone):
            continue
        except SegmentError as error:
            yield Violation("files", path, f"has a damaged arena: {error}")
            continue
        there |= small.keys()
        for entry in sorted(expected.keys() - there):
            yield Violation(
                "files", expected[entry], f"should be on {who}, and there is no file {path}/{entry}"
            )
        for entry in sorted(expected.keys() & there):
            yield from _not_whole(snapshot, expected[entry], f"{path}/{entry}", entry, small)
        dead = owner_is_gone(path)
        idle = dead or leases.get(ordinal, now) < now
        left: list[str] = []
        for entry in sorted(there - expected.keys()):
            try:
                header = small.get(entry) or find_header(f"{path}/{entry}")
            except SegmentError as error:
                yield Violation("files", f"{path}/{entry}", f"is no payload: {error}")
                continue
            if idle:
                left.append(header.name)
                continue
            where = f"a place in an arena of {path}" if entry in small else f"the file {path}/{entry}"
            yield Violation("files", header.name, f"has {where}, which {who} is not known to have")
        if left:
            yield Leftovers(who, path, left, dead)


def _not_whole(
    snapshot: Snapshot, name: str, path: str, entry: str, small: Mapping[str, Header]
) -> Iterator[Violation]:
    """Say what is wrong with a file that a key has: it was cut off, or is not what the record says."""
    told = snapshot.hgetall(f"key:{name}").get("nbytes", "")
    recorded = int(told) if told.isdigit() else 0
    try:
        header = small.get(entry) or find_header(path)
    except SegmentGone:
        return  # it has moved, or gone with its key
    except SegmentCorrupt as error:
        found = _found(path)
        if found is not None:
            path, size = found
            yield Violation(
                "files",
                name,
                f"has the file {path}, which is damaged: {size:,} bytes on disk for a payload of {recorded:,}; "
                f"{str(error).removeprefix(f'{path}: ')}",
            )
        return
    if recorded and header.nbytes != recorded:
        yield Violation(
            "files",
            name,
            f"has a payload of {header.nbytes:,} bytes in {path}, and {recorded:,} are recorded",
        )


def _found(path: str) -> tuple[str, int] | None:
    """Return where a payload's file lies, in memory or on disk, and its size; None if it went meanwhile."""
    for place in (path, spilled_path(path)):
        with contextlib.suppress(FileNotFoundError):
            return place, os.lstat(place).st_size
    return None


def _workers_here(snapshot: Snapshot) -> Iterator[tuple[str, Fields, str]]:
    for ordinal in snapshot.hgetall("workers"):
        worker = snapshot.hgetall(f"caller:{ordinal}")
        if same_host(worker.get("segments", ""), worker.get("hostid", "")):
            yield ordinal, worker, worker["segments"]
