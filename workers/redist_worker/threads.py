"""What one task thread of an executor knows, and what it needs of the session."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from redist.store.calls import Call, HandOut, Result

__all__ = ["Lane", "TaskThread", "take_tail"]


class Lane(Protocol):
    """What a runner needs of the executor's session."""

    def call(self, call: Call) -> Any:
        """Send a call and wait for its reply."""

    def post(self, call: Call, on_reply: Callable[[Any], None]) -> None:
        """Send a call; `on_reply` is called with its reply by whoever reads."""

    def enqueue(self, call: Call, on_reply: Callable[[Any], None]) -> None:
        """`post`, from within a callback."""

    def wait(self, ready: Callable[[], bool], timeout: float) -> bool:
        """Wait until `ready`, which is looked at whenever something arrived; False on timeout."""

    @property
    def failed(self) -> bool:
        """Whether the session will never work again."""


@dataclass(slots=True, eq=False)
class TaskThread:
    """One thread's own state; `queue` alone is touched by others, by single deque operations."""

    slot: int = -1
    queue: deque[HandOut] = field(default_factory=deque)
    started: float = 0.0
    results: list[Result] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    # what keeps Futures inside results alive until the turn that pins them is on the lane
    values: list[object] = field(default_factory=list)
    holds: bool = False
    task: HandOut | None = None
    blocks: int = 0
    seceded: bool = False


def take_tail(thread: TaskThread) -> list[HandOut]:
    """Take what `thread` has not started, in order; the thread itself may be taking from the other end."""
    tail: list[HandOut] = []
    while True:
        try:
            tail.append(thread.queue.pop())
        except IndexError:
            tail.reverse()
            return tail
