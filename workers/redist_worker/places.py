"""What a task does with the place of its thread: `block` while it waits, `secede` for as long as it likes."""

from __future__ import annotations

import threading
from collections.abc import Callable

from redist_worker.threads import TaskThread

__all__ = ["Places"]


class Places:
    """Gives up and takes the place of the calling task thread; outside of tasks `block` and `unblock` do nothing.

    Parameters
    ----------
    leave, come_back : callable
        Called with a thread that gives its place up, and with one that waits for a place.
    """

    def __init__(
        self, leave: Callable[[TaskThread], object], come_back: Callable[[TaskThread], object]
    ) -> None:
        self._leave = leave
        self._come_back = come_back
        self._here = threading.local()

    def enter(self, me: TaskThread) -> None:
        """Note that the calling thread is `me`."""
        self._here.thread = me

    def _mine(self) -> TaskThread | None:
        """Return the calling thread's state if it runs a task."""
        me: TaskThread | None = getattr(self._here, "thread", None)
        return None if me is None or me.task is None else me

    def block(self) -> None:
        """Give up this thread's place, because its task is about to wait; nested calls count."""
        me = self._mine()
        if me is None:
            return
        me.blocks += 1
        if me.blocks == 1 and not me.seceded:
            self._leave(me)

    def unblock(self) -> None:
        """Take a place again, waiting until one is free."""
        me = self._mine()
        if me is None or not me.blocks:
            return
        me.blocks -= 1
        if me.blocks == 0 and not me.seceded:
            self._come_back(me)

    def current(self) -> TaskThread | None:
        """Return what the calling thread runs a task as, None if it runs none."""
        return self._mine()

    def secede(self) -> None:
        """Run the current task without a place, until it ends or `rejoin` is called."""
        me = self._mine()
        if me is None:
            raise ValueError("secede() can only be called inside a task")
        if not me.seceded:
            me.seceded = True
            if not me.blocks:
                self._leave(me)

    def rejoin(self) -> None:
        """Take a place again after `secede`, waiting until one is free."""
        me = self._mine()
        if me is None:
            raise ValueError("rejoin() can only be called inside a task")
        if me.seceded:
            me.seceded = False
            if not me.blocks:
                self._come_back(me)
