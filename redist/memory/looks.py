"""How often it is worth its time to look at things of which there may be thousands."""

from __future__ import annotations

import time

__all__ = ["Looks"]

#: So few are always looked at; a look at more is not due again until it has taken a small part of the time.
_FEW, _PART = 16, 50


class Looks:
    """The looks at one collection; its owner takes care of threads."""

    def __init__(self) -> None:
        self._not_before = 0.0

    def due(self, count: int) -> bool:
        """Whether a look at `count` things is worth its time: thousands take milliseconds."""
        return 0 < count <= _FEW or (count > 0 and time.monotonic() >= self._not_before)

    def took(self, began: float) -> None:
        """Note that a look which `began` then (`time.monotonic`) is over."""
        now = time.monotonic()
        self._not_before = now + _PART * (now - began)
