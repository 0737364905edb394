"""Chains: a task that waits only for one ahead of it in the same batch gets its value from here, not from the server."""

from __future__ import annotations

from redist.store.calls import Result
from redist.store.replies import HandOut

__all__ = ["Chain"]

_AHEAD = "+"  # instead of where the value of a dependency lies


class Chain:
    """The inline values of the tasks of one batch that are finished."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}

    def note(self, result: Result) -> None:
        """Keep the value of a task that finished, if it is inline."""
        if result.status == "memory" and result.value:
            self._values[result.name] = result.value

    def link(self, task: HandOut) -> HandOut | None:
        """Return `task` with the values that were computed ahead of it, or None if one of them was not.

        It cannot run then: that task erred, has a large value, or is to run again.
        """
        if not any(where == _AHEAD for _, where, _ in task.deps):
            return task
        values = self._values
        deps = [
            (name, "", values.get(name, b"")) if where == _AHEAD else (name, where, value)
            for name, where, value in task.deps
        ]
        if not all(where or value for _, where, value in deps):
            return None
        return task._replace(deps=deps)
