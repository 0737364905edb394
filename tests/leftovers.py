"""What a test may leave behind: nothing. Every namespace is looked at after every test, and the host after every module.

A namespace is as it should be when the doctor finds nothing broken and nothing is there but ``meta``, metadata, events,
plugins, published datasets and the records of living workers. Callers whose processes were killed are swept first, as the
heartbeats of others would do it.

Files, sockets and processes are known by the run's own temporary directory: all that tests start inherits it.
"""

from __future__ import annotations

import gc
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from weakref import WeakSet

import hiredis
import psutil
import pytest

from redist.diagnostics.doctor import examine
from redist.diagnostics.reading import OF_CALLERS, Snapshot
from redist.errors import RedistError
from redist.memory.locks import default_parent
from redist.store import calls
from redist.store.connect import Endpoint, endpoint
from redist.store.replies import parse_register
from redist.store.server import EmbeddedServer
from redist.store.wire import Wire, pack_command

__all__ = ["Host", "Servers", "host", "leaves_nothing", "started"]

PATIENCE = 20.0

Trace: TypeAlias = "tuple[str, str | int]"
T = TypeVar("T")

_COMMON = frozenset(("meta", "workers", "executors", "leases", "hosts", "idle"))
#: What belongs to nobody and stays until somebody removes it.
_LASTING = frozenset(("metadata", "logs", "log", "plugins"))
_OF_WORKERS = frozenset(("caller", *OF_CALLERS)) - {"holds", "stale", "has", "batches"}
_OF_DATASETS = frozenset(
    ("datasets", "key", "data", "error", "deps", "waiters", "users", "dependents", "contains", "containers", "fns", "fn",
     "class", "queues", "queue", "holds")
)  # fmt: skip


# --- a namespace ----------------------------------------------------------------------------------------------------


def leaves_nothing(where: Endpoint, before: Collection[str] = (), patience: float = PATIENCE) -> None:
    """Fail unless nothing is left in a namespace but its workers and published datasets, and the doctor is content.

    Parameters
    ----------
    where : Endpoint
        The namespace.
    before : collection of str
        What was there before, of fixtures that outlive the test.
    patience : float
        Seconds in which it must be gone.
    """
    with _opened(where) as wire:
        deadline = time.monotonic() + patience
        while left := sorted(_left(wire, where.prefix) - set(before)):
            if time.monotonic() > deadline:
                pytest.fail(f"left in {where.namespace!r}: {', '.join(left[:20])}\n{examine(where)}")
            time.sleep(0.01)
            if not _living(wire, where.prefix):
                _sweep(wire, where.prefix)
    report = examine(where)
    assert report.healthy, str(report)


def _processes_of(wire: Wire, prefix: str, kind: str) -> dict[str, int]:
    """Return the ordinals of the registered callers of a kind with the processes that they say they are."""
    flat = wire.call("HKEYS", f"{prefix}{kind}s")
    return {
        ordinal.decode(): int(wire.call("HGET", f"{prefix}caller:{ordinal.decode()}", "pid") or 0)
        for ordinal in flat
    }


def _living(wire: Wire, prefix: str, *, perhaps: bool = False) -> bool:
    """Whether somebody is registered whose process lives, and who sweeps; `perhaps` counts who names no process."""
    pids = {**_processes_of(wire, prefix, "client"), **_processes_of(wire, prefix, "worker")}
    return any(psutil.pid_exists(pid) if pid > 1 else perhaps for pid in pids.values())


def _left(wire: Wire, prefix: str) -> set[str]:
    snapshot = Snapshot(_executing(wire), prefix)
    workers = {*snapshot.hgetall("workers"), *snapshot.hgetall("executors")}
    # Clients of tasks live on with their executor, and so do the functions that they brought.
    functions = set().union(*(snapshot.smembers(f"functions:{ordinal}") for ordinal in workers))
    published = bool(snapshot.hgetall("datasets"))
    left = {f"client {name}" for name in snapshot.hgetall("clients").values()}
    for key in snapshot.keys():  # noqa: SIM118
        family, _, rest = key.partition(":")
        if key in _COMMON or family in _LASTING or (family in _OF_WORKERS and rest in workers):
            continue
        if (family in ("fn", "class") and rest in functions) or (
            key == "fns" and snapshot.hgetall(key).keys() <= functions
        ):
            continue
        if published and family in _OF_DATASETS and key.partition("holds:")[2] in ("", "d"):
            continue
        left.add(key)
    if not _living(wire, prefix):
        left |= {f"worker {name}" for name in snapshot.hgetall("workers").values()}
    return left


