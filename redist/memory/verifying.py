"""Whether a payload is whole, as the worker sees it that owns the file: what a reader says of one is a hint.

A payload that moves between memory and disk, or goes, does so with the directory's lock held; so what is looked at with that
lock is at rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.arena import number_in
from redist.memory.headers import file_name, find_header
from redist.memory.payloads import open_payload

if TYPE_CHECKING:
    from redist.memory.directory import SegmentDirectory

__all__ = ["flaw", "vanished"]


def flaw(directory: SegmentDirectory, name: str, attempt: int) -> SegmentGone | SegmentCorrupt | None:
    """Return why nobody can read a payload, or None: it is whole, or cannot be looked at just now.

    Its size, footer and trailer are compared with each other, and with key and attempt; what is inside is not read.

    Parameters
    ----------
    directory : SegmentDirectory
        The worker's own.
    name : str
        Wire name of the key.
    attempt : int
        The attempt.
    """
    try:
        if directory.arenas.has(name, attempt):
            directory.arenas.header(name, attempt)
            return None
        with directory.mutex:
            if (name, attempt) in directory.large:
                find_header(directory.path_of(name, attempt))
                return None
        # Written, and not told of yet? Then readers find it.
        open_payload(directory.path, name, attempt)
    except (SegmentGone, SegmentCorrupt) as error:
        return error
    except (SegmentError, OSError):  # as when no more files can be opened
        pass
    return None


def vanished(directory: SegmentDirectory) -> list[tuple[str, int]]:
    """Return the payloads on disk whose files somebody has removed; what moved meanwhile may be among them. Blocks."""
    files = set(directory.spill.vanished())
    if not files:
        return []
    found = [copy for copy, size in list(directory.large.items()) if not size and file_name(*copy) in files]
    return found + directory.arenas.inside(
        {number for file in files if (number := number_in(file)) is not None}
    )
