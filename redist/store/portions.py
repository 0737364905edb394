"""Long lists cut into parts that one script can carry out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

__all__ = ["portions"]

T = TypeVar("T")


def portions(items: Iterable[T], most: int, weigh: Callable[[T], int]) -> Iterator[list[T]]:
    """Yield `items` in lists that weigh at most `most`; what weighs more by itself is a list of its own.

    Parameters
    ----------
    items : iterable
        What is cut.
    most : int
        What a list may weigh.
    weigh : callable
        Tells the weight of an item.
    """
    part: list[T] = []
    weight = 0
    for item in items:
        more = weigh(item)
        if part and weight + more > most:
            yield part
            part, weight = [], 0
        part.append(item)
        weight += more
    if part:
        yield part
