"""What `redist doctor` finds: broken invariants of a live namespace, and payload files of this host that fit no key.

A live namespace is never seen at one moment, so what looks broken is looked at again until it has mended itself, has stayed
just as it is for longer than a heartbeat, or patience ends. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redist.diagnostics.files import Leftovers, files
from redist.diagnostics.invariants import Violation, check
from redist.diagnostics.reading import Fields, Snapshot
from redist.diagnostics.staying import what_stays

if TYPE_CHECKING:
    from redist.store.connect import Endpoint
    from redist.store.wire import Wire

__all__ = ["Report", "examine", "look", "nothing_stored"]

#: Seconds for which the same thing must look broken: longer than anybody's heartbeat takes to mend it.
PATIENCE = 5.0
_PAUSES = (0.02, 0.05, 0.1, 0.25, 0.5)
#: Callers that are named as holding most.
_MOST_HOLDERS = 5


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; printing it gives the text of `redist doctor`.

    Attributes
    ----------
    url, namespace : str
        What was examined.
    keys, nbytes : int
        How many keys are known, and the bytes of the values that are there.
    clients, workers, executors : int
        Who is registered.
    violations : tuple of Violation
        What is broken.
    notes : tuple of str
        What is legal and worth knowing.
    looks : int
        How often the namespace was read.
    exists : bool
        Whether anything is or was stored under the namespace; a mistyped one is healthy, and not there.
    """

    url: str
    namespace: str
    keys: int = 0
    nbytes: int = 0
    clients: int = 0
    workers: int = 0
    executors: int = 0
    violations: tuple[Violation, ...] = ()
    notes: tuple[str, ...] = ()
    looks: int = 1
    exists: bool = True

    @property
    def healthy(self) -> bool:
        """Whether nothing is broken."""
        return not self.violations

    def __bool__(self) -> bool:
        return self.healthy

    def __str__(self) -> str:
        if not self.exists:
            lines = [nothing_stored(self.url, self.namespace)]
            return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])
        who = ", ".join(
            _counted(count, kind)
            for count, kind in (
                (self.clients, "client"),
                (self.workers, "worker"),
                (self.executors, "executor"),
            )
        )
        lines = [
            f"namespace {self.namespace} at {self.url}",
            f"  {_counted(self.keys, 'key')}, {self.nbytes:,} bytes; {who}",
        ]
        lines += [f"  broken: {violation}" for violation in self.violations]
        lines += [f"  note: {note}" for note in self.notes]
        if self.healthy:
            lines.append("  healthy: every invariant holds")
        else:
            lines.append(f"  {_counted(len(self.violations), 'invariant')} broken")
        return "\n".join(lines)


def nothing_stored(url: str, namespace: str) -> str:
    """Return what there is to say of a namespace that is not there."""
    return f"there is no namespace {namespace} at {url}: nothing was ever stored under it"


def examine(endpoint: Endpoint, *, patience: float = PATIENCE) -> Report:
    """Examine a live namespace, and the payload files that its living workers have on this host.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace.
    patience : float
        Seconds for which something must look broken.

    Raises
    ------
    ConnectionLost
        If the server cannot be reached.
    """
    wire = endpoint.open()
    try:
        return _Examination(endpoint, wire).run(patience)
    finally:
        wire.close()


def look(endpoint: Endpoint, timeout: float | None = None) -> dict[str, Any]:
    """Read a live namespace once: Redis key without prefix -> content. Of values only the presence is read.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace.
    timeout : float, optional
        Seconds to connect, and to wait for each reply.

    Raises
    ------
    ConnectionLost, ServerRefused
        If the server cannot be reached, or lets this user not read.
    """
    wire = endpoint.open(timeout)
    try:
        return _Examination(endpoint, wire)._snapshot().as_dict()
    finally:
        wire.close()


