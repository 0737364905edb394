"""Errors of tasks, raised so that a traceback shows the user's call and the task, and nothing between the two."""

from __future__ import annotations

from types import TracebackType
from typing import NoReturn

__all__ = ["raise_told", "without_way"]


def raise_told(exception: BaseException, traceback: TracebackType | None) -> NoReturn:
    """Raise what was told of a Future: `exception`, with the `traceback` that it had in the task."""
    try:
        raise exception.with_traceback(traceback)
    finally:
        del exception, traceback  # else the traceback would hold this frame, and this frame the traceback


def without_way(error: BaseException) -> bool:
    """Cut from a traceback the way on which it came here; return whether there was one to cut.

    That is of what `raise_told` raised, and of a Ctrl-C that hit inside a call. What fails in redist itself was not
    told of any Future and keeps all its frames.
    """
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code is raise_told.__code__:
            error.__traceback__ = traceback.tb_next
            return True
        traceback = traceback.tb_next
    if type(error) is KeyboardInterrupt:
        error.__traceback__ = None
        return True
    return False
