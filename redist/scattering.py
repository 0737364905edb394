"""Values of this process made remote: what `scatter` does, and `submit` with large arguments.

A small value goes to the server with the call that makes it known. For a larger one a worker is chosen first; on this host
the segment is written here, under a grant of that worker, elsewhere its data server takes it; then it is made known.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import inf
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from redist import replicating
from redist.belonging import Borrowing
from redist.bundling import Bundles
from redist.collecting import seldom_collected
from redist.committing import Told, Written, give_up, heed, tell, tell_on
from redist.describing import workers_changed
from redist.dropping import drop_soon
from redist.errors import (
    KeyTaken,
    NoWorkers,
    RedistError,
    SegmentsFull,
    SerializationError,
    StoreError,
    TransferError,
    WorkerUnreached,
)
from redist.future import Future
from redist.inlining import inline_limit
from redist.memory.space import format_size
from redist.placing import place
from redist.protocol import Payload, dumps
from redist.protocol.payload import name_in
from redist.protocol.plain import is_named
from redist.reaching import reaching
from redist.session.operations import Operation, Run, Until
from redist.session.states import CANCELLED, ERROR, PENDING, Condition, FutureState
from redist.store.calls import MOST_CONTAINED
from redist.store.keys import decode_key, encode_key
from redist.submitting import call_site, integer, worker_names

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Item", "prepare", "scatter", "store", "store_soon"]

#: Values, and bytes of more than one, that are written together, while the ones before them are made known.
_PART, _PART_BYTES = 2000, 64 << 20
#: s that what was given up may go on to be written, before it is dropped
_LONGEST_WRITE = 300.0
#: Workers that are tried at least if the caller says no timeout; s between two; s for a reply that is asked for at the end.
_TRIES, _PAUSE, _GRACE = 3, 0.2, 0.5


class Item(NamedTuple):
    """A value on its way: its record, and the payload if it has to be written."""

    state: FutureState
    payload: Payload | None


def prepare(
    client: Client,
    values: Sequence[Any],
    names: Sequence[str | None],
    *,
    unique: bool,
    borrowing: Borrowing,
    bound: list[FutureState] | None = None,
) -> list[Item]:
    """Serialize values, bind a reference to each, and see which are known already.

    A value may be a payload already. One without a name is named after its content, or, with `unique`, like no other.
    `borrowing` is to live until the values are stored; `bound` gets the record of each reference as it is counted.
    """
    limit = inline_limit()
    payloads: list[Payload] = []
    try:
        for value in values:
            payloads.append(  # noqa: PERF401  # the error names the value by how many were before it
                value
                if type(value) is Payload
                else dumps(value, inline_limit=limit, name_of=borrowing.name_of)
            )
    except SerializationError as error:
        at = len(payloads)
        name = names[at]
        if name or len(values) > 1:
            place = f"of the key {decode_key(name)!r}" if name else f"at index {at}"
            name_in(error, f"the value {place}", values[at])
        raise
    chosen = list(_chosen(payloads, names, unique))
    session = client.session
    site = call_site()
    items: list[Item] = []
    fresh: set[str] = set()
    with session.lock:
        client._check_alive()
        for name, payload in zip(chosen, payloads):
            known = session.states.get(name)
            if known is not None and known.status != CANCELLED and known.fn:
                raise KeyTaken(f"the key {decode_key(name)!r} is in use by a task; scatter under another key")
            new = (known is None or known.status in (CANCELLED, "error", "lost")) and name not in fresh
            if new and known is not None:
                session.states.discard(known)
            state = session.states.obtain(name, session.generation)
            if new:
                fresh.add(name)
            if not state.sent and state.status == PENDING:
                state.count += (
                    1  # told with the commit, which makes the key; a count on its own would come before it
                )
            else:
                session.ledger.bind(state)
            state.bound(site)
            if bound is not None:
                bound.append(state)
            items.append(Item(state, payload if new else None))
    return items


def _chosen(payloads: Sequence[Payload], names: Sequence[str | None], unique: bool) -> Iterator[str]:
    """Yield the name of each payload."""
    chance = secrets.token_hex(16 * len(payloads)) if unique else ""
    for at, (payload, name) in enumerate(zip(payloads, names)):
        if name:
            yield name
        elif unique:
            yield f"{payload.type.rpartition('.')[2]}-{chance[32 * at : 32 * at + 32]}"
        else:
            yield _content_name(payload)


def _content_name(payload: Payload) -> str:
    label = payload.type.rpartition(".")[2]
    from xxhash import xxh3_128  # as quick as memory: blake2b took ten times as long as the copy

    digest = xxh3_128(payload.type.encode())
    for chunk in payload.chunks():
        digest.update(chunk)
    return f"{label}-{digest.hexdigest()}"


def store(
    client: Client,
    items: Sequence[Item],
    *,
    keep: bool = False,
    workers: Sequence[str] = (),
    deadline: float | None = None,
    timeout: float | None = None,
    places_ahead: bool = False,
) -> Operation[None]:
    """Write the payloads of `items` and make them known; `keep`: they are arguments of tasks.

    Workers are waited for until `deadline`, each reply for `timeout` seconds; of `places_ahead` tells `placing.place`. A
    commit that is not answered but may be applied is: the Futures that go release what it made known.
    """
    # The very items: new tuples of a hundred thousand would have the garbage collector look through all of them.
    todo = cast("list[tuple[FutureState, Payload]]", [item for item in items if item.payload is not None])
    placed: list[tuple[str, int, int]] = []
    sent: set[str] = set()
    writing = _Writing()
    bundles = Bundles(client)
    ahead: _Ahead | None = None
    #: On their way: a part is told while the server works on the one before it.
    told: list[Told] = []
    try:
        inside: dict[str, Sequence[str]] = {}
        for state, payload in todo:
            if len(payload.contains) > MOST_CONTAINED:
                inside[state.name] = yield from bundles.of(payload.contains, timeout)
        inline = [(state, payload, 0, 0) for state, payload in todo if payload.inline is not None]
        large = [item for item in todo if item[1].inline is None]
        while len(inline) > _PART:
            yield from tell_on(client, inline[:_PART], keep, told, sent, inside, timeout)
            del inline[:_PART]
        written: list[Written] = inline
        for at, values in enumerate(_parts(large)):
            part = _Part(client, values, workers, deadline, timeout, places_ahead, placed, writing)
            if at == 0:
                written = inline + (yield from part.write())
                continue
            ahead = _Ahead(part, (yield from part.place()))
            yield from tell_on(client, written, keep, told, sent, inside, timeout)
            written = yield from ahead.written()
            ahead = None
        yield from tell(client, written, keep, told, sent, inside)
        yield from heed(client, told, timeout, sent)
        yield from bundles.check(timeout)
        pending = [state for state, payload in items if payload is None and state.status == PENDING]
        if pending:
            # Another thread of ours stores it, or it is being looked up.
            from redist.gathering import wait_for

            yield from wait_for(client, pending, deadline, stop_on_error=False)
    except BaseException as error:
        try:
            if isinstance(error, Exception) and not isinstance(error, StoreError):
                # what was made known is released; what is not answered yet could be taken for refused
                with contextlib.suppress(RedistError):
                    yield from heed(client, told, timeout, sent)
        finally:  # also when a Ctrl-C comes meanwhile
            give_up(client, [state for state, _ in todo], sent, error)
            drop_soon(client, writing.give_up, [item for item in placed if item[0] not in sent])
        raise
    finally:
        bundles.release()


def _parts(large: list[tuple[FutureState, Payload]]) -> Iterator[list[tuple[FutureState, Payload]]]:
    """Yield values that are written together: all of them fit into a worker's memory, or none does."""
    begin = nbytes = 0
    for at, (_, payload) in enumerate(large):
        nbytes += payload.nbytes
        if at > begin and (at - begin == _PART or nbytes > _PART_BYTES):
            yield large[begin:at]
            begin, nbytes = at, payload.nbytes
    if large:
        yield large[begin:]


