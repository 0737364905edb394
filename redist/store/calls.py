"""What can be asked of the server: one typed maker a script, and how a call is packed.

A `Call` is plain data, and whoever owns a connection sends it. It travels as one ``EVALSHA`` with the namespace's routing
key and one msgpack value: a flat list that begins with the header (ordinal, incarnation, generation, n, acknowledged n).
`redist.store.replies` says what is answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgpack

from redist.store.scripts import Script, load, sharded

__all__ = [
    "Call", "EligibilityClass", "Header", "Replica", "Result", "Task", "Value", "add_replicas", "cancel",
    "client_heartbeat", "close", "commit", "continue_", "dependencies", "distrust", "drop_functions", "drop_handoffs",
    "fire", "get_dataset", "hand_in_for", "handoff", "held", "ledger", "link", "lost_executor", "lost_worker", "noop",
    "pack", "pack_eval", "place", "publish", "register", "registered", "remove_replicas", "restart", "retry", "send",
    "states", "submit", "turn", "unpublish", "worker_heartbeat",
]  # fmt: skip


class Header(NamedTuple):
    """What every call says of its sender; `prefix` is ``redist:{NAMESPACE}:``, `sharded` whether the server is a Cluster."""

    prefix: str
    ordinal: int
    incarnation: str
    generation: int
    n: int
    acknowledged: int
    sharded: bool = False


@dataclass(slots=True)
class Call:
    """One operation to be sent.

    Attributes
    ----------
    script : Script
        What the server runs.
    body : list
        Items after the header: str, bytes and ints below 2**53 only.
    numbered : bool
        Whether it takes a number on the sender's lane.
    grows : bool
        Whether a full server may refuse it whole (``OOM``).
    ageless : bool
        Whether it is applied whatever generation its sender knows, also while a restart is being carried out: what tells
        of processes, files and attempts rather than of keys.
    """

    script: Script
    body: list[Any]
    numbered: bool = True
    grows: bool = False
    ageless: bool = False


_AGELESS = 2**52  # above every generation; scripts/include/lane.lua knows it too


_packb = msgpack.Packer(use_bin_type=False, autoreset=True).pack


def pack(call: Call, header: Header) -> bytes:
    """Return the RESP command that runs `call` by the script's SHA."""
    script = sharded(call.script) if header.sharded else call.script
    return _resp(b"EVALSHA", script.sha.encode(), call, header)


def pack_eval(call: Call, header: Header) -> bytes:
    """Return the RESP command that runs `call` by the script's text, which also loads it."""
    script = sharded(call.script) if header.sharded else call.script
    return _resp(b"EVAL", script.text.encode(), call, header)


def _resp(command: bytes, script: bytes, call: Call, header: Header) -> bytes:
    generation = _AGELESS if call.ageless else header.generation
    argument = _packb(
        [header.ordinal, header.incarnation, generation, header.n, header.acknowledged, *call.body]
    )
    routing = f"{header.prefix}meta".encode()
    return b"*5\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n$1\r\n1\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        len(command), command, len(script), script, len(routing), routing, len(argument), argument,
    )  # fmt: skip


# --- registration ---------------------------------------------------------------------------------------------------


def register(
    kind: str,
    name: str,
    *,
    ordinal: int = 0,
    parent: int = 0,
    attempt: int = 0,
    generation: int = 0,
    lease_ms: int = 10_000,
    named: bool = False,
    lost: bool = False,
    again: bool = False,
    alone: bool = False,
    secret: str = "",
    n: int = 0,
    details: Mapping[str, str] | None = None,
) -> Call:
    """Register a caller under the header's incarnation; unnumbered, and the header's other fields are ignored.

    Parameters
    ----------
    kind : {'client', 'worker', 'executor'}
        What registers.
    name : str
        Name for people.
    ordinal : int
        The ordinal held before, 0 for none; kept while it is still this caller's.
    parent : int
        The worker's ordinal, for an executor.
    attempt, generation : int
        The highest ones that the caller has seen.
    lease_ms : int
        How long the caller lives without a heartbeat, ms.
    named : bool
        A client's session that survives it: `name` takes up what the session held.
    lost : bool
        The caller knows that the server lost writes: a ``GAP`` named a number older than the last answer that it read.
    again : bool
        An earlier registration of this process was not answered, and may have been carried out.
    alone : bool
        Refuse a worker (``NO name``) while another whose lease has not run out has its name.
    secret : str
        What the server of before answered; one that has another lost its memory.
    n : int
        The number of the registration, above all that the caller has used before; the next call has the one behind it.
    details : mapping of str
        Further fields of ``caller:ORD``.
    """
    known = int(lost) + 2 * int(again) + 4 * int(alone)
    body: list[Any] = [kind, name, ordinal, parent, attempt, generation, lease_ms, int(named), known]
    body += (secret, n)
    for field, value in (details or {}).items():
        body += (field, value)
    return Call(load("register"), body, numbered=False, grows=True)


