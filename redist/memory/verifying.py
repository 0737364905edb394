"""Whether a payload is whole, as the worker sees it that owns the file: what a reader says of one is a hint.

A payload that moves between memory and disk, or goes, does so with the directory's lock held; so what is looked at with that
lock is at rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone
from redist.memory.headers import find_header
from redist.memory.payloads import open_payload

if TYPE_CHECKING:
    from redist.memory.directory import SegmentDirectory

__all__ = ["flaw"]


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