class _Writing:
    """What `store` writes: in an event loop the thread that writes goes on when `store` is cancelled."""

    def __init__(self) -> None:
        self._running = Lock()
        self._given_up = False

    def put(
        self, client: Client, worker: int, batch: list[tuple[str, int, Payload]], timeout: float | None
    ) -> None:
        """Write payloads, unless it was given up; see `_put`."""
        with self._running:
            if self._given_up:
                raise TransferError("the value is not wanted any more")
            _put(client, worker, batch, timeout)

    def give_up(self) -> None:
        """Have nothing more be written, and return when nothing is."""
        self._given_up = True
        if self._running.acquire(timeout=_LONGEST_WRITE):
            self._running.release()


class _Part(NamedTuple):
    """Values that are written together, and what goes for all of them."""

    client: Client
    large: list[tuple[FutureState, Payload]]
    workers: Sequence[str]
    deadline: float | None
    timeout: float | None
    places_ahead: bool
    #: What may be written is noted here before: name, attempt, worker.
    placed: list[tuple[str, int, int]]
    writing: _Writing

    @property
    def limit(self) -> float | None:
        """Seconds that the caller allows for each wait; None if nothing was said of that."""
        return None if self.timeout == inf else self.timeout

    def place(self, until: float | None = None) -> Operation[list[Written]]:
        """Choose a worker for each; there are to be some by `until`."""
        client, large, workers, deadline, timeout, places_ahead, placed, _ = self
        deadline = deadline if until is None else until
        total = sum(payload.nbytes for _, payload in large)
        places = yield from place(client, len(large), total, workers, deadline, timeout, ahead=places_ahead)
        written = [
            (state, payload, attempt, worker) for (state, payload), (attempt, worker) in zip(large, places)
        ]
        placed += [(state.name, attempt, worker) for state, _, attempt, worker in written]
        return written

    def put(self, written: list[Written], limit: float | None) -> None:
        """Write them; each worker may be waited for so long. Blocks."""
        groups: dict[int, list[tuple[str, int, Payload]]] = {}
        for state, payload, attempt, worker in written:
            groups.setdefault(worker, []).append((state.name, attempt, payload))
        for worker, batch in groups.items():
            with reaching(self.client, worker, [name for name, _, _ in batch], limit):
                # less for room: a worker that answers that it has none is not given up
                room = None if limit is None else limit - min(1.0, limit / 4)
                self.writing.put(self.client, worker, batch, room)

    def write(self) -> Operation[list[Written]]:
        """Write them into segments; a worker that cannot be reached is replaced by another one."""
        written = yield from self.place()
        try:
            yield Run(self.put, (written, self.limit))
        except WorkerUnreached as error:
            return (yield from self.elsewhere(written, error))
        return written

    def elsewhere(self, written: list[Written], failed: WorkerUnreached) -> Operation[list[Written]]:
        """Write them once more: `failed` came of `written`. What was waited then, and here, counts towards the timeout."""
        client, limit = self.client, self.limit
        left = client._timeout if limit is None else limit
        tries = 1
        try:
            while True:
                left -= failed.waited
                self.give_up(written)
                # without a timeout of its own, who was given up late is replaced all the same
                if left <= 0 and (limit is not None or tries == _TRIES):
                    raise failed
                began, seen = time.monotonic(), client._workers_seen
                yield Until(Condition(partial(workers_changed, client, seen)), _PAUSE)
                try:
                    written = yield from self.place(began + max(0.0, left))
                except NoWorkers as error:
                    raise NoWorkers(f"{error}. Before: {failed}") from None
                left -= time.monotonic() - began
                tries = min(tries + 1, _TRIES)
                try:
                    yield Run(self.put, (written, None if limit is None else max(_GRACE, left)))
                    return written
                except WorkerUnreached as error:
                    failed = error
        finally:
            del failed  # else it would keep this frame, and this frame it, and both the Futures

    def give_up(self, written: list[Written]) -> None:
        """Have workers drop what was to be written and did not all arrive: one got its part, or could not say so."""
        given_up = {(state.name, attempt, worker) for state, _, attempt, worker in written}
        self.placed[:] = [item for item in self.placed if item not in given_up]
        self.client._peers.forget()
        self.client._places.forget()
        drop_soon(self.client, None, [*given_up])


