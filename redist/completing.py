"""`as_completed`."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from redist.current import default_client
from redist.dask_options import check_loop
from redist.errors import FutureCancelledError
from redist.explaining import unfinished
from redist.future import Future
from redist.gathering import error_of, raise_error, values_of
from redist.raising import without_way
from redist.session.operations import Operation, Until
from redist.session.states import CANCELLED, FINISHED, PENDING, Collector, FutureState, Waiter
from redist.timeouts import seconds
from redist.waiting import Awaited, futures_given, is_there

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["as_completed"]


class _Collector(Collector):
    """What hangs on the records: what came, and Futures that were done when they were added.

    Attributes
    ----------
    done : deque of Future
        The latter.
    looks : list of _Look
        Those who wait.
    """

    __slots__ = ("done", "looks")

    def __init__(self) -> None:
        super().__init__()
        self.done: deque[Awaited] = deque()
        self.looks: list[_Look] = []

    def hit(self, state: FutureState) -> None:
        """Note that `state` is not pending any more."""
        self.came.append(state)
        for look in tuple(self.looks):
            if look.wake is not None:
                look.wake()


class _Look(Waiter):
    """The wait of one thread or task of those that share an `as_completed`."""

    __slots__ = ("_what",)

    def __init__(self, what: as_completed) -> None:
        super().__init__()
        self._what = what

    def ready(self) -> bool:
        """Return whether there is something to take, or nothing to wait for."""
        what = self._what
        collector = what._collector
        return bool(collector.came or collector.done or what._taken < len(what._ready) or not what._waiting)


class as_completed:
    """Iterate over Futures in the order in which they finish.

    Both ``for`` and ``async for``. More Futures may be added on the way.

    Parameters
    ----------
    futures : iterable of Futures, optional
        What to wait for, ActorFutures too.
    loop : object, optional
        Accepted for Dask's sake.
    with_results : bool
        Give pairs of Future and result; for a cancelled one the result is its `CancelledError`.
    raise_errors : bool
        With results: raise the error of a failed task; otherwise the pair has type, exception and traceback.
    timeout : float or str, optional
        Seconds for all of it.
    """

    def __init__(
        self,
        futures: Iterable[Awaited] | None = None,
        loop: object = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | str | None = None,
    ) -> None:
        check_loop(loop)
        self.with_results = with_results
        self.raise_errors = raise_errors
        limit = seconds(timeout)
        self._deadline = None if limit is None else time.monotonic() + limit
        self._client: Client | None = None
        self._collector = _Collector()
        self._waiting: dict[FutureState, list[Awaited]] = {}
        self._ready: list[Awaited] = []
        self._taken = 0
        self._mutex = threading.Lock()  # what is ready, among threads that share it
        #: Whether the collector was taken off the records, as nobody is known to come back.
        self._down = False
        self.update(() if futures is None else futures)

    # --- adding -----------------------------------------------------------------------------------------------------

    def add(self, future: Awaited) -> None:
        """Add one Future."""
        self.update((future,))

    def update(self, futures: Iterable[Awaited]) -> None:
        """Add several Futures."""
        given = futures_given("as_completed", "futures", futures)
        self._collector.done.extend(future for future in given if is_there(future))
        futures = [future for future in given if not is_there(future)]
        if not given:
            return
        client = self._the_client(futures[0] if futures else None)
        groups: dict[Client, list[Awaited]] = {}
        for future in futures:
            groups.setdefault(future._client, []).append(future)
        for owner, of_owner in groups.items():
            if owner is not client:
                self._collector.foreign = True
            with owner.session.lock:
                self._hang(of_owner)
        self._wake(client)

    def _wake(self, client: Client) -> None:
        """Have others that wait look again: there is more to take or to wait for, or an end."""
        looks = tuple(self._collector.looks)
        nudge = client._driver.nudge if looks and not client.asynchronous else None
        for look in looks:
            if nudge is not None and self._collector.foreign:
                look.wake = nudge
            elif nudge is None and look.wake is not None:
                look.wake()
        if nudge is not None:
            nudge()

    def _hang(self, futures: list[Awaited]) -> None:
        """Have the collector called for those that are pending. Under their client's lock."""
        for future in futures:
            state = future._state
            if state.status == PENDING and not future._cleared:
                waiting = self._waiting.get(state)
                if waiting is None:
                    self._waiting[state] = [future]
                    state.add_waiter(self._collector)
                else:
                    waiting.append(future)
            else:
                self._collector.done.append(future)

    def _the_client(self, future: Awaited | None = None) -> Client:
        if self._client is None:
            self._client = future._client if future is not None else default_client()
        return self._client

    def _take_down(self) -> None:
        """Take the collector off the records, unless somebody else waits; `_put_up` undoes it."""
        if self._collector.looks or self._down:
            return
        self._down = True
        for owner, states in self._by_owner().items():
            with owner.session.lock:
                for state in states:
                    state.drop_waiter(self._collector)

    def _put_up(self) -> None:
        self._down = False
        for owner, states in self._by_owner().items():
            with owner.session.lock:
                for state in states:
                    state.drop_waiter(self._collector)  # it may have been added meanwhile
                    if state.status == PENDING:
                        state.add_waiter(self._collector)
                    else:
                        self._collector.came.append(state)

    def _by_owner(self) -> dict[Client, list[FutureState]]:
        groups: dict[Client, list[FutureState]] = {}
        for state, futures in tuple(self._waiting.items()):
            groups.setdefault(futures[0]._client, []).append(state)
        return groups

    def __del__(self) -> None:
        # In a garbage collection, inside of locks too: the sessions take it down with their next tick.
        if getattr(self, "_waiting", None) and not self._down:
            for owner, states in self._by_owner().items():
                owner.session.states.abandoned.append((self._collector, states))

    # --- looking ----------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """Return how many Futures have not been given out."""
        self._collect()
        return len(self._ready) - self._taken + sum(map(len, self._waiting.values()))

    def is_empty(self) -> bool:
        """Return whether all have been given out."""
        return self.count() == 0

    def has_ready(self) -> bool:
        """Return whether one can be given out at once."""
        self._collect()
        return self._taken < len(self._ready)

    def clear(self) -> None:
        """Forget all Futures."""
        for owner, states in self._by_owner().items():
            with owner.session.lock:
                for state in states:
                    state.drop_waiter(self._collector)
        with self._mutex:
            self._collector.came.clear()
            self._collector.done.clear()
            self._waiting.clear()
            self._ready.clear()
            self._taken = 0
        if self._client is not None:
            self._wake(self._client)

    def _collect(self) -> None:
        if self._down:
            self._put_up()
        with self._mutex:
            came = self._collector.came
            while came:
                self._ready += self._waiting.pop(came.popleft(), ())
            done = self._collector.done
            while done:
                self._ready.append(done.popleft())

    def _take(self) -> Awaited | None:
        """Return the next that is done and was not given out, None if there is none."""
        self._collect()
        with self._mutex:
            if self._taken >= len(self._ready):
                return None
            future = self._ready[self._taken]
            self._taken += 1
            if self._taken >= 1024:
                del self._ready[: self._taken]
                self._taken = 0
            return future

    def _put_back(self, futures: list[Awaited]) -> None:
        with self._mutex:
            self._ready[self._taken : self._taken] = futures

    # --- giving out -------------------------------------------------------------------------------------------------

    def _next(self) -> Operation[Any]:
        client = self._the_client()
        while True:
            future = self._take()
            if future is not None:
                if not self._waiting and self._collector.looks:
                    self._wake(client)  # the others have nothing to wait for
                if not self.with_results:
                    return future
                try:
                    return (yield from self._with_result(client, future))
                except BaseException as error:
                    # a Ctrl-C or a cancellation while its value is fetched: it was not given out
                    if not isinstance(error, Exception):
                        if isinstance(future, Future) and future._state.status == FINISHED:
                            self._put_back([future])
                        self._take_down()
                    raise
            if not self._waiting:
                return _END
            yield from self._wait(client)

    def _wait(self, client: Client) -> Operation[None]:
        """Wait until there may be something to take."""
        timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        look = _Look(self)
        looks = self._collector.looks
        looks.append(look)
        look.foreign = self._collector.foreign  # behind that: whoever makes it so meanwhile sees the look
        try:
            came = yield Until(look, timeout)
        except BaseException:
            looks.remove(look)
            self._take_down()
            raise
        looks.remove(look)
        if not came and self._deadline is not None and time.monotonic() >= self._deadline:
            self._take_down()
            why = yield from unfinished(client, () if self._collector.foreign else self._waiting)
            raise TimeoutError(f"the rest of the Futures did not finish in time{why}")

    def _with_result(self, client: Client, future: Awaited) -> Operation[tuple[Any, Any]]:
        if not isinstance(future, Future):
            try:
                return future, (yield from future._get(self._deadline))
            except Exception as error:
                if self.raise_errors:
                    raise
                return future, (type(error), error, error.__traceback__)
        state = future._state
        if future._cleared:
            return future, FutureCancelledError(future.key, "its reference was released")
        if state.status == FINISHED:
            return future, (yield from values_of(client, [state], self._deadline))[0]
        if state.status == CANCELLED:
            return future, (yield from error_of(client, state))[0]
        if self.raise_errors:
            yield from raise_error(client, state)
        exception, traceback = yield from error_of(client, state)
        return future, (type(exception), exception, traceback)

    def _batch(self, block: bool) -> Operation[list[Any]]:
        result: list[Any] = []
        try:
            if block or self.has_ready():
                first = yield from self._next()
                if first is _END:
                    return result
                result.append(first)
            while self.has_ready():
                result.append((yield from self._next()))
        except BaseException as error:
            if not isinstance(error, Exception):  # see `_next`
                self._put_back([item[0] for item in result] if self.with_results else result)
            raise
        return result

    def __iter__(self) -> as_completed:
        return self

    def __next__(self) -> Any:
        client = self._the_client()
        if client.asynchronous:
            raise TypeError("with an asynchronous client use `async for`")
        try:
            item = client._driver.run(self._next())
        except BaseException as error:
            if not without_way(error):
                raise
            raise error
        if item is _END:
            raise StopIteration
        return item

    def next(self) -> Any:
        """Return the next one; raises StopIteration at the end."""
        return self.__next__()

    def __aiter__(self) -> as_completed:
        return self

    async def __anext__(self) -> Any:
        client = self._the_client()
        try:
            item = await client._in_loop(self._next())
        except BaseException as error:
            if not without_way(error):
                raise
            raise error
        if item is _END:
            raise StopAsyncIteration
        return item

    def next_batch(self, block: bool = True) -> Any:
        """Return all that are done, with `block` at least one if there is any; a coroutine with an asynchronous client."""
        return self._the_client()._run(self._batch(block))

    def batches(self) -> Iterator[list[Any]] | AsyncIterator[list[Any]]:
        """Iterate over lists of what is done by then."""
        client = self._the_client()
        return self._async_batches() if client.asynchronous else self._batches()

    def _batches(self) -> Iterator[list[Any]]:
        while not self.is_empty():
            yield self.next_batch()

    async def _async_batches(self) -> AsyncIterator[list[Any]]:
        while not self.is_empty():
            yield await self.next_batch()


_END = object()
