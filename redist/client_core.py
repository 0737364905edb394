"""What a client does with its session, beneath its life and its methods: calls, counts, and what Futures ask."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

from redist import gathering, scattering
from redist.belonging import Borrowing
from redist.dask_options import check_flags
from redist.errors import ClientClosed, ForkedClientError
from redist.future import DoneCallback, Future
from redist.raising import without_way
from redist.session.operations import Operation
from redist.session.states import FINISHED, PENDING, FutureState
from redist.store import calls
from redist.submitting import call_site
from redist.timeouts import seconds

if TYPE_CHECKING:
    import asyncio
    from threading import Thread

    from redist.callbacks import Callbacks
    from redist.client import Client
    from redist.memory.broker_client import BrokerClient
    from redist.peers import Peer
    from redist.session.session import Session
    from redist.store.calls import Call

__all__ = ["ClientCore"]

T = TypeVar("T")

_SLICE = 500


class ClientCore:
    """A client that is connected; `redist.client_base` connects it."""

    session: Session
    asynchronous: bool
    _driver: Any
    _callbacks: Callbacks
    _brokers: dict[int, BrokerClient]
    _tasks: set[asyncio.Task[Any]]
    #: threads that have workers drop what was written and is not wanted
    _drops: set[Thread]

    @property
    def _me(self) -> Client:
        return cast("Client", self)

    def _check_alive(self) -> None:
        if not hasattr(self, "_driver"):
            raise ClientClosed("the client has not been started: `await client` first")
        self._driver.check_alive()

    def _run(self, operation: Operation[T], asynchronous: bool | None = None) -> Any:
        """Run an operation: return its result, or with an asynchronous client, or for who asks for it, a coroutine."""
        self._check_alive()
        if asynchronous is not None and self._is_awaited(asynchronous) and not self.asynchronous:
            return self._awaited(operation)
        try:
            return self._driver.run(operation)
        except KeyboardInterrupt as error:
            without_way(
                error
            )  # where it hit tells nobody anything, and the frames would keep what was being stored
            raise error

    def _fetch(self, operation: Operation[T], asynchronous: bool | None = None) -> Any:
        """Run an operation that may raise what a task raised, whose way is cut off: by the caller, or in the coroutine."""
        self._check_alive()
        return self._awaited(operation) if self._is_awaited(asynchronous) else self._driver.run(operation)

    def _is_awaited(self, asynchronous: bool | None) -> bool:
        """Whether a call with such an ``asynchronous=`` returns a coroutine."""
        if asynchronous is None:
            return self.asynchronous
        check_flags(asynchronous=asynchronous)
        if self.asynchronous and not asynchronous:
            raise RuntimeError(
                "an asynchronous client cannot wait in its own loop: await the call, without asynchronous="
            )
        return bool(asynchronous)

    async def _awaited(self, operation: Operation[T]) -> T:
        """Run an operation for who awaits it, with a synchronous client too; see `_fetch` for its errors."""
        self._check_alive()
        try:
            return await self._in_loop(operation)
        except BaseException as error:
            if not without_way(error):
                raise
            raise error

    async def _in_loop(self, operation: Operation[T]) -> T:
        """Run an operation in the caller's loop."""
        if self.asynchronous:
            result: T = await self._driver.run(operation)
            return result
        from redist.session import awaiting

        with self._driver.away():
            return await awaiting.run(self._driver, operation)

    def _post(self, call: Call) -> None:
        self._check_alive()
        with self.session.lock:
            self._driver.check_alive()
            self.session.enqueue(call)
            self._driver.push_out()

    def _bind(self, name: str) -> FutureState:
        """Count one more reference to a key and return its state."""
        self._check_alive()
        with self.session.lock:
            self._driver.check_alive()
            self.session.ledger.drain()  # what was released before is not ours any more
            state = self.session.ledger.up(name)
            state.bound(call_site())
        self._wake_releases()
        return state

    def _settle(self, timeout: float | None = None) -> None:
        """Return when the server has everything that was submitted and counted so far; a loop stands still meanwhile."""
        self._driver.call_now(calls.noop(), timeout)

    def _wake_releases(self) -> None:
        """Have counts that changed leave soon."""
        ledger = self.session.ledger
        if not ledger.armed:
            ledger.armed = True
            if ledger.wake is not None:
                ledger.wake()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        import asyncio

        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _broker_of(self, peer: Peer) -> BrokerClient:
        from redist.memory.broker_client import BrokerClient

        broker = self._brokers.get(peer.ordinal)
        if broker is None or broker.address != peer.socket:
            broker = self._brokers[peer.ordinal] = BrokerClient(peer.socket)
        return broker

    # --- Futures ask ------------------------------------------------------------------------------------------------

    def _result(self, future: Future[Any], timeout: Any, copy: bool, writable: bool) -> Any:
        timeout = seconds(timeout)
        state = future._state
        if state.status == FINISHED and not self.asynchronous:
            self._check_alive()
            here, value = gathering.value_here(self._me, state, copy, writable)
            if here:
                return value
        return self._fetch(self._result_of(future, timeout, copy, writable))

    def _result_of(
        self, future: Future[Any], timeout: float | None, copy: bool = False, writable: bool = False
    ) -> Operation[Any]:
        deadline = None if timeout is None else monotonic() + timeout
        return (yield from gathering.result_of(self._me, future._state, deadline, copy, writable))

    def _error_of(self, future: Future[Any], timeout: float | None, index: int) -> Operation[Any]:
        state = future._state
        deadline = None if timeout is None else monotonic() + timeout
        yield from gathering.wait_for(self._me, [state], deadline, stop_on_error=False)
        if state.status == "finished":
            return None
        return (yield from gathering.error_of(self._me, state, deadline))[index]

    def _exception(self, future: Future[Any], timeout: Any, asynchronous: bool | None) -> Any:
        return self._run(self._error_of(future, seconds(timeout), 0), asynchronous)

    def _traceback(self, future: Future[Any], timeout: Any, asynchronous: bool | None) -> Any:
        return self._run(self._error_of(future, seconds(timeout), 1), asynchronous)

    def _await_result(self, future: Future[T]) -> Coroutine[Any, Any, T]:
        return self._awaited(self._result_of(future, None))

    def _on_done(self, future: Future[Any], fn: Callable[[Any], object]) -> None:
        try:
            self._check_alive()
        except ForkedClientError:
            raise
        except ClientClosed:
            pass  # its Futures are done, and say so
        callback = DoneCallback(future, fn)
        with self.session.lock:
            if future._state.status == PENDING and not future._cleared:
                future._state.add_waiter(callback)
                return
        self._call_back(fn, future)

    def _call_back(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """Call ``fn(future)`` in the loop, or in the thread for callbacks. With or without the lock."""
        if self.asynchronous:
            self._driver.loop.call_soon(fn, future)
        else:
            self._in_background(partial(fn, future))

    def _in_background(self, function: Callable[[], object]) -> None:
        """Call a function that may block, in the thread for callbacks. From anywhere, with or without the lock."""
        import asyncio

        if self.asynchronous:
            self._spawn(asyncio.to_thread(function))
            return
        self._callbacks.put(function)

    def _post_from_thread(self, call: Call) -> None:
        """Send a call from any thread."""
        if self.asynchronous:
            self._driver.loop.call_soon_threadsafe(self._post, call)
        else:
            self._post(call)

    def _store(self, values: Sequence[Any], names: Sequence[str] | None = None) -> list[Future[Any]]:
        """Store large arguments of tasks; the Futures are to be kept until the tasks are on their way."""
        borrowing = Borrowing(self._me)
        items = scattering.prepare(
            self._me, values, names or [None] * len(values), unique=False, borrowing=borrowing
        )
        futures = [Future._of(item.state, self._me) for item in items]
        if self.asynchronous:
            if any(item.payload is not None for item in items):
                scattering.store_soon(self._me, items, borrowing, places_ahead=not names)
        else:
            try:
                self._run(scattering.store(self._me, items, keep=True, places_ahead=not names))
            except BaseException:
                for future in futures:
                    future.release()  # not only when the traceback goes
                raise
        return futures

    def _fire(self, futures: list[Future[Any]]) -> None:
        names = [future.name for future in futures if not future._cleared]
        for i in range(0, len(names), _SLICE):
            self._post(calls.fire(names[i : i + _SLICE]))
