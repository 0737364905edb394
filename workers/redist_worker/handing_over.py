"""What a worker that stops in good order does for payloads of which it has the only copy: others are asked to bring them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgpack

from redist.store import calls

if TYPE_CHECKING:
    from redist.store.calls import Call
    from redist.store.side import Side

__all__ = ["hand_over"]

logger = logging.getLogger("redist.worker")

_LOOK_EVERY = 0.05
_FIRST_ANSWER = 1.0

Copy = tuple[str, int]


async def hand_over(
    side: Side, post: Callable[[Call], None], ordinal: int, address: str, seconds: float
) -> None:
    """Have other running workers bring payloads that only this one has; return when they did, or cannot.

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
    if not helpers:
        return
    sole = await asyncio.to_thread(_sole, side, ordinal, await asyncio.to_thread(_all, side, ordinal))
    asked: dict[Copy, int] = {}
    while sole and helpers and loop.time() < deadline:
        for index, copy in enumerate(sole):
            # one that was asked may have begun to stop, too
            if asked.get(copy) not in helpers:
                asked[copy] = helper = helpers[index % len(helpers)]
                post(calls.send([helper], msgpack.packb(["fetch", *copy, address])))
        await asyncio.sleep(_LOOK_EVERY)
        sole = await asyncio.to_thread(_sole, side, ordinal, sole)
        helpers = await asyncio.to_thread(_running, side, ordinal)
    if sole:
        logger.info("the only copies of %d payloads go with this worker", len(sole))


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


def _sole(side: Side, ordinal: int, copies: Iterable[Copy]) -> list[Copy]:
    """Return those of this worker's copies that nobody else has; first what cannot be computed again."""
    found = []
    for name, attempt in copies:
        record = side.fields(f"key:{name}")
        holders = [field for field in record if field.startswith("w:")]
        if holders == [f"w:{ordinal}"] and record[f"w:{ordinal}"] == str(attempt):
            found.append((bool(record.get("fn")), name, attempt))
    return [(name, attempt) for _, name, attempt in sorted(found)]
