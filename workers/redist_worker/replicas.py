"""Keeping a worker's files and what the server believes of them the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import hiredis

from redist.errors import RedistError, SegmentError
from redist.store import calls
from redist.store.calls import Replica
from redist.store.portions import portions
from redist_worker.executors import resident_bytes

if TYPE_CHECKING:
    from redist.memory.directory import SegmentDirectory
    from redist.store.calls import Call
    from redist.store.side import Side

__all__ = ["Replicas", "slices"]

logger = logging.getLogger("redist.worker")

Copy = tuple[str, int]

_SLICE = 500
#: A file is younger than this, s, while the call that names it may still be on its way.
_ON_ITS_WAY = 60.0
#: The same for a file that a dead predecessor left, s: only a client that lives can tell of it.
_JUST_WRITTEN = 2.0
#: s that a process gets to end when it has let go of its connections, and between two looks.
_ENDS, _ENDS_SOON = 5.0, 0.02
#: s between two looks whether the server counts a caller of a process that has ended.
_LOOK_EVERY = 0.2
#: s after which a server that lost writes has heard of it.
_HEARD = 10.0


def slices(copies: Sequence[Copy]) -> Iterable[Sequence[Copy]]:
    """Yield `copies` in parts small enough for one call."""
    for at in range(0, len(copies), _SLICE):
        yield copies[at : at + _SLICE]


class Replicas:
    """Drops evicted files, reports fetched ones, and mends what a lost message left apart.

    Parameters
    ----------
    directory : SegmentDirectory
        The files.
    side : Side
        For reading what the server believes.
    post : callable
        Puts a call on the worker's lane.
    reconnected : callable
        Returns when the server was last connected to anew, `time.monotonic`.
    hostname : str
        Name of the host that executors give, who may be told another than others.
    on_its_way : float
        Age in seconds at which a file of which the server does not know may be one too many.
    """

    def __init__(
        self,
        directory: SegmentDirectory,
        side: Side,
        post: Callable[[Call], None],
        reconnected: Callable[[], float] = lambda: -math.inf,
        hostname: str = "",
        on_its_way: float = _ON_ITS_WAY,
    ) -> None:
        self.directory = directory
        self._on_its_way = on_its_way
        self._reconnected = reconnected
        self._hosts = {hostname, socket.gethostname()}
        self._side = side
        self._post = post
        self._disagreed = 0
        self._missing: set[Copy] = set()
        self._mending: asyncio.Task[None] | None = None
        self._bringing: asyncio.Task[None] | None = None
        self._gone: dict[int, asyncio.Task[None]] = {}
        self._fetched: list[Replica] = []

    def evict(self, copies: Iterable[Copy]) -> None:
        """Drop payloads that nobody needs any more."""
        self.directory.drop_all(copies)

    def fetched(self, name: str, attempt: int, nbytes: int) -> None:
        """Note a payload that came from another worker; those of one moment are reported together."""
        if not self._fetched:
            asyncio.get_running_loop().call_soon(self._report_fetched)
        self._fetched.append(Replica(name, attempt, nbytes))

    def _report_fetched(self) -> None:
        copies, self._fetched = self._fetched, []
        for part in portions(copies, _SLICE, _weight):
            self._post(calls.add_replicas(part))

    def beat(self, agree: bool, ordinal: int) -> None:
        """Take in whether server and worker agreed about the number of files; a lasting difference is mended."""
        if agree:
            self._disagreed = 0
            self._missing = set()
            return
        self._disagreed += 1
        busy = any(task is not None and not task.done() for task in (self._mending, self._bringing))
        if self._disagreed >= 2 and not busy:
            self._mending = asyncio.get_running_loop().create_task(self.compare(ordinal))

    async def compare(self, ordinal: int) -> None:
        """Compare the sets, and mend both ways what is surely wrong."""
        believed = await asyncio.to_thread(self._believed, ordinal)
        files = self.directory.files
        missing = {copy for copy in believed if copy not in files}
        surely = [copy for copy in missing if copy in self._missing]
        self._missing = missing
        extra = [copy for copy in list(files) if copy not in believed and self._age(copy) > self._on_its_way]
        if surely:
            logger.warning("the server believed in %d payloads that are not here", len(surely))
        self._remove(surely)
        self._offer(extra)

    async def settle(self, ordinal: int, *, kept: bool) -> None:
        """Mend what a predecessor left apart; nothing of what it said is on its way any more.

        Parameters
        ----------
        ordinal : int
            The worker's.
        kept : bool
            It is the predecessor's: a client may have written a payload just before that died, and be about to tell.
        """
        believed = await asyncio.to_thread(self._believed, ordinal)
        files = set(self.directory.files)
        self._remove(list(believed - files))
        young = {copy for copy in files - believed if kept and self._age(copy) < _JUST_WRITTEN}
        self._offer(list(files - believed - young))
        if young:
            self._mending = asyncio.get_running_loop().create_task(self._settle_young(ordinal, young))

    async def tell_wanted(
        self, ordinal: int, taken: set[Copy], ask: Callable[[Call], Awaitable[object]], *, given_up: bool
    ) -> None:
        """Log how many of a predecessor's payloads somebody still wants, once the server has heard of them.

        Parameters
        ----------
        ordinal : int
            The worker's.
        taken : set of (name, attempt)
            What the predecessor left.
        ask : callable
            Sends a call on the worker's lane and waits for its reply.
        given_up : bool
            Whether the server has given the predecessor up.
        """
        with contextlib.suppress(
            RedistError, TimeoutError, hiredis.ReplyError
        ):  # it is only a line in the log
            await ask(calls.noop())
            wanted = len(taken & await asyncio.to_thread(self._believed, ordinal))
            why = ": its lease had ended, and the server had given it up" if given_up else ""
            logger.info("of its %d payloads %d are still wanted%s", len(taken), wanted, why)

    async def _settle_young(self, ordinal: int, young: set[Copy]) -> None:
        await asyncio.sleep(_JUST_WRITTEN)
        believed = await asyncio.to_thread(self._believed, ordinal)
        self._offer([copy for copy in young - believed if copy in self.directory.files])

    # --- of processes that ended ------------------------------------------------------------------------------------

    def gone(self, pid: int, ordinal: int) -> None:
        """Drop what a process of the host left that nobody can tell of any more; it has let go of us, and ends or has ended.

        Parameters
        ----------
        pid : int
            The process.
        ordinal : int
            The worker's.
        """
        if pid not in self._gone:
            task = self._gone[pid] = asyncio.get_running_loop().create_task(self._drop_untold(pid, ordinal))
            task.add_done_callback(lambda _: self._gone.pop(pid))

    def close(self) -> None:
        """Wait for the end of no process any more."""
        for task in self._gone.values():
            task.cancel()

    async def _drop_untold(self, pid: int, ordinal: int) -> None:
        clock = time.monotonic
        began = clock()
        while resident_bytes(pid)[0]:
            if clock() - began > _ENDS:
                return
            await asyncio.sleep(_ENDS_SOON)
        try:
            written = await asyncio.to_thread(self.directory.written_by, pid)
            untold = await asyncio.to_thread(self._not_recorded, ordinal, written)
            # What it sent may be on its way until the server has heard that it is lost, or its lease has ended.
            while untold and await asyncio.to_thread(self._has_no_caller, pid) is False:
                if clock() - began > self._on_its_way:
                    return
                await asyncio.sleep(_LOOK_EVERY)
            # A server that has just come again may have lost writes, and hears of that from whoever knows more.
            while untold and (left := self._reconnected() + _HEARD - clock()) > 0:
                await asyncio.sleep(left)
            untold = await asyncio.to_thread(self._not_recorded, ordinal, untold)
            bringing = self._bringing is not None and not self._bringing.done()
            if untold and not bringing and not await asyncio.to_thread(self._recovers):
                logger.info("dropping %d payloads that process %d left untold", len(untold), pid)
                self._offer(untold)
        except (RedistError, hiredis.ReplyError) as error:  # the heartbeats compare, later
            logger.info("it is not known what process %d left untold: %s", pid, error)

    def _not_recorded(self, ordinal: int, copies: Sequence[Copy]) -> list[Copy]:
        key = f"{self._side.endpoint.prefix}has:{ordinal}"
        found: list[Copy] = []
        for part in slices(copies):
            attempts = self._side.command("HMGET", key, *(name for name, _ in part))
            found += [copy for copy, at in zip(part, attempts, strict=True) if at != b"%d" % copy[1]]
        return found

    def _has_no_caller(self, pid: int) -> bool:
        """Whether the server takes no call of the process with this pid on this host."""
        prefix = self._side.endpoint.prefix
        for kind in ("clients", "executors"):
            for caller in self._side.fields(kind):
                whose, host = self._side.command("HMGET", f"{prefix}caller:{caller}", "pid", "host")
                if whose == b"%d" % pid and (host or b"").decode(errors="replace") in self._hosts:
                    return False
        return True

    def _recovers(self) -> bool:
        return bool(self._side.command("HEXISTS", f"{self._side.endpoint.prefix}meta", "recovering"))

    # --- both ways --------------------------------------------------------------------------------------------------

    def _remove(self, copies: Sequence[Copy]) -> None:
        for part in slices(copies):
            self._post(calls.remove_replicas(part))

    def _offer(self, copies: Sequence[Copy]) -> None:
        """Tell of copies; voided ones are evicted in answer."""
        for part in slices(copies):
            self._post(calls.add_replicas([Replica(*copy) for copy in part]))

    def _believed(self, ordinal: int) -> set[Copy]:
        prefix = self._side.endpoint.prefix
        found: set[Copy] = set()
        cursor: bytes | int = 0
        while True:
            cursor, flat = self._side.command("HSCAN", f"{prefix}has:{ordinal}", cursor, "COUNT", 1000)
            items = iter(flat)
            found.update((name.decode(), int(attempt)) for name, attempt in zip(items, items))
            if int(cursor) == 0:
                return found

    def _age(self, copy: Copy) -> float:
        return self.directory.age(*copy)

    # --- to a server that lost its memory ---------------------------------------------------------------------------

    def bring(self) -> None:
        """Begin to bring every file to a server that forgot this worker, from the first on if that is going on."""
        if self._bringing is not None:
            self._bringing.cancel()
        self._bringing = asyncio.get_running_loop().create_task(self.bring_all())

    async def bring_all(self) -> None:
        """Bring every file, with what its header says; a part at a time, since each header is read from its file."""
        for part in slices(list(self.directory.files)):
            found = await asyncio.to_thread(self._described, part)
            for replicas in portions(_pieces(found), _SLICE, _weight):
                with contextlib.suppress(RedistError):  # the session has ended, or will register once more
                    self._post(calls.add_replicas(replicas, found=True))

    def _described(self, copies: Sequence[Copy]) -> list[Replica]:
        described = []
        for copy in copies:
            try:
                header = self.directory.header(*copy)
            except SegmentError:  # dropped meanwhile
                continue
            described.append(Replica(*copy, header.nbytes, header.type, header.contains))
        return described


def _weight(replica: Replica) -> int:
    return 1 + len(replica.contains)


def _pieces(replicas: Iterable[Replica]) -> Iterator[Replica]:
    """Yield `replicas`, those with many contained keys in several pieces."""
    for replica in replicas:
        contains = replica.contains
        for at in range(0, max(len(contains), 1), _SLICE - 1):
            yield replica._replace(contains=contains[at : at + _SLICE - 1])
