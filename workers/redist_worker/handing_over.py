"""What a worker that stops in good order does for payloads of which it has the only copy: others are asked to bring them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgpack

from redist.memory.space import format_size
from redist.store import calls
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.store.calls import Call
    from redist.store.side import Side

__all__ = ["hand_over"]

logger = logging.getLogger("redist.worker")

_LOOK_EVERY = 0.05
_FIRST_ANSWER = 1.0

Copy = tuple[str, int]


class Sole(NamedTuple):
    """A payload of which this worker has the only copy; those that nothing can compute again come first."""

    again: bool
    name: str
    attempt: int
    nbytes: int

    @property
    def copy(self) -> Copy:
        """What `fetch` is told."""
        return self.name, self.attempt


async def hand_over(
    side: Side, post: Callable[[Call], None], ordinal: int, address: str, seconds: float
) -> None:
    """Have other running workers bring payloads that only this one has; return when they did, or cannot.

    The log says how much there is, and what goes with this worker.

    Parameters
    ----------
    side : Side
        For reading.
    post : callable
        Puts a call on the worker's lane.
    ordinal : int
        The worker's.
    address : str
        Its data server.
    seconds : float
        How long it waits for them.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    # a server that hangs is not waited for
    helpers = await asyncio.wait_for(asyncio.to_thread(_running, side, ordinal), _FIRST_ANSWER)
    sole = await asyncio.to_thread(_sole, side, ordinal, await asyncio.to_thread(_all, side, ordinal))
    if not sole:
        return
    before = _total(sole)
    if helpers:
        logger.info(
            "of what is still needed only this worker has %s; %s asked to take it over",
            before, "another worker is" if len(helpers) == 1 else f"{len(helpers)} other workers are",
        )  # fmt: skip
    asked: dict[Copy, int] = {}
    while sole and helpers and loop.time() < deadline:
        for index, each in enumerate(sole):
            # one that was asked may have begun to stop, too
            if asked.get(each.copy) not in helpers:
                asked[each.copy] = helper = helpers[index % len(helpers)]
                post(calls.send([helper], msgpack.packb(["fetch", *each.copy, address])))
        await asyncio.sleep(_LOOK_EVERY)
        sole = await asyncio.to_thread(_sole, side, ordinal, [each.copy for each in sole])
        helpers = await asyncio.to_thread(_running, side, ordinal)
    if not sole:
        logger.info("handed over %s", before)
        return
    why = f"nobody has taken it over within {seconds:g} s" if helpers else "no other worker is there"
    logger.warning(
        "gone with this worker, since %s: %s of which nobody else has a copy; %s",
        why,
        _total(sole),
        _fate(sole),
    )


def _total(sole: Sequence[Sole]) -> str:
    return f"{len(sole):,} value{'s' if len(sole) != 1 else ''} ({format_size(sum(each.nbytes for each in sole))})"


def _fate(sole: Sequence[Sole]) -> str:
    lost = [each.name for each in sole if not each.again]
    if not lost:
        return "what is needed of it is computed again"
    named = ", ".join(repr(decode_key(name)) for name in lost[:3])
    text = f"{len(lost):,} cannot be computed again ({named}{', ...' if len(lost) > 3 else ''})"
    return text if len(lost) == len(sole) else f"{text}, the others can"


def _running(side: Side, ordinal: int) -> list[int]:
    """Return the other workers that are not about to stop."""
    found = []
    for other in map(int, side.fields("workers")):
        record = side.fields(f"caller:{other}") if other != ordinal else {}
        if record.get("inc") and record.get("status") == "running":
            found.append(other)
    return found


def _all(side: Side, ordinal: int) -> list[Copy]:
    return [(name, int(attempt)) for name, attempt in side.fields(f"has:{ordinal}").items()]


def _sole(side: Side, ordinal: int, copies: Iterable[Copy]) -> list[Sole]:
    """Return those of this worker's copies that nobody else has."""
    found = []
    for name, attempt in copies:
        record = side.fields(f"key:{name}")
        holders = [field for field in record if field.startswith("w:")]
        if holders == [f"w:{ordinal}"] and record[f"w:{ordinal}"] == str(attempt):
            found.append(Sole(bool(record.get("fn")), name, attempt, int(record.get("nbytes", "0"))))
    return sorted(found)
