"""Tasks on their way out: one leaves at once while few submissions are unanswered, else they are collected.

What is collected leaves, up to 500 at a time, with the next acknowledgement, wait or release.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain, islice
from operator import itemgetter

from redist.session.holding import Holding
from redist.session.lane import Entry, Lane, OldGeneration
from redist.session.ledger import Ledger
from redist.session.states import ERROR, PENDING, FutureState
from redist.store import calls
from redist.store.calls import FRESH, MORE, Call, EligibilityClass, Task
from redist.store.supplies import brought, named, supply

__all__ = ["BULK", "LINKS", "SLICE", "Submissions"]

#: Submissions without an answer beyond which tasks are collected.
WINDOW = 4
#: Tasks, counts or names of one call.
SLICE = 500
#: Bytes of run specs of one submission.
BULK = 1 << 20
#: Dependencies of the tasks of one submission; a task that has more by itself is told of in several calls.
LINKS = 1000
#: Dependencies that each of these calls tells of.
PART = 500
#: Functions and classes of ours, here and on the server, before those that no task needs are looked for.
KEPT = 500

_FN = itemgetter(Task._fields.index("fn"))
_CLS = itemgetter(Task._fields.index("cls"))
_ANY = {""}


class Submissions:
    """The tasks that wait to leave, and what has to leave with them.

    Attributes
    ----------
    outbox : deque of (FutureState, Task)
        What is collected.
    functions : dict of bytes
        Pickles of functions by their hashes. One leaves with the first task of each registration that needs it, and goes
        after the last.
    unanswered : int
        Submissions that are on the lane.
    holding : Holding
        The tasks that cannot leave yet, since something that they need is still being stored.
    kept : dict of FutureState
        What has to live until the submission of a collected task was answered.
    followed : dict of FutureState
        Tasks of graphs that nobody asked for, each with the last of the collected ones that needs it. Where both leave with
        one call it need not be counted; else it is until everything that is collected now has left.
    """

    __slots__ = (
        "_brought",
        "_classes",
        "_lane",
        "_ledger",
        "_many",
        "_there",
        "followed",
        "functions",
        "holding",
        "kept",
        "outbox",
        "unanswered",
    )

    def __init__(self, lane: Lane, ledger: Ledger) -> None:
        self._lane = lane
        self._ledger = ledger
        self.outbox: deque[tuple[FutureState, Task]] = deque()
        self.functions: dict[str, bytes] = {}
        self.unanswered = 0
        self.holding = Holding()
        self.kept: dict[FutureState, object] = {}
        self.followed: dict[FutureState, FutureState] = {}
        #: Functions whose pickles the server has, once it took what is on the lane.
        self._there: set[str] = set()
        #: Functions and classes that the server may keep for us, also from a registration or a generation of before.
        self._brought: set[str] = set()
        self._many = KEPT
        #: They are short: every submission brings those of its tasks.
        self._classes: dict[str, EligibilityClass] = {}

    def add_function(self, fn: str, data: bytes) -> None:
        """Have the pickle of function `fn` leave with the tasks that need it."""
        self.functions.setdefault(fn, data)

    def add_class(self, eligibility: EligibilityClass) -> None:
        """Have an eligibility class leave with the tasks that name it."""
        self._classes[eligibility.hash] = eligibility

    def add(self, state: FutureState, task: Task) -> None:
        """Collect a task."""
        state.task = task
        self.outbox.append((state, task))

    def pump(self) -> None:
        """Send what is collected as far as few enough submissions are unanswered."""
        outbox = self.outbox
        if self.holding.unstored:
            self.holding.sift(outbox)
        while outbox and self.unanswered < WINDOW:
            self._send_slice(outbox)

    def send_all(self) -> None:
        """Send everything that is collected."""
        if self.holding.unstored:
            self.holding.sift(self.outbox)
        while self.outbox:
            self._send_slice(self.outbox)

    def announce(self) -> None:
        """Have everything leave that waits for values: somebody else is about to refer to it."""
        if self.holding.unstored:
            self.holding.sift(self.outbox)
            self.holding.announce(self.outbox)
            self._let_calls_leave()

    def stored(self, names: Iterable[str], broken: Mapping[str, Exception]) -> None:
        """Note that values are stored, or never will be for the errors in `broken`: what needs them leaves, or fails."""
        if broken:
            self._fail(broken)
        for state, task, further in self.holding.stored(names, self.outbox):
            self.send_all()  # the task itself may be collected still
            before = len(task.deps)
            for at in range(0, len(further), PART):
                part = further[at : at + PART]
                link = calls.link(task.name, before + at, part, last=at + PART >= len(further))
                self._lane.enqueue(link, on_error=partial(self._link_refused, state))
        self._let_calls_leave()
        self.pump()

    def _fail(self, broken: Mapping[str, Exception]) -> None:
        """Have tasks fail that need what is broken; the server gives up those that it knows when we let go of them."""
        self.holding.sift(self.outbox)
        for state, error, known in self.holding.fail(broken):
            self.kept.pop(state, None)
            self.followed.pop(state, None)
            self._ledger.disown(state)
            if known:
                self.send_all()  # the task itself may be collected still
                self._lane.enqueue(calls.ledger([(state.name, 0)]))
            state.fail(error)

    def _let_calls_leave(self) -> None:
        for entry in self.holding.released():  # ahead of releases, which came later
            self.send_all()
            entry.n = self._lane.enqueue(entry.call, entry.on_reply, entry.on_error).n

    def recount(self) -> None:
        """Count anew what is unanswered, lest a Ctrl-C that lost an answer holds up what is collected."""
        self.unanswered = sum(entry.call.script.name == "submit" for entry in self._lane.unanswered)
        self.pump()

    def unsent(self) -> list[FutureState]:
        """Return the records of the tasks that have not left."""
        return [state for state, _ in chain(self.outbox, self.holding.tasks)]

    def names(self) -> set[str]:
        """Return the names of the tasks that have not left."""
        return {state.name for state in self.unsent()}

    # --- after a loss, after a restart ------------------------------------------------------------------------------

    def forget_server(self) -> None:
        """Note that the server knows no function of ours any more."""
        self._there.clear()
        self.unanswered = 0

    def again(self, states: Collection[FutureState]) -> list[tuple[FutureState, Task]]:
        """Return the tasks of those of `states` that have left before and are to leave again."""
        unsent = set(self.unsent())
        announced = self.holding.announced
        return [
            (state, announced[state.name].task if state.name in announced else state.task)
            for state in states
            if state.task is not None and state not in unsent
        ]

    def send_again(self, tasks: list[tuple[FutureState, Task]], *, known: bool = False) -> None:
        """Send tasks at once, whatever is unanswered.

        With `known` a server that is full is told the counts alone: it may still know the tasks.
        """
        source = deque((state, task._replace(flags=task.flags & ~FRESH)) for state, task in tasks)
        while source:
            self._send_slice(source, known=known)

    def send_entry_again(self, entry: Entry) -> None:
        """Put a submission that was unanswered on the lane anew."""
        self.unanswered += 1
        calls.distrust(entry.call)
        self._supply(entry.call)
        self._lane.enqueue(entry.call, entry.on_reply, entry.on_error)

    def drop(self) -> None:
        """Forget everything that has not left."""
        self.outbox.clear()
        self.kept.clear()
        self.followed.clear()
        for entry in self.holding.drop():
            if entry.on_error is not None:
                entry.on_error(OldGeneration())
        self._there.clear()

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send_slice(self, source: deque[tuple[FutureState, Task]], *, known: bool = False) -> None:
        """Send the next tasks. Nothing is dropped before it is on the lane: a Ctrl-C may come between any two steps."""
        tasks: list[Task] = []
        states: list[FutureState] = []
        settled = self._ledger.settled
        size = links = taken = 0
        for state, task in source:
            if len(tasks) == SLICE or size > BULK or (tasks and links + len(task.deps) > LINKS):
                break
            taken += 1
            if state.status != PENDING:
                self._ledger.unsettled(state)
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
            links += len(task.deps)
        if self.followed:
            self._uncount(tasks, states)
        if tasks:
            further: Sequence[str] = ()
            announced = tasks[0].flags & MORE
            if links > LINKS:  # of one task
                further = list(dict.fromkeys(tasks[0].deps))
                more = MORE if len(further) > PART else 0
                tasks[0] = tasks[0]._replace(deps=further[:PART], flags=tasks[0].flags | more)
            there = self._there
            missing, classed = {*map(_FN, tasks)} - there, {*map(_CLS, tasks)}
            functions = (
                [(fn, self.functions[fn]) for fn in missing if fn in self.functions] if missing else []
            )
            classes = (
                [self._classes[hash_] for hash_ in classed if hash_ in self._classes]
                if classed != _ANY
                else []
            )
            call = calls.submit(tasks, functions, classes)
            answered: Callable[[object], object] = self._answered
            if self.kept:
                kept = [self.kept[state] for state in states if state in self.kept]
                answered = partial(self._answered_with, kept)
            instead = partial(self._counts, tasks, call) if known else None
            self._lane.enqueue(call, answered, partial(self._refused, states, call), instead)
            for at in range(PART, len(further), PART):
                part = further[at : at + PART]
                last = at + PART >= len(further) and not announced
                link = calls.link(tasks[0].name, at, part, last=last)
                self._lane.enqueue(link, on_error=partial(self._link_refused, states[0]))
            # Behind it, so that a Ctrl-C in between counts too few and not too many.
            self.unanswered += 1
            if functions or classes:
                there.update(fn for fn, _ in functions)
                self._brought.update(fn for fn, _ in functions)
                self._brought.update(eligibility.hash for eligibility in classes)
        if self.kept or self.followed:
            for state, _ in islice(source, taken):
                self.kept.pop(state, None)
                self.followed.pop(state, None)
        if taken == len(source):
            source.clear()
        else:
            for _ in range(taken):
                source.popleft()
        if not source:
            self._look()

    def _uncount(self, tasks: list[Task], states: list[FutureState]) -> None:
        """Take the counts off the tasks of a call that live without one: what needs them comes with the same call."""
        here, needed = set(states), self.holding.needed
        for i, state in enumerate(states):
            follower = self.followed.get(state)
            if follower is not None and state.count <= 0 and follower in here and state.name not in needed:
                tasks[i] = tasks[i]._replace(count=0)
                self._ledger.settled(state, 0)

    def _supply(self, call: Call) -> None:
        supply(call, self.functions, self._there)
        self._brought |= self._there

    # --- letting go -------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Let go of functions and classes if there are many, and all that is collected has left."""
        if len(self.functions) + len(self._classes) > self._many and not (self.outbox or self.holding.tasks):
            self._let_go()

    def _let_go(self) -> None:
        """Forget the functions and classes that no task of ours needs, and have the server let go of them."""
        self._ledger.drain()
        needed = {name for task in self._ledger.tasks() for name in (task.fn, task.cls)}
        # What only an unanswered call needs is looked at again with its answer.
        self._many = max(KEPT, 2 * sum(name in needed for name in (*self.functions, *self._classes)))
        for entry in self._lane.unanswered:
            if entry.call.script.name == "submit":
                needed.update(named(entry.call))
        self.functions = {fn: data for fn, data in self.functions.items() if fn in needed}
        self._classes = {cls: what for cls, what in self._classes.items() if cls in needed}
        dropped = self._brought - needed
        # Before the call: after a Ctrl-C in between they are brought again although the server has them.
        self._there -= dropped
        if dropped:
            self._lane.enqueue(calls.drop_functions(dropped))
        self._brought -= dropped

    def let_go_later(self, entry: Entry) -> None:
        """Leave what an unanswered call was to drop to the next that drops: it may have been brought again."""
        self._brought.update(entry.call.body)

    # --- answers ----------------------------------------------------------------------------------------------------

    def _answered(self, _: object) -> None:
        self.unanswered = max(0, self.unanswered - 1)
        if self.outbox:
            self.pump()
        self._look()

    def _answered_with(self, kept: list[object], reply: object) -> None:
        kept.clear()
        self._answered(reply)

    def _link_refused(self, state: FutureState, error: BaseException) -> None:
        pending = state.status == PENDING
        if isinstance(error, OldGeneration):
            if pending:
                state.cancel("the cluster was restarted")
            return
        # One that failed already for a dependency must go as well: run again, it would wait for ever.
        if not pending and (state.status != ERROR or not state.sent):
            return
        # The server gives up a task that nobody completes once we let go of it; what it says of that is no news.
        self._ledger.disown(state)
        self._lane.enqueue(calls.ledger([(state.name, 0)]))
        if pending:
            state.fail(error)

    def _counts(self, tasks: list[Task], call: Call) -> Call:
        self._not_taken(call)
        return calls.ledger([(task.name, task.count) for task in tasks if task.count])

    def _not_taken(self, call: Call) -> None:
        """Note that the server refused a submission, and with it the functions that it brought."""
        self._there.difference_update(brought(call))
        for entry in self._lane.unanswered:
            # What is on the lane already may rely on it.
            if entry.call is not call and entry.call.script.name == "submit":
                self._supply(entry.call)

    def _refused(self, states: list[FutureState], call: Call, error: BaseException) -> None:
        self._not_taken(call)
        for state in states:
            self._ledger.forfeit(state)
            if state.status != PENDING:
                continue
            if isinstance(error, OldGeneration):
                state.cancel("the cluster was restarted")
            else:
                state.fail(error)
        self._answered(None)
