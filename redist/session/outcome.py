"""A wait for the replies of some calls, for drivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redist.session.states import Waiter

__all__ = ["Outcome"]


class Outcome(Waiter):
    """Collects the replies of `count` calls; ready when all were answered or refused."""

    __slots__ = ("error", "replies")

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.replies: list[Any] = [None] * count
        self.error: BaseException | None = None

    def take(self, index: int) -> Callable[[list[Any]], None]:
        """Return the callback for the reply of call `index`."""

        def taken(reply: list[Any]) -> None:
            self.replies[index] = reply
            self._count()

        return taken

    def fail(self, error: BaseException) -> None:
        """Note that a call was refused; the first error stays."""
        if self.error is None:
            self.error = error
        self._count()

    def result(self) -> list[Any]:
        """Return the replies, or raise the first error."""
        if self.error is not None:
            raise self.error
        return self.replies

    def _count(self) -> None:
        self.remaining -= 1
        if self.remaining == 0 and self.wake is not None:
            self.wake()
