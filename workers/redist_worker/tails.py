"""The worker's look at batches that do not go on: their current task may hold the GIL of its executor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from redist.store.calls import Result
from redist_worker.marks import Marks
from redist_worker.shelf import Shelf
from redist_worker.tokens import Tokens

__all__ = ["DRAGS", "Tails"]

DRAGS = 0.05
"""Seconds without progress, after which the worker takes the rest of a batch, and hands in what is finished."""


class Tails:
    """Takes the unstarted rest of batches from the threads of one executor, and what lies finished on their shelves.

    A thread is looked at only while it has tokens out, and at most every `DRAGS` seconds.

    Parameters
    ----------
    tokens : sequence of Tokens
        One for each thread; closed with this.
    shelves : sequence of Shelf
        One for each thread; closed with this.
    marks : Marks
        What the threads run.
    on_taken : callable
        Called with the attempts that the executor will not start, and what it has finished.
    """

    def __init__(
        self,
        tokens: Sequence[Tokens],
        shelves: Sequence[Shelf],
        marks: Marks,
        on_taken: Callable[[list[int], list[Result]], object],
    ) -> None:
        self._tokens = list(tokens)
        self._shelves = list(shelves)
        self._marks = marks
        self._on_taken = on_taken
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
            attempts, finished = self._tokens[slot].take_all(), self._shelves[slot].read()
            if attempts or finished:
                self._on_taken(attempts, finished)
        self._wait(slot)

    def finished(self) -> list[Result]:
        """Return what lies on the shelves: all that is left of the batches of an executor that died."""
        return [result for shelf in self._shelves for result in shelf.read()]

    def close(self) -> None:
        """Look no more."""
        for timer in self._timers.values():
            timer.cancel()
        for tokens in self._tokens:
            self._loop.remove_reader(tokens.reading)
            tokens.close()
        for shelf in self._shelves:
            shelf.close()
        self._tokens.clear()
        self._shelves.clear()
        self._timers.clear()
