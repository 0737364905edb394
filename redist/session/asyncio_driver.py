"""The asyncio driver: everything happens in the caller's loop, through readers on the two sockets. There is no thread.

Only what blocks by nature goes to others: files and payloads of other hosts to the loop's own pool, a connection to be made
anew to a thread that ends with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from redist.errors import ClientClosed, ConnectionLost, RedistError
from redist.session import outside
from redist.session.driver import Driver
from redist.session.heart import LONGEST
from redist.session.operations import (
    Ask,
    AskAll,
    Collect,
    Operation,
    Post,
    Request,
    Run,
    Send,
    Sendable,
    Sent,
    Until,
    carry_out,
)
from redist.session.outcome import Outcome
from redist.session.session import Session
from redist.session.states import Condition, Waiter
from redist.session.wakeup import drivers
from redist.session.watch import Watch
from redist.store.calls import Call
from redist.store.connect import Endpoint

__all__ = ["AsyncioDriver"]

P = ParamSpec("P")
T = TypeVar("T")

logger = logging.getLogger("redist.session")


def _whole(
    method: Callable[Concatenate[AsyncioDriver, P], T],
) -> Callable[Concatenate[AsyncioDriver, P], T]:
    """Have a method that a Ctrl-C may leave in the middle connect anew then: what was half done is done again."""

    @wraps(method)
    def call(self: AsyncioDriver, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            self.links.interrupted(error)
            raise

    return call


class AsyncioDriver(Driver):
    """Runs a session in an event loop.

    Parameters
    ----------
    session : Session
        The session; touched only in the loop.
    endpoint : Endpoint
        Where to connect.
    check : bool
        Whether to see at the start if the server is fit.
    """

    def __init__(self, session: Session, endpoint: Endpoint, *, check: bool = True) -> None:
        super().__init__(session, endpoint, contextlib.nullcontext(), check)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: Watch | None = None
        self._conditions: dict[Waiter, Callable[[], None]] = {}
        self._waits: dict[asyncio.Future[None], Waiter] = {}
        drivers.add(self)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop in which `start` ran."""
        assert self._loop is not None, "the driver has not been started"
        return self._loop

    # --- start and end ----------------------------------------------------------------------------------------------

    async def start(self, timeout: float = 10.0) -> None:
        """Connect, register and subscribe.

        Raises
        ------
        ConnectionLost
            If that did not come about within `timeout` seconds.
        ServerRefused
            If the server is not fit or does not let us in.
        """
        loop = self._loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        session = self.session
        try:
            command, push = await asyncio.to_thread(self.links.open, timeout, check=self._check)
            self._watch = Watch(
                loop, self.links, self._wakeup, min(session.lease / 5, LONGEST), on_push=self._on_push,
                on_command=self._on_command, on_writable=self._on_writable, on_wakeup=self._on_wakeup,
                on_time=self._on_time, on_look=self._on_look,
            )  # fmt: skip
            self.links.adopt_command(command)
            self.links.adopt_push(push)
            self._plan()
            ready = await self.wait(
                lambda: session.ready or session.failure is not None, deadline - loop.time()
            )
            if session.failure is not None:
                raise session.failure
            if not ready:
                raise ConnectionLost(f"{self.endpoint.url} did not register us within {timeout:g} s")
        except BaseException as error:
            await self._shut(ClientClosed(f"the connection could not be made: {error}"))
            raise

    async def see_off(self, timeout: float) -> None:
        """Have what waits for values leave before the end: a task that somebody fired, or took over, is to run."""
        holding = self.session.submissions.holding
        if self._closed is None and self.session.failure is None:
            with contextlib.suppress(RedistError):
                await self.wait(lambda: not (holding.calls or holding.announced), timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """Release everything and leave. What waits raises `ClientClosed`."""
        if self._closed is not None:
            return
        outcome = Outcome(1)
        done, _ = outcome.of(0)
        try:
            if self.session.failure is None and self._loop is not None:
                self.session.close(lambda: done([]))
                self.links.transmit()
                if self.links.coming:
                    await self.wait(outcome, timeout)
        except RedistError:
            pass
        finally:
            await self._shut(ClientClosed("the client is closed"))

    async def _shut(self, error: BaseException) -> None:
        if self._closed is not None:
            return
        self._closed = error
        self.session.ledger.wake = None
        self.session.fail(error)
        if self._watch is not None:
            self._watch.stop()
        self.links.close()
        for future in list(self._waits):
            if not future.done():
                future.set_result(None)
        self._wakeup.close()

    def end(self, timeout: float = 1.0) -> None:
        """Leave in good order at the end of the interpreter, when the loop is gone."""
        if self._closed is None and self.session.failure is None and self.links.up:
            self._loop = None
            outcome = Outcome(1)
            done, _ = outcome.of(0)
            try:
                self.session.close(lambda: done([]))
                self._stand_still(outcome, timeout, reconnect=False)
            except RedistError:
                pass
        self.abandon(ClientClosed("the interpreter ends"))

    def abandon(self, error: BaseException) -> None:
        """Give everything up without a word."""
        if self._closed is None:
            self._closed = error
            self.session.failure = self.session.failure or error
            self.session.ledger.wake = None
            self.links.close()
            self._wakeup.close()

    # --- sending ----------------------------------------------------------------------------------------------------

    @_whole
    def post(
        self,
        call: Call,
        on_reply: Callable[[list[Any]], object] | None = None,
        on_error: Callable[[BaseException], object] | None = None,
    ) -> None:
        """Send a call and go on."""
        self.check_alive()
        self.session.enqueue(call, on_reply, on_error)
        self.push_out()

    async def call(self, call: Call, timeout: float | None = None) -> list[Any]:
        """Send a call and return its reply; see `ThreadDriver.call`."""
        return (await self.call_all([call], timeout))[0]

    async def call_all(
        self,
        calls: Sequence[Sendable],
        timeout: float | None = None,
        *,
        patient: bool = False,
        stays: bool = False,
    ) -> list[list[Any]]:
        """Send calls together and return their replies; see `ThreadDriver.call_all`."""
        sent = self.send_all(calls)
        await self.collect(sent, timeout, patient=patient, stays=stays)
        try:
            return sent.outcome.result()
        finally:
            del sent  # an error would keep this frame, and this frame it

    @_whole
    def send_all(self, calls: Sequence[Sendable]) -> Sent:
        """Send calls together and go on."""
        self.check_alive()
        outcome = Outcome(len(calls))
        sent = Sent(outcome, self.enqueue_all(calls, outcome), self.progress(outcome))
        self.push_out()
        return sent

    async def collect(
        self, sent: Sent, timeout: float | None = None, *, patient: bool = False, stays: bool = False
    ) -> list[Any]:
        """Wait for the replies to what was sent; see `ThreadDriver.collect`."""
        outcome = sent.outcome
        while not await self.wait(outcome, timeout):
            assert timeout is not None
            before, sent.seen = sent.seen, self.progress(outcome)
            quiet = not patient or sent.seen == before
            error = self.late(outcome, sent.entries, timeout, stays) if quiet else None
            if error is not None:
                raise error
        return outcome.replies

    def call_now(self, call: Call, timeout: float | None = None) -> list[Any]:
        """Send a call and return its reply; the loop stands still meanwhile. For pickling, which cannot wait.

        In a thread that does not run the loop, the thread waits for the loop instead.
        """
        self.check_alive()
        if self._loop is None or asyncio._get_running_loop() is not self._loop:
            if self._loop is None or not self._loop.is_running():
                raise RuntimeError("this client belongs to an event loop that does not run")
            return outside.ask(self, call, timeout or self.endpoint.timeout + 1.0)
        self.session.submissions.announce()
        outcome = Outcome(1)
        entry = self.session.enqueue(call, *outcome.of(0))
        timeout = timeout or self.reply_timeout or self.endpoint.timeout
        try:
            self._stand_still(outcome, timeout)
        except ConnectionLost:
            error = self.late(outcome, [entry], timeout, False)
            if error is not None:
                raise error from None
        finally:
            self._loop.call_soon(self._after)
        result: list[Any] = outcome.result()[0]
        return result

    def post_settled(
        self, call: Call, on_reply: Callable[[list[Any]], object], on_error: Callable[[BaseException], object]
    ) -> None:
        """Send a call that somebody waits for outside of the loop, behind all that waits for values."""
        self.check_alive()
        self.session.submissions.announce()
        self.post(call, on_reply, on_error)

    def stand_still_once(self) -> None:
        """Take the replies that are there, while the loop stands still."""
        links = self.links
        if links.command is not None:
            links.send_rest()
            links.take_replies()
            self.session.tick()
            links.transmit()
        self.loop.call_soon(self._after)

    @_whole
    def _stand_still(self, outcome: Outcome, timeout: float, *, reconnect: bool = True) -> None:
        """Send and receive, without the loop, until `outcome` is there."""
        links, session = self.links, self.session
        links.transmit()
        deadline = time.monotonic() + timeout
        while not outcome.ready():
            wire = links.command
            left = deadline - time.monotonic()
            if left <= 0 or (wire is None and not reconnect):
                raise ConnectionLost(f"no reply from {self.endpoint.url}")
            if wire is None:
                time.sleep(min(left, max(0.0, links.retry_at - time.monotonic())))
                if (again := links.reopen()) is not None:
                    links.adopt(again)
                continue
            poll = select.poll()
            poll.register(wire.fileno(), select.POLLIN | (select.POLLOUT if links.rest else 0))
            # A call that the server was too busy for is sent again at the session's deadline.
            poll.poll(max(0.0, min(left, session.deadline - session.clock())) * 1000)
            links.send_rest()
            links.take_replies()
            session.tick()
            links.transmit()

    @_whole
    def push_out(self) -> None:
        """Send what the session has to say."""
        self.links.transmit()
        self._plan()

    @_whole
    def submitted(self) -> None:
        """After `Session.submit`: send what may leave now."""
        self.session.pump()
        self.links.transmit()

    @_whole
    def stored(self, names: Collection[str], broken: Mapping[str, Exception]) -> None:
        """After what tasks need was stored, or could not be for the errors in `broken`: send what waited for it."""
        if self._closed is None:
            self.session.stored(names, broken)
            self._after()

    # --- events -----------------------------------------------------------------------------------------------------

    def _changed(self) -> None:
        """Watch the present descriptors, and connect again what broke."""
        if self._loop is not None and self._watch is not None and self._closed is None:
            self._watch.sockets()
            if not (self.links.up or self._loop.is_closed()):
                self._loop.call_soon(self._after)

    @_whole
    def _on_push(self) -> None:
        self.links.take_pushes()
        self._after()

    @_whole
    def _on_command(self) -> None:
        self.links.take_replies()
        self._after()

    @_whole
    def _on_writable(self) -> None:
        self.links.send_rest()

    @_whole
    def _on_wakeup(self) -> None:
        self._wakeup.drain()
        if self.session.ledger.armed:
            self.session.dirty()
        self._after()

    @_whole
    def _on_time(self) -> None:
        self.session.tick()
        self._after()

    @_whole
    def _on_look(self) -> None:
        """Make up for what a Ctrl-C kept from being done."""
        self.links.send_rest()
        for future, waiter in list(self._waits.items()):
            if waiter.ready() and not future.done():
                future.set_result(None)
        if self.session.ledger.dirty:
            self.session.dirty()
        self._after()

    def _after(self) -> None:
        self.links.transmit()
        if self._conditions:
            for waiter, wake in list(self._conditions.items()):
                if waiter.ready():
                    wake()
        self._plan()

    def _plan(self) -> None:
        if self._watch is not None and self._loop is not None and self._closed is None:
            self._watch.connect()
            self._watch.plan(self.session.deadline)

    # --- waiting ----------------------------------------------------------------------------------------------------

    async def wait(self, what: Waiter | Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait until `what` is ready; see `ThreadDriver.wait`."""
        waiter = what if isinstance(what, Waiter) else Condition(what)
        if waiter.ready():
            return True
        self.check_alive()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise RuntimeError("this client belongs to another event loop")
        self.session.pump()
        if self.session.ledger.changed:
            self.session.flush()  # news of what was bound just now may be what is waited for
        self.push_out()
        future: asyncio.Future[None] = loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        if isinstance(waiter, Condition):
            self._conditions[waiter] = wake
        elif waiter.foreign:
            waiter.wake = partial(loop.call_soon_threadsafe, wake)
            if waiter.ready():
                wake()
        else:
            waiter.wake = wake
        self._waits[future] = waiter
        timer = loop.call_later(timeout, wake) if timeout is not None else None
        try:
            await future
            if waiter.ready():
                return True
            self.check_alive()
            return False
        finally:
            self._conditions.pop(waiter, None)
            self._waits.pop(future, None)
            waiter.wake = None
            if timer is not None:
                timer.cancel()

    # --- operations -------------------------------------------------------------------------------------------------

    async def run(self, operation: Operation[T]) -> T:
        """Run an operation to its end and return what it returns."""
        return await carry_out(operation, self._perform)

    async def _perform(self, request: Request) -> Any:
        if isinstance(request, Until):
            if self.on_block is None or request.waiter.ready():
                return await self.wait(request.waiter, request.timeout)
            with self.away():
                return await self.wait(request.waiter, request.timeout)
        if isinstance(request, Ask | AskAll):
            timeout, patient = self.limit(request.timeout)
            calls = [request.call] if isinstance(request, Ask) else request.calls
            replies = (
                await self.call_all(calls, timeout, patient=patient, stays=request.stays) if calls else []
            )
            return replies[0] if isinstance(request, Ask) else replies
        if isinstance(request, Collect):
            timeout, patient = self.limit(request.timeout)
            return await self.collect(request.sent, timeout, patient=patient)
        if isinstance(request, Send):
            return self.send_all(request.calls)
        if isinstance(request, Post):
            return self.post(request.call)
        assert isinstance(request, Run)
        return await asyncio.to_thread(request.function, *request.args)
