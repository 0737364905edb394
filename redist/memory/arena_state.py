"""What a worker knows of one arena: how far it is written, and in which of its pages something lives."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterator, Sequence

from redist.memory.arena import ARENA_HEAD, ARENA_SIZE, extent
from redist.memory.headers import PAGE

__all__ = ["ArenaState", "ranges", "runs"]

_PAGES = ARENA_SIZE // PAGE


class ArenaState:
    """One arena, open and empty at first.

    Parameters
    ----------
    number : int
        Its number.
    owner : object
        Who writes it.
    writer : int
        The process that does, 0 if that is not known.
    """

    __slots__ = (
        "leaving",
        "living",
        "nbytes",
        "number",
        "owner",
        "pages",
        "sealed",
        "spilled",
        "taken",
        "told",
        "touched",
        "writer",
        "written",
    )

    def __init__(self, number: int, owner: object, writer: int = 0) -> None:
        self.number = number
        self.owner = owner
        self.writer = writer
        #: up to where its writer has said what is in it
        self.told = ARENA_HEAD
        #: records that live, what they take, and how many do in each page; the head of an open one counts as one
        self.living = self.nbytes = 0
        self.pages = array("H", [1, *[0] * (_PAGES - 1)])
        #: pages whose memory is reserved or, of one on disk, which are there
        self.taken = bytearray(b"\1" * _PAGES)
        self.sealed = False
        self.spilled = False
        self.leaving = False
        self.touched = time.monotonic()
        self.written = time.time()

    def count(self, offset: int, length: int, by: int) -> None:
        """Count a record in its pages."""
        self.living += by
        self.nbytes += by * extent(length)
        for page in range(offset // PAGE, (offset + length - 1) // PAGE + 1):
            self.pages[page] += by

    def living_pages(self) -> bytearray:
        """Return for each page whether something lives in it."""
        return bytearray(map(bool, self.pages))

    def free_pages(self) -> list[int]:
        """Return pages in which nothing lives and, if it is open, nothing more is written."""
        until = _PAGES if self.sealed else self.told // PAGE
        return [page for page in range(until) if self.taken[page] and not self.pages[page]]


def ranges(pages: bytearray) -> list[tuple[int, int]]:
    """Return where the bytes of the marked pages begin and end, those side by side together."""
    marked = [page for page in range(_PAGES) if pages[page]]
    return [(first * PAGE, last * PAGE) for first, last in runs(marked)] if marked else []


def runs(pages: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and the one after the last of pages that lie side by side."""
    first = last = pages[0]
    for page in pages:
        if page > last:
            yield first, last
            first = page
        last = page + 1
    yield first, last
