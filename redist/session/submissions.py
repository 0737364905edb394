"""Tasks on their way out: one leaves at once while few submissions are unanswered, else they are collected.

What is collected leaves, up to 500 at a time, with the next acknowledgement, wait or release.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from functools import partial

from redist.session.lane import Entry, Lane, OldGeneration
from redist.session.ledger import Ledger
from redist.session.states import PENDING, FutureState
from redist.store import calls
from redist.store.calls import FRESH, EligibilityClass, Task

__all__ = ["SLICE", "Submissions"]

#: Submissions without an answer beyond which tasks are collected.
WINDOW = 4
#: Tasks, counts or names of one call.
SLICE = 500
#: Bytes of run specs of one submission.
BULK = 1 << 20


class Submissions:
    """The tasks that wait to leave, and what has to leave with them.

    Attributes
    ----------
    outbox : deque of (FutureState, Task)
        What is collected.
    functions : set of str
        Hashes of functions whose pickles are on the lane or about to be.
    unanswered : int
        Submissions that are on the lane.
    held : int
        While it is not 0 nothing leaves: something that a task needs is still being stored.
    """

    __slots__ = (
        "_classes",
        "_lane",
        "_ledger",
        "_new_classes",
        "_new_functions",
        "functions",
        "held",
        "outbox",
        "unanswered",
    )

    def __init__(self, lane: Lane, ledger: Ledger) -> None:
        self._lane = lane
        self._ledger = ledger
        self.outbox: deque[tuple[FutureState, Task]] = deque()
        self.functions: set[str] = set()
        self.unanswered = 0
        self.held = 0
        self._new_functions: dict[str, bytes] = {}
        self._classes: set[str] = set()
        self._new_classes: dict[str, EligibilityClass] = {}

    def add_function(self, fn: str, data: bytes) -> None:
        """Have the pickle of function `fn` leave with the next submission, unless it did already."""
        if fn not in self.functions:
            self._new_functions[fn] = data
            self.functions.add(fn)

    def add_class(self, eligibility: EligibilityClass) -> None:
        """Have an eligibility class leave with the next submission, unless it did already."""
        if eligibility.hash not in self._classes:
            self._new_classes[eligibility.hash] = eligibility
            self._classes.add(eligibility.hash)

    def add(self, state: FutureState, task: Task) -> None:
        """Collect a task."""
        state.task = task
        self.outbox.append((state, task))

    def pump(self) -> None:
        """Send what is collected as far as few enough submissions are unanswered."""
        outbox = self.outbox
        while outbox and self.unanswered < WINDOW and not self.held:
            self._send_slice(outbox)

    def send_all(self) -> None:
        """Send everything that is collected."""
        while self.outbox and not self.held:
            self._send_slice(self.outbox)

    def recount(self) -> None:
        """Count anew what is unanswered, lest a Ctrl-C that lost an answer holds up what is collected."""
        self.unanswered = sum(entry.call.script.name == "submit" for entry in self._lane.unanswered)
        self.pump()

    def names(self) -> set[str]:
        """Return the names of the tasks that have not left."""
        return {state.name for state, _ in self.outbox}

    # --- after a loss, after a restart ------------------------------------------------------------------------------

    def forget_server(self) -> None:
        """Note that the server knows no function or class of ours any more."""
        self.functions.clear()
        self._classes.clear()
        self.unanswered = 0

    def again(self, states: Collection[FutureState]) -> list[tuple[FutureState, Task]]:
        """Return the tasks of those of `states` that have left before and are to leave again."""
        unsent = {id(state) for state, _ in self.outbox}
        return [(state, state.task) for state in states if state.task is not None and id(state) not in unsent]

    def send_again(self, tasks: list[tuple[FutureState, Task]]) -> None:
        """Send tasks at once, whatever is unanswered."""
        source = deque((state, task._replace(flags=task.flags & ~FRESH)) for state, task in tasks)
        while source:
            self._send_slice(source)

    def send_entry_again(self, entry: Entry) -> None:
        """Put a submission that was unanswered on the lane anew."""
        self.unanswered += 1
        calls.distrust(entry.call)
        self._lane.enqueue(entry.call, entry.on_reply, entry.on_error)

    def drop(self) -> None:
        """Forget everything that has not left."""
        self.outbox.clear()
        self.functions.clear()
        self._new_functions.clear()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_slice(self, source: deque[tuple[FutureState, Task]]) -> None:
        """Send the next tasks. Nothing is dropped before it is on the lane: a Ctrl-C may come between any two steps."""
        tasks: list[Task] = []
        states: list[FutureState] = []
        settled = self._ledger.settled
        size = taken = 0
        for state, task in source:
            if len(tasks) == SLICE or size > BULK:
                break
            taken += 1
            if state.status != PENDING:
                settled(state, state.sent)
                continue  # cancelled, or known, before it left
            # One that was dropped before it left is counted for this moment, and the release follows.
            count = state.count if state.count > 0 else 1
            if task.count != count:
                task = task._replace(count=count)
            if state.sent and task.flags & FRESH:
                # A Ctrl-C came before it was taken from here: it may be on the lane already.
                task = task._replace(flags=task.flags & ~FRESH)
            tasks.append(task)
            states.append(state)
            settled(state, count)
            size += len(task.spec)
        if tasks:
            functions = list(self._new_functions.items())
            classes = list(self._new_classes.values())
            call = calls.submit(tasks, functions, classes)
            self._lane.enqueue(
                call, self._answered, partial(self._refused, states, [fn for fn, _ in functions])
            )
            # Behind it, so that a Ctrl-C in between counts too few and not too many.
            self.unanswered += 1
            for fn, _ in functions:
                del self._new_functions[fn]
            for eligibility in classes:
                del self._new_classes[eligibility.hash]
        if taken == len(source):
            source.clear()
        else:
            for _ in range(taken):
                source.popleft()

    def _answered(self, _: object) -> None:
        self.unanswered = max(0, self.unanswered - 1)
        if self.outbox:
            self.pump()

    def _refused(self, states: list[FutureState], functions: list[str], error: BaseException) -> None:
        self.functions.difference_update(functions)
        for state in states:
            self._ledger.forfeit(state)
            if state.status != PENDING:
                continue
            if isinstance(error, OldGeneration):
                state.cancel("the cluster was restarted")
            else:
                state.fail(error)
        self._answered(None)