def registered() -> Call:
    """End a registration anew: what only the old index of this caller holds is released."""
    return Call(load("registered"), [], ageless=True)


def held(cursor: int = 0) -> Call:
    """Read a slice of what a named session held before this registration: ``OK`` next cursor (0: done), names."""
    return Call(load("held"), [cursor], numbered=False)


def close() -> Call:
    """Leave: everything this caller holds is released, its record goes."""
    return Call(load("close"), [], ageless=True)


def noop() -> Call:
    """Use up a number; sent in place of a call that a full server refused."""
    return Call(load("noop"), [], ageless=True)


# --- tasks ----------------------------------------------------------------------------------------------------------

FIRE_AND_FORGET = 1
"""Flag of a `Task`: it stays wanted until it is finished."""

FRESH = 2
"""Flag of a `Task`: its sender made the name for it and never sent it before, so that it need not be looked up."""


class Task(NamedTuple):
    """One task to `submit`; `fn` is the function's hash, `count` the ledger's absolute count for `name`."""

    name: str
    fn: str
    spec: bytes
    deps: Sequence[str] = ()
    count: int = 1  # type: ignore[assignment]  # shadows tuple.count
    retries: int = 0
    priority: float = 0
    cls: str = ""
    flags: int = 0


class EligibilityClass(NamedTuple):
    """Which workers may run a task.

    Attributes
    ----------
    hash : str
        Its name: short and without spaces or colons.
    workers : str
        Names, addresses or hosts, joined by newlines; empty for any.
    resources : str
        ``GPU=1,MEM=2.5``; empty for none.
    strict : bool
        False lets other workers run it when none of `workers` is idle (``allow_other_workers``).
    executor : int
        Ordinal of the one executor that runs it while it lives; once that is gone, anybody does. What such a task computed
        is not computed again. 0 for none; goes without `workers`.
    """

    hash: str
    workers: str
    resources: str
    strict: bool = True
    executor: int = 0


MORE = 4
"""Flag of a `Task`: `link` tells of further dependencies, in calls that follow on the same lane."""

AHEAD = 8
"""Flag of a `Task`: once the values that it waits for are there it goes ahead of what is queued, so that they can go."""

SPREAD = 16
"""Flag of a `Task`: what it makes stays where it runs, so that idle executors take turns with such tasks."""

_OF_EXECUTOR = 2  # the strictness of a class that names an executor

_TRUST = 3  # index in the body of `submit`: whether fresh names still are


def submit(
    tasks: Sequence[Task],
    functions: Sequence[tuple[str, bytes]] = (),
    classes: Sequence[EligibilityClass] = (),
) -> Call:
    """Make tasks known, count the caller's references, hand out or queue what is ready.

    `functions` brings the pickles of functions that this caller has not sent before. States of keys that are finished
    already, refused (``erred`` with ``!KeyTaken``) or have unknown dependencies (``cancelled``) are pushed.
    """
    index: dict[str, int] = {}
    brought = dict(functions)
    items: list[Any] = []
    add = items.append
    for name, fn, spec, deps, count, retries, priority, cls, flags in tasks:
        i = index.get(fn)
        if i is None:
            i = index[fn] = len(index) + 1
        add(name)
        add(i)
        add(spec)
        if count == 1 and not retries and not priority and not cls and flags in (0, FRESH):
            add("+" if flags else "")
        else:
            add(f"{flags} {count} {retries} {priority} {cls}")
        add(len(deps))
        if deps:
            items += deps
    body: list[Any] = [len(tasks), len(index), len(classes), 1]
    for fn in index:
        body += (fn, brought.get(fn, b""))
    for c in classes:
        if c.executor:
            body += (c.hash, str(c.executor), "", _OF_EXECUTOR)
        else:
            body += (c.hash, c.workers, c.resources, int(c.strict))
    body += items
    return Call(load("submit"), body, grows=True)


def link(name: str, before: int, deps: Sequence[str], *, last: bool) -> Call:
    """Tell of further dependencies of a task, `before` of which were told of before; with the `last` ones it may run."""
    return Call(load("link"), [name, before, before + len(deps) if last else 0, *deps], grows=True)


def distrust(call: Call) -> None:
    """Have a `submit` look up names that were fresh when it was made, before it is sent under another number."""
    call.body[_TRUST] = 0


