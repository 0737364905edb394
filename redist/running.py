"""`Client.run`: functions that run in executors, beside their tasks.

A function goes as a control message into the inboxes of executors, and the answers come back into the client's. Messages
can be lost with a connection: who waits asks again, an executor runs what has the same token once, and keeps its answer for
a while.

======================================== ==========================================================================
``["run", token, asker, flags, data]``   to an executor: run the function in `data`
``["ask", token, asker]``                to an executor: what about it?
``["ran", token, executor, ok, data]``   the answer: its value or its error
``["unknown", token, executor]``         the answer of an executor that never heard of it
======================================== ==========================================================================
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from redist.errors import SerializationError, WorkerGone
from redist.future import Future
from redist.protocol import format_bytes, function_label, unpack_error
from redist.protocol.whole import dump_whole, load_whole
from redist.session.operations import Ask, Operation, Run, Until
from redist.session.states import Waiter
from redist.store import calls

if TYPE_CHECKING:
    from redist.client import Client
    from redist.peers import Peer

__all__ = ["MOST_BYTES", "WAIT", "WHEN_SET_UP", "Runs", "Target", "run", "targets"]

#: Bytes of a function with its arguments, and of a value that comes back: they lie in the server meanwhile.
MOST_BYTES = 64 << 20
#: Flags: the answer is the end of a coroutine; plugins are set up first. A plugin's own setup may run functions, which do
#: not wait for that: it would wait for itself, or two for each other.
WAIT, WHEN_SET_UP = 1, 2
#: Seconds without an answer, after which it is asked for; then twice as many, up to the second.
_PATIENCE, _LONGEST_PATIENCE = 1.0, 10.0


class Target(NamedTuple):
    """An executor, and the key of its result: its worker's address, behind which ``/0``, ``/1`` follow if it has several."""

    key: str
    ordinal: int
    incarnation: str


class _Answers(Waiter):
    """A wait for the answers of executors."""

    __slots__ = ("came", "missing", "unknown")

    def __init__(self, ordinals: Iterable[int]) -> None:
        self.missing = set(ordinals)
        super().__init__(len(self.missing))
        self.foreign = True
        self.came: dict[int, tuple[bool, bytes] | WorkerGone] = {}
        self.unknown: set[int] = set()


class Runs:
    """What a client waits for, by token. From any thread."""

    def __init__(self) -> None:
        self._open: dict[str, _Answers] = {}
        self._mutex = threading.Lock()

    def begin(self, token: str, ordinals: Iterable[int]) -> _Answers:
        """Return a wait for the answers of these executors."""
        answers = self._open[token] = _Answers(ordinals)
        return answers

    def end(self, token: str) -> None:
        """Wait no more."""
        self._open.pop(token, None)

    def answered(self, token: str, ordinal: int, what: tuple[bool, bytes] | WorkerGone) -> None:
        """Take an answer, or the news that none will come."""
        answers = self._open.get(token)
        if answers is None:
            return
        with self._mutex:
            if ordinal not in answers.missing:
                return
            answers.missing.discard(ordinal)
            answers.came[ordinal] = what
            answers.remaining = len(answers.missing)
        if answers.remaining == 0 and (wake := answers.wake) is not None:
            wake()

    def unheard(self, token: str, ordinal: int) -> None:
        """Note that an executor never got the message."""
        answers = self._open.get(token)
        if answers is not None:
            answers.unknown.add(ordinal)


