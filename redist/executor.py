"""`Client.get_executor`: a `concurrent.futures.Executor` whose tasks run in the cluster.

A `TaskFuture` is a standard Future that holds a redist one. Who waits for it is the standard library, which knows nothing of
sessions: so the session tells one thread of the executor (or the loop of an asynchronous client) what is done, and that sets
the values.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from redist.annotations import how_to_run
from redist.callbacks import Callbacks
from redist.errors import FutureCancelledError, RedistError
from redist.gathering import error_of, values_of
from redist.session.operations import Operation
from redist.session.states import CANCELLED, FINISHED, PENDING, FutureState, Waiter
from redist.submitting import integer, zipped
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client
    from redist.future import Future

__all__ = ["ClientExecutor", "TaskFuture"]

T = TypeVar("T")

logger = logging.getLogger("redist.client")

_OPTIONS = ("workers", "resources", "retries", "priority", "allow_other_workers")
#: Futures of a `map` that are made together
_SLICE = 500


class ClientExecutor(concurrent.futures.Executor):
    """Runs calls in the cluster, as the executors of the standard library run them in threads or processes.

    Its Futures are `concurrent.futures.Future`: `concurrent.futures.wait`, `concurrent.futures.as_completed`,
    `asyncio.wrap_future` and ``loop.run_in_executor`` take them. A call that nobody waits for runs to its end all the same;
    the result lives as long as its Future. Callbacks run in one thread of the executor, as those of
    `ProcessPoolExecutor`: one that waits for another of its Futures waits for ever.

    Parameters
    ----------
    client : Client
        What submits. With an asynchronous one `submit` belongs into its loop, where nothing here may block: there is no
        `map`, and `shutdown` does not wait.
    workers, resources, retries, priority, allow_other_workers
        As in `Client.submit`, for every call.
    pure : bool
        Whether the same call is the same task; otherwise, and by default, every call runs.

    Raises
    ------
    TypeError
        If another option is given.
    """

    def __init__(self, client: Client, *, pure: bool = False, **options: Any) -> None:
        unknown = sorted(set(options) - set(_OPTIONS))
        if unknown:
            raise TypeError(
                f"unsupported arguments to ClientExecutor: {unknown}; there are pure, {', '.join(_OPTIONS)}"
            )
        self._client = client
        how_to_run(**options)  # refuses what is none
        self._how = options
        self._pure = pure
        self._shut = False
        self._settler = _Settler(client)
        weakref.finalize(self, self._settler.leave).atexit = False

    def __repr__(self) -> str:
        state = "shut down" if self._shut else f"{len(self._settler.pending)} pending"
        return f"<ClientExecutor of {self._client!r}, {state}>"

    def _check(self) -> None:
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Submit ``fn(*args, **kwargs)``. Futures of redist among the arguments arrive as values.

        Raises
        ------
        RuntimeError
            After `shutdown`.
        """
        self._check()
        self._client._check_alive()
        future = self._client._submitter.submit(fn, args, kwargs, None, how_to_run(**self._how), self._pure)
        return self._settler.watch([future])[0]

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | str | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Return an iterator over the results of ``fn`` for the items of `iterables`, in order.

        Parameters
        ----------
        fn : callable
            What to run.
        *iterables
            Its arguments, item by item; they are gone over at once, or with `buffersize` as results are taken.
        timeout : float or str, optional
            Seconds, from now on, that the results may take.
        chunksize : int
            How many calls are one task.
        buffersize : int, optional
            How many tasks may be on their way at most.

        Raises
        ------
        TimeoutError
            From the iterator, if a result is not there in time. What has not run then is cancelled.
        RuntimeError
            After `shutdown`; with `buffersize` also from the iterator, if it still had to submit.
        """
        self._check()
        if self._client.asynchronous:
            raise TypeError(
                "an asynchronous client's executor has no map, which would block its loop: use submit"
            )
        size = integer("chunksize", chunksize, 1)
        most = None if buffersize is None else integer("buffersize", buffersize, 1)
        limit = seconds(timeout)
        deadline = None if limit is None else monotonic() + limit
        calls = iter(zipped(fn, iterables))
        rows = calls if size == 1 else ((chunk,) for chunk in _chunks(calls, size))
        function = fn if size == 1 else _Each(fn)
        futures: deque[TaskFuture] = deque()
        more = True

        def ahead(count: int | None) -> None:
            nonlocal more
            taken = list(rows) if count is None else list(islice(rows, count))
            more = count is not None and len(taken) == count
            if taken:
                self._check()
            made = self._client._submitter.map(
                function, taken, {}, None, how_to_run(**self._how), self._pure, _SLICE
            )
            futures.extend(self._settler.watch(made))

        def results() -> Iterator[T]:
            try:
                while futures:
                    first = futures.popleft()
                    try:
                        value = first.result(None if deadline is None else deadline - monotonic())
                    except TimeoutError:
                        first.cancel()
                        raise
                    del first
                    if most is not None and more:
                        ahead(1)
                    if size == 1:
                        yield value
                    else:
                        yield from value
                    del value
            finally:
                for future in futures:
                    future.give_up()
                self._settler.push_out()

        self._client._check_alive()
        ahead(most)
        return results()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no further calls.

        Parameters
        ----------
        wait : bool
            Whether to wait for those that were submitted.
        cancel_futures : bool
            Whether to cancel what has no result yet; what runs already may go on to its end, for nobody.
        """
        self._shut = True
        settler = self._settler
        pending = list(settler.pending)
        if cancel_futures:
            for future in pending:
                future.give_up()
            settler.push_out()
        if wait and not self._client.asynchronous:
            with self._client._driver.away():
                concurrent.futures.wait(pending)
        settler.leave()