def ledger(pairs: Iterable[tuple[str, int]]) -> Call:
    """Set the caller's reference counts; 0 lets go."""
    body: list[Any] = []
    for pair in pairs:
        body += pair
    return Call(load("ledger"), body)


def fire(names: Iterable[str]) -> Call:
    """Keep tasks wanted until they are finished, whoever lets go."""
    return Call(load("fire"), list(names))


def cancel(names: Sequence[str], *, force: bool = False, reason: str = "cancelled by user") -> Call:
    """Drop the caller's references; stop what nobody else wants, or with `force` what anybody wants."""
    return Call(load("cancel"), [int(force), reason, *names])


def retry(names: Sequence[str]) -> Call:
    """Run erred tasks again, and the erred tasks that they depend on."""
    return Call(load("retry"), list(names), grows=True)


class Result(NamedTuple):
    """What became of one attempt; `value` empty with status ``memory``: a segment on the executor's worker.

    `status` is ``memory``, ``erred`` (`value` is the pickled error), ``retry`` (run it again), ``elsewhere`` (by
    another executor if one is idle), ``missing`` (`value` is ``DEP\\nWORKER.ATTEMPT`` lines: copies that could not be read)
    or ``back`` (not started).
    """

    name: str
    attempt: int
    status: str
    nbytes: int = 0
    type: str = ""
    value: bytes = b""
    contains: Sequence[str] = ()


RESYNC, OWN = -1, -2


def turn(
    capacity: int,
    want: int,
    quick: Sequence[str] = (),
    batches: Sequence[int] = (),
    results: Iterable[Result] = (),
) -> Call:
    """Hand in what finished and take what is next.

    Parameters
    ----------
    capacity : int
        Threads of this executor plus tasks that are blocked in a wait.
    want : int
        At most so many tasks; 0 takes none and leaves the executor busy, `RESYNC` first lists again everything that is
        assigned and not handed in, and takes one task if that is nothing, `OWN` takes only what names this executor.
    quick : sequence of str
        Hashes of functions of which several tasks may be taken at once.
    batches : sequence of int
        Batches of which every task has been handed in, with this call at the latest.
    results : iterable of Result
        What finished.
    """
    items: list[Any] = []
    count = 0
    for name, attempt, status, nbytes, type_, value, contains in results:
        count += 1
        items += (name, str(attempt), status, nbytes, type_, value, len(contains))
        if contains:
            items += contains
    body: list[Any] = [capacity, want, len(quick), *quick, len(batches), *map(str, batches), count]
    return Call(load("turn"), body + items, ageless=True)


# --- data -----------------------------------------------------------------------------------------------------------


MOST_CONTAINED = 500
"""Keys that one value is told to contain; what holds Futures of more contains bundles of them."""


class Value(NamedTuple):
    """A scattered value: `worker` 0 and a `value` of pickle bytes (inline), or the worker that has the segment.

    `keep`: an argument payload, kept while any known task depends on it. `again`: the key is known to be ours, maybe a
    task's, and the caller registers anew.
    """

    name: str
    count: int  # type: ignore[assignment]  # shadows tuple.count
    attempt: int
    worker: int
    nbytes: int
    type: str
    value: bytes = b""
    keep: bool = False
    contains: Sequence[str] = ()
    again: bool = False


def place(count: int, nbytes: int, workers: Sequence[str] = (), local: str = "", ahead: int = 0) -> Call:
    """Choose workers for `count` values of about `nbytes` in all; `local` is the caller's host id, to be preferred.

    `ahead` more places are for values that may follow; there are none where somebody has a quota.

    `workers` are names, addresses, hosts or ordinals as text. A ``NO workers`` refusal if none fits.
    """
    return Call(load("place"), [count, nbytes, local, ahead, *workers], grows=True)


def commit(values: Sequence[Value]) -> Call:
    """Make scattered values known; their payloads are written."""
    body: list[Any] = []
    for v in values:
        flags = int(v.keep) + 2 * int(v.again)
        body += (v.name, v.count, v.attempt, v.worker, v.nbytes, v.type, v.value, flags, len(v.contains))
        body += v.contains
    return Call(load("commit"), body, grows=True)


class Replica(NamedTuple):
    """A copy that a worker has; what follows the attempt, and maybe a part of the contained keys, is told of found ones."""

    name: str
    attempt: int
    nbytes: int = 0
    type: str = ""
    contains: Sequence[str] = ()


def add_replicas(replicas: Iterable[Replica], *, found: bool = False) -> Call:
    """Record copies that this worker fetched or, registering anew, `found`. Voided ones are evicted."""
    body: list[Any] = [int(found)]
    for name, attempt, nbytes, type_, contains in replicas:
        body += (name, attempt, nbytes, type_, len(contains), *contains)
    return Call(load("add_replicas"), body, grows=True, ageless=True)


