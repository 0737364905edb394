"""The directories that somebody names for payloads: what cannot be used is said at the start, not with the first payload."""

from __future__ import annotations

import errno
import logging
import os
import secrets

from redist.errors import SegmentError
from redist.memory.locks import BEING_MADE, check_private

__all__ = ["FULL", "SEGMENT", "SPILL", "check_above", "check_spill", "make_place", "unusable"]

logger = logging.getLogger("redist.memory")

#: What directories are for, as errors name them.
SEGMENT, SPILL = "segment", "spill"
#: What says that a disk has no room.
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_above(place: str, kind: str | None = None) -> None:
    """Refuse a place below a directory that is not there.

    A mistyped path: payloads in a new directory of the root's disk would be a surprise.

    Raises
    ------
    SegmentError
        If there is no such directory.
    """
    above = os.path.dirname(os.path.abspath(place))
    if not os.path.isdir(above):
        another = "another one" if kind is None else f"another {kind} directory"
        raise SegmentError(f"{place}: there is no directory {above}; make it, or give {another}")


def make_place(place: str, *, log: bool) -> None:
    """Make the directory `place` unless it is there, nothing above it, and refuse one that is not ours alone."""
    try:
        os.mkdir(place, 0o700)
    except FileExistsError:
        pass
    else:
        if log:
            logger.info("made the directory %s for payloads", place)
    check_private(place)


def unusable(place: str, kind: str, error: OSError) -> SegmentError:
    """Return the error of a place in which no directory can be made."""
    return SegmentError(f"{place}: no {kind} directory can be made there: {error.strerror}")


def check_spill(place: str) -> None:
    """Make the directory that somebody names for payloads on disk, and see that it can be written.

    Raises
    ------
    SegmentError
        If it cannot be used, or lies in a directory that is not there.
    """
    place = os.path.abspath(place)
    check_above(place, SPILL)
    trial = os.path.join(place, BEING_MADE + secrets.token_hex(8))
    for left in (2, 1, 0):
        try:
            make_place(place, log=True)
            os.mkdir(trial, 0o700)
            os.rmdir(trial)
            return
        except OSError as error:
            # the last worker that spilled there may have left meanwhile, and taken the empty place along
            if isinstance(error, FileNotFoundError) and left:
                continue
            if error.errno not in FULL:  # a full disk may have room by the time that it is needed
                raise unusable(place, SPILL, error) from error
            return