def _executing(wire: Wire) -> Callable[[Iterable[tuple[str | int, ...]]], list[Any]]:
    def execute(commands: Iterable[tuple[str | int, ...]]) -> list[Any]:
        sent = list(commands)
        wire.send(b"".join(map(pack_command, sent)))
        return [wire.read_reply() for _ in sent]

    return execute


def _sweep(wire: Wire, prefix: str) -> None:
    """Do what others do in time: the leases of all that are registered have passed, and the work list is carried out."""
    ordinal, incarnation = 0, os.urandom(8).hex()

    def run(call: calls.Call, n: int = 0) -> Any:
        header = calls.Header(prefix, ordinal, incarnation, 0, n, max(0, n - 1))
        wire.send(calls.pack_eval(call, header))
        reply = wire.read_reply()
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def work() -> None:
        while run(calls.continue_())[1]:
            pass

    leases = wire.call("ZRANGE", f"{prefix}leases", 0, -1)
    if leases or wire.call("HEXISTS", f"{prefix}meta", "recovering"):
        ordinal = parse_register(run(calls.register("client", "sweeper"))).ordinal
        for dead in leases:
            wire.call("ZADD", f"{prefix}leases", 1, dead)
        seconds, _ = wire.call("TIME")
        wire.call("HSET", f"{prefix}meta", "swept", int(seconds) * 1000)
        wire.call("HDEL", f"{prefix}meta", "quiet_until")
        if wire.call("HEXISTS", f"{prefix}meta", "recovering"):
            wire.call("HSET", f"{prefix}meta", "recovering", 1)
        while True:
            run(calls.client_heartbeat(0, 0, 0, 0))
            work()
            if wire.call("ZCARD", f"{prefix}leases") == 1:
                break
        run(calls.close(), 1)
    work()


# --- servers --------------------------------------------------------------------------------------------------------


class Servers:
    """The servers that this process has started: each namespace of theirs is looked at after a test, and before they stop.

    Attributes
    ----------
    found : list of str
        What was wrong in servers that have stopped since the last look.
    """

    def __init__(self, patience: float = PATIENCE) -> None:
        self.found: list[str] = []
        self._patience = patience
        self._running: WeakSet[EmbeddedServer] = WeakSet()
        # What was there before the test, of fixtures that outlive it.
        self._before: dict[tuple[str, str], set[str]] = {}

    def watch(self) -> None:
        """Notice every start and stop from now on."""
        start, stop = EmbeddedServer.start, EmbeddedServer.stop

        def started(server: EmbeddedServer, **options: Any) -> EmbeddedServer:
            self._running.add(server)
            return start(server, **options)

        def stopped(server: EmbeddedServer) -> None:
            try:
                if server in self._running and server.running:
                    self._look_before_the_end(server)
            finally:
                self._running.discard(server)
                stop(server)

        EmbeddedServer.start = started  # type: ignore[method-assign]
        EmbeddedServer.stop = stopped  # type: ignore[method-assign]

    def begin(self) -> None:
        """Remember what is there before a test."""
        self.found.clear()
        self._before = {}
        for where in self._namespaces():
            with _opened(where) as wire, suppress(hiredis.ReplyError):
                self._before[where.url, where.prefix] = _left(wire, where.prefix)

    def end(self) -> None:
        """Fail unless a test left nothing in any server."""
        problems = []
        for where in self._namespaces():
            problems += self._problems(where)
            with _opened(where) as wire:
                if not _living(wire, where.prefix):
                    _remove(wire, where.prefix)
        problems += self.found
        assert not problems, "\n".join(problems)

    def _problems(self, where: Endpoint) -> list[str]:
        try:
            leaves_nothing(where, self._before.get((where.url, where.prefix), ()), self._patience)
        except (AssertionError, pytest.fail.Exception, hiredis.ReplyError) as error:
            return [f"{where.namespace}: {error}"]
        return []

    def _namespaces(self) -> list[Endpoint]:
        return [where for server in list(self._running) for where in _namespaces(server)]

    def _look_before_the_end(self, server: EmbeddedServer) -> None:
        for where in _namespaces(server):
            with _opened(where) as wire:
                somebody = _living(wire, where.prefix, perhaps=True)
            if somebody:
                continue  # the server is taken from under their feet
            self.found += self._problems(where)


@contextmanager
def _opened(where: Endpoint) -> Iterator[Wire]:
    wire = where.open()
    try:
        yield wire
    finally:
        wire.close()


