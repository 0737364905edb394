"""`wait` and `as_completed`."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from redist.current import default_client, futures_of
from redist.errors import FutureCancelledError
from redist.explaining import unfinished
from redist.future import Future
from redist.gathering import error_of, raise_error, values_of
from redist.hanging import hang_across, until_ready
from redist.raising import without_way
from redist.session.operations import Operation, Until
from redist.session.states import CANCELLED, FINISHED, PENDING, Collector, FutureState, Waiter, hang
from redist.store.keys import decode_key
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.actor import ActorFuture
    from redist.client import Client

__all__ = ["ALL_COMPLETED", "FIRST_COMPLETED", "DoneAndNotDoneFutures", "as_completed", "wait"]

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"


#: What is waited for: Futures, and what comes of calls of actors.
_Awaited: TypeAlias = "Future[Any] | ActorFuture[Any]"


class DoneAndNotDoneFutures(NamedTuple):
    """What `wait` returns."""

    done: set[Any]
    not_done: set[Any]


def wait(fs: Any, timeout: float | str | None = None, return_when: str = ALL_COMPLETED) -> Any:
    """Wait until Futures are done; a coroutine with an asynchronous client.

    Parameters
    ----------
    fs : Future, iterable of Futures, or Dask collection
        What to wait for, ActorFutures too; of a collection, the Futures in its graph.
    timeout : float or str, optional
        Seconds, or text such as ``'2s'``.
    return_when : {'ALL_COMPLETED', 'FIRST_COMPLETED'}
        When to return.

    Returns
    -------
    DoneAndNotDoneFutures
        Sets ``done`` and ``not_done``.

    Raises
    ------
    TimeoutError
        If the timeout came first.
    CancelledError
        If one of them was cancelled.
    TypeError
        If `fs` holds anything but Futures, or `timeout` is a Future since they were given one by one.
    NotImplementedError
        If `return_when` is neither.
    """
    if isinstance(timeout, Future) or _of_an_actor(timeout):
        raise TypeError("wait takes Futures in one list, wait([x, y, z]), and then a timeout")
    given = [fs] if isinstance(fs, Future) or _of_an_actor(fs) else _futures("wait", "fs", _of_collection(fs))
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise NotImplementedError(f"return_when is 'ALL_COMPLETED' or 'FIRST_COMPLETED', not {return_when!r}")
    futures = [future for future in given if not _is_there(future)]
    there = {future for future in given if _is_there(future)}
    if not futures:
        return DoneAndNotDoneFutures(there, set())
    client = futures[0]._client
    return client._run(_wait(client, futures, there, seconds(timeout), return_when))


def _of_an_actor(given: object) -> bool:
    """Whether it is what comes of a call of an actor."""
    actor = sys.modules.get("redist.actor")
    return actor is not None and isinstance(given, actor.BaseActorFuture)


def _is_there(future: _Awaited) -> bool:
    """Whether it never was a task: what an actor's own method returned."""
    return not hasattr(future, "_state")


def _futures(function: str, argument: str, given: Any) -> list[Any]:
    """Return a collection of Futures, or of what comes of calls of actors, as a list.

    Raises
    ------
    TypeError
        If it is none, or holds anything else.
    """
    help_ = f"pass a list of Futures as {argument}, as submit and map return them"
    try:
        iterator = iter(given)
    except TypeError as error:
        raise TypeError(
            f"{function} takes Futures in a list, not {type(given).__name__} {given!r:.80}; {help_}"
        ) from error
    futures = list(iterator)
    for number, future in enumerate(futures):
        if not isinstance(future, Future) and not _of_an_actor(future):
            raise TypeError(
                f"{function} takes Futures, not {type(future).__name__} {future!r:.80}, which is number {number}; {help_}"
            )
    return futures


def _of_collection(given: Any) -> Any:
    return futures_of(given) if hasattr(given, "__dask_graph__") else given


class _First(Waiter):
    __slots__ = ()

    def hit(self, state: FutureState) -> None:
        self.remaining = 0
        if self.wake is not None:
            self.wake()


def _wait(
    client: Client, futures: list[_Awaited], there: set[Any], timeout: float | None, return_when: str
) -> Operation[DoneAndNotDoneFutures]:
    states = [future._state for future in futures]
    first = return_when == FIRST_COMPLETED
    waiter: Waiter = _First() if first else Waiter()
    hung = None
    if any(future._client is not client for future in futures):
        hung = hang_across(waiter, [(future._state, future._client) for future in futures])
        if first and (there or any(state.status != PENDING for state in states)):
            waiter.remaining = 0
    else:
        with client.session.lock:
            pending = hang(waiter, states)
            waiter.remaining = 0 if first and (there or pending < len(states)) else pending
    if not (yield from until_ready(client, waiter, states, hung, timeout)):
        late = sum(state.status == PENDING for state in states)
        mine = [future._state for future in futures if future._client is client]
        why = yield from unfinished(client, mine)
        raise TimeoutError(f"{late} Future{'' if late == 1 else 's'} did not finish in time{why}")
    done = set(there)
    not_done: set[Any] = set()
    for future in futures:
        if future._cleared:
            raise FutureCancelledError(decode_key(future._state.name), "its reference was released")
        status = future._state.status
        if status == CANCELLED:
            exception, _ = yield from error_of(client, future._state)
            raise exception
        (not_done if status == PENDING else done).add(future)
    return DoneAndNotDoneFutures(done, not_done)