class _Examination:
    """One connection's looks at a namespace."""

    def __init__(self, endpoint: Endpoint, wire: Wire) -> None:
        self._endpoint = endpoint
        self._wire = wire
        self._scan = True
        self._wrong: set[str] = set()

    def run(self, patience: float) -> Report:
        began = time.monotonic()
        looks = 0
        suspects: dict[Violation, float] = {}  # since when each is seen unchanged
        while True:
            snapshot = self._snapshot()
            of_files = list(files(snapshot, self._now()))
            left = tuple(str(found) for found in of_files if isinstance(found, Leftovers))
            wrong = [found for found in of_files if isinstance(found, Violation)]
            found = list(dict.fromkeys([*_judge(snapshot), *self._foreign(), *checksums(snapshot), *wrong]))
            now = time.monotonic()
            suspects = {violation: suspects.get(violation, now) for violation in found}
            looks += 1
            if not suspects or all(now - since >= patience for since in suspects.values()):
                return self._report(snapshot, tuple(found), left, looks)
            if now - began >= 2 * patience:
                # Others write, and what is seen differs from look to look: only what stayed is certain.
                stayed = tuple(v for v, since in suspects.items() if now - since >= patience)
                moving = len(suspects) - len(stayed)
                note = f"{_counted(moving, 'thing')} looked unfinished all the time, since others write; look again later"
                return self._report(snapshot, stayed, (note, *left), looks)
            time.sleep(min(_PAUSES[min(looks, len(_PAUSES)) - 1], max(0.01, patience / 3)))

    def _report(
        self, snapshot: Snapshot, violations: tuple[Violation, ...], notes: tuple[str, ...], looks: int
    ) -> Report:
        meta = snapshot.hgetall("meta")
        records = [key for key in snapshot.keys() if key.startswith("key:")]  # noqa: SIM118
        known = {key.removeprefix("key:"): snapshot.hgetall(key) for key in records}
        # A record whose value was lost still says how large it was.
        sizes = (record.get("nbytes", "0") for record in known.values() if record.get("state") == "memory")
        return Report(
            url=self._endpoint.url,
            namespace=self._endpoint.namespace,
            keys=int(meta.get("keys", 0)),
            nbytes=sum(int(size) for size in sizes if size.isdigit()),
            clients=len(snapshot.hgetall("clients")),
            workers=len(snapshot.hgetall("workers")),
            executors=len(snapshot.hgetall("executors")),
            violations=violations,
            notes=(
                *notes,
                *_notes(snapshot, self._now()),
                *_lost_datasets(snapshot, known),
                *what_stays(snapshot),
                *self._left_behind(),
                *self._limits(),
            ),
            looks=looks,
            exists=bool(meta or records or violations),
        )

    # --- reading ----------------------------------------------------------------------------------------------------

    def _snapshot(self) -> Snapshot:
        import hiredis

        from redist.errors import ServerRefused

        self._wrong.clear()
        try:
            if self._scan:
                try:
                    return Snapshot(self._execute, self._endpoint.prefix)
                except hiredis.ReplyError as error:
                    if not _forbids(error, "scan"):
                        raise
                    self._scan = False
            return Snapshot(self._execute, self._endpoint.prefix, scan=False)
        except hiredis.ReplyError as error:
            if str(error).startswith("NOPERM"):
                raise ServerRefused(
                    f"{self._wire.peer} does not let this user look at everything ({error}); for the doctor grant it "
                    "+exists +hscan +sscan +zscan +lrange, and +scan to find what no index leads to"
                ) from error
            raise

    def _execute(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Send commands at once. Of values only the presence is read: they may be large, and their content is the user's."""
        import hiredis

        from redist.store.wire import pack_command

        sent = [("EXISTS", *command[1:]) if command[0] == "GET" else command for command in commands]
        self._wire.send(b"".join(map(pack_command, sent)))
        replies = [self._wire.read_reply() for _ in sent]
        for i, (command, reply) in enumerate(zip(commands, replies)):
            if isinstance(reply, hiredis.ReplyError):
                if not str(reply).startswith("WRONGTYPE"):
                    raise reply
                self._wrong.add(str(command[1]).removeprefix(self._endpoint.prefix))
                replies[i] = [] if command[0] == "LRANGE" else [b"0", []]
            elif command[0] == "GET":
                replies[i] = b"" if reply else None
        return replies

    def _foreign(self) -> Iterator[Violation]:
        for key in sorted(self._wrong):
            yield Violation("schema", key, "is of another type than the schema says")

    def _now(self) -> float:
        """Milliseconds of the server's clock, ours where it may not be asked."""
        import hiredis

        try:
            seconds, micros = self._wire.call("TIME")
        except hiredis.ReplyError:
            return time.time() * 1000
        return int(seconds) * 1000 + int(micros) / 1000

    def _left_behind(self) -> Iterator[str]:
        from redist.memory.locks import dead_directories
        from redist.memory.space import format_size

        ours = f"{self._endpoint.url} {self._endpoint.namespace}\t"
        for dead in dead_directories():
            if dead.owner.startswith(ours):
                yield (
                    f"{dead.path} ({format_size(dead.size)}) belonged to a worker that is gone: a restarted one"
                    " adopts it, others sweep it later"
                )

    def _limits(self) -> Iterator[str]:
        if not self._scan:
            yield "this user may not SCAN: keys that no index leads to were not seen"


def _judge(snapshot: Snapshot) -> list[Violation]:
    """Apply the invariants, as strictly as what goes on allows."""
    anybody = any(snapshot.hgetall(kind) for kind in ("clients", "workers", "executors"))
    empty = not anybody and not any(snapshot.smembers("holds:0")) and not snapshot.zrange("handoffs")
    meta = snapshot.hgetall("meta")
    if empty and not meta:
        return []  # nobody was ever here
    # Work that is left is carried out by heartbeats: where nobody lives it waits for the next caller.
    return check(snapshot, quiescent=anybody, closed=empty and not snapshot.lrange("work"))


def checksums(snapshot: Snapshot) -> Iterator[Violation]:
    """Compare counts with the checksum that their holder's last heartbeat said, where nothing was sent since."""
    from redist.session.ledger import checksum

    for ordinal in snapshot.hgetall("clients"):
        caller = snapshot.hgetall(f"caller:{ordinal}")
        if "checksum" not in caller or caller.get("checked") != caller.get("n"):
            continue
        field = f"refs:{ordinal}"
        held = (
            (name, snapshot.hgetall(f"key:{name}").get(field, "0"))
            for name in snapshot.smembers(f"holds:{ordinal}")
        )
        ours = checksum((name, int(count)) for name, count in held)
        if ours != int(caller["checksum"]):
            yield Violation(
                "checksum",
                f"caller:{ordinal}",
                f"counts other references than the server: {caller['checksum']}, {ours} here",
            )


def _notes(snapshot: Snapshot, now: float) -> Iterator[str]:
    for ordinal, deadline in sorted(snapshot.zrange("leases").items(), key=lambda item: int(item[0])):
        if deadline < now - 1000:
            caller = snapshot.hgetall(f"caller:{ordinal}")
            who = f"{caller.get('kind', 'caller')} {caller.get('name', '')} (caller:{ordinal})"
            yield (
                f"{who} is {_seconds(now - deadline)} past its lease: the next heartbeat of anybody "
                "releases what it holds, or renews the lease if it still listens"
            )
    meta = snapshot.hgetall("meta")
    if "recovering" in meta:
        left = max(0.0, float(meta["recovering"]) - now)
        yield f"the server lost writes; for {_seconds(left)} more nothing is freed, so that everybody can tell what it has"
    if "wiping" in meta:
        yield "a restart is being carried out"
    work = len(snapshot.lrange("work"))
    if work:
        yield f"{_counted(work, 'item')} on the work list"
    waiting = list(snapshot.zrange("queues"))
    if waiting and not snapshot.hgetall("executors"):
        count = sum(len(snapshot.lrange(f"queue:{suffix}")) for suffix in waiting)
        yield f"{_counted(count, 'task')} in queues, and no executor is there: start one with `redist worker`"
    short = snapshot.zrange("short")
    if short:
        yield f"{_counted(len(short), 'key')} with fewer copies than wanted, or about to be copied or moved"
    yield from _quotas(snapshot, meta)


def _quotas(snapshot: Snapshot, meta: Fields) -> Iterator[str]:
    """Say who holds how much, where somebody has a quota."""
    if "quota" in meta:
        yield f"values of {int(meta.get('bytes', 0)):,} bytes count for the namespace's quota of {int(meta['quota']):,}"
    held = snapshot.zrange("bytes")
    for ordinal, nbytes in sorted(held.items(), key=lambda item: -item[1])[:_MOST_HOLDERS]:
        caller = snapshot.hgetall(f"caller:{ordinal}")
        who = f"{caller.get('kind', 'caller')} {caller.get('name', '')}".strip()
        of = f" of {int(caller['quota']):,}" if "quota" in caller else ""
        yield f"{who} (caller:{ordinal}) made keys with values of {nbytes:,.0f} bytes{of}"


def _lost_datasets(snapshot: Snapshot, known: Mapping[str, Fields]) -> Iterator[str]:
    """Say which published datasets hold, at any depth, values that are lost and that nothing can compute again."""
    from redist.store.keys import BUNDLE, dataset_record, decode_key

    for name, version in sorted(snapshot.hgetall("datasets").items()):
        inside: set[str] = set()
        todo = [dataset_record(name, int(version))]
        while todo:
            container = todo.pop()
            attempt = known.get(container, {}).get("contains")
            new = (
                snapshot.smembers(f"contains:{attempt} {container}") - inside
                if attempt is not None
                else set()
            )
            inside |= new
            todo += new
        lost = sorted(key for key in inside if _is_lost(known.get(key, {})))
        if lost:
            count = sum(not key.startswith(BUNDLE) for key in inside)
            whom = next((known[key]["lost"] for key in lost if "lost" in known[key]), "")
            yield (
                f"the dataset {decode_key(name)!r} has lost {len(lost):,} of its {_counted(count, 'value')}, "
                f"{decode_key(lost[0])!r}{' and others' if len(lost) > 1 else ''}"
                f"{f'; the last copy went with {whom}' if whom else ''}: publish it again, or unpublish it"
            )


def _is_lost(record: Fields) -> bool:
    return record.get("state") == "erred" and record.get("type") == "DataLost"


def _forbids(error: Exception, command: str) -> bool:
    """Whether an error reply says that the user has no right to `command`."""
    return str(error).startswith("NOPERM") and f"'{command}'" in str(error).lower()


def _seconds(milliseconds: float) -> str:
    return f"{milliseconds / 1000:.0f} s"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
