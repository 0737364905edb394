"""`Client.restart_workers`: new processes for the tasks of some workers."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgpack

from redist.describing import workers_changed
from redist.peers import unknown_worker
from redist.session.operations import AskAll, Operation, Run, Until
from redist.session.states import Condition
from redist.store import calls

if TYPE_CHECKING:
    from redist.client import Client
    from redist.peers import Peer

__all__ = ["restart_workers"]

_Status: TypeAlias = Literal["OK", "removed", "timed out"]
#: Registrations of a worker's executors: ordinal and incarnation of each.
_Executors: TypeAlias = frozenset[tuple[int, str]]

#: s between two looks, should a message be lost
_LOOK = 0.25


def restart_workers(
    client: Client, workers: Iterable[str], timeout: float | None, raise_for_error: bool
) -> Operation[dict[str, _Status]]:
    """Replace the executors of `workers`; return what became of each."""
    until = None if timeout is None else time.monotonic() + timeout
    wanted = [workers] if isinstance(workers, str) else list(map(str, workers))
    peers, executors = yield Run(_look, (client,))
    results: dict[str, _Status] = {}
    waiting: dict[str, tuple[Peer, _Executors]] = {}
    for text in wanted:
        peer = next((p for p in peers if text in p.names), None)
        if peer is not None:
            waiting[text] = peer, executors.get(peer.ordinal, frozenset())
        elif raise_for_error:
            raise unknown_worker(text)
        else:
            results[text] = "removed"
    told = {peer.ordinal: old for peer, old in waiting.values()}
    yield AskAll(
        [
            calls.send([ordinal], msgpack.packb(["replace", *(executor for executor, _ in sorted(old))]))
            for ordinal, old in told.items()
        ]
    )
    while True:
        seen = client._workers_seen
        peers, executors = yield Run(_look, (client,))
        living = {peer.ordinal for peer in peers}
        for text, (peer, old) in list(waiting.items()):
            new = executors.get(peer.ordinal, frozenset())
            if peer.ordinal not in living:
                results[text] = "removed"
            elif not new & old and len(new) >= int(peer.fields.get("executors") or 1):
                results[text] = "OK"
            else:
                continue
            del waiting[text]
        left = _LOOK if until is None else min(_LOOK, until - time.monotonic())
        if not waiting or left <= 0:
            break
        yield Until(Condition(partial(workers_changed, client, seen)), left)
    results |= dict.fromkeys(waiting, "timed out")
    if waiting and raise_for_error:
        raise TimeoutError(
            f"the processes of these workers did not start again within {timeout:g} s: {list(waiting)}"
        )
    return {text: results[text] for text in wanted}


def _look(client: Client) -> tuple[list[Peer], dict[int, _Executors]]:
    """Return the living workers, and the registered executors of each. Blocks."""
    peers = client._peers
    executors: dict[int, Any] = {}
    for ordinal in peers.fields("executors"):
        record = peers.fields(f"caller:{ordinal}")
        if record.get("inc"):
            executors.setdefault(int(record.get("worker") or 0), set()).add((int(ordinal), record["inc"]))
    return peers.workers(), {worker: frozenset(found) for worker, found in executors.items()}
