"""The reader's role: which of the threads that wait polls the sockets, what it polls, and who is parked meanwhile."""

from __future__ import annotations

import select
import threading
from collections import deque
from typing import TYPE_CHECKING

from redist.session.states import Waiter
from redist.session.wakeup import Wakeup

if TYPE_CHECKING:
    from redist.session.links import Links

__all__ = ["Parked", "Polls", "ReaderRole"]


class Parked:
    """A thread that waits without the reader's role."""

    __slots__ = ("gate", "promoted", "thread", "waiter", "woken")

    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter
        self.gate = threading.Lock()
        self.gate.acquire()
        self.thread = threading.get_ident()
        self.promoted = False
        self.woken = False

    def wake(self) -> None:
        """Let it go on. Under the driver's lock."""
        if not self.woken:
            self.woken = True
            self.gate.release()


class ReaderRole:
    """Who has the role, and who waits for it. All of it under the driver's lock.

    Attributes
    ----------
    holder : Waiter or None
        What the thread that has the role waits for.
    thread : int
        That thread.
    parked : deque of Parked
        The others, the first to come first.
    """

    __slots__ = ("holder", "parked", "thread")

    def __init__(self) -> None:
        self.holder: Waiter | None = None
        self.thread = 0
        self.parked: deque[Parked] = deque()

    def take(self, waiter: Waiter) -> None:
        """Give the role, which nobody has, to the calling thread."""
        self.holder, self.thread = waiter, threading.get_ident()

    def pass_on(self) -> None:
        """Give the role, if nobody has it, to the first that is parked."""
        if self.parked and self.holder is None:
            parked = self.parked.popleft()
            self.holder, self.thread = parked.waiter, parked.thread
            parked.promoted = True
            parked.wake()

    def unpark(self, parked: Parked | None) -> None:
        """Note that a thread waits no more."""
        if parked is not None and parked in self.parked:
            self.parked.remove(parked)

    def wake_ready(self) -> None:
        """Wake those that have what they wait for."""
        for parked in list(self.parked):
            if parked.waiter.ready():
                self.parked.remove(parked)
                parked.wake()

    def wake_all(self) -> None:
        """Wake everybody: there is nothing more to wait for."""
        for parked in self.parked:
            parked.wake()
        self.parked.clear()


class Polls:
    """Poll objects for the descriptors of the present, by what their users want to hear of.

    Attributes
    ----------
    pushes, both : select.poll
        Of who has the role: pushes alone, or replies too.
    idle, wake : select.poll
        Of the background thread: while nobody has the role, and while somebody has.
    """

    __slots__ = ("both", "idle", "pushes", "wake")

    def __init__(self, links: Links, nudge: Wakeup, wakeup: Wakeup) -> None:
        self.pushes, self.both, self.idle, self.wake = (select.poll() for _ in range(4))
        self.pushes.register(nudge.reading, select.POLLIN)
        self.both.register(nudge.reading, select.POLLIN)
        self.idle.register(wakeup.reading, select.POLLIN)
        self.wake.register(wakeup.reading, select.POLLIN)
        if links.push is not None and not links.push.closed:
            for poll in (self.pushes, self.both, self.idle):
                poll.register(links.push.fileno(), select.POLLIN)
        if links.command is not None and not links.command.closed:
            fd = links.command.fileno()
            self.both.register(fd, select.POLLIN)
            self.idle.register(fd, select.POLLIN | (select.POLLOUT if links.rest else 0))
            if links.rest:
                self.wake.register(fd, select.POLLIN | select.POLLOUT)
