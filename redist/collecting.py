"""Keeping the garbage collector from looking through very many new values again and again while they are made."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections.abc import Iterator

__all__ = ["seldom_collected"]

#: So many values that collecting garbage while they are made costs a quarter of the time.
_MANY = 5000
#: New objects between two collections meanwhile. Not none: whoever waits for a server may wait for long.
_SELDOM = 100_000

_mutex = threading.Lock()
_holders = 0
_before = gc.get_threshold()


@contextlib.contextmanager
def seldom_collected(count: int) -> Iterator[None]:
    """Have garbage collected less often in this process while `count` values are made, if those are many."""
    if count < _MANY:
        yield
        return
    _begin()
    try:
        yield
    finally:
        _end()


def _begin() -> None:
    global _holders, _before
    with _mutex:
        _holders += 1
        if _holders == 1:
            _before = gc.get_threshold()
            if 0 < _before[0] < _SELDOM:  # 0: it is off
                gc.set_threshold(_SELDOM, *_before[1:])


def _end() -> None:
    global _holders
    with _mutex:
        _holders -= 1
        if not _holders and gc.get_threshold()[0] == _SELDOM:
            gc.set_threshold(*_before)


def _forked() -> None:
    global _mutex
    _mutex = threading.Lock()


os.register_at_fork(after_in_child=_forked)
