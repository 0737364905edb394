"""What an event loop looks after for its driver: the sockets, the connections to be made anew, and the time.

A Ctrl-C that nobody makes a cancellation of strikes inside any callback, or instead of one, and goes on through the loop;
who runs the loop again is to find everything in order. So nothing here relies on a callback that was planned: what is wanted
is compared with what is there at every beat, whoever makes a connection says so by a descriptor, and the time is planned
twice.
"""

from __future__ import annotations

import _thread
import asyncio
from collections.abc import Callable
from math import inf

from redist.errors import RedistError
from redist.session.links import Links
from redist.session.wakeup import Wakeup
from redist.store.wire import Wire

__all__ = ["Watch"]

#: How late a callback may be before it counts as lost, s.
_LATE = 0.05


class _Opening:
    """Makes a connection, in a thread."""

    __slots__ = ("_links", "_wakeup", "done", "dropped", "error", "wire")

    def __init__(self, links: Links, wakeup: Wakeup) -> None:
        self._links = links
        self._wakeup = wakeup
        self.wire: Wire | None = None
        self.error: RedistError | None = None
        self.done = self.dropped = False

    def __call__(self) -> None:
        try:
            self.wire = self._links.reopen()
        except RedistError as error:
            self.error = error
        finally:
            self.done = True
            if self.dropped and self.wire is not None:
                self.wire.close()
            self._wakeup.write()


class Watch:
    """Watches for a driver.

    Parameters
    ----------
    loop : AbstractEventLoop
        The loop, in which everything here is called.
    links : Links
        The connections.
    wakeup : Wakeup
        What wakes the loop from any thread.
    period : float
        Seconds between two looks at everything.
    on_push, on_command, on_writable, on_wakeup, on_time, on_look : callable
        Called when there is something to read or room to write, when the wakeup was written, at the time that was planned,
        and at every look.

    Attributes
    ----------
    planned : float
        When the time is told next, by the loop's clock.
    """

    __slots__ = (
        "_guard", "_guarded", "_links", "_loop", "_on_command", "_on_look", "_on_push", "_on_time", "_on_wakeup",
        "_on_writable", "_opening", "_period", "_timer", "_wakeup", "_watched", "planned",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        links: Links,
        wakeup: Wakeup,
        period: float,
        *,
        on_push: Callable[[], None],
        on_command: Callable[[], None],
        on_writable: Callable[[], None],
        on_wakeup: Callable[[], None],
        on_time: Callable[[], None],
        on_look: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._links = links
        self._wakeup = wakeup
        self._period = period
        self._on_push = on_push
        self._on_command = on_command
        self._on_writable = on_writable
        self._on_wakeup = on_wakeup
        self._on_time = on_time
        self._on_look = on_look
        #: By descriptor: whose it is, and whether there may be a look for room.
        self._watched: dict[int, tuple[Wire | None, bool]] = {}
        self._opening: _Opening | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.planned = inf
        self._guard: asyncio.TimerHandle | None = None
        self._guarded = -inf
        self.sockets()
        self.plan(inf)

    # --- sockets ----------------------------------------------------------------------------------------------------

    def sockets(self, *, anew: bool = False) -> None:
        """Have the loop watch the present descriptors and no others; with `anew` whatever it seems to watch."""
        links, loop, watched = self._links, self._loop, self._watched
        wanted: dict[int, tuple[Wire | None, Callable[[], None], bool]] = {
            self._wakeup.reading: (None, self._on_wakeup, False)
        }
        if links.push is not None:
            wanted[links.push.fileno()] = (links.push, self._on_push, False)
        if links.command is not None:
            wanted[links.command.fileno()] = (links.command, self._on_command, bool(links.rest))
        for fd, (wire, _) in list(watched.items()):
            # A number that is somebody else's by now would not be told of again.
            if anew or fd not in wanted or wanted[fd][0] is not wire:
                self._unwatch(fd)
        for fd, (wire, callback, writing) in wanted.items():
            before = watched.get(fd)
            if before == (wire, writing):
                continue
            watched[fd] = wire, True  # until it is known
            try:
                loop.add_reader(fd, callback)
                if writing:
                    loop.add_writer(fd, self._on_writable)
                elif before is not None:
                    loop.remove_writer(fd)
            except OSError:  # the loop was struck: it does not know any more what it watches
                self._replace(fd, wire)
                return
            watched[fd] = wire, writing

    def _replace(self, fd: int, wire: Wire | None) -> None:
        self._unwatch(fd)
        if wire is None:
            self._wakeup.renew()
            self._wakeup.write()
            self.sockets()
        elif wire is self._links.push:
            self._links.lost_push()
        else:
            self._links.lost_command()

    def _unwatch(self, fd: int) -> None:
        self._loop.remove_reader(fd)
        self._loop.remove_writer(fd)
        self._watched.pop(fd, None)

    # --- connections ------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Take the connection that was made, and have what is missing made in a thread as soon as it is time."""
        links, opening = self._links, self._opening
        if opening is not None and opening.done:
            self._opening = None
            if opening.error is not None:
                links.session.fail(opening.error)
                return
            if opening.wire is not None:
                links.adopt(opening.wire)
        if self._opening is None and self.retry_at <= self._loop.time():
            opening = _Opening(links, self._wakeup)
            # A Ctrl-C in the loop's pool, or in `threading`, may leave a lock there taken for good.
            _thread.start_new_thread(opening, ())
            self._opening = opening

    @property
    def retry_at(self) -> float:
        """When to begin to make a connection, infinite if none is missing or it is being made."""
        links = self._links
        if links.up or self._opening is not None or links.session.failure is not None:
            return inf
        return links.retry_at

    # --- time -------------------------------------------------------------------------------------------------------

    def plan(self, deadline: float) -> None:
        """Have the time be told at `deadline` at the latest."""
        now = self._loop.time()
        if now > self._guarded + self._period + _LATE:
            self._guard_again(now)
        deadline = min(deadline, self.retry_at)
        if deadline < self.planned or self.planned < now - _LATE:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self.planned = deadline
            if deadline < inf:
                self._timer = self._loop.call_at(deadline, self._told)

    def _told(self) -> None:
        self.planned = inf
        self._on_time()

    def _guard_again(self, now: float) -> None:
        if self._guard is not None:
            self._guard.cancel()
        self._guard = self._loop.call_at(now + self._period, self._look)
        self._guarded = now

    def _look(self) -> None:
        self._guard_again(self._loop.time())
        self.planned = -inf  # it is planned anew
        self.sockets(anew=True)
        self._on_look()

    # --- the end ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Look after nothing any more."""
        for timer in (self._timer, self._guard):
            if timer is not None:
                timer.cancel()
        opening, self._opening = self._opening, None
        if opening is not None:
            opening.dropped = True
            if opening.wire is not None:
                opening.wire.close()
        for fd in list(self._watched):
            self._unwatch(fd)