def remove_replicas(replicas: Iterable[tuple[str, int]], why: Sequence[str] = ()) -> Call:
    """Report copies (name, attempt) that this worker does not have any more; `why`: what was wrong with the file of each."""
    body: list[Any] = []
    for i, (name, attempt) in enumerate(replicas):
        body += (name, attempt, why[i] if why else "")
    return Call(load("remove_replicas"), body, ageless=True)


def publish(name: str, value: bytes, contains: Sequence[str], *, override: bool = False) -> Call:
    """Publish a dataset; `name` is a wire name, `value` a pickle. ``NO exists`` without `override`."""
    return Call(load("publish"), [name, int(override), value, *contains], grows=True)


def unpublish(name: str) -> Call:
    """Unpublish a dataset. ``NO unknown`` if there is none."""
    return Call(load("unpublish"), [name])


def get_dataset(name: str, token: str) -> Call:
    """Read a dataset; the request `token` keeps that version until it is left. ``NO unknown``."""
    return Call(load("get_dataset"), [name, token], grows=True)


def handoff(pairs: Iterable[tuple[str, str]], seconds: int = 300) -> Call:
    """Keep keys wanted for `seconds` under tokens: (token, name) pairs."""
    body: list[Any] = [seconds]
    for pair in pairs:
        body += pair
    return Call(load("handoff"), body, grows=True)


def drop_handoffs(pairs: Iterable[tuple[str, str]]) -> Call:
    """End hand-offs early."""
    body: list[Any] = []
    for pair in pairs:
        body += pair
    return Call(load("drop_handoffs"), body)


def drop_functions(hashes: Iterable[str]) -> Call:
    """Let go of functions that this caller brought with `submit`."""
    return Call(load("drop_functions"), list(hashes), ageless=True)


# --- life -----------------------------------------------------------------------------------------------------------


def client_heartbeat(keys: int, total: int, checksum: int, last_n: int, lease_ms: int = 10_000) -> Call:
    """Renew a client's lease; `keys`, `total` and `checksum` describe its counts at `last_n`."""
    return Call(load("heartbeat"), [lease_ms, last_n, keys, total, checksum, "", ""], numbered=False)


def worker_heartbeat(
    files: int, last_n: int, lease_ms: int = 10_000, *, status: str = "running", metrics: str = ""
) -> Call:
    """Renew the lease of a worker and its executors; `files` counts the payloads that it has, `metrics` is JSON."""
    return Call(load("heartbeat"), [lease_ms, last_n, files, 0, 0, status, metrics], numbered=False)


def lost_executor(executor: int, reason: str, running: Sequence[int] = ()) -> Call:
    """Report a dead executor of this worker; only the attempts in `running` are blamed."""
    return Call(load("lost_executor"), [executor, reason, *running], ageless=True)


def lost_worker(worker: int, incarnation: str) -> Call:
    """Report that a worker is dead for certain: its executors go at once, its copies when its lease has ended."""
    return Call(load("lost_worker"), [worker, incarnation], ageless=True)


def hand_in_for(executor: int, results: Iterable[Result]) -> Call:
    """Hand in for an executor of this worker what it has finished, inline and without contents, or will not start."""
    body: list[Any] = [executor]
    for name, attempt, status, nbytes, type_, value, _ in results:
        body += (name, attempt, status, nbytes, type_, value)
    return Call(load("hand_in_for"), body, ageless=True)


def continue_() -> Call:
    """Carry out a slice of the work list; ``OK`` 0 when it is empty."""
    return Call(load("continue"), [], numbered=False)


def restart() -> Call:
    """Raise the generation and forget every key and dataset."""
    return Call(load("restart"), [], ageless=True)


def send(ordinals: Sequence[int], message: bytes) -> Call:
    """Append `message` to the inboxes of living callers and tell them; unnumbered. Answers the ordinals reached."""
    return Call(load("send"), [message, *ordinals], numbered=False, grows=True)


# --- reads ----------------------------------------------------------------------------------------------------------


def states(names: Sequence[str], *, full: bool = False, ours: bool = False) -> Call:
    """Read the states of keys; `full` also brings inline values and errors above the push limits.

    `ours`: of keys to which the caller sent references. A task that has none of them is told as ``erred`` with ``KeyTaken``.
    """
    return Call(load("states"), [2 if ours else int(full), *names], numbered=False)


def dependencies(name: str, cursor: int = 0) -> Call:
    """Read a slice of a task's dependencies: ``OK`` next cursor (0: done), names."""
    return Call(load("dependencies"), [name, cursor], numbered=False)
