"""What has to be told again with tasks that a server has lost: what they need, where nobody refers to that any more.

The server keeps such things as long as tasks need them, and tells nobody how they stand. So a task that is not known to be
done keeps the records of what it needs (`FutureState.needs`), and they go with the news that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from redist.session.states import FINISHED, PENDING, FutureState

if TYPE_CHECKING:
    from redist.store.calls import Task, Value

__all__ = ["in_turns", "is_known_here", "with_needs"]


def is_known_here(state: FutureState) -> bool:
    """Whether the value is inline and has arrived."""
    return state.status == FINISHED and bool(state.value) and not state.where


def with_needs(states: Iterable[FutureState], records: Mapping[str, FutureState]) -> list[FutureState]:
    """Return `states` and what they need of which nobody has a reference, what is needed first.

    Names among `records` are told of by themselves.
    """
    wanted = dict.fromkeys(states)
    found: list[FutureState] = []
    seen: set[FutureState] = set()
    for root in wanted:
        if root in seen:
            continue
        seen.add(root)
        path: list[tuple[FutureState, Iterator[FutureState]]] = [(root, iter(root.needs))]
        while path:
            state, rest = path[-1]
            for need in rest:
                if need not in seen and (_has_task(need) or is_known_here(need)):
                    seen.add(need)
                    path.append((need, iter(need.needs)))
                    break
            else:
                path.pop()
                if state in wanted or (state.count <= 0 and state.name not in records):
                    found.append(state)
    return found


def in_turns(
    values: Sequence[Value], tasks: Sequence[tuple[FutureState, Task]]
) -> list[tuple[list[Value], list[tuple[FutureState, Task]]]]:
    """Cut what has to be told again into turns, the values of each ahead of its tasks, so that all finds what it names.

    A value that contains the Future of a task comes behind that task, and what needs the value behind the value.
    """
    names: dict[str, Sequence[str]] = {value.name: value.contains for value in values}
    among = {task.name for _, task in tasks}
    if among.isdisjoint(name for contained in names.values() for name in contained):
        return [(list(values), list(tasks))]
    names.update((task.name, task.deps) for _, task in tasks)
    turn: dict[str, int] = {}
    place: dict[str, int] = {}
    for root in names:
        path = [(root, iter(names[root]))] if root not in turn else []
        turn.setdefault(root, 0)
        while path:
            name, rest = path[-1]
            for need in rest:
                if need in names and need not in turn:
                    turn[need] = 0
                    path.append((need, iter(names[need])))
                    break
            else:
                path.pop()
                later = name not in among  # than the tasks that it names
                turn[name] = max(
                    (turn[d] + (later and d in among) for d in names[name] if d in turn), default=0
                )
                place[name] = len(place)
    turns: list[tuple[list[Value], list[tuple[FutureState, Task]]]] = [
        ([], []) for _ in range(1 + max(turn.values()))
    ]
    for value in sorted(values, key=lambda value: place[value.name]):
        turns[turn[value.name]][0].append(value)
    for item in sorted(tasks, key=lambda item: place[item[1].name]):
        turns[turn[item[1].name]][1].append(item)
    return turns


def _has_task(state: FutureState) -> bool:
    return state.task is not None and state.status in (PENDING, FINISHED)