class _Collector(Collector):
    """What `as_completed` waits for: records that come, and Futures that were done when they were added.

    Attributes
    ----------
    done : deque of Future
        The latter.
    waited : bool
        Whether somebody waits for it, and is to be woken.
    """

    __slots__ = ("done", "waited")

    def __init__(self) -> None:
        super().__init__()
        self.done: deque[_Awaited] = deque()
        self.waited = False

    def ready(self) -> bool:
        """Return whether there is something that was not taken yet."""
        return bool(self.came or self.done)


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
        futures: Iterable[_Awaited] | None = None,
        loop: object = None,
        with_results: bool = False,
        raise_errors: bool = True,
        *,
        timeout: float | str | None = None,
    ) -> None:
        self.with_results = with_results
        self.raise_errors = raise_errors
        limit = seconds(timeout)
        self._deadline = None if limit is None else time.monotonic() + limit
        self._client: Client | None = None
        self._collector = _Collector()
        self._waiting: dict[FutureState, list[_Awaited]] = {}
        self._ready: list[_Awaited] = []
        self._taken = 0
        self.update(() if futures is None else futures)

    # --- adding -----------------------------------------------------------------------------------------------------

    def add(self, future: _Awaited) -> None:
        """Add one Future."""
        self.update((future,))

    def update(self, futures: Iterable[_Awaited]) -> None:
        """Add several Futures."""
        given = _futures("as_completed", "futures", futures)
        self._collector.done.extend(future for future in given if _is_there(future))
        futures = [future for future in given if not _is_there(future)]
        if not given:
            return
        client = self._the_client(futures[0] if futures else None)
        groups: dict[Client, list[_Awaited]] = {}
        for future in futures:
            groups.setdefault(future._client, []).append(future)
        for owner, of_owner in groups.items():
            if owner is not client:
                self._collector.foreign = True
            with owner.session.lock:
                self._hang(of_owner)
        if self._collector.waited:  # by another thread or task, for others
            self._wake(client)

    def _wake(self, client: Client) -> None:
        wake = self._collector.wake
        if not client.asynchronous:
            wake = client._driver.nudge
            if self._collector.foreign:
                self._collector.wake = wake
        if wake is not None and (self._collector.foreign or self._collector.ready()):
            wake()

    def _hang(self, futures: list[_Awaited]) -> None:
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

    def _the_client(self, future: _Awaited | None = None) -> Client:
        if self._client is None:
            self._client = future._client if future is not None else default_client()
        return self._client

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
        for state, futures in self._waiting.items():
            with futures[0]._client.session.lock:
                state.drop_waiter(self._collector)
        self._collector.came.clear()
        self._collector.done.clear()
        self._waiting.clear()
        self._ready.clear()
        self._taken = 0

    def _collect(self) -> None:
        came = self._collector.came
        while came:
            self._ready += self._waiting.pop(came.popleft(), ())
        done = self._collector.done
        while done:
            self._ready.append(done.popleft())

    def _take(self) -> _Awaited:
        future = self._ready[self._taken]
        self._taken += 1
        if self._taken >= 1024:
            del self._ready[: self._taken]
            self._taken = 0
        return future

    # --- giving out -------------------------------------------------------------------------------------------------

    def _next(self) -> Operation[Any]:
        client = self._the_client()
        while True:
            if self.has_ready():
                future = self._take()
                if not self.with_results:
                    return future
                try:
                    return (yield from self._with_result(client, future))
                except BaseException as error:
                    # a Ctrl-C or a cancellation while its value is fetched: it was not given out
                    if future._state.status == FINISHED and not isinstance(error, Exception):
                        self._ready.insert(self._taken, future)
                    raise
            if not self._waiting:
                return _END
            timeout = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
            self._collector.waited = True
            try:
                came = yield Until(self._collector, timeout)
            finally:
                self._collector.waited = False
            if not came:
                why = yield from unfinished(client, () if self._collector.foreign else self._waiting)
                raise TimeoutError(f"the rest of the Futures did not finish in time{why}")

    def _with_result(self, client: Client, future: _Awaited) -> Operation[tuple[Any, Any]]:
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
        if block or self.has_ready():
            first = yield from self._next()
            if first is _END:
                return result
            result.append(first)
        while self.has_ready():
            result.append((yield from self._next()))
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
