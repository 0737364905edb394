"""What a client tells about the cluster: workers, who has what, what runs where."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgpack

from redist.belonging import check
from redist.current import futures_of
from redist.errors import StoreError
from redist.future import Future
from redist.peers import unknown_worker
from redist.session.operations import Ask, AskAll, Operation, Run, Until
from redist.session.states import Condition
from redist.store import calls
from redist.store.keys import Key, decode_key, encode_key
from redist.store.replies import State, parse_states
from redist.submitting import worker_names

if TYPE_CHECKING:
    from redist.client import Client
    from redist.peers import Peer

__all__ = [
    "close_workers",
    "has_what",
    "names_of",
    "nthreads",
    "processing",
    "restart",
    "scheduler_info",
    "wait_for_workers",
    "who_has",
    "workers_changed",
]

_SLICE = 500
#: A look at the workers may take so long on a busy host, s.
_SHORT = 0.1
#: How long it is waited for workers that were told to end, s.
_LONGEST_END = 10.0


def names_of(client: Client, futures: Any, *, cancelled: bool = False) -> list[str]:
    """Return the wire names of Futures, keys, or nested collections of Futures, each once.

    Parameters
    ----------
    client : Client
        Who asks.
    futures : Future, key, or collection of them
        Which.
    cancelled : bool
        Whether there may be cancelled ones among them.

    Raises
    ------
    ForeignFutureError
        If a Future is of another cluster than `client`.
    TypeError
        If there is anything else in it.
    CancelledError
        If a Future is cancelled, and none may be.
    """
    looks = None if cancelled else client
    if isinstance(futures, str):
        return [encode_key(futures)]
    if _is_key(futures) and not all(isinstance(item, str) for item in futures):
        return [encode_key(futures)]
    if isinstance(futures, Iterable):
        items = list(futures.values() if isinstance(futures, dict) else futures)
        names: dict[str, None] = {}
        for item in items:
            if isinstance(item, str) or _is_key(item):
                names[encode_key(item)] = None
            else:
                for future in futures_of(_collection(item), looks):
                    check(client, future)
                    names[future.name] = None
        return list(names)
    found = futures_of(_collection(futures), looks)
    for future in found:
        check(client, future)
    return [future.name for future in found]


def _is_key(item: Any) -> bool:
    """Return whether `item` is a tuple key, or meant as one: a str first, and no Future next to it."""
    if not (isinstance(item, tuple) and item and isinstance(item[0], str)):
        return False
    return not any(isinstance(part, Future | list | dict | set) for part in item)


def _collection(item: Any) -> Any:
    """Return `item` if Futures may be in it."""
    if isinstance(item, Future | list | tuple | set | frozenset | dict) or hasattr(item, "__dask_graph__"):
        return item
    raise TypeError(f"a Future, a key or a collection of them was expected, not {item!r:.80}")


def read_states(names: list[str]) -> Operation[list[State]]:
    """Read the states of keys."""
    replies = yield AskAll([calls.states(names[i : i + _SLICE]) for i in range(0, len(names), _SLICE)])
    return [state for reply in replies for state in parse_states(reply)]


def all_names(client: Client) -> list[str]:
    """Return the wire names of the keys that anybody refers to, or that workers have payloads of. Blocks."""
    peers = client._peers
    callers = [ordinal for kind in ("clients", "executors") for ordinal in peers.fields(kind)]
    names: dict[str, None] = {}
    for ordinal in (*sorted(callers, key=int), "0"):
        names |= dict.fromkeys(peers.members(f"holds:{ordinal}"))
    for ordinal in peers.fields("workers"):
        names |= dict.fromkeys(peers.fields(f"has:{ordinal}"))
    return [name for name in names if not name.startswith("@")]


def who_has(client: Client, futures: Any) -> Operation[dict[Key, tuple[str, ...]]]:
    """Return the addresses of the workers that have each key's payload; none for a value that the server keeps.

    Of all keys for None, without those that only tasks and containers still need and the server itself keeps.
    """
    if futures is None:
        names = yield Run(all_names, (client,))
    else:
        names = names_of(client, futures)
    states = yield from read_states(names)
    result: dict[Key, tuple[str, ...]] = {}
    for state in states:
        addresses = []
        for place in state.where.split() if state.state == "memory" else ():
            peer = yield Run(client._peers.worker, (int(place.partition(".")[0]),))
            if peer is not None:
                addresses.append(peer.address)
        result[decode_key(state.name)] = tuple(addresses)
    return result


def _chosen(peers: list[Peer], workers: str | Iterable[str] | None) -> list[Peer]:
    if workers is None:
        return peers
    wanted = set(worker_names(workers))
    return [peer for peer in peers if peer.names & wanted]


def has_what(client: Client, workers: str | Iterable[str] | None) -> Operation[dict[str, tuple[Key, ...]]]:
    """Return the keys of the payloads that each worker has; none for a worker that is not there."""
    peers = _chosen((yield Run(client._peers.workers)), workers)
    result: dict[str, tuple[Key, ...]] = {}
    if workers is not None:
        known = {text for peer in peers for text in peer.names}
        result = {text: () for text in worker_names(workers) if text not in known}
    for peer in peers:
        fields = yield Run(client._peers.fields, (f"has:{peer.ordinal}",))
        result[peer.address] = tuple(decode_key(name) for name in sorted(fields))
    return result


def _read_executors(client: Client) -> list[dict[str, str]]:
    peers = client._peers
    return [
        {"ordinal": ordinal, **peers.fields(f"caller:{ordinal}")}
        for ordinal in sorted(peers.fields("executors"), key=int)
    ]


def _processes(executors: Iterable[dict[str, str]]) -> set[tuple[str, str]]:
    """Return the worker and the process id of each executor that is registered."""
    return {(e.get("worker", ""), e.get("pid", "")) for e in executors if e.get("inc")}


def _read_both(client: Client, until: float | None) -> tuple[list[Peer], list[dict[str, str]]]:
    """Read the workers and the executors by `until`."""
    with client._peers.within(until):
        return client._peers.workers(), _read_executors(client)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0


def scheduler_info(client: Client, n_workers: int) -> Operation[dict[str, Any]]:
    """Return what is known of the workers, in the form of Dask's ``scheduler_info``; there is no scheduler process."""
    import json

    peers: list[Peer] = yield Run(client._peers.workers)
    executors: list[dict[str, str]] = yield Run(_read_executors, (client,))
    meta = yield Run(client._peers.fields, ("meta",))
    threads: dict[str, int] = {}
    for executor in executors:
        worker = executor.get("worker", "")
        threads[worker] = threads.get(worker, 0) + int(_number(executor.get("threads", "1")))
    workers = {}
    for peer in peers[: n_workers if n_workers >= 0 else None]:
        fields = peer.fields
        try:
            metrics = json.loads(fields.get("metrics") or "{}")
        except ValueError:
            metrics = {}
        workers[peer.address] = {
            "type": "Worker",
            "id": peer.name,
            "name": peer.name,
            "host": fields.get("host", ""),
            "pid": int(_number(fields.get("pid", "0"))),
            "nthreads": threads.get(str(peer.ordinal), 0),
            "memory_limit": int(_number(fields.get("memory_limit", "0"))),
            "resources": _resources(fields.get("resources", "")),
            "services": {},
            "status": fields.get("status", "running").replace("strained", "running"),
            "nanny": None,
            "last_seen": _number(fields.get("seen", "0")) / 1000,
            "local_directory": peer.segments,
            "metrics": metrics,
            "ordinal": peer.ordinal,
        }
    return {
        "type": "Scheduler",
        "id": f"redist {client.namespace}",
        "address": client.url,
        "services": {},
        "started": _number(meta.get("since", "0")) / 1000,
        "generation": int(_number(meta.get("generation", "0"))),
        "n_workers": len(peers),
        "total_threads": sum(threads.values()),
        "total_memory": sum(int(_number(peer.fields.get("memory_limit", "0"))) for peer in peers),
        "workers": workers,
    }


