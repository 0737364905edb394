"""What has to be told again with tasks that a server has lost: what they need, where nobody refers to that any more.

The server keeps such things as long as tasks need them, and tells nobody how they stand. So a task that is not known to be
done keeps the records of what it needs (`FutureState.needs`), and they go with the news that it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from redist.session.states import FINISHED, PENDING, FutureState

__all__ = ["is_known_here", "with_needs"]


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


def _has_task(state: FutureState) -> bool:
    return state.task is not None and state.status in (PENDING, FINISHED)