def _namespaces(server: EmbeddedServer) -> list[Endpoint]:
    """Return the namespaces of a server that may be written; none if it does not serve."""
    try:
        with _opened(endpoint(server.local_url, timeout=1.0)) as wire:
            if b"role:slave" in wire.call("INFO", "replication"):
                return []
            in_cluster = b"cluster_enabled:1" in wire.call("INFO", "cluster")
            if in_cluster and b"cluster_state:ok" not in wire.call("CLUSTER", "INFO"):
                return []
            namespaces = {key.split("{", 1)[1].split("}:", 1)[0] for key in _scan(wire, "redist:{*}:*")}
    except (RedistError, hiredis.ReplyError):
        return []
    return [endpoint(server.local_url, namespace) for namespace in sorted(namespaces)]


def _scan(wire: Wire, pattern: str) -> set[str]:
    found: set[str] = set()
    cursor: Any = b"0"
    while True:
        cursor, keys = wire.call("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
        found.update(key.decode(errors="surrogateescape") for key in keys)
        if cursor == b"0":
            return found


def _remove(wire: Wire, prefix: str) -> None:
    for key in _scan(wire, f"{prefix}*"):
        wire.call("UNLINK", key.encode(errors="surrogateescape"))


# --- the host -------------------------------------------------------------------------------------------------------


class Host:
    """What the run has on this host: processes, files in shared memory and in its temporary directory, open sockets."""

    def __init__(self) -> None:
        outside = tempfile.gettempdir()
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", outside)  # tmp_path stays where people look for it
        worker = os.environ.get("PYTEST_XDIST_WORKER")
        if worker is None:
            self.directory = tempfile.mkdtemp(prefix="redist-tests-", dir=outside)
        else:  # below that of the whole run, which removes it whatever becomes of this process
            self.directory = os.path.join(outside, worker)
            os.mkdir(self.directory, 0o700)
        os.environ["TMPDIR"] = tempfile.tempdir = self.directory
        #: What belongs to fixtures of the whole run.
        self.kept: set[Trace] = set()

    def traces(self) -> dict[Trace, str]:
        """Return what there is: what tells one from another, and a description."""
        return {**self._processes(), **self._segments(), **self._files(), **self._sockets()}

    def leaves_nothing(self, before: Collection[Trace], patience: float = PATIENCE) -> None:
        """Fail unless all is gone that was not there before."""
        gc.collect()
        deadline = time.monotonic() + patience
        while True:
            traces = self.traces()
            left = traces.keys() - set(before) - self.kept
            if not left:
                return
            if time.monotonic() > deadline:
                pytest.fail("left on the host:\n" + "\n".join(sorted(traces[trace] for trace in left)))
            time.sleep(0.02)

    def keep(self, context: AbstractContextManager[T]) -> Iterator[T]:
        """Body of a fixture of the whole run: what comes into being at its start is left alone until the end."""
        before = self.traces().keys()
        with context as made:
            self.kept |= self.traces().keys() - before
            yield made

    def close(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def _processes(self) -> dict[Trace, str]:
        me = psutil.Process()
        children = {child.pid for child in me.children(recursive=True)}
        found: dict[Trace, str] = {}
        for process in psutil.process_iter():
            try:
                if process.pid != me.pid and (
                    process.pid in children or process.environ().get("TMPDIR") == self.directory
                ):
                    text = " ".join(process.cmdline())[:200]
                    found["process", process.pid] = f"process {process.pid}, {process.status()}: {text}"
            except psutil.Error:
                pass  # it has ended, or is somebody else's
        return found

    def _segments(self) -> dict[Trace, str]:
        """Directories of workers: the first line of their locks says whose they are, the second which process made them."""
        found: dict[Trace, str] = {}
        for path in Path(default_parent()).glob("*"):
            try:
                whose, _, pid = (path / "lock").read_text().partition("\n")
            except OSError:
                continue
            ours = re.search(rf"{re.escape(self.directory)}/| t{os.getpid()}-\d+\t", whose)
            if ours or pid.strip() == str(os.getpid()):
                found["segments", path.name] = f"{path} of {whose!r}, process {pid.strip()}"
        return found

    def _files(self) -> dict[Trace, str]:
        return {("file", name): f"{self.directory}/{name}" for name in os.listdir(self.directory)}

    def _sockets(self) -> dict[Trace, str]:
        found: dict[Trace, str] = {}
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{name}")
                if target.startswith("socket:"):
                    found["socket", target] = f"open {target}, descriptor {name}"
        return found


host = Host()
started = Servers()