def _resources(text: str) -> dict[str, float]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    return {name: _number(amount) for name, _, amount in pairs}


def nthreads(client: Client, workers: str | Iterable[str] | None) -> Operation[dict[str, int]]:
    """Return how many tasks each worker runs at a time."""
    info = yield from scheduler_info(client, -1)
    peers = _chosen((yield Run(client._peers.workers)), workers)
    return {peer.address: info["workers"].get(peer.address, {}).get("nthreads", 0) for peer in peers}


def processing(client: Client, workers: str | Iterable[str] | None) -> Operation[dict[str, tuple[Key, ...]]]:
    """Return the keys of the tasks that each worker has been given and not finished.

    Raises
    ------
    UnknownWorker
        If there is no worker of one of these names.
    """
    living: list[Peer] = yield Run(client._peers.workers)
    peers = _chosen(living, workers)
    for text in worker_names(workers):
        if not _chosen(peers, text):
            raise unknown_worker(text)
    executors = yield Run(_read_executors, (client,))
    result: dict[str, tuple[Key, ...]] = {}
    for peer in peers:
        running: list[Key] = []
        for executor in executors:
            if executor.get("worker") == str(peer.ordinal):
                batches = yield Run(client._peers.fields, (f"batches:{executor['ordinal']}",))
                names = [name for batch in batches.values() for name in batch.split("\n") if name]
                mine = f"processing e{executor['ordinal']}."
                states = yield from read_states(names)
                running += [
                    decode_key(s.name) for s in states if s.state == "processing" or s.state.startswith(mine)
                ]
        result[peer.address] = tuple(running)
    return result


