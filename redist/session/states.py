"""What a caller knows of the keys that it refers to, and who waits for them.

A `FutureState` is one key's record; Futures are thin handles on it. `States` maps wire names to records. There is no lock,
event or condition a record: a wait hangs one `Waiter` on all records that it waits for, and the session calls it.
Everything here runs under the driver's lock (or in its loop).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from redist.errors import FutureCancelledError
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.store.calls import Task

__all__ = ["Collector", "Condition", "FutureState", "Relay", "Site", "States", "Status", "Waiter"]

Status = Literal["pending", "finished", "error", "lost", "cancelled"]
#: File, line and time (seconds of the epoch) of the user's call that made a reference.
Site: TypeAlias = tuple[str, int, float]
#: Lines that a record remembers.
MOST_SITES = 8
#: Above the number of every call.
_NOT_YET = 1 << 53

PENDING: Status = "pending"
FINISHED: Status = "finished"
ERROR: Status = "error"
LOST: Status = "lost"
CANCELLED: Status = "cancelled"


class Waiter:
    """A wait for a number of events.

    Parameters
    ----------
    remaining : int
        How many events it waits for.

    Attributes
    ----------
    wake : callable or None
        Called without arguments, once, when the wait is over; set by a driver that cannot look by itself.
    foreign : bool
        Whether records of another session are among what it waits for, so that other threads may call it.
    """

    __slots__ = ("foreign", "remaining", "wake")

    def __init__(self, remaining: int = 1) -> None:
        self.foreign = False
        self.remaining = remaining
        self.wake: Callable[[], object] | None = None

    def hit(self, state: FutureState) -> None:
        """Note that `state` is not pending any more."""
        self.remaining -= 1
        if self.remaining == 0 and self.wake is not None:
            self.wake()

    def ready(self) -> bool:
        """Return whether the wait is over."""
        return self.remaining <= 0


class Collector(Waiter):
    """A wait that also keeps, in order, which records came; it is ready while there are some."""

    __slots__ = ("came",)

    def __init__(self) -> None:
        super().__init__(1)
        self.came: deque[FutureState] = deque()

    def hit(self, state: FutureState) -> None:
        """Note that `state` is not pending any more."""
        self.came.append(state)
        if self.wake is not None:
            self.wake()

    def ready(self) -> bool:
        """Return whether a record came that was not taken yet."""
        return bool(self.came)


class Relay(Waiter):
    """Passes what happens to records of several sessions on to one waiter, a record at a time."""

    __slots__ = ("_mutex", "_waiter")

    def __init__(self, waiter: Waiter) -> None:
        super().__init__(1)
        self._mutex = threading.Lock()
        self._waiter = waiter
        waiter.foreign = True

    def hit(self, state: FutureState) -> None:
        """Note that `state` is not pending any more. Under its own session's lock."""
        with self._mutex:
            self._waiter.hit(state)

    def settled(self, count: int) -> None:
        """Note that `count` records were not pending any more before this was hung on them."""
        with self._mutex:
            self._waiter.remaining -= count


class Condition(Waiter):
    """A wait for an arbitrary predicate, looked at whenever something arrived."""

    __slots__ = ("predicate",)

    def __init__(self, predicate: Callable[[], Any]) -> None:
        super().__init__(1)
        self.predicate = predicate

    def ready(self) -> bool:
        """Return whether the predicate holds."""
        return bool(self.predicate())