def targets(
    client: Client, workers: str | Iterable[str] | None
) -> tuple[list[Target], dict[str, WorkerGone]]:
    """Return the executors of these workers, of all for None, and the error of each that is not there. Blocks."""
    peers = client._peers
    known = {peer.ordinal: peer for peer in peers.workers()}
    found: list[tuple[Target, Peer]] = []
    for ordinal in sorted(peers.fields("executors"), key=int):
        record = peers.fields(f"caller:{ordinal}")
        peer = known.get(int(record.get("worker") or 0))
        if peer is not None and record.get("inc"):
            several = peer.fields.get("executors", "1") != "1"
            index = record.get("name", "").rpartition("-")[2]
            key = f"{peer.address}/{index}" if several else peer.address
            found.append((Target(key, int(ordinal), record["inc"]), peer))
    if workers is None:
        return [target for target, _ in found], {}
    chosen: dict[int, Target] = {}
    errors: dict[str, WorkerGone] = {}
    for wanted in [workers] if isinstance(workers, str) else map(str, workers):
        mine = [t for t, p in found if wanted == t.key or wanted in p.names]
        chosen.update((target.ordinal, target) for target in mine)
        if not mine:
            errors[wanted] = WorkerGone(
                f"there is no worker {wanted!r}, or none of its processes runs: scheduler_info() names the workers"
            )
    return list(chosen.values()), errors


def run(
    client: Client,
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workers: str | Iterable[str] | None = None,
    *,
    wait: bool = True,
    on_error: str = "raise",
) -> Operation[dict[str, Any] | None]:
    """Run a function in executors; return the results, or None without `wait`."""
    what = f"the function {function_label(function)} with its arguments"
    data = dump_whole((function, args, kwargs), Future._hand_over, what=what)
    if len(data) > MOST_BYTES:
        raise SerializationError(
            f"the function and its arguments take {format_bytes(len(data))}, which is too much for a message: "
            "scatter what is large and pass its Future"
        )
    chosen, failed = yield Run(targets, (client, workers))
    results: dict[str, Any] = dict(failed)
    came = (yield from _answers(client, chosen, data, wait)) if chosen else {}
    for target in chosen:
        answer = came[target.ordinal]
        if isinstance(answer, WorkerGone):
            failed[target.key] = results[target.key] = answer
        elif answer[0]:
            results[target.key] = yield Run(_load, (client, answer[1]))
        else:
            error, traceback = unpack_error(answer[1])
            failed[target.key] = results[target.key] = error.with_traceback(traceback)
    if failed and on_error == "raise":
        raise next(iter(failed.values()))
    if on_error == "ignore":
        results = {key: result for key, result in results.items() if key not in failed}
    return results if wait else None


def _load(client: Client, data: bytes) -> Any:
    with client.as_current():
        return load_whole(data)


def _answers(
    client: Client, chosen: list[Target], data: bytes, wait: bool
) -> Operation[dict[int, tuple[bool, bytes] | WorkerGone]]:
    token = secrets.token_hex(8)
    by_ordinal = {target.ordinal: target for target in chosen}
    me = client.session.ordinal
    flags = (WAIT if wait else 0) | (WHEN_SET_UP if client.session.kind == "client" else 0)
    message = msgpack.packb(["run", token, me, flags, data])
    answers = client._runs.begin(token, by_ordinal)
    try:
        yield Ask(calls.send(list(by_ordinal), message))
        patience = _PATIENCE
        while not (yield Until(answers, patience)):
            patience = min(2 * patience, _LONGEST_PATIENCE)
            yield Run(client._inbox.look)
            for ordinal in (yield Run(_gone, (client, [by_ordinal[o] for o in answers.missing]))):
                error = WorkerGone(
                    f"a process of the worker {by_ordinal[ordinal].key} ended, or lost its registration, before it answered"
                )
                client._runs.answered(token, ordinal, error)
            unheard = sorted(answers.missing & answers.unknown)
            answers.unknown.clear()
            if unheard:
                yield Ask(calls.send(unheard, message))
            elif answers.missing:
                yield Ask(calls.send(sorted(answers.missing), msgpack.packb(["ask", token, me])))
        return answers.came
    finally:
        client._runs.end(token)


def _gone(client: Client, waiting: list[Target]) -> list[int]:
    """Return which executors will not answer any more. Blocks."""
    return [
        target.ordinal
        for target in waiting
        if client._peers.fields(f"caller:{target.ordinal}").get("inc") != target.incarnation
    ]
