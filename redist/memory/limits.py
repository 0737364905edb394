"""What a worker does as its memory fills, as fractions of its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from redist import config
from redist.errors import ConfigurationError
from redist.memory.amounts import parse_bytes
from redist.memory.arena import ARENA_SIZE
from redist.memory.machine import memory_of_machine
from redist.memory.space import format_size
from redist.timeouts import seconds

__all__ = ["MemoryLimits", "configured_limits", "small_limit_warning"]

_FRACTIONS = ("target", "spill", "pause", "terminate")
#: What a process that runs tasks has of its own when it is new, at least.
_OWN = 12 << 20
#: One in so many bytes of the limit is made ready ahead of large payloads, and at most so many.
_READY, _MOST_READY = 32, 256 << 20


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
    ready : int, optional
        Bytes that are made ready ahead of the next large payload; default a 32nd of the limit, at most 256 MiB.
    """

    target: float = 0.60
    spill: float = 0.70
    pause: float = 0.80
    terminate: float = 0.95
    wait: float = 10.0
    longest_pause: float = 10.0
    ready: int | None = None

    def __post_init__(self) -> None:
        for name in _FRACTIONS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ConfigurationError(
                    f"worker.memory.{name} is {value!r:.80}: write a fraction from 0 to 1, or false for never"
                )

    def ready_of(self, limit: int) -> int:
        """Return how many bytes are made ready by a worker whose memory limit is `limit` bytes; 0 is no limit."""
        if self.ready is not None:
            return self.ready
        return min(_MOST_READY, (limit or memory_of_machine()) // _READY)


def configured_limits() -> MemoryLimits:
    """Return the limits as the settings ``worker.memory`` have them.

    Raises
    ------
    ConfigurationError
        If one of them is none; it names the setting, its value, and what may be there.
    """
    fractions: dict[str, Any] = {name: config.get(f"worker.memory.{name}") for name in _FRACTIONS}
    return MemoryLimits(
        **{name: 0.0 if value in (None, False) else value for name, value in fractions.items()},
        wait=_span("wait"),
        longest_pause=_span("longest-pause"),
        ready=_ready(),
    )


def small_limit_warning(limit: int, executors: int, limits: MemoryLimits) -> str | None:
    """Return a warning if a memory limit is less than what the processes of a worker take by themselves.

    Raises
    ------
    ConfigurationError
        If no value could ever be kept within it.
    """
    if not limit:
        return None
    text = f"the memory limit of {limit:,} bytes ({format_size(limit)})"
    mend = (
        "write an amount with its unit as 4GiB, a fraction of the machine's memory as 0.5, or 0 for no limit"
    )
    room = limits.target or 1.0
    if limit * room < ARENA_SIZE:
        part = f"target={limits.target:g} of it are" if limits.target else "that is"
        raise ConfigurationError(
            f"{text} has no room for values: {part} less than the {format_size(ARENA_SIZE)} of a file of small ones; {mend}"
        )
    if limits.pause and limit * limits.pause < executors * _OWN:
        return (
            f"{text} is less than a worker's own processes need, {_OWN >> 20} MiB for each of {executors} that run"
            f" tasks: they will take hardly any, as above pause={limits.pause:g} of it; {mend}"
        )
    return None


def _ready() -> int | None:
    value = config.get("worker.memory.ready")
    if value is None or (isinstance(value, str) and value.strip() == "auto"):
        return None
    try:
        return 0 if value is False else parse_bytes(str(value))
    except ValueError as error:
        raise ConfigurationError(f"worker.memory.ready: {error}, or auto") from None


def _span(name: str) -> float:
    value = config.get(f"worker.memory.{name}")
    try:
        span = seconds(value) or 0.0
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"worker.memory.{name}: {error}") from None
    if not span >= 0:
        raise ConfigurationError(
            f"worker.memory.{name} is {value!r:.80}: write a span of time such as '10 s', from 0"
        )
    return span