class _Ahead:
    """A part that is written by a thread, while the one before it is made known."""

    def __init__(self, part: _Part, written: list[Written]) -> None:
        self._part = part
        self._written = written
        self._error: BaseException | None = None
        self._thread = Thread(target=self._put, name="redist-put", daemon=True)
        self._thread.start()

    def _put(self) -> None:
        try:
            self._part.put(self._written, self._part.limit)
        except BaseException as error:
            self._error = error

    def _joined(self) -> BaseException | None:
        self._thread.join()
        return self._error

    def written(self) -> Operation[list[Written]]:
        """Wait until it is written; once more if its worker could not be reached."""
        error = yield Run(self._joined)
        if error is None:
            return self._written
        try:
            if not isinstance(error, WorkerUnreached):
                raise error
            return (yield from self._part.elsewhere(self._written, error))
        finally:
            del error  # else it would keep this frame, and this frame it, and both the Futures


def _put(
    client: Client, worker: int, batch: list[tuple[str, int, Payload]], timeout: float | None = None
) -> None:
    """Write payloads into the segments of `worker`; blocks, on this host at most `timeout` seconds for lack of room."""
    peer = client._peers.worker(worker)
    if peer is None:
        raise TransferError(f"the worker {worker} is gone")
    try:
        if peer.here:
            client._broker_of(peer).put(batch, timeout)
            return
        for item, error in zip(batch, client._segments.data_client(client).put(peer.address, batch)):
            if error is not None:
                batch = [item]
                raise error
    except SegmentsFull as error:
        name, _, payload = max(batch, key=lambda item: item[2].nbytes)
        which = (
            "the value"
            if len(batch) == 1
            else f"{len(batch)} values, the largest {format_size(payload.nbytes)}"
        )
        error.args = (f"{error}; it is for {which} of the key {decode_key(name)!r:.80}",)
        raise


