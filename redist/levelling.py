"""Which copies move so that workers have about as many bytes each; without I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import NamedTuple

__all__ = ["Load", "level"]

#: Workers are even enough when the fullest has only this part of the mean more than the emptiest.
_EVEN = 0.05


class Load(NamedTuple):
    """What a worker has: its ordinal, and the bytes of each key."""

    worker: int
    sizes: dict[str, int]


def level(loads: Sequence[Load], movable: Collection[str] | None = None) -> list[tuple[str, int, int]]:
    """Return moves (key, sender, receiver) after which workers have about as many bytes each.

    Parameters
    ----------
    loads : sequence of Load
        What there is.
    movable : collection of str, optional
        Keys that may move; default: all.

    Notes
    -----
    The fullest worker gives to the emptiest the largest value that does not turn them round, again and again. No key moves
    twice, nor to where a copy is.
    """
    has = {load.worker: set(load.sizes) for load in loads}
    total = {load.worker: sum(load.sizes.values()) for load in loads}
    mean = sum(total.values()) / max(1, len(loads))
    rest = {
        load.worker: sorted(
            (size, key) for key, size in load.sizes.items() if movable is None or key in movable
        )
        for load in loads
    }
    senders = {load.worker for load in loads if rest[load.worker]}
    moved: set[str] = set()
    moves: list[tuple[str, int, int]] = []
    while senders:
        sender = max(senders, key=lambda worker: total[worker])
        receiver = min(total, key=lambda worker: total[worker])
        gap = total[sender] - total[receiver]
        if gap <= _EVEN * mean:
            break
        index = _best(rest[sender], gap, moved, has[receiver])
        if index is None:
            senders.discard(sender)
            continue
        size, key = rest[sender].pop(index)
        moved.add(key)
        moves.append((key, sender, receiver))
        has[receiver].add(key)
        total[sender] -= size
        total[receiver] += size
        if not rest[sender]:
            senders.discard(sender)
    return moves


def _best(mine: list[tuple[int, str]], gap: int, moved: set[str], there: set[str]) -> int | None:
    """Return the index of the largest value of half the `gap` at most, else of the smallest that makes it smaller at all."""
    middle = bisect_right(mine, gap / 2, key=lambda item: item[0])
    for index in range(middle - 1, -1, -1):
        if mine[index][1] not in moved and mine[index][1] not in there:
            return index
    for index in range(middle, bisect_right(mine, gap - 1, key=lambda item: item[0])):
        if mine[index][1] not in moved and mine[index][1] not in there:
            return index
    return None
