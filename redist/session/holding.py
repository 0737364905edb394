"""What waits until something is stored: tasks that need it, and calls that name such tasks.

`submit` cannot wait in an event loop, so a large argument is stored behind it. Meanwhile the tasks that need it, those that
need them, and the calls that name any of these stay here, in order; everything else leaves. What they need is not released.

A task that somebody else is about to refer to is announced: it leaves without the values that are being stored, and the
server is told of those when they are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from redist.session.lane import Entry, OnError, OnReply
from redist.session.states import PENDING, FutureState
from redist.store.calls import MORE, Call, Task

__all__ = ["Announced", "Holding"]

_STORING = ("place", "commit")


class Announced(NamedTuple):
    """A task that left before what it needs was stored.

    Attributes
    ----------
    state : FutureState
        Its record.
    task : Task
        The task with those dependencies that it left with.
    further : list of str
        The others.
    """

    state: FutureState
    task: Task
    further: list[str]


class Holding:
    """Tasks and calls that cannot leave yet.

    Attributes
    ----------
    unstored : dict of collection of str
        Names of the values that are being stored, and of the keys that are inside.
    tasks : list of (FutureState, Task)
        What needs them.
    calls : list of Entry
        What names these tasks.
    announced : dict of Announced
        By name, what left ahead of what it needs.
    needed : set of str
        Names whose counts stay as the server knows them: what the values hold, what the tasks make and need, and what
        the calls name.
    """

    __slots__ = ("_names", "_seen", "announced", "calls", "needed", "tasks", "unstored")

    def __init__(self) -> None:
        self.unstored: dict[str, Collection[str]] = {}
        self.tasks: list[tuple[FutureState, Task]] = []
        self.needed: set[str] = set()
        self.calls: list[Entry] = []
        self.announced: dict[str, Announced] = {}
        self._names: dict[str, FutureState] = {}
        self._seen: object = None  # the last of the outbox that was looked at

    def begin(self, values: Mapping[str, Collection[str]]) -> None:
        """Note that values are being stored: their names, each with the keys that are inside."""
        self.unstored.update(values)
        self.needed.update(*values.values())

    def sift(self, outbox: deque[tuple[FutureState, Task]]) -> None:
        """Take what cannot leave out of what is collected."""
        new = []
        while outbox and outbox[-1] is not self._seen:
            new.append(outbox.pop())
        for item in reversed(new):
            if not self._keeps(item):
                outbox.append(item)
        self._seen = outbox[-1] if outbox else None

    def _keeps(self, item: tuple[FutureState, Task]) -> bool:
        state, task = item
        deps = task.deps
        if not any(dep in self.unstored or dep in self._names for dep in deps):
            return False
        self.tasks.append(item)
        self._names[task.name] = state
        self.needed.add(task.name)
        self.needed.update(deps)
        return True

    def announce(self, outbox: deque[tuple[FutureState, Task]]) -> None:
        """Have every task leave, in order, without the values that are being stored."""
        tasks, self.tasks = self.tasks, []
        self._names.clear()
        self._seen = None
        leaving = []
        for state, task in tasks:
            told = [dep for dep in task.deps if dep not in self.unstored]
            further = [dep for dep in task.deps if dep in self.unstored]
            if further and state.status == PENDING:
                task = task._replace(deps=told, flags=task.flags | MORE)
                self.announced[task.name] = Announced(state, task, further)
            leaving.append((state, task))
        outbox.extendleft(reversed(leaving))

    def fail(self, broken: Mapping[str, Exception]) -> list[tuple[FutureState, Exception, bool]]:
        """Take out the tasks that need values which will never be stored for these errors, and those that need such tasks.

        Returns the records of those that are pending, why they fail, and whether the server was told of them.
        """
        errors = dict(broken)
        failed = []
        for name, (state, _, further) in list(self.announced.items()):
            error = next((errors[dep] for dep in further if dep in errors), None)
            if error is not None and state.status == PENDING:
                del self.announced[name]
                failed.append((state, error, True))
        tasks, self.tasks = self.tasks, []
        for state, task in tasks:
            error = next((errors[dep] for dep in task.deps if dep in errors), None)
            if error is not None and state.status == PENDING:
                errors[task.name] = error
                self._names.pop(task.name, None)
                failed.append((state, error, False))
            else:
                self.tasks.append((state, task))
        return failed

    def stored(self, names: Iterable[str], outbox: deque[tuple[FutureState, Task]]) -> list[Announced]:
        """Note that values are stored, or never will be: what needed them is collected, ahead of what came later.

        Returns the tasks that left before, and lack nothing any more.
        """
        for name in names:
            self.unstored.pop(name, None)
        complete = [each for each in self.announced.values() if self.unstored.keys().isdisjoint(each.further)]
        for each in complete:
            del self.announced[each.task.name]
        self._seen = None
        tasks, self.tasks = self.tasks, []
        self._names.clear()
        self.needed.clear()
        self.needed.update(*self.unstored.values())
        for each in self.announced.values():
            self.needed.update((each.task.name,), each.task.deps, each.further)
        outbox.extendleft(reversed([item for item in tasks if not self._keeps(item)]))
        return complete

    def holds_any(self, names: Iterable[object]) -> bool:
        """Whether one of `names` is a task that has not left for want of a value; not one that was cancelled meanwhile."""
        get = self._names.get
        return bool(self.tasks) and any(
            type(name) is str and (state := get(name)) is not None and state.status == PENDING
            for name in names
        )

    def holds(self, call: Call) -> bool:
        """Whether `call` names such a task. What stores a value never waits here: others wait for that."""
        return call.script.name not in _STORING and self.holds_any(call.body)

    def keep(self, call: Call, on_reply: OnReply | None, on_error: OnError | None) -> Entry:
        """Keep a call until `released` gives it back."""
        entry = Entry(0, call, 0, on_reply, on_error)
        self.calls.append(entry)
        self.needed.update(part for part in call.body if type(part) is str)
        return entry

    def released(self) -> list[Entry]:
        """Return the calls that name nothing here any more, in order."""
        calls, self.calls = self.calls, []
        free = []
        for entry in calls:
            if entry.done:
                continue  # nobody waits for it any more
            if self.holds(entry.call):
                self.calls.append(entry)
                self.needed.update(part for part in entry.call.body if type(part) is str)
            else:
                free.append(entry)
        return free

    def drop(self) -> list[Entry]:
        """Forget the tasks, and return the calls, none of which will leave."""
        calls, self.calls = self.calls, []
        self.tasks.clear()
        self.announced.clear()
        self._names.clear()
        self.needed.clear()
        return calls