class _Each:
    """Calls a function for each row of arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)

    def __call__(self, rows: list[tuple[Any, ...]]) -> list[Any]:
        return [self.function(*row) for row in rows]


def _chunks(rows: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    while chunk := list(islice(rows, size)):
        yield chunk


class TaskFuture(concurrent.futures.Future[Any]):
    """A standard Future of a task in the cluster; it is never ``running()``, for a task may run more than once."""

    def __init__(self, future: Future[Any], settler: _Settler) -> None:
        super().__init__()
        self._task = future
        self._settler = settler
        #: who takes the one item out decides what becomes of this
        self._undecided = [True]

    def decide(self) -> bool:
        """Return whether the caller, and nobody else, is to say what became of it."""
        try:
            return self._undecided.pop()
        except IndexError:
            return False

    def cancel(self) -> bool:
        """Cancel it unless it is done; the task is not run if nobody else wants its result."""
        cancelled = self.give_up()
        self._settler.push_out()
        return cancelled

    def give_up(self) -> bool:
        """Cancel it; the server hears of it soon."""
        if not super().cancel():
            return False
        if self.decide():
            self.set_running_or_notify_cancel()
        self._settler.done(self)
        self._task.release()
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the value and return it; a task that waits gives its place up."""
        if self.done():
            return super().result(timeout)
        with self._settler.client._driver.away():
            return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait, and return what the task raised, None if nothing."""
        if self.done():
            return super().exception(timeout)
        with self._settler.client._driver.away():
            return super().exception(timeout)


class _Done(Waiter):
    """Tells the settler that a Future is done."""

    __slots__ = ("_future", "_settler")

    def __init__(self, future: TaskFuture, settler: _Settler) -> None:
        super().__init__(1)
        self._future = future
        self._settler = settler

    def hit(self, state: FutureState) -> None:
        self.remaining = 0
        self._settler.came(self._future)


class _Settler:
    """Sets the results of an executor's Futures, in one thread or in the client's loop.

    Attributes
    ----------
    pending : set of TaskFuture
        Those that are not done. They live until then.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.pending: set[TaskFuture] = set()
        self._came: deque[TaskFuture] = deque()
        self._behind = Callbacks("redist-executor")
        self._leaving = False

    def watch(self, futures: list[Future[Any]]) -> list[TaskFuture]:
        """Return a standard Future for each."""
        made = [TaskFuture(future, self) for future in futures]
        self.pending.update(made)
        with self.client.session.lock:
            for future in made:
                state = future._task._state
                if state.status == PENDING:
                    state.add_waiter(_Done(future, self))
                else:
                    self.came(future)
        return made

    def came(self, future: TaskFuture) -> None:
        """Settle `future` soon. Under the client's lock."""
        self._came.append(future)
        if len(self._came) == 1:  # else somebody was told already
            if self.client.asynchronous:
                self.client._driver.loop.call_soon(self._settle_in_loop)
            else:
                self._behind.put(self._settle)

    def push_out(self) -> None:
        """Have the server hear at once of what was released, so that it is not begun."""
        client = self.client
        if client.asynchronous or client.closed:
            return  # a loop does so in a moment
        with client.session.lock, contextlib.suppress(RedistError):
            client._driver.check_alive()
            client.session.flush(everything=True)
            client._driver.push_out()

    def done(self, future: TaskFuture) -> None:
        """Forget a Future that is done."""
        self.pending.discard(future)
        if not self.pending and (self._leaving or self.client.closed):
            self._behind.close()

    def leave(self) -> None:
        """End the thread once nothing is pending. From anywhere, a garbage collection too."""
        self._leaving = True
        if not self.pending:
            self._behind.close()

    # --- setting results --------------------------------------------------------------------------------------------

    def _take(self) -> list[TaskFuture]:
        taken = []
        with self.client.session.lock:
            while self._came:
                taken.append(self._came.popleft())
        return taken

    def _settle(self) -> None:
        run = self.client._driver.run
        # What is here already first: the rest may have to come from another host.
        for group in _by_place(self._take()):
            values = None
            if len(group) > 1:
                # Together, and one by one what one of them spoils.
                with contextlib.suppress(Exception):
                    values = run(values_of(self.client, [future._task._state for future in group]))
            for i, future in enumerate(group):
                if values is not None:
                    self._set(future, (values[i], None))
                    values[i] = None
                    continue
                try:
                    outcome = run(self._outcome(future))
                except BaseException as error:
                    outcome = None, error.with_traceback(None)
                self._set(future, outcome)
                del outcome

    def _settle_in_loop(self) -> None:
        for future in self._take():
            state = future._task._state
            if state.status == CANCELLED and isinstance(state.cache, BaseException):
                self._set(
                    future, (None, state.cache)
                )  # at the client's end a loop may not come to more than this
            else:
                self.client._spawn(self._settle_one(future))

    async def _settle_one(self, future: TaskFuture) -> None:
        try:
            outcome = await self.client._driver.run(self._outcome(future))
        except BaseException as error:
            outcome = None, error.with_traceback(None)
        self._set(future, outcome)

    def _outcome(self, future: TaskFuture) -> Operation[tuple[Any, BaseException | None]]:
        """Return the value, or the error."""
        state = future._task._state
        if state.status == FINISHED:
            return (yield from values_of(self.client, [state]))[0], None
        error, traceback = yield from error_of(self.client, state)
        return None, error.with_traceback(traceback)

    def _set(self, future: TaskFuture, outcome: tuple[Any, BaseException | None]) -> None:
        if not future.decide():
            return
        value, error = outcome
        try:
            if type(error) is FutureCancelledError and future._task._state.status == CANCELLED:
                concurrent.futures.Future.cancel(future)
            if future.set_running_or_notify_cancel():
                if error is None:
                    future.set_result(value)
                else:
                    future.set_exception(error)
        except BaseException:  # of a user's callback: `sys.exit`, say
            logger.exception("a callback of %r failed", future)
        finally:
            self.done(future)


def _by_place(futures: list[TaskFuture]) -> Iterator[list[TaskFuture]]:
    """Yield Futures one by one whose outcome is here, then all others with a value as one group."""
    far = []
    for future in futures:
        state = future._task._state
        if state.status == FINISHED and not state.value:
            far.append(future)
        else:
            yield [future]
    if far:
        yield far