class FutureState:
    """One key as this caller knows it.

    Attributes
    ----------
    name : str
        Wire name.
    status : str
        ``pending``, ``finished``, ``error``, ``lost`` or ``cancelled``.
    generation : int
        The generation of the cluster that it belongs to.
    count : int
        References of this process, less those whose release waits in the ledger's queue.
    sent : int
        The count that was last put on the lane; 0 also when the server let go by itself.
    born : int
        The number of the call that made the server count us, and told it of the task or the value. What it says of the key
        as of an earlier call is of an earlier life, or said again.
    fn : str
        Hash of the function that computes the key, empty for data.
    task : Task or None
        What to submit again if the server loses it; None once its value or a copy is known here, or if it was never ours.
    value : bytes or None
        The pickle of an inline value, or of an error, if it has arrived.
    where : str
        ``WORKER.ATTEMPT ...`` of the copies of a segment; the name of the task that failed, for an error.
    nbytes : int
        Size of the payload.
    type : str
        Short type name of the value or of the exception.
    needs : sequence of FutureState
        Of a task of a graph that is not known to be done: what it needs, whether or not anybody refers to that.
    waiters : Waiter, list or None
        Who waits for it: usually none or one.
    sites : tuple of Site
        Where Futures were made since there has been one, each line once and `MOST_SITES` at most: the first, and the last.
    cache : object
        The exception, or the value of a small result, once it was made out of `value`.
    """

    __slots__ = (
        "__weakref__", "born", "cache", "count", "fn", "generation", "name", "nbytes", "needs", "sent", "sites", "status",
        "task", "type", "value", "waiters", "where",
    )  # fmt: skip

    def __init__(self, name: str, generation: int, fn: str = "") -> None:
        self.name = name
        self.status: Status = PENDING
        self.generation = generation
        self.count = 0
        self.sent = 0
        self.born = _NOT_YET
        self.fn = fn
        self.task: Task | None = None
        self.needs: Sequence[FutureState] = ()
        self.value: bytes | None = None
        self.where = ""
        self.nbytes = 0
        self.type = ""
        self.waiters: Waiter | list[Waiter] | None = None
        self.sites: tuple[Site, ...] = ()
        self.cache: object = None

    def __repr__(self) -> str:
        return f"<FutureState {self.name!r} {self.status} count={self.count} sent={self.sent}>"

    def bound(self, site: Site) -> None:
        """Note where the reference was made that was counted last."""
        sites = self.sites
        if self.count <= 1:
            self.sites = (site,)
        elif all(known[:2] != site[:2] for known in sites):
            self.sites = (*(sites if len(sites) < MOST_SITES else sites[:1] + sites[2:]), site)

    def add_waiter(self, waiter: Waiter) -> None:
        """Have `waiter` called when this is not pending any more."""
        waiters = self.waiters
        if waiters is None:
            self.waiters = waiter
        elif type(waiters) is list:
            waiters.append(waiter)
        else:
            self.waiters = [waiters, waiter]  # type: ignore[list-item]  # not a list here

    def drop_waiter(self, waiter: Waiter) -> None:
        """Forget `waiter`, which gave up."""
        waiters = self.waiters
        if waiters is waiter:
            self.waiters = None
        elif type(waiters) is list and waiter in waiters:
            waiters.remove(waiter)

    def settle(self, status: Status) -> None:
        """Set a final status and call who waits."""
        self.status = status
        self.task = None
        self.needs = ()
        waiters = self.waiters
        if waiters is not None:
            self.waiters = None
            if type(waiters) is list:
                for waiter in waiters:
                    waiter.hit(self)
            else:
                waiters.hit(self)  # type: ignore[union-attr]  # not a list here

    def finish(self, nbytes: int, type_: str, where: str, value: bytes | None) -> None:
        """Note that the value is in memory: inline (`where` empty; no `value` if too large to be pushed) or in segments."""
        self.nbytes = nbytes
        self.type = type_
        self.where = where
        if value or not where:
            self.value = value or None
        if self.status != FINISHED:
            self.cache = None
            task, needs = self.task, self.needs
            self.settle(FINISHED)
            if not (self.value or where):
                self.task, self.needs = task, needs  # the server alone has the value
        elif self.value or where:
            self.task = None
            self.needs = ()

    def err(self, type_: str, cause: str, value: bytes | None) -> None:
        """Note that the task failed or its data is lost; `cause` names the task that failed if it is another one."""
        if self.status == CANCELLED:
            return
        self.type = type_
        self.where = cause
        self.value = value or None
        self.cache = None
        self.settle(LOST if type_ == "DataLost" and not cause else ERROR)

    def cancel(self, reason: str, error: BaseException | None = None) -> None:
        """Note that the key is not ours any more; `error` is what its Futures raise, by default `FutureCancelledError`."""
        if self.status == CANCELLED:
            return
        self.value = None
        self.where = ""
        self.cache = error or FutureCancelledError(decode_key(self.name), reason)
        self.settle(CANCELLED)

    def fail(self, error: BaseException) -> None:
        """Note that the call that should have made it known was refused; its Futures raise `error`."""
        self.type = type(error).__name__
        self.cache = error
        self.settle(ERROR)

    def unfinished(self) -> None:
        """Note that the server lost the value, and that nobody else has it: the task is submitted again."""
        self.status = PENDING
        self.cache = None

    def again(self) -> None:
        """Note that an erred or lost task is being run again."""
        if self.status in (ERROR, LOST):
            self.status = PENDING
            self.value = self.cache = None
            self.where = self.type = ""


class States:
    """The records of all keys that this caller refers to, by wire name.

    Attributes
    ----------
    records : dict
        The records.
    abandoned : deque of (Waiter, records)
        Waiters to be taken off records, as whoever waited is gone. Appended to in any thread, inside garbage collections
        too; the session takes them off with its next `tick`.
    """

    __slots__ = ("abandoned", "records")

    def __init__(self) -> None:
        self.records: dict[str, FutureState] = {}
        self.abandoned: deque[tuple[Waiter, list[FutureState]]] = deque()

    def drop_abandoned(self) -> None:
        """Take waiters off whose owners are gone."""
        while self.abandoned:
            waiter, states = self.abandoned.popleft()
            for state in states:
                state.drop_waiter(waiter)

    def __len__(self) -> int:
        return len(self.records)

    def __iter__(self) -> Iterator[FutureState]:
        return iter(self.records.values())

    def __contains__(self, name: str) -> bool:
        return name in self.records

    def get(self, name: str) -> FutureState | None:
        """Return the record of `name` if there is one."""
        return self.records.get(name)

    def obtain(self, name: str, generation: int, fn: str = "") -> FutureState:
        """Return the living record of `name`, a new one if there is none or it was cancelled."""
        state = self.records.get(name)
        if state is None or state.status == CANCELLED:
            state = self.records[name] = FutureState(name, generation, fn)
        return state

    def discard(self, state: FutureState) -> None:
        """Forget `state`, to which nothing refers any more."""
        if self.records.get(state.name) is state:
            del self.records[state.name]

    def unsettled(self) -> list[str]:
        """Return the names of what is pending, or has failed in the cluster and may be run again."""
        return [
            name
            for name, state in self.records.items()
            if state.status == PENDING or (state.status in (ERROR, LOST) and state.sent)
        ]

    def cancel_all(self, reason: str, error: Callable[[FutureState], BaseException] | None = None) -> None:
        """Cancel everything and forget it: a restart, or the end."""
        records = list(self.records.values())
        self.records.clear()
        for state in records:
            state.cancel(reason, error(state) if error else None)


def hang(waiter: Waiter, states: Iterable[FutureState]) -> int:
    """Hang `waiter` on those of `states` that are pending; return how many they are."""
    count = 0
    for state in states:
        if state.status == PENDING:
            state.add_waiter(waiter)
            count += 1
    return count
