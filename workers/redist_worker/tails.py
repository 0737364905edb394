"""The worker's look at batches whose current task drags on while it may hold the GIL of its executor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from redist_worker.marks import Marks
from redist_worker.tokens import Tokens

__all__ = ["DRAGS", "Tails"]

DRAGS = 0.05
"""Seconds without progress, after which the worker takes the rest of a batch."""


class Tails:
    """Takes the unstarted rest of batches from the threads of one executor.

    A thread is looked at only while it has tokens out, and at most every `DRAGS` seconds.

    Parameters
    ----------
    tokens : sequence of Tokens
        One for each thread; closed with this.
    marks : Marks
        What the threads run.
    take_back : callable
        Called with the attempts that the executor will not start.
    """

    def __init__(
        self, tokens: Sequence[Tokens], marks: Marks, take_back: Callable[[list[int]], object]
    ) -> None:
        self._tokens = list(tokens)
        self._marks = marks
        self._take_back = take_back
        self._loop = asyncio.get_running_loop()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        for slot in range(len(self._tokens)):
            self._wait(slot)

    def _wait(self, slot: int) -> None:
        self._timers.pop(slot, None)
        self._loop.add_reader(self._tokens[slot].reading, self._filled, slot)

    def _filled(self, slot: int) -> None:
        self._loop.remove_reader(self._tokens[slot].reading)
        began = self._marks.began(slot)
        self._timers[slot] = self._loop.call_later(DRAGS, self._look, slot, began)

    def _look(self, slot: int, began: int) -> None:
        if self._marks.began(slot) == began:
            attempts = self._tokens[slot].take_all()
            if attempts:
                self._take_back(attempts)
        self._wait(slot)

    def close(self) -> None:
        """Look no more."""
        for timer in self._timers.values():
            timer.cancel()
        for tokens in self._tokens:
            self._loop.remove_reader(tokens.reading)
            tokens.close()
        self._tokens.clear()
        self._timers.clear()
