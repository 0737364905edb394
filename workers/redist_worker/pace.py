"""How long functions take here, which decides how many tasks an executor takes at a time."""

from __future__ import annotations

__all__ = ["LARGEST_BATCH", "QUICK_SECONDS", "Pace"]

QUICK_SECONDS = 0.001
"""Mean below which a function is quick, s."""

LARGEST_BATCH = 64

_BATCH_SECONDS = 0.005
_MOST_QUICK = 32
_WEIGHT = 0.2


class Pace:
    """Measured means of functions; safe to use from several threads.

    A function is quick when its mean is below `QUICK_SECONDS` and its last result was inline.
    """

    def __init__(self) -> None:
        self._means: dict[str, float] = {}
        self._quick: tuple[str, ...] = ()
        self._last = QUICK_SECONDS

    @property
    def quick(self) -> tuple[str, ...]:
        """Hashes of quick functions, the latest ones only."""
        return self._quick

    @property
    def want(self) -> int:
        """How many tasks of a quick function make up a batch."""
        if not self._quick:
            return 1
        return max(1, min(LARGEST_BATCH, int(_BATCH_SECONDS / max(self._last, 1e-6))))

    def note(self, fn: str, seconds: float, count: int, *, inline: bool) -> None:
        """Take in that `count` calls of `fn` took `seconds` in all."""
        mean = seconds / count
        if not inline:
            # a segment is worth a turn of its own: its readers wait for it
            mean = max(mean, QUICK_SECONDS)
        before = self._means.get(fn)
        if before is not None:
            mean = before + _WEIGHT * (mean - before)
        if len(self._means) > 10_000 and before is None:
            self._means.clear()
            self._quick = ()
        self._means[fn] = mean
        self._last = mean
        quick = self._quick
        if mean < QUICK_SECONDS:
            if not quick or quick[-1] != fn:
                self._quick = (*(other for other in quick if other != fn), fn)[-_MOST_QUICK:]
        elif fn in quick:
            self._quick = tuple(other for other in quick if other != fn)
