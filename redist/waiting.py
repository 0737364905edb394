"""`wait`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from redist.current import futures_of
from redist.errors import FutureCancelledError
from redist.explaining import unfinished
from redist.future import Future
from redist.gathering import error_of
from redist.hanging import hang_across, until_ready
from redist.session.operations import Operation
from redist.session.states import CANCELLED, PENDING, FutureState, Waiter, hang
from redist.store.keys import decode_key
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.actor import ActorFuture
    from redist.client import Client

__all__ = [
    "ALL_COMPLETED", "FIRST_COMPLETED", "Awaited", "DoneAndNotDoneFutures", "futures_given", "is_there", "wait",
]  # fmt: skip

ALL_COMPLETED = "ALL_COMPLETED"
FIRST_COMPLETED = "FIRST_COMPLETED"


#: What is waited for: Futures, and what comes of calls of actors.
Awaited: TypeAlias = "Future[Any] | ActorFuture[Any]"


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
    given = (
        [fs]
        if isinstance(fs, Future) or _of_an_actor(fs)
        else futures_given("wait", "fs", _of_collection(fs))
    )
    if return_when not in (ALL_COMPLETED, FIRST_COMPLETED):
        raise NotImplementedError(f"return_when is 'ALL_COMPLETED' or 'FIRST_COMPLETED', not {return_when!r}")
    futures = [future for future in given if not is_there(future)]
    there = {future for future in given if is_there(future)}
    if not futures:
        return DoneAndNotDoneFutures(there, set())
    client = futures[0]._client
    return client._run(_wait(client, futures, there, seconds(timeout), return_when))


def _of_an_actor(given: object) -> bool:
    """Whether it is what comes of a call of an actor."""
    actor = sys.modules.get("redist.actor")
    return actor is not None and isinstance(given, actor.BaseActorFuture)


def is_there(future: Awaited) -> bool:
    """Whether it never was a task: what an actor's own method returned."""
    return not hasattr(future, "_state")


def futures_given(function: str, argument: str, given: Any) -> list[Any]:
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
    client: Client, futures: list[Awaited], there: set[Any], timeout: float | None, return_when: str
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
