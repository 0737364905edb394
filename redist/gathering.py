"""Waiting for values and bringing them here: what `gather` and `Future.result` do.

A small value is here when its Future is finished, pushed with the news; a larger inline one is read in batches; a segment of
this host is mapped where it lies, one of another host is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from copy import copy as copy_of
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

from redist import config
from redist.belonging import check_server
from redist.collecting import seldom_collected
from redist.current import as_current
from redist.errors import DataLost, FutureCancelledError, RedistError, StoreError, TransferError
from redist.explaining import unfinished
from redist.future import Future
from redist.hanging import hang_across, until_ready
from redist.loading import load_inline
from redist.protocol import unpack_error
from redist.raising import raise_told
from redist.segments import Trouble, Unread
from redist.session.operations import AskAll, Operation, Run, Until
from redist.session.states import CANCELLED, ERROR, FINISHED, LOST, PENDING, FutureState, Waiter, hang
from redist.session.submissions import SLICE
from redist.store import calls
from redist.store.keys import decode_key
from redist.store.replies import parse_states
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client
    from redist.store.calls import Call
    from redist.store.replies import State

__all__ = ["error_of", "gather", "raise_error", "result_of", "value_here", "values_of", "wait_for"]

#: How long a reply may take although the time is up: ``result(timeout=0)`` gives what is finished, s.
_GRACE = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5


class _AllFinished(Waiter):
    """Waits until all are finished, or one is anything else."""

    __slots__ = ()

    def hit(self, state: FutureState) -> None:
        self.remaining = self.remaining - 1 if state.status == FINISHED else 0
        if self.remaining <= 0 and self.wake is not None:
            self.wake()


def wait_for(
    client: Client,
    states: Sequence[FutureState],
    deadline: float | None,
    *,
    stop_on_error: bool,
    owners: Mapping[FutureState, Client] | None = None,
) -> Operation[None]:
    """Wait until `states` are not pending; with `stop_on_error` until the first that failed.

    `owners` says whose they are, if some are not of `client`.

    Raises
    ------
    TimeoutError
        If `deadline` (of `time.monotonic`) came first.
    """
    if stop_on_error and any(state.status not in (PENDING, FINISHED) for state in states):
        return
    waiter = _AllFinished() if stop_on_error else Waiter()
    hung = None
    if owners is not None:
        hung = hang_across(waiter, owners.items())
        if stop_on_error and any(state.status not in (PENDING, FINISHED) for state in states):
            waiter.remaining = 0
    else:
        with client.session.lock:
            waiter.remaining = hang(waiter, states)
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not (yield from until_ready(client, waiter, states, hung, timeout)):
        pending = [state for state in states if state.status == PENDING]
        what = repr(decode_key(pending[0].name)) if pending else "it"
        more = f" and {len(pending) - 1} more" if len(pending) > 1 else ""
        mine = pending if owners is None else [state for state in pending if owners[state] is client]
        why = yield from unfinished(client, mine)
        raise TimeoutError(f"{what}{more} did not finish in time{why}")


def ask_by(deadline: float | None, *asked: Call) -> Operation[list[list[Any]]]:
    """Ask what a result still lacks, by `deadline` (of `time.monotonic`); None waits for ever, as for the result.

    Raises
    ------
    TimeoutError
        If no reply came in time; it says why if the server cannot be reached.
    """
    timeout = inf if deadline is None else max(_GRACE, deadline - time.monotonic())
    try:
        replies: list[list[Any]] = yield AskAll(asked, timeout)
    except StoreError as error:
        if deadline is None or time.monotonic() < deadline:
            raise
        raise TimeoutError(f"the value was not read in time: {error}") from None
    return replies


def error_of(
    client: Client, state: FutureState, deadline: float | None = None
) -> Operation[tuple[BaseException, TracebackType | None]]:
    """Return the exception of a state that is neither pending nor finished, and its traceback."""
    # A new object each time: what was raised refers through its traceback to frames, and those to the Future.
    if isinstance(state.cache, BaseException):
        return _twin(state.cache), None
    if state.value is None:
        (reply,) = yield from ask_by(deadline, calls.states([state.name], full=True))
        state.value = parse_states(reply)[0].value or None
    if state.value is None:
        return DataLost(f"the error of {state.name} is gone"), None
    with as_current(client):
        return unpack_error(state.value)


def raise_error(client: Client, state: FutureState, deadline: float | None = None) -> Operation[NoReturn]:
    """Raise the exception of a state that is neither pending nor finished."""
    exception, traceback = yield from error_of(client, state, deadline)
    try:
        raise_told(exception, traceback)
    finally:
        del exception, traceback  # else it would keep this frame, and this frame it, and both the Future


def _twin(error: BaseException) -> BaseException:
    try:
        return copy_of(error)
    except Exception:
        return error


def values_of(
    client: Client,
    states: Sequence[FutureState],
    deadline: float | None = None,
    *,
    copy: bool = False,
    writable: bool = False,
) -> Operation[list[Any]]:
    """Return the values of finished `states`.

    Raises
    ------
    TimeoutError
        If `deadline` (of `time.monotonic`) came before copies that moved, or are computed again, were there.
    """
    values: list[Any] = [None] * len(states)
    rest: list[int] = []
    with as_current(client):
        for i, state in enumerate(states):
            value = state.value
            if value:
                values[i] = load_inline(value, state.name)
            else:
                rest.append(i)
    until: float | None = None
    pause = _FIRST_PAUSE
    troubles: dict[int, RedistError] = {}
    tried: dict[int, str] = {}
    while rest:
        before = len(rest)
        fetch = [i for i in rest if not states[i].where]
        found = {i: states[i].where for i in rest if states[i].where}
        rest = []
        if fetch:
            replies = yield from ask_by(
                deadline,
                *(
                    calls.states([states[i].name for i in fetch[k : k + SLICE]], full=True)
                    for k in range(0, len(fetch), SLICE)
                ),
            )
            read = [state for reply in replies for state in parse_states(reply)]
            with as_current(client):
                for i, told in zip(fetch, read):
                    if told.state == "memory":
                        if told.where:
                            found[i] = told.where
                        else:
                            values[i] = load_inline(told.value, told.name)
                    else:
                        rest.append(i)
        far: list[tuple[int, Unread]] = []
        with as_current(client):
            wanted_here = [(states[i].name, where, states[i].nbytes) for i, where in found.items()]
            loaded = client._segments.load_all(wanted_here, copy, writable)
            for (i, where), (here, value) in zip(found.items(), loaded):
                if here:
                    values[i] = value
                else:
                    far.append((i, Unread(states[i].name, where, value, tried.get(i) == where)))
                    tried[i] = where
        if far:
            wanted = [item for _, item in far]
            left = inf if deadline is None else max(0.0, deadline - time.monotonic())
            outcomes = yield Run(client._segments.fetch, (client, wanted, copy, writable, left))
            for (i, _), outcome in zip(far, outcomes):
                if isinstance(outcome, Trouble):
                    if outcome.lasting:
                        # a new one: this frame refers to the other, and would be kept by it
                        raise type(outcome.error)(str(outcome.error))
                    troubles[i] = outcome.error
                    rest.append(i)
                else:
                    values[i] = outcome[0]
        if rest:
            rest.sort()
            # Evicted, moved or being computed again: ask how it stands.
            now, name, trouble = time.monotonic(), decode_key(states[rest[0]].name), troubles.get(rest[0])
            if until is None or len(rest) < before:  # what others took, to be loaded, does not count
                until = now + (seconds(config.get("client.copies-timeout")) or 0.0)
            if now > until:
                if trouble is not None:
                    raise type(trouble)(f"key {name!r}: {trouble}") from trouble
                raise TransferError(f"no copy of {name!r} can be reached")
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"no copy of {name!r} could be reached in time") from trouble
            yield Until(Waiter(1), pause if deadline is None else min(pause, deadline - now))
            pause = min(2 * pause, _LONGEST_PAUSE)
            yield from _ask_again(client, [states[i] for i in rest], deadline)
    return values


def _ask_again(client: Client, states: list[FutureState], deadline: float | None) -> Operation[None]:
    """Read where values are now; wait for those that are computed again, and raise for those that are lost."""
    again: list[FutureState] = []
    by_name = {state.name: state for state in states}
    told = yield from _read(states, deadline)
    with client.session.lock:
        for read in told:
            state = by_name[read.name]
            if read.state == "memory":
                state.where, state.nbytes = read.where, read.nbytes
            elif read.state in ("erred", "forgotten"):
                client.session.notifications.read(read)
            else:
                state.status = PENDING
                again.append(state)
    if again:
        try:
            # The push that says it is there may have come before that answer: from now on it counts.
            told = yield from _read(again, deadline)
        except BaseException:
            with client.session.lock:
                for state in again:
                    if state.status == PENDING:
                        state.settle(FINISHED)  # as it was; whoever reads it asks again
            raise
        with client.session.lock:
            for read in told:
                if by_name[read.name].status == PENDING:
                    client.session.notifications.read(read)
        yield from wait_for(client, again, deadline, stop_on_error=True)
    for state in states:
        if state.status != FINISHED:
            yield from raise_error(client, state, deadline)


def _read(states: Sequence[FutureState], deadline: float | None) -> Operation[list[State]]:
    names = [state.name for state in states]
    parts = (names[i : i + SLICE] for i in range(0, len(names), SLICE))
    replies = yield from ask_by(deadline, *map(calls.states, parts))
    return [read for reply in replies for read in parse_states(reply)]


def value_here(client: Client, state: FutureState, copy: bool, writable: bool) -> tuple[bool, Any]:
    """Return (True, value) of a finished state if nobody has to be asked for it, else (False, None)."""
    with as_current(client):
        if state.value:
            return True, load_inline(state.value, state.name)
        return client._segments.load_here(state.name, state.where, state.nbytes, copy, writable)


def result_of(
    client: Client, state: FutureState, deadline: float | None, copy: bool, writable: bool
) -> Operation[Any]:
    """Wait for one value and return it, or raise what its task raised."""
    if state.status == PENDING:
        yield from wait_for(client, [state], deadline, stop_on_error=True)
    if state.status != FINISHED:
        yield from raise_error(client, state, deadline)
    here, value = value_here(client, state, copy, writable)
    if here:
        return value
    return (yield from values_of(client, [state], deadline, copy=copy, writable=writable))[0]


def gather(client: Client, futures: Any, errors: str, copy: bool, writable: bool) -> Operation[Any]:
    """Return the nested collection `futures` with values in the place of Futures."""
    if errors not in ("raise", "skip"):
        raise ValueError(f"errors is 'raise' or 'skip', not {errors!r}")
    if isinstance(futures, Iterator):
        futures = list(futures)
    if (
        isinstance(futures, Future)
        and futures._client is client
        and not futures._cleared
        and errors == "raise"
    ):
        return (yield from result_of(client, futures._state, None, copy, writable))
    states: dict[FutureState, Client] = {}
    _collect(client, futures, states)
    everything = list(states)
    owners = states if any(owner is not client for owner in states.values()) else None
    yield from wait_for(client, everything, None, stop_on_error=errors == "raise", owners=owners)
    if errors == "raise":
        for state in everything:
            if state.status in (ERROR, LOST, CANCELLED):
                yield from raise_error(client, state)
    finished = [state for state in everything if state.status == FINISHED]
    with seldom_collected(len(finished)):
        values = yield from values_of(client, finished, copy=copy, writable=writable)
    known = dict(zip(finished, values))
    if type(futures) is list and len(finished) < len(everything):
        futures = [item for item in futures if not (isinstance(item, Future) and item._state not in known)]
    return _fill(futures, known)


_CONTAINERS = (list, tuple, set, frozenset, dict)


def _collect(client: Client, obj: Any, states: dict[FutureState, Client]) -> None:
    if isinstance(obj, Future):
        if obj._cleared:
            raise FutureCancelledError(obj.key, "its reference was released")
        check_server(client, obj)
        states[obj._state] = obj._client
    elif isinstance(obj, dict):
        for item in obj.values():
            _collect(client, item, states)
    elif isinstance(obj, _CONTAINERS):
        for item in obj:
            if type(item) is Future and not item._cleared and item._client is client:
                states[item._state] = client
            else:
                _collect(client, item, states)


def _fill(obj: Any, values: Mapping[FutureState, Any]) -> Any:
    """Return `obj` with values in the place of Futures, None in that of one without a value."""
    get = values.get
    if isinstance(obj, Future):
        return get(obj._state)
    if isinstance(obj, dict):
        return {key: _fill(item, values) for key, item in obj.items()}
    if isinstance(obj, _CONTAINERS):
        items: list[Any] = [get(item._state) if type(item) is Future else _fill(item, values) for item in obj]
        if type(obj) is list:
            return items
        if hasattr(obj, "_fields"):
            return type(obj)(*items)
        return type(obj)(items)
    return obj
