"""A wait for the replies of some calls, for drivers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redist.session.states import Waiter

__all__ = ["Outcome"]


class Outcome(Waiter):
    """Collects the replies of `count` calls; ready when all were answered or refused. The first error stays."""

    __slots__ = ("error", "replies")

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.replies: list[Any] = [None] * count
        self.error: BaseException | None = None

    def of(self, index: int) -> tuple[Callable[[list[Any]], None], Callable[[BaseException], None]]:
        """Return the callbacks of call `index`, for its reply and for its error. What is said twice counts once."""

        def taken(reply: list[Any]) -> None:
            self.replies[index] = reply
            self._count()

        def refused(error: BaseException) -> None:
            if self.error is None:
                self.error = error
            self.replies[index] = error
            self._count()

        return taken, refused

    def result(self) -> list[Any]:
        """Return the replies, or raise the first error."""
        if self.error is not None:
            try:
                raise self.error
            finally:
                del self  # else it would keep this frame, and this frame it, and both what the caller has
        return self.replies

    def _count(self) -> None:
        self.remaining = self.replies.count(None)
        if self.remaining == 0 and self.wake is not None:
            self.wake()
