"""The thread driver: callers send, and whoever waits reads.

One lock guards a session. A caller that waits takes the *reader's role* and polls the sockets itself: the answer wakes the
very thread that needs it (a reader thread in between would cost a third of the round trip). Others that wait meanwhile are
parked, and the role passes on when its holder has what it came for. A background thread sends releases and heartbeats,
connects again, and receives only while nobody waits: it takes the role back some 20 ms after the last wait. For so long it
looks every 2 ms: to wake it for each release would cost the thread that releases more than the release.

Polling takes nothing away, and receiving is non-blocking and under the lock, so that two threads that poll at once do no
harm; the role only keeps the others asleep.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from redist.errors import ClientClosed, ConnectionLost, RedistError
from redist.session.blocking import BlockingRunner
from redist.session.driver import Driver
from redist.session.operations import Sendable, Sent
from redist.session.outcome import Outcome
from redist.session.role import Parked, Polls, ReaderRole
from redist.session.session import Session
from redist.session.states import Condition, Waiter
from redist.session.wakeup import Wakeup, drivers, runs
from redist.store.calls import Call
from redist.store.connect import Endpoint

__all__ = ["ThreadDriver"]

logger = logging.getLogger("redist.session")

#: How long after the last wait the background thread receives again, s.
TAKE_BACK = 0.02
#: How often the background thread looks for releases meanwhile, s.
TICK = 0.002
#: How long a wait looks only at the push socket before it looks at replies too, ms.
PUSHES_ONLY = 2.0

_monotonic = time.monotonic


class ThreadDriver(Driver, BlockingRunner):
    """Runs a session for threads that block.

    Parameters
    ----------
    session : Session
        The session; from now on only touched under `lock`.
    endpoint : Endpoint
        Where to connect.
    check : bool
        Whether to see at the start if the server is fit.
    """

    def __init__(self, session: Session, endpoint: Endpoint, *, check: bool = True) -> None:
        super().__init__(session, endpoint, threading.Lock(), check)
        self._role = ReaderRole()
        self._last_wait = 0.0
        #: Whether the background thread looks within `TICK`, or was woken and has not looked yet.
        self._ticking = False
        self._planned = 0.0  # when the background thread will look by itself
        self._thread: threading.Thread | None = None
        # Wakes who has the reader's role, when another thread received what it waits for.
        self._nudge = Wakeup()
        self._kick = self._wakeup.write
        session.ledger.wake = self._released
        self._changed()
        drivers.add(self)

    # --- start and end ----------------------------------------------------------------------------------------------

    def start(self, timeout: float = 10.0) -> None:
        """Connect, register and subscribe.

        Raises
        ------
        ConnectionLost
            If that did not come about within `timeout` seconds.
        ServerRefused
            If the server is not fit or does not let us in.
        """
        deadline = _monotonic() + timeout
        session = self.session
        try:
            command, push = self.links.open(timeout, check=self._check)
            with self.lock:
                self.links.adopt_command(command)
                self.links.adopt_push(push)
            self._thread = threading.Thread(target=self._run, name=f"redist-{session.name}", daemon=True)
            self._thread.start()
            ready = self.wait(
                lambda: session.ready or session.failure is not None, deadline - _monotonic(), replies=True
            )
            if session.failure is not None:
                raise session.failure
            if not ready:
                raise ConnectionLost(f"{self.endpoint.url} did not register us within {timeout:g} s")
        except BaseException as error:
            self._shut(ClientClosed(f"the connection could not be made: {error}"))
            raise

    def close(self, timeout: float = 5.0) -> None:
        """Release everything, leave, and end the background thread. What waits raises `ClientClosed`."""
        if self._closed is not None:
            return
        outcome = Outcome(1)
        done, _ = outcome.of(0)
        try:
            if self.session.failure is None and self._thread is not None:
                with self.lock:
                    self.session.close(lambda: done([]))
                    self.links.transmit()
                if self.links.coming:
                    self.wait(outcome, timeout, replies=True)
        except RedistError:
            pass
        finally:
            self._shut(ClientClosed("the client is closed"))

    def _shut(self, error: BaseException) -> None:
        with self.lock:
            if self._closed is not None:
                return
            self._closed = error
            self.session.ledger.wake = None
            self.session.fail(error)
            self._role.wake_all()
            self._kick()
            self._nudge.write()
            self.links.close()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(5.0)
        if thread is None or not thread.is_alive():
            self._wakeup.close()
            self._nudge.close()

    def forked(self) -> None:
        """In a forked child: drop what is the parent's without a word to the server."""
        self.lock = self.session.lock = threading.Lock()
        self._role = ReaderRole()
        self._nudge.close()
        super().forked()

    # --- sending ----------------------------------------------------------------------------------------------------

    def post(
        self,
        call: Call,
        on_reply: Callable[[list[Any]], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        """Send a call and go on; the callbacks run under the lock, in whatever thread reads."""
        with self.lock:
            self.check_alive()
            try:
                self.session.enqueue(call, on_reply, on_error)
                self.links.transmit()
            except BaseException as error:
                self.links.interrupted(error)
                raise

    def call(self, call: Call, timeout: float | None = None) -> list[Any]:
        """Send a call and return its reply.

        Raises
        ------
        Refused
            If the script refused it.
        ConnectionLost, ServerRefused
            If there was no reply within `timeout` seconds; its `pending` says whether the call may yet be applied.
        """
        return self.call_all([call], timeout)[0]

    def call_now(self, call: Call, timeout: float | None = None) -> list[Any]:
        """Send a call and return its reply, as an event loop can do it too."""
        return self.call(call, timeout or self.reply_timeout or self.endpoint.timeout)

    def call_all(
        self,
        calls: Sequence[Sendable],
        timeout: float | None = None,
        *,
        patient: bool = False,
        stays: bool = False,
    ) -> list[list[Any]]:
        """Send calls together and return their replies; raises the first error.

        `patient` counts the timeout from the last thing on that the server did for us; see `AskAll` for `stays`.
        """
        sent = self.send_all(calls)
        self.collect(sent, timeout, patient=patient, stays=stays)
        try:
            return sent.outcome.result()
        finally:
            del sent  # an error would keep this frame, and this frame it

    def send_all(self, calls: Sequence[Sendable]) -> Sent:
        """Send calls together and go on."""
        outcome = Outcome(len(calls))
        with self.lock:
            self.check_alive()
            try:
                sent = Sent(outcome, self.enqueue_all(calls, outcome), self.progress(outcome))
                self.links.transmit()
            except BaseException as error:
                self.links.interrupted(error)
                raise
        return sent

    def collect(
        self, sent: Sent, timeout: float | None = None, *, patient: bool = False, stays: bool = False
    ) -> list[Any]:
        """Wait for the replies to what was sent, and return them; what was refused is an error in their place."""
        outcome = sent.outcome
        while not self.wait(outcome, timeout, replies=True):
            assert timeout is not None
            with self.lock:
                before, sent.seen = sent.seen, self.progress(outcome)
                quiet = not patient or sent.seen == before
                late = self.late(outcome, sent.entries, timeout, stays) if quiet else None
            if late is not None:
                raise late
        return outcome.replies

    def push_out(self) -> None:
        """Send what the session has to say; under the lock."""
        self.links.transmit()

    def submitted(self) -> None:
        """After `Session.submit`: send what may leave now. Under the lock."""
        session = self.session
        try:
            session.pump()
            if session.collected and session.collected % 32 == 1:
                # What was acknowledged meanwhile lets more go; nobody reads while the caller only submits.
                self.links.take_replies()
                self._look()
            self.links.transmit()
        except BaseException as error:
            self.links.interrupted(error)
            raise

    # --- receiving --------------------------------------------------------------------------------------------------

    def _take(self, events: list[tuple[int, int]], mine: Waiter | None = None) -> None:
        """Receive where there is something, and act on it; `mine` is what the calling thread waits for. Under the lock."""
        links = self.links
        push, command = links.push, links.command
        try:
            for fd, _ in events:
                if push is not None and fd == push.fileno():
                    links.take_pushes()
                elif command is not None and fd == command.fileno():
                    links.send_rest()
                    links.take_replies()
                elif fd == self._nudge.reading:
                    self._nudge.drain()
            links.transmit()
            self._look(mine)
        except BaseException as error:
            # A call may be noted as sent that is not: the next reply would be taken for its.
            links.interrupted(error)
            raise

    def _look(self, mine: Waiter | None = None) -> None:
        """After something was received: wake other threads that have to do with it. Under the lock."""
        role = self._role
        if role.holder is not None and role.holder is not mine and role.holder.ready():
            self._nudge.write()
        if self.session.deadline < self._planned:
            self._planned = 0.0
            self._kick()
        if role.parked:
            role.wake_ready()

    def _changed(self) -> None:
        """Make the poll objects for the present descriptors, and have the background thread look. Under the lock."""
        self._polls = Polls(self.links, self._nudge, self._wakeup)
        self._kick()
        if self._role.holder is not None:
            # It may be about to poll descriptors that are closed, and already somebody else's.
            self._nudge.write()

    # --- waiting ----------------------------------------------------------------------------------------------------

    def wait(
        self, what: Waiter | Callable[[], Any], timeout: float | None = None, *, replies: bool = False
    ) -> bool:
        """Wait until `what` is ready.

        Parameters
        ----------
        what : Waiter or callable
            A waiter, or a predicate that is looked at, under the lock, whenever something arrived.
        timeout : float, optional
            Seconds; None waits for ever.
        replies : bool
            Whether it is replies that are waited for, not pushes.

        Returns
        -------
        bool
            False if the timeout came first.

        Raises
        ------
        ClientClosed
            If the driver is closed meanwhile.
        """
        waiter = what if isinstance(what, Waiter) else Condition(what)
        role = self._role
        deadline = None if timeout is None else _monotonic() + timeout
        parked = None
        if waiter.foreign:
            waiter.wake = self.nudge
        try:
            with self.lock:
                if waiter.ready():
                    return True
                self.check_alive()
                replies = self._before_wait() or replies
                if role.holder is None and self.links.up:
                    role.take(waiter)
                else:
                    parked = Parked(waiter)
                    role.parked.append(parked)
            while True:
                if parked is not None:
                    if not self._stay(parked, deadline):
                        return waiter.ready()
                    parked = None
                if self._read(waiter, deadline, replies):
                    return True
                with self.lock:
                    if waiter.ready():
                        return True
                    self.check_alive()
                    if deadline is not None and _monotonic() >= deadline:
                        return False
                    # The connection broke: the background thread makes it anew and passes the role on.
                    self._leave(waiter)
                    parked = Parked(waiter)
                    role.parked.append(parked)
        except BaseException:
            self._kick()  # should one more Ctrl-C keep us from what follows, the background thread does it
            raise
        finally:
            with self.lock:
                self._leave(waiter)
                role.unpark(parked)

    def nudge(self) -> None:
        """Have whoever waits look again: what it waits for came by another driver. From any thread, without the lock."""
        self._nudge.write()
        self._kick()

    def _before_wait(self) -> bool:
        """Send what is collected; return whether replies have to be read for all of it to leave. Under the lock."""
        session = self.session
        try:
            if session.collected:
                self.links.take_replies()
                self._look()
                session.pump()
            elif session.ledger.changed:
                session.flush()  # news of what was bound just now may be what is waited for
            self.links.transmit()
        except BaseException as error:
            self.links.interrupted(error)
            raise
        return session.collected > 0

    def _read(self, waiter: Waiter, deadline: float | None, replies: bool) -> bool:
        """Hold the role until `waiter` is ready, the deadline came or the connection broke; return whether it is ready."""
        lock = self.lock
        poll = self._polls.both if replies else self._polls.pushes
        limit = None if replies else PUSHES_ONLY
        while True:
            span = limit
            if deadline is not None:
                left = max(0.0, (deadline - _monotonic()) * 1000)
                span = left if span is None else min(left, span)
            events = poll.poll(span)
            with lock:
                if events:
                    self._take(events, waiter)
                    if waiter.ready():
                        # Given up here, to take the lock once less.
                        self._leave(waiter)
                        return True
                if not self.links.up or self._closed is not None:
                    return False
                if not events:
                    if deadline is not None and _monotonic() >= deadline:
                        return waiter.ready()
                    limit = None
                poll = self._polls.both if limit is None else self._polls.pushes

    def _stay(self, parked: Parked, deadline: float | None) -> bool:
        """Stay parked; return True when the role was passed to us."""
        if deadline is None:
            parked.gate.acquire()
        elif not parked.gate.acquire(timeout=max(0.0, deadline - _monotonic())):
            with self.lock:
                if not parked.woken:
                    return False
        if parked.promoted:
            return True
        with self.lock:
            if not parked.waiter.ready():
                self.check_alive()
        return False

    def _leave(self, waiter: Waiter) -> None:
        """Give up the reader's role, if we have it, to the next that waits. Under the lock."""
        role = self._role
        if role.holder is not waiter:
            return
        role.holder = None
        self._last_wait = _monotonic()
        if role.parked:
            self._look()
            self._promote()
        if role.holder is None and not self._ticking:
            # The background thread sleeps without a look at the sockets; it is to take them back after a while.
            self._ticking = True
            self._kick()

    def _released(self) -> None:
        """Note a release; from any thread, inside garbage collections too, without the lock."""
        if not self._ticking:
            self._kick()

    def _promote(self) -> None:
        if self.links.up:
            self._role.pass_on()

    def _recall(self) -> None:
        """Take the role from a thread that left `wait` with it, because one more Ctrl-C came. Under the lock."""
        role = self._role
        while role.holder is not None and not runs(role.thread, _WAIT, self):
            self._leave(role.holder)

    # --- the background thread --------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if not self._round():
                    return
            except Exception:
                logger.exception("the background thread goes on after an error")
                time.sleep(0.1)

    def _round(self) -> bool:
        with self.lock:
            if self._closed is not None:
                return False
            now = _monotonic()
            session = self.session
            rest = self._last_wait + TAKE_BACK - now
            ticked, self._ticking = self._ticking, rest > 0
            if session.ledger.armed:  # after that: what is released now either shows here or wakes us
                if ticked:
                    session.flush()
                else:
                    session.dirty()
            session.tick()
            self.links.transmit()
            self._look()
            self._recall()
            self._promote()
            span = session.deadline - session.clock()
            if not self.links.up:
                span = min(span, self.links.retry_at - now)
                poll = self._polls.idle
            elif rest > 0 or self._role.holder is not None:
                poll = self._polls.wake
            else:
                poll = self._polls.idle
            if rest > 0:
                span = min(span, rest, TICK)
            # Not later than the deadline by the moment that passed since, or the next look would wake us again.
            self._planned = min(session.deadline, session.clock() + max(span, 0.0))
        if span > 0:
            events = poll.poll(None if span == float("inf") else span * 1000)
            if any(fd == self._wakeup.reading for fd, _ in events):
                self._wakeup.drain()
                events = [event for event in events if event[0] != self._wakeup.reading]
            if events:
                with self.lock:
                    self._take(events)
        if not self.links.up and self._closed is None and _monotonic() >= self.links.retry_at:
            try:
                wire = self.links.reopen()
            except ConnectionLost as error:
                with self.lock:
                    self.session.fail(error)
                    self._role.wake_all()
                return False
            if wire is not None:
                with self.lock:
                    if self.closed:
                        wire.close()
                    else:
                        self.links.adopt(wire)
        return True


_WAIT = ThreadDriver.wait.__code__
