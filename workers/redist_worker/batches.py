"""What an executor holds: whole batches, open until the hand-in of their last task was answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from redist.store.replies import HandOut

__all__ = ["Batches"]


class Batches:
    """The open batches of an executor; has no lock of its own.

    A batch that is told of again, by a push and a list or by two lists, is known by its number.
    """

    def __init__(self) -> None:
        self._left: dict[int, int] = {}  # batch -> tasks without a result
        self._handed_in: set[int] = set()  # not answered yet
        self._listed: set[int] = set()  # came by a list, so that their push may still come

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
            elif number in self._left or number in self._handed_in:
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

    def answered(self, finished: Iterable[int]) -> None:
        """Forget batches whose hand-in was answered."""
        self._handed_in.difference_update(finished)
