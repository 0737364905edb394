"""What one task thread of an executor knows, and what it needs of the session."""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from redist.store.calls import Call, Result
from redist.store.replies import HandOut
from redist_worker.shelf import Shelf
from redist_worker.tokens import Tokens

__all__ = ["Lane", "TaskThread", "take_next", "take_results", "take_tail"]


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
    """One thread's own state.

    Others touch `queue`, and hold the runner's lock then, and `results`: the thread appends, whoever hands in pops.
    """

    slot: int = -1
    ident: int = field(default_factory=get_ident)
    queue: deque[HandOut] = field(default_factory=deque)
    #: attempts in the queue that nobody wants any more
    void: set[int] = field(default_factory=set)
    started: float = 0.0
    # (result, its batch, what keeps Futures inside it alive until the turn that pins them is on the lane)
    results: deque[tuple[Result, int, object]] = field(default_factory=deque)
    holds: bool = False
    #: whether it has the slot for calls of actors
    calls: bool = False
    task: HandOut | None = None
    blocks: int = 0
    seceded: bool = False
    #: whether it looks for work no more
    ended: bool = False
    #: None: more threads than pipes, or no worker that shares them
    tokens: Tokens | None = None
    shelf: Shelf | None = None

    def begin(self, tasks: Sequence[HandOut]) -> None:
        """Take over the tasks behind the first of a batch."""
        self.queue.extend(tasks)
        self.void.clear()
        if self.shelf is not None:
            self.shelf.clear()
        if self.tokens is not None:
            self.tokens.put([task.attempt for task in tasks])

    def lay_by(self, result: Result) -> bool:
        """Put a result where the worker finds it should this executor be stuck; False if the worker cannot hand it in."""
        return self.shelf is None or self.shelf.put(result)

    def handed_in(self) -> None:
        """Take away what was laid by."""
        if self.shelf is not None:
            self.shelf.clear()

    def end(self) -> list[HandOut]:
        """Return what is not to be started here; the worker looks no more. The runner's lock is held."""
        if self.tokens is not None:
            self.tokens.take_all()  # not as in `take_tail`: what the worker took is to be given back, too
        rest = list(self.queue)
        self.queue.clear()
        return rest


def take_next(thread: TaskThread) -> HandOut | None:
    """Take the next task of the thread's own batch; None if there is none, or others took the rest. Void ones go back."""
    while thread.queue and (thread.tokens is None or thread.tokens.take_one()):
        try:
            task = thread.queue.popleft()
        except IndexError:  # without tokens: taken in this moment
            return None
        if task.attempt not in thread.void:
            return task
        thread.results.append((Result(task.name, task.attempt, "back"), task.batch, None))
    return None


def take_results(thread: TaskThread) -> tuple[list[Result], list[int], list[object]]:
    """Take what `thread` has finished and nobody has handed in: results, their batches, and what keeps them alive."""
    results: list[Result] = []
    batches: list[int] = []
    values: list[object] = []
    pop = thread.results.popleft
    while thread.results:
        try:
            result, batch, value = pop()
        except IndexError:  # taken in this moment
            break
        results.append(result)
        batches.append(batch)
        if value is not None:
            values.append(value)
    return results, batches, values


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
