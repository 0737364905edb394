"""What an executor holds: whole batches, open until the hand-in of their last task was answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from redist.store.replies import HandOut

__all__ = ["Batches"]


class Batches:
    """The open batches of an executor; has no lock of its own.

    A batch that is told of again, by a push and a list or by two lists, is known by its number. Threads take in what
    their turns brought as they wake: a list may come behind the answer to a hand-in that it knew nothing of. So a batch
    stays known until all turns are taken in that were sent before that answer.
    """

    def __init__(self) -> None:
        self._left: dict[int, int] = {}  # batch -> tasks without a result
        self._handed_in: set[int] = set()  # not answered yet
        self._listed: set[int] = set()  # came by a list, so that their push may still come
        self._sent = 0  # the number of the last turn
        self._turns: set[int] = set()  # not taken in yet
        self._late: dict[int, int] = {}  # batch that is over -> the last turn that may tell of it

    def __len__(self) -> int:
        return len(self._left)

    def open(
        self, tasks: Sequence[HandOut], *, pushed: bool = False, listed: bool = False
    ) -> list[list[HandOut]]:
        """Open the batches among `tasks` that were not known yet, and return them.

        Parameters
        ----------
        tasks : sequence of HandOut
            What the server told of.
        pushed, listed : bool
            Whether it was pushed, or came as part of everything that is assigned.
        """
        batches: dict[int, list[HandOut]] = {}
        for task in tasks:
            number = task.batch
            if number in batches:
                batches[number].append(task)
            elif number in self._left or number in self._handed_in or number in self._late:
                continue
            elif pushed and number in self._listed:
                self._listed.discard(number)
            else:
                batches[number] = [task]
        for number, members in batches.items():
            self._left[number] = len(members)
            if listed:
                self._listed.add(number)
        return list(batches.values())

    def hand_in(self, numbers: Iterable[int]) -> list[int]:
        """Count off one task for each number; return the batches that are complete with that."""
        left = self._left
        finished = []
        for number in numbers:
            count = left[number] - 1
            if count:
                left[number] = count
            else:
                del left[number]
                self._handed_in.add(number)
                finished.append(number)
        return finished

    def turn(self) -> int:
        """Return the number of a turn that is about to be sent."""
        self._sent += 1
        self._turns.add(self._sent)
        return self._sent

    def answered(self, finished: Sequence[int]) -> None:
        """Note that the hand-in of batches was answered: they are over."""
        self._handed_in.difference_update(finished)
        self._late.update(dict.fromkeys(finished, self._sent))

    def taken_in(self, turn: int) -> None:
        """Note that what a turn brought was opened, or that it brings nothing any more."""
        self._turns.discard(turn)
        if self._late:
            oldest = min(self._turns, default=self._sent + 1)
            self._late = {batch: last for batch, last in self._late.items() if last >= oldest}
