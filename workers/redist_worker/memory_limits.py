"""What a worker does as its memory fills, as fractions of its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redist import config
from redist.timeouts import seconds

__all__ = ["MemoryLimits", "configured_limits"]


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Fractions of the memory limit, each 0 for never.

    Parameters
    ----------
    target : float
        Payloads above it go to disk, the coldest first.
    spill : float
        So they do when payloads and the executors' own memory are above it.
    pause : float
        Executors take no more tasks.
    terminate : float
        The executor with most memory of its own is killed.
    wait : float
        Seconds that a reservation waits while nothing gets free.
    longest_pause : float
        Seconds in which nothing ran, after which a paused worker's executors take a task all the same.
    """

    target: float = 0.60
    spill: float = 0.70
    pause: float = 0.80
    terminate: float = 0.95
    wait: float = 10.0
    longest_pause: float = 10.0

    def __post_init__(self) -> None:
        for name in ("target", "spill", "pause", "terminate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(
                    f"worker.memory.{name} is {value!r}: write a fraction from 0 to 1, or false for never"
                )


def configured_limits() -> MemoryLimits:
    """Return the limits as the settings ``worker.memory`` have them."""
    fractions = {name: _fraction(name) for name in ("target", "spill", "pause", "terminate")}
    return MemoryLimits(
        **fractions,
        wait=seconds(config.get("worker.memory.wait")) or 0.0,
        longest_pause=seconds(config.get("worker.memory.longest-pause")) or 0.0,
    )


def _fraction(name: str) -> float:
    value: Any = config.get(f"worker.memory.{name}")
    if value is None or value is False:
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(
            f"worker.memory.{name} is {value!r}: write a fraction from 0 to 1, or false for never"
        )
    return float(value)
