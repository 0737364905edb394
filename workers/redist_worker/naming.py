"""The name of a starting worker: no living one may have it, and a dead one gives it up."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from redist.errors import NameTaken
from redist.memory.host import lives, same_host
from redist.memory.locks import lock_if_free

if TYPE_CHECKING:
    from redist.store.side import Side

__all__ = ["Holder", "await_name"]

logger = logging.getLogger("redist.worker")

_LOOK_EVERY = 0.1


class Holder(NamedTuple):
    """Another worker of the name, whose lease has not run out."""

    ordinal: str
    record: dict[str, str]
    left: float  # s of its lease

    def __str__(self) -> str:
        return f"process {self.record.get('pid', '?')} on {self.record.get('host', '?')}"


async def await_name(side: Side, name: str, ordinal: int) -> list[Holder]:
    """Return once no living worker has `name`.

    One of this host tells by its lock or its process, at once, whether it lives. One of which that cannot be seen from here,
    and that is silent, may be dead: its lease is waited for.

    Parameters
    ----------
    side : Side
        For reading.
    name : str
        The name that was asked for.
    ordinal : int
        That of the dead worker whose directory was taken over, and whose name this is; 0 for none.

    Returns
    -------
    list of Holder
        Those that are registered under it and dead for certain. If there is none the server can refuse us if somebody else
        is faster.

    Raises
    ------
    NameTaken
        If a living worker has it.
    """
    first: dict[str, Holder] = {}
    while True:
        dead, unsure = [], []
        for holder in await asyncio.to_thread(_holders, side, name, ordinal):
            living = _lives(holder.record)
            if living is False:
                dead.append(holder)
                continue
            if living or _spoke(holder, first.get(holder.ordinal, holder)):
                raise NameTaken(
                    f"a living worker has the name {name!r}: {holder}. Give this one another name, or stop that one"
                )
            unsure.append(holder)
            if holder.ordinal not in first:
                first[holder.ordinal] = holder
                logger.warning(
                    "a worker named %s is registered: %s. If it stays silent until its lease ends in %.1f s, it is dead",
                    name, holder, holder.left,
                )  # fmt: skip
        if not unsure:
            return dead
        await asyncio.sleep(min(_LOOK_EVERY, *(holder.left for holder in unsure)))


def _spoke(now: Holder, before: Holder) -> bool:
    return any(now.record.get(field) != before.record.get(field) for field in ("inc", "seen"))


def _holders(side: Side, name: str, but: int) -> list[Holder]:
    seconds, micros = side.command("TIME")
    now = int(seconds) * 1000 + int(micros) / 1000
    found = []
    for ordinal, other in side.fields("workers").items():
        if other != name or ordinal == str(but):
            continue
        record = side.fields(f"caller:{ordinal}")
        left = int(record.get("seen", "0")) + int(record.get("lease", "0")) - now
        if left > 0 and record.get("inc"):  # one that has left has none
            found.append(Holder(ordinal, record, left / 1000))
    return found


def _lives(record: dict[str, str]) -> bool | None:
    """Tell whether another worker lives; None if that cannot be seen from here."""
    path = record.get("segments", "")
    if same_host(path, record.get("hostid", "")):
        lock = lock_if_free(path)
        if lock is None:
            return True
        os.close(lock)
        return False
    return lives(record.get("pid", ""), record.get("process", ""))
