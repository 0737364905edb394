"""The name of a starting worker: no living one may have it, and a dead one gives it up."""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from redist.errors import NameTaken
from redist.memory.host import same_host
from redist.memory.locks import lock_if_free

if TYPE_CHECKING:
    from redist.store.side import Side

__all__ = ["await_name"]

logger = logging.getLogger("redist.worker")

_LOOK_EVERY = 0.1


class Holder(NamedTuple):
    """Another worker of the name, whose lease has not run out."""

    ordinal: str
    record: dict[str, str]
    left: float  # s of its lease

    def __str__(self) -> str:
        return f"process {self.record.get('pid', '?')} on {self.record.get('host', '?')}"


async def await_name(side: Side, name: str, ordinal: int, hostname: str, memory: str) -> bool:
    """Return once no living worker has `name`.

    One of this host tells by its lock, at once, whether it lives. One of another host that is silent may be dead: its
    lease is waited for.

    Parameters
    ----------
    side : Side
        For reading.
    name : str
        The name that was asked for.
    ordinal : int
        That of the dead worker whose directory was taken over, and whose name this is; 0 for none.
    hostname, memory : str
        Our host, and the id of its shared memory.

    Returns
    -------
    bool
        Whether nobody is registered under it, so that the server can refuse us if somebody else is faster.

    Raises
    ------
    NameTaken
        If a living worker has it.
    """
    first: Holder | None = None
    while True:
        holder = await asyncio.to_thread(_holder, side, name, ordinal)
        if holder is None:
            return True
        lives = _lives(holder.record, hostname, memory)
        if lives is False:
            return False
        if lives or (first is not None and _spoke(holder, first)):
            raise NameTaken(
                f"a living worker has the name {name!r}: {holder}. Give this one another name, or stop that one"
            )
        if first is None:
            first = holder
            logger.warning(
                "a worker named %s is registered: %s. If it stays silent until its lease ends in %.1f s, it is dead",
                name, holder, holder.left,
            )  # fmt: skip
        await asyncio.sleep(min(_LOOK_EVERY, holder.left))


def _spoke(now: Holder, before: Holder) -> bool:
    return any(now.record.get(field) != before.record.get(field) for field in ("inc", "seen"))


def _holder(side: Side, name: str, but: int) -> Holder | None:
    seconds, micros = side.command("TIME")
    now = int(seconds) * 1000 + int(micros) / 1000
    for ordinal, other in side.fields("workers").items():
        if other != name or ordinal == str(but):
            continue
        record = side.fields(f"caller:{ordinal}")
        left = int(record.get("seen", "0")) + int(record.get("lease", "0")) - now
        if left > 0 and record.get("inc"):  # one that has left has none
            return Holder(ordinal, record, left / 1000)
    return None


def _lives(record: dict[str, str], hostname: str, memory: str) -> bool | None:
    """Tell whether another worker lives; None if that cannot be seen from here."""
    path = record.get("segments", "")
    if same_host(path, record.get("hostid", "")):
        lock = lock_if_free(path)
        if lock is None:
            return True
        os.close(lock)
        return False
    if record.get("host") == hostname and record.get("memory") == memory:
        return None if os.path.exists(f"/proc/{record.get('pid')}") else False  # its directory went with it
    return None
