"""Values of dependencies: out of the hand-out, out of a segment on this host, or fetched by the worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from redist.errors import RedistError, SegmentCorrupt, SegmentError, SegmentGone, TransferError
from redist.loading import load_inline, load_payload
from redist.memory.broker_client import BrokerClient
from redist.memory.host import same_host
from redist.store import calls
from redist.store.keys import decode_key
from redist.store.replies import HandOut, State, parse_states

if TYPE_CHECKING:
    from redist.store.calls import Call
    from redist.store.side import Side

__all__ = ["Missing", "Values"]

_PATIENCE = 15.0  # s that a copy whose worker cannot be reached is asked for again
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
_LOOK = 10.0  # s that a worker may take to look at a file, and to tell the server

Dependency = tuple[str, str, bytes]


class Missing(Exception):
    """A dependency's value cannot be had.

    Parameters
    ----------
    copies : dict
        Name -> copies (``WORKER.ATTEMPT``) that are not where they should be; empty if the server knows already.
    """

    def __init__(self, copies: dict[str, list[str]]) -> None:
        super().__init__(copies)
        self.copies = copies

    def lines(self) -> bytes:
        """Return what `redist.store.calls.Result` wants for the status ``missing``."""
        return "\n".join(
            f"{name}\n{copy}" for name, copies in self.copies.items() for copy in copies
        ).encode()


@dataclass(frozen=True, slots=True)
class _Worker:
    segments: str
    address: str
    here: bool
    socket: str = ""


class _Unread(NamedTuple):
    """A copy on this host that could not be read, and why."""

    name: str
    worker: str
    attempt: int
    error: SegmentError


class Values:
    """Loads the dependencies of tasks. Safe to use from several threads.

    Parameters
    ----------
    worker : int
        Ordinal of the executor's worker.
    segments : str
        Its segment directory.
    broker : BrokerClient
        Its local socket.
    side : Side
        For reading the records of other workers.
    read : callable
        Sends a call and returns its reply.
    """

    def __init__(
        self,
        worker: int,
        segments: str,
        broker: BrokerClient,
        side: Side,
        read: Callable[[Call], list[Any]],
    ) -> None:
        self._worker = worker
        self._segments = segments
        self._broker = broker
        self._side = side
        self._read = read
        self._workers: dict[str, _Worker | None] = {str(worker): _Worker(segments, "", True)}

    def of(self, task: HandOut) -> list[Dependency]:
        """Return the dependencies of `task`: name, where its copies are (empty: nowhere), and value or size.

        Raises
        ------
        Missing
            If one is not there any more, and the server had to be asked.
        """
        return self._read_deps(task.name) if task.more_deps else task.deps

    def load(self, deps: Sequence[Dependency]) -> dict[str, Any]:
        """Return the values of dependencies, by name.

        Raises
        ------
        Missing
            If one is not there any more.
        TransferError
            If a worker that has one cannot be reached for long.
        """
        values: dict[str, Any] = {}
        segments: list[Dependency] = []
        for dep in deps:
            name, where, value = dep
            if where:
                segments.append(dep)
            elif value:
                values[name] = load_inline(value, name)
            else:
                raise Missing({})
        if segments:
            self._load_segments(segments, values)
        return values

    def _load_segments(self, deps: Sequence[Dependency], values: dict[str, Any]) -> None:
        until = time.monotonic() + _PATIENCE
        pause = _FIRST_PAUSE
        while True:
            unread: list[_Unread] = []
            elsewhere: list[tuple[str, list[tuple[str, str, str]]]] = []
            for name, where, value in deps:
                if not where:
                    values[name] = load_inline(value, name)
                    continue
                copies = [copy.partition(".") for copy in where.split()]
                copies.sort(key=lambda copy: copy[0] != str(self._worker))
                if not self._load_here(name, copies, values, unread):
                    elsewhere.append((name, copies))
            # Ahead of fetching: what this worker has it does not fetch.
            gone, trouble = self._check(unread, [name for name, _ in elsewhere])
            far: list[tuple[str, int, list[str]]] = []
            for name, copies in elsewhere:
                self._plan_fetch(name, copies, far, gone)
            if far:
                trouble = self._fetch(far, values) or trouble
            rest = [dep[0] for dep in deps if dep[0] not in values]
            if not rest:
                return
            if any(name in gone for name in rest):
                raise Missing({name: copies for name, copies in gone.items() if name in rest})
            if time.monotonic() > until:
                raise trouble or TransferError(f"no worker that has {rest[0]} can be reached")
            # the worker is gone or unreachable; its lease tells in the end, and the value may come elsewhere
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            deps = self._ask(rest)

    def _load_here(
        self,
        name: str,
        copies: list[tuple[str, str, str]],
        values: dict[str, Any],
        unread: list[_Unread],
    ) -> bool:
        """Load a value from a directory of this host if there is a copy in one; note those that cannot be read."""
        for worker, _, attempt in copies:
            record = self._record(worker)
            if record is not None and record.here:
                try:
                    values[name] = load_payload(record.segments, name, int(attempt))
                    return True
                except SegmentError as error:
                    # not that one: its traceback would keep this frame, and the values that are here already
                    unread.append(_Unread(name, worker, int(attempt), type(error)(str(error))))
        return False

    def _check(
        self, unread: Sequence[_Unread], names: Sequence[str]
    ) -> tuple[dict[str, list[str]], RedistError | None]:
        """Have workers of this host look at their copies; return those that are damaged or gone, and what may pass.

        Raises
        ------
        SegmentError
            If a copy is whole, cannot be read here all the same, and its value, one of `names`, was not had otherwise.
        """
        gone: dict[str, list[str]] = {}
        trouble: RedistError | None = None
        by_worker: dict[str, list[_Unread]] = {}
        for copy in unread:
            by_worker.setdefault(copy.worker, []).append(copy)
        for worker, copies in by_worker.items():
            try:
                outcomes = self._ask_worker(worker, [(copy.name, copy.attempt) for copy in copies])
            except RedistError as error:
                trouble = error
                self._workers.pop(worker, None)  # it may have been started again elsewhere
                continue
            for copy, outcome in zip(copies, outcomes):
                if outcome is not None:
                    gone.setdefault(copy.name, []).append(f"{worker}.{copy.attempt}")
                elif isinstance(copy.error, SegmentGone):
                    trouble = SegmentGone(f"key {decode_key(copy.name)!r}: {copy.error}")
                elif copy.name in names:
                    raise copy.error
        return gone, trouble

    def _ask_worker(self, worker: str, copies: list[tuple[str, int]]) -> list[RedistError | None]:
        if worker == str(self._worker):
            return self._broker.check(copies, timeout=_LOOK)
        record = self._workers.get(worker)
        if record is None:
            raise TransferError(f"the worker {worker} is not known any more")
        with BrokerClient(record.socket) as broker:
            return broker.check(copies, timeout=_LOOK)

    def _plan_fetch(
        self,
        name: str,
        copies: list[tuple[str, str, str]],
        far: list[tuple[str, int, list[str]]],
        gone: dict[str, list[str]],
    ) -> None:
        addresses: dict[str, list[str]] = {}
        for worker, _, attempt in copies:
            record = self._record(worker)
            if record is not None and not record.here and record.address:
                addresses.setdefault(attempt, []).append(record.address)
        for attempt, sources in addresses.items():
            # the attempt with the nearest copy; another one is asked for if that is gone
            gone.pop(name, None)
            far.append((name, int(attempt), sources))
            return

    def _fetch(
        self,
        far: list[tuple[str, int, list[str]]],
        values: dict[str, Any],
    ) -> RedistError | None:
        """Have the worker fetch payloads, and load them; return an error that may pass.

        A worker whose file is damaged or gone looks itself, and tells the server.
        """
        trouble: RedistError | None = None
        for (name, attempt, sources), outcome in zip(far, self._broker.fetch(far), strict=True):
            if outcome is None:
                try:
                    values[name] = load_payload(self._segments, name, attempt)
                except SegmentGone:
                    pass  # evicted again already: the server is asked how it stands
            elif isinstance(outcome, SegmentGone | SegmentCorrupt):
                trouble = outcome
            elif isinstance(outcome, TransferError):
                trouble = outcome
                for worker, record in list(self._workers.items()):
                    if record is not None and record.address in sources:
                        self._workers.pop(worker)  # it may have been started again elsewhere
            else:
                raise outcome
        return trouble

    def _record(self, worker: str) -> _Worker | None:
        if worker in self._workers:
            return self._workers[worker]
        fields = self._side.fields(f"caller:{worker}")
        record = None
        if fields.get("segments"):
            here = same_host(fields["segments"], fields.get("hostid", ""))
            record = _Worker(fields["segments"], fields.get("address", ""), here, fields.get("socket", ""))
            self._workers[worker] = record
        return record

    def _ask(self, names: Sequence[str]) -> list[Dependency]:
        states: list[State] = []
        for at in range(0, len(names), 500):
            states += parse_states(self._read(calls.states(names[at : at + 500], full=True)))
        if any(state.state != "memory" for state in states):
            raise Missing({})
        return [(state.name, state.where, state.value) for state in states]

    def _read_deps(self, task: str) -> list[Dependency]:
        names: dict[str, None] = {}
        cursor = 0
        while True:
            reply = self._read(calls.dependencies(task, cursor))
            names.update((name.decode(), None) for name in reply[2:])
            cursor = int(reply[1])
            if cursor == 0:
                return self._ask(list(names))
