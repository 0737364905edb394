"""What processes of a host and their worker's broker say to each other, as lists in frames.

======== ============================================================== ==========================================
request  sent                                                           answered
======== ============================================================== ==========================================
RESERVE  [1, id, name, attempt, file size, (the three again)..., wait]   [id, None, grant, path, (the two again)...]
COMMIT   [2, 0, grant...]                                               nothing
ABORT    [3, 0, grant...]                                               nothing
FETCH    [4, id, [name, attempt, [address...]]...]                      [id, None, None or [error, text]...]
STAT     [5, id]                                                        [id, None, files, bytes, limit, used, granted]
DROP     [6, 0, name, attempt, (the two again)...]                      nothing
ARENA    [7, id, how many at most, wait]                                [id, None, segment directory, arena...]
STORED   [8, 0, arena, offset, name, attempt, length of the record,     nothing
         (the three again)...]
LEAVE    [9, 0, arena...]                                               nothing
CHECK    [10, id, name, attempt, (the two again)...]                    [id, None, None or [error, text]...]
======== ============================================================== ==========================================

`wait` is for how many seconds room is waited for at most, if there is none: None or missing for as long as the worker waits.

CHECK is for payloads that could not be read: an error is what their worker found wrong with the file, which is dropped then.

A refused request is answered ``[id, [error, text]]``. Grants belong to the connection: when it closes, those that were
not committed return. What one connection sends is obeyed in order. An arena belongs to the connection in the same way; the
records that it is told of are those that lie there from `offset` on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redist.errors import RedistError, SegmentCorrupt
from redist.memory.frames import error_of
from redist.memory.headers import Header, path_of

__all__ = ["Grant", "Stat", "Wanted"]

RESERVE, COMMIT, ABORT, FETCH, STAT, DROP, ARENA, STORED, LEAVE, CHECK = range(1, 11)

Wanted = tuple[str, int, Sequence[str]]
"""A payload to fetch: name, attempt, addresses of the data servers that have it, the best first."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Leave to write one payload.

    Parameters
    ----------
    id : int
        Its number.
    path : str
        The file to write.
    header : Header
        The payload it was asked for.
    connection : object
        The connection to which it belongs.
    """

    id: int
    path: str
    header: Header
    connection: object

    @property
    def final_path(self) -> str:
        """The path under which the payload is published."""
        return path_of(os.path.dirname(self.path), self.header.name, self.header.attempt)


@dataclass(frozen=True, slots=True)
class Stat:
    """What a worker's directory holds: number and bytes of payloads, its limit, bytes used, bytes granted."""

    files: int
    nbytes: int
    limit: int
    used: int
    granted: int


def take_back(published: Sequence[Grant]) -> None:
    """Remove files that were published and will not be committed."""
    for grant in published:
        try:
            os.unlink(grant.final_path)
        except FileNotFoundError:
            pass


def sizes_of(headers: Sequence[Header], wait: float | None = None) -> list[Any]:
    """Return what RESERVE says of payloads."""
    items: list[Any] = []
    for header in headers:
        items += (header.name, header.attempt, header.file_size)
    return [*items, wait]


def left(until: float | None) -> float | None:
    """Return the seconds that are left until a time of `time.monotonic`; None is for ever."""
    return None if until is None else max(0.0, until - time.monotonic())


def grants_of(answer: Sequence[Any], headers: Sequence[Header], connection: object) -> list[Grant]:
    """Return the grants in the answer to RESERVE."""
    if len(answer) != 2 * len(headers):
        raise SegmentCorrupt(f"{len(headers)} grants asked, {len(answer) // 2} answered")
    return [
        Grant(answer[2 * index], answer[2 * index + 1], header, connection)
        for index, header in enumerate(headers)
    ]


def sources_of(wanted: Sequence[Wanted]) -> list[Any]:
    """Return what FETCH says of payloads."""
    return [[name, attempt, list(addresses)] for name, attempt, addresses in wanted]


def outcomes_of(answer: Sequence[Any]) -> list[RedistError | None]:
    """Return for each payload of an answer None or its error."""
    return [error_of(fields) for fields in answer]


def flat(pairs: Sequence[tuple[str, int]]) -> list[Any]:
    """Return names and attempts in one list."""
    return [item for pair in pairs for item in pair]
