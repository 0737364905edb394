"""Copies of values: how many are kept, where they are, and what moves when workers are to hold less or to go.

The number is part of a key's record, and whoever notices that a copy went has another made. So what is done here is to say
what is wanted, and to wait until it is so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from redist.describing import names_of, read_states, scheduler_info
from redist.errors import NoWorkers
from redist.gathering import wait_for
from redist.levelling import Load, level
from redist.peers import unknown_worker
from redist.session.lane import Refused
from redist.session.operations import Ask, AskAll, Operation, Run, Until
from redist.session.states import PENDING, Waiter
from redist.store import copying
from redist.store.copying import Copies, Sole, parse_copies
from redist.store.portions import portions
from redist.submitting import worker_names

if TYPE_CHECKING:
    from redist.client import Client
    from redist.peers import Peer
    from redist.store.calls import Call

__all__ = ["broadcast", "keep", "rebalance", "replicate", "retire"]

_SLICE = 500
#: Workers that the copies of one call may be planned on, over all of its keys.
_PLANS = 2000
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1
#: Part of the time waited so far that the next pause takes: so late the end may be noticed.
_LATE = 0.05
#: s after which it is read anew which workers run
_LOOK = 0.1
#: s after which what was planned and is not there is planned again
_AGAIN = 1.0

Enough: TypeAlias = "Callable[[Copies, list[Peer]], bool]"


def replicate(
    client: Client, futures: Any, n: int | None, workers: Any, branching: int, timeout: float | None = None
) -> Operation[None]:
    """Have `n` copies of each value, on `workers` where they are given; of all workers for None."""
    names = names_of(client, futures)
    yield from _finished(client, names)
    wanted = worker_names(workers)
    chosen = _chosen((yield Run(client._peers.workers)), wanted)
    if not chosen:
        raise NoWorkers("there is no worker to copy to" + (f" among {', '.join(wanted)}" if wanted else ""))
    count = len(chosen) if n is None else n
    _remember(client, names, count, branching)
    plan, most = ("workers", min(count, len(chosen))) if wanted or n is None else ("", 0)

    def enough(copies: Copies, peers: list[Peer]) -> bool:
        able = {peer.ordinal for peer in _chosen(peers, wanted)}
        return len(able & set(copies.holders)) >= min(count, len(able))

    def call(part: Sequence[str]) -> Call:
        return copying.replicate(part, count, branching=branching, plan=plan, most=most, workers=wanted)  # type: ignore[arg-type]

    yield from _until(client, names, call, enough, len(chosen) if plan else 1, timeout)


def keep(client: Client, names: Sequence[str], n: int, timeout: float | None = None) -> Operation[None]:
    """Have `n` copies of each value at least, or as many as there are workers, until more come."""
    _remember(client, names, n, None)

    def enough(copies: Copies, peers: list[Peer]) -> bool:
        return len(copies.holders) >= min(n, len(peers))

    yield from _until(
        client, names, lambda part: copying.replicate(part, n, at_least=True), enough, 1, timeout
    )


def broadcast(
    client: Client, names: Sequence[str], workers: list[str], most: int | None, timeout: float | None
) -> Operation[None]:
    """Have a copy of each value on every host, or on `most` of them: workers of one host share their memory."""
    peers = _chosen((yield Run(client._peers.workers)), workers)
    if len({_memory(peer) for peer in peers}) < 2 and not workers:
        return
    limit = len(peers) if most is None else most

    def enough(copies: Copies, peers: list[Peer]) -> bool:
        able = {peer.ordinal: _memory(peer) for peer in _chosen(peers, workers)}
        there = {able[holder] for holder in copies.holders if holder in able}
        return len(there) >= min(limit, len(set(able.values())))

    def call(part: Sequence[str]) -> Call:
        return copying.replicate(part, plan="hosts", most=limit, workers=workers)

    yield from _until(client, names, call, enough, len(peers), timeout)


def rebalance(client: Client, futures: Any, workers: Any, timeout: float | None = None) -> Operation[None]:
    """Even out the bytes of workers by moving copies of `futures`, or of all there is."""
    names = None if futures is None else names_of(client, futures)
    if names is not None:
        yield from _finished(client, names)
    wanted = worker_names(workers)
    chosen = _chosen((yield Run(client._peers.workers)), wanted)
    for text in wanted:
        if not _chosen(chosen, [text]):
            raise unknown_worker(text)
    loads: list[Load] = []
    for peer in chosen:
        has: dict[str, str] = yield Run(client._peers.fields, (f"has:{peer.ordinal}",))
        sizes = {s.name: s.nbytes for s in (yield from read_states(list(has))) if s.state == "memory"}
        loads.append(Load(peer.ordinal, sizes))
    moves = level(loads, None if names is None else set(names))
    for part in portions(moves, _SLICE, lambda _: 1):
        yield Ask(copying.move(part), timeout)
    moved = list(dict.fromkeys(name for name, _, _ in moves))
    yield from _wait(client, moved, lambda copies, _: not copies.coming, timeout)


def retire(
    client: Client, workers: Any, names: Any, n: int | None, close: bool, timeout: float | None = None
) -> Operation[dict[str, Any]]:
    """Have workers close: others copy what only they have, and with `close` they end when their tasks are done."""
    peers: list[Peer] = yield Run(client._peers.workers)
    info = (yield from scheduler_info(client, -1))["workers"]
    if n is not None:
        chosen = yield from _least(client, peers, n)
    else:
        wanted = [*worker_names(workers), *worker_names(names)]
        chosen = _chosen(peers, wanted) if wanted else []
    if not chosen:
        return {}
    ordinals = {peer.ordinal for peer in chosen}
    stays = [peer for peer in peers if peer.ordinal not in ordinals and _runs(peer)]
    if not stays:
        for peer in chosen:
            if (yield Run(client._peers.fields, (f"has:{peer.ordinal}",))):
                raise NoWorkers(
                    f"no worker would be left to take what {peer.name} has; start another one first"
                )
    yield Ask(copying.retire(sorted(ordinals), close=close), timeout)
    for ordinal in sorted(ordinals):
        yield from _left(client, ordinal, close, timeout)
    return {peer.address: info[peer.address] for peer in chosen if peer.address in info}


# --- waiting --------------------------------------------------------------------------------------------------------


def _remember(client: Client, names: Sequence[str], n: int, branching: int | None) -> None:
    """Note what is asked for, to be said again to a server that loses its memory; without `branching`, as the least."""
    session = client.session
    with session.lock:
        for name in names:
            state = session.states.get(name)
            if state is None:
                continue
            before = session.copies.pop(state, (1, 2))
            wanted = (max(n, before[0]), before[1]) if branching is None else (n, branching)
            if wanted[0] > 1:
                session.copies[state] = wanted


def _finished(client: Client, names: Sequence[str]) -> Operation[None]:
    """Wait for Futures that are not finished, however they end."""
    states = [client.session.states.get(name) for name in names]
    pending = [state for state in states if state is not None and state.status == PENDING]
    if pending:
        yield from wait_for(client, pending, None, stop_on_error=False)


def _until(
    client: Client,
    names: Sequence[str],
    call: Callable[[Sequence[str]], Call],
    enough: Enough,
    plans: int,
    timeout: float | None,
) -> Operation[None]:
    """Say what is wanted, and wait until it is so; say it again where something came between."""
    todo: Sequence[str] = names
    until = time.monotonic() + (client._timeout if timeout is None else timeout)
    while todo:
        for part in portions(todo, min(_SLICE, max(1, _PLANS // plans)), lambda _: 1):
            try:
                yield Ask(call(part), timeout)
            except Refused as refused:
                raise NoWorkers(refused.message) from None
        before = len(todo)
        todo = yield from _wait(client, todo, enough, timeout)
        if todo:
            if len(todo) < before:
                until = time.monotonic() + (client._timeout if timeout is None else timeout)
            if time.monotonic() > until:
                raise TimeoutError(
                    f"copies of {len(todo)} values could not be made in time; the logs of workers say why"
                )
            yield Until(Waiter(1), _AGAIN)


def _wait(
    client: Client, names: Sequence[str], enough: Enough, timeout: float | None
) -> Operation[list[str]]:
    """Wait until nothing is on its way; return the keys of which there are not enough copies yet.

    Raises
    ------
    TimeoutError
        If for so long no copy was made.
    """
    limit = client._timeout if timeout is None else timeout
    began = last = time.monotonic()
    looked, progress = 0.0, -1
    peers: list[Peer] = []
    waiting, lacking = list(names), []
    while waiting:
        slices = [waiting[i : i + _SLICE] for i in range(0, len(waiting), _SLICE)]
        replies = yield AskAll([copying.copies(part) for part in slices], timeout)
        read = dict(zip(waiting, [copies for reply in replies for copies in parse_copies(reply)]))
        if time.monotonic() - looked > _LOOK:
            looked = time.monotonic()
            peers = [peer for peer in (yield Run(client._peers.workers)) if _runs(peer)]
        here = [name for name, copies in read.items() if copies.there and not enough(copies, peers)]
        coming = [name for name in here if read[name].coming]
        lacking += [name for name in here if not read[name].coming]
        made = sum(len(copies.holders) for copies in read.values())
        if made != progress or len(coming) < len(waiting):
            last, progress = time.monotonic(), made
        waiting = coming
        if waiting:
            if time.monotonic() - last > limit:
                raise TimeoutError(f"copies of {len(waiting)} values were not made in time")
            pause = max(_FIRST_PAUSE, _LATE * (time.monotonic() - began))
            yield Until(Waiter(1), min(pause, _LONGEST_PAUSE))
    return lacking


def _left(client: Client, ordinal: int, close: bool, timeout: float | None) -> Operation[None]:
    """Wait until nothing would be lost with a closing worker; and until it has gone, unless it has tasks to do."""
    limit = client._timeout if timeout is None else timeout
    last, before = time.monotonic(), -1
    pause = _FIRST_PAUSE
    while True:
        sole = Sole.nothing().add((yield Ask(copying.sole(ordinal), timeout)))
        while sole.cursor:
            sole = sole.add((yield Ask(copying.sole(ordinal, sole.cursor), timeout)))
        found = sole.left
        if found and not sole.running:
            raise NoWorkers("no worker is left that could take what retiring workers have; start another one")
        if found != before:
            last, before = time.monotonic(), found
        client._peers.forget()
        if not found and (not close or (yield Run(_gone_or_busy, (client, ordinal)))):
            return
        if time.monotonic() - last > limit:
            raise TimeoutError(
                f"{found} values of a retiring worker could not be copied in time; it goes on to try"
            )
        yield Until(Waiter(1), pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _gone_or_busy(client: Client, ordinal: int) -> bool:
    """Tell whether a worker has gone, or has tasks. Blocks."""
    return client._peers.worker(ordinal) is None or client._peers.has_tasks(ordinal)


# --- workers --------------------------------------------------------------------------------------------------------


def _chosen(peers: Iterable[Peer], wanted: Sequence[str]) -> list[Peer]:
    """Return those that run, and are named by name, address, host or ordinal if any are."""
    names = set(wanted)
    return [
        peer
        for peer in peers
        if _runs(peer) and (not names or names & {*peer.names, peer.fields.get("host", "")})
    ]


def _runs(peer: Peer) -> bool:
    return peer.fields.get("status") != "closing"


def _memory(peer: Peer) -> str:
    return peer.fields.get("memory", "")


def _least(client: Client, peers: list[Peer], n: int) -> Operation[list[Peer]]:
    """Return the `n` running workers with the fewest tasks and values."""
    weights = {}
    for peer in peers:
        if _runs(peer):
            has = yield Run(client._peers.fields, (f"has:{peer.ordinal}",))
            busy = yield Run(_gone_or_busy, (client, peer.ordinal))
            weights[peer.ordinal] = (busy, len(has))
    chosen = sorted(weights, key=lambda ordinal: weights[ordinal])[:n]
    return [peer for peer in peers if peer.ordinal in chosen]