def scatter(
    client: Client,
    data: Any,
    workers: Any,
    broadcast: bool | int,
    hash_: bool,
    timeout: float | None,
    replicas: int = 1,
) -> Operation[Any]:
    """Store `data` and return Futures in the same shape."""
    deadline = None if timeout is None else time.monotonic() + timeout
    most = None if broadcast is True else integer("broadcast", broadcast, 0)
    # `timeout` bounds each wait for a reply by itself: what large values take to be written is not counted.
    names: list[str | None]
    if isinstance(data, Mapping):
        values, names = list(data.values()), [encode_key(key) for key in data]
    elif isinstance(data, list | tuple | set | frozenset):
        values = list(data)
        names = [None] * len(values)
    elif type(data) is range or hasattr(data, "__next__"):
        values = list(data)
        names = [None] * len(values)
        data = values
    else:
        values, names = [data], [None]
    wanted = worker_names(workers)
    with seldom_collected(len(values)):
        futures = yield from _stored(client, values, names, hash_, wanted, deadline, timeout)
    stored = [future.name for future in futures]
    if replicas > 1:
        yield from replicating.keep(client, stored, replicas, timeout)
    if broadcast:
        yield from replicating.broadcast(client, stored, wanted, most, timeout)
    if isinstance(data, Mapping):
        return dict(zip(data, futures))
    if isinstance(data, list | tuple | set | frozenset):
        if is_named(data):
            kind: Any = type(data)
            return tuple.__new__(kind, futures)
        return futures if isinstance(data, list) else type(data)(futures)
    return futures[0]


def _stored(
    client: Client,
    values: list[Any],
    names: list[str | None],
    hash_: bool,
    workers: Sequence[str],
    deadline: float | None,
    timeout: float | None,
) -> Operation[list[Future[Any]]]:
    """Store each value, and return its Future."""
    futures: list[Future[Any]] = []
    bound: list[FutureState] = []
    borrowing = Borrowing(client)
    try:
        items = prepare(client, values, names, unique=not hash_, borrowing=borrowing, bound=bound)
        for state in bound:
            futures.append(Future._of(state, client))  # noqa: PERF401  # an interrupt must find what was made
    except BaseException:
        for state in bound[len(futures) :]:
            client.session.ledger.release(state)
        raise
    try:
        yield from store(
            client, items, workers=workers, deadline=deadline, timeout=timeout, places_ahead=not any(names)
        )
    except BaseException:
        for future in futures:
            future.release()  # not only when the traceback goes, which holds this frame
        raise
    return futures


def store_soon(client: Client, items: Sequence[Item], borrowing: Borrowing, *, places_ahead: bool) -> None:
    """In an event loop, where `submit` cannot wait: tasks that need `items` stay behind, however long storing takes."""
    values = {item.state.name: item.payload.contains for item in items if item.payload is not None}
    client.session.submissions.holding.begin(values)

    async def run() -> None:
        try:
            with contextlib.suppress(RedistError):  # the Futures of the tasks tell
                await client._driver.run(
                    store(client, items, keep=True, timeout=inf, places_ahead=places_ahead)
                )
        finally:
            borrowing.kept.clear()
            states = [item.state for item in items]
            client._driver.stored(
                values,
                {s.name: s.cache for s in states if s.status == ERROR and isinstance(s.cache, Exception)},
            )

    client._spawn(run())
