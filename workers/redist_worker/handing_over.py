"""What a closing worker does for payloads of which it has the last copies: others are asked to make some."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from redist.errors import RedistError
from redist.memory.space import format_size
from redist.store import copying
from redist.store.copying import Sole
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.session.asyncio_driver import AsyncioDriver
    from redist.store.side import Side

__all__ = ["hand_over", "retire"]

logger = logging.getLogger("redist.worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.25
#: s that the server has to answer
_ANSWER = 5.0
#: s after which it is looked at all that the worker has anew
_A_ROUND = 5.0


async def hand_over(driver: AsyncioDriver, ordinal: int, seconds: float, answer: float = _ANSWER) -> None:
    """Have other running workers copy what they have too few copies of; return when they did, or cannot.

    The log says how much there is, and what goes with this worker.

    Parameters
    ----------
    driver : AsyncioDriver
        Of the worker's session.
    ordinal : int
        The worker's.
    seconds : float
        How long it waits for them.
    answer : float
        How long the server has for its first answer, s: one that hangs is not waited for.
    """
    await driver.call(copying.retire([ordinal]), answer)
    before = await _sole(driver, ordinal)
    if not before.values:
        return
    if before.running:
        logger.info(
            "of what is still needed only this worker has %s; %s asked to take it over",
            _total(before),
            "another worker is" if before.running == 1 else f"{before.running} other workers are",
        )
    left = await _others_have_it(driver, ordinal, seconds)
    if not left.values:
        logger.info("handed over %s", _total(before))
        return
    why = f"nobody has taken it over within {seconds:g} s" if left.running else "no other worker is there"
    logger.warning(
        "gone with this worker, since %s: %s of which nobody else has a copy; %s",
        why,
        _total(left),
        _fate(left),
    )


async def retire(driver: AsyncioDriver, side: Side, ordinal: int) -> None:
    """Return when the tasks of a retiring worker are done and others have copies of all that it has.

    Parameters
    ----------
    driver : AsyncioDriver
        Of the worker's session.
    side : Side
        For reading.
    ordinal : int
        The worker's.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            busy = await asyncio.to_thread(side.has_tasks, ordinal)
            await driver.call(copying.retire([ordinal]), _ANSWER)
            left = await _others_have_it(driver, ordinal, _A_ROUND)
            if not busy and not left.left:
                return
        except RedistError as error:
            logger.info("it is not known what is left of the work of this worker: %s", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _others_have_it(driver: AsyncioDriver, ordinal: int, seconds: float) -> Sole:
    """Wait until others have enough copies of all that a closing worker has, or nobody runs; return what is left."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    pause = _FIRST_PAUSE
    while True:
        left = await _sole(driver, ordinal)
        if not left.left or not left.running or loop.time() > deadline:
            return left
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


async def _sole(driver: AsyncioDriver, ordinal: int) -> Sole:
    found = Sole.nothing()
    while True:
        found = found.add(await driver.call(copying.sole(ordinal, found.cursor), _ANSWER))
        if found.cursor == 0:
            return found


def _total(sole: Sole) -> str:
    return f"{sole.values:,} value{'s' if sole.values != 1 else ''} ({format_size(sole.nbytes)})"


def _fate(sole: Sole) -> str:
    if not sole.lost:
        return "what is needed of it is computed again"
    named = ", ".join(repr(decode_key(name)) for name in sole.names[:3])
    text = f"{sole.lost:,} cannot be computed again ({named}{', ...' if sole.lost > 3 else ''})"
    return text if sole.lost == sole.values else f"{text}, the others can"
