"""A kernel timer that costs one system call to move and nothing while it is moved in time."""

from __future__ import annotations

import ctypes
import os

__all__ = ["Deadline"]

_CLOCK_MONOTONIC = 1
_FLAGS = os.O_CLOEXEC


class _Spec(ctypes.Structure):
    _fields_ = [
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("value_s", ctypes.c_long),
        ("value_ns", ctypes.c_long),
    ]


# PyDLL keeps the GIL: the calls take less time than handing it over would
_libc = ctypes.PyDLL(None, use_errno=True)


class Deadline:
    """A ``timerfd``: `arm` before the work, and `wait` returns in another thread only when it was not armed again in time.

    Parameters
    ----------
    seconds : float
        How far `arm` puts the deadline off.
    """

    def __init__(self, seconds: float) -> None:
        self._fd = _libc.timerfd_create(_CLOCK_MONOTONIC, _FLAGS)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        self._on = _Spec(0, 0, int(seconds), int(seconds % 1 * 1e9))
        self._soon = _Spec(0, 0, 0, 1)
        self._settime = _libc.timerfd_settime
        self._arm = (self._fd, 0, ctypes.byref(self._on), None)

    def arm(self) -> None:
        """Put the deadline off."""
        self._settime(*self._arm)

    def expire(self) -> None:
        """Let `wait` return at once."""
        self._settime(self._fd, 0, ctypes.byref(self._soon), None)

    def wait(self) -> None:
        """Block, without the GIL, until the deadline passes."""
        os.read(self._fd, 8)

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
