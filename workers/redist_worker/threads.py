"""What one task thread of an executor knows, and what it needs of the session."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from redist.store.calls import Call, HandOut, Result
from redist_worker.tokens import Tokens

__all__ = ["Lane", "TaskThread", "take_next", "take_tail"]


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
    """One thread's own state; `queue` alone is touched by others, who hold the runner's lock or are the thread itself."""

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
    #: None: more threads than pipes, or no worker that shares them
    tokens: Tokens | None = None


def take_next(thread: TaskThread) -> HandOut | None:
    """Take the next task of the thread's own batch; None if there is none, or others took the rest."""
    if not thread.queue or (thread.tokens is not None and not thread.tokens.take_one()):
        return None
    try:
        return thread.queue.popleft()
    except IndexError:  # without tokens: taken in this moment
        return None


def take_tail(thread: TaskThread) -> list[HandOut]:
    """Take what `thread` has not started and nobody has taken yet, in order. The runner's lock is held."""
    queue = thread.queue
    left = len(queue) if thread.tokens is None else len(thread.tokens.take_all())
    tail: list[HandOut] = []
    try:
        while len(tail) < left:
            tail.append(queue.pop())
    except IndexError:  # without tokens the thread itself may be taking from the other end
        pass
    tail.reverse()
    return tail
