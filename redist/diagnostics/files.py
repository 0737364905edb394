"""The payload files of this host, compared with the keys that they are for: what is missing, too many, or not whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from redist.diagnostics.namespace import Violation
from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.headers import SPILL_LINK, file_name, find_header, is_file_name, spilled_path
from redist.memory.host import same_host
from redist.memory.payloads import list_payloads

if TYPE_CHECKING:
    from redist.diagnostics.reading import Fields, Snapshot
    from redist.memory.headers import Header

__all__ = ["files"]


def files(snapshot: Snapshot) -> Iterator[Violation]:
    """Compare the payload files of living workers on this host with the keys that they are for."""
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
        for entry in sorted(there - expected.keys()):
            try:
                header = small.get(entry) or find_header(f"{path}/{entry}")
            except SegmentError as error:
                yield Violation("files", f"{path}/{entry}", f"is no payload: {error}")
                continue
            where = f"a place in an arena of {path}" if entry in small else f"the file {path}/{entry}"
            yield Violation("files", header.name, f"has {where}, which {who} is not known to have")


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