def workers_changed(client: Client, seen: int) -> bool:
    """Tell whether a worker joined or left since the count of such messages was `seen`."""
    return client._workers_seen != seen


def wait_for_workers(
    client: Client, n_workers: int, timeout: float | None, old: Collection[tuple[str, str]] = ()
) -> Operation[None]:
    """Wait until at least `n_workers` workers can run tasks; of none of them are the processes `old`, as of `_processes`.

    Raises
    ------
    TimeoutError
        If they are fewer when the timeout comes.
    ConnectionLost, ServerRefused
        If the server cannot be asked by then, or for as long as the client waits for replies.
    """
    until = None if timeout is None else time.monotonic() + timeout
    count = None
    while True:
        seen = client._workers_seen
        short = until is not None and until - time.monotonic() < _SHORT
        try:
            peers, executors = yield Run(_read_both, (client, until))
        except StoreError:
            # A look that begins right before the end is cut off by it; the one before tells.
            if not short or count is None:
                raise
        else:
            running = _processes(executors)
            able = {worker for worker, _ in running} - {worker for worker, _ in running & {*old}}
            if old:  # with all its processes, lest who asks for one is told of a worker without it
                counts = Counter(worker for worker, _ in running)
                wanted = {str(peer.ordinal): int(peer.fields.get("executors") or 1) for peer in peers}
                able = {worker for worker in able if counts[worker] >= wanted.get(worker, 1)}
            count = sum(str(peer.ordinal) in able for peer in peers)
            if count >= n_workers:
                return
        left = 1.0 if until is None else until - time.monotonic()
        if left <= 0:
            raise TimeoutError(
                f"only {count} of {n_workers} workers are here after {timeout:.3g} s{client._driver.links.standing()}"
            )
        yield Until(Condition(partial(workers_changed, client, seen)), min(left, 0.25))


def restart(client: Client, timeout: float | None, wait: bool, limit: float | None = None) -> Operation[None]:
    """Forget every key and dataset, and start the executors again; within `limit`, and `timeout` for the workers."""
    until = None if limit is None else time.monotonic() + limit
    peers, executors = yield Run(_read_both, (client, until))
    reply = yield Ask(calls.restart(), _left(until))
    with client.session.lock:
        client.session.set_generation(int(reply[2]))
    if peers:
        yield Ask(calls.send([peer.ordinal for peer in peers], msgpack.packb(["restart"])), _left(until))
    # It is let through when everything has been wiped.
    yield Ask(calls.noop(), _left(until))
    if wait and peers:
        # A process of before the restart registers anew, too, until its worker has heard of the restart.
        old = _processes(executors)
        yield from wait_for_workers(client, len(peers), timeout if until is None else _left(until), old)


def close_workers(client: Client) -> Operation[None]:
    """Have all workers end in good order, and wait for that; inside a task, which would wait for itself, only ask."""
    until = time.monotonic() + _LONGEST_END
    peers: list[Peer] = yield Run(client._peers.workers)
    if peers:
        yield Ask(calls.send([peer.ordinal for peer in peers], msgpack.packb(["close"])))
    while peers and client._owns_session and time.monotonic() < until:
        seen = client._workers_seen
        peers = yield Run(client._peers.workers)
        if peers:
            yield Until(Condition(partial(workers_changed, client, seen)), 0.25)


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
