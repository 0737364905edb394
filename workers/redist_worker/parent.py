"""Dying with one's parent, even while C code holds the GIL."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading

__all__ = ["die_with_parent"]

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Have the kernel send `signum` to this process when the thread that forked it ends.

    Parameters
    ----------
    parent : int
        The parent's pid; if it is gone already, this process ends at once.
    signum : int
        The signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signum), 0, 0, 0)
    else:  # a thread can only look, and only while it gets the GIL
        threading.Thread(target=_watch, args=(parent, signum), name="parent-watch", daemon=True).start()
    if os.getppid() != parent:
        os.kill(os.getpid(), signum)


def _watch(parent: int, signum: int) -> None:
    never = threading.Event()
    while os.getppid() == parent:
        never.wait(0.5)
    os.kill(os.getpid(), signum)
