"""Keeping a worker's files and what the server believes of them the same."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from redist.store import calls

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
    """

    def __init__(self, directory: SegmentDirectory, side: Side, post: Callable[[Call], None]) -> None:
        self.directory = directory
        self._side = side
        self._post = post
        self._disagreed = 0
        self._missing: set[Copy] = set()
        self._mending: asyncio.Task[None] | None = None
        self._fetched: list[Copy] = []

    def evict(self, copies: Iterable[Copy]) -> None:
        """Drop payloads that nobody needs any more."""
        for name, attempt in copies:
            self.directory.drop(name, attempt)

    def fetched(self, name: str, attempt: int, nbytes: int) -> None:
        """Note a payload that came from another worker; those of one moment are reported together."""
        if not self._fetched:
            asyncio.get_running_loop().call_soon(self._report_fetched)
        self._fetched.append((name, attempt))

    def _report_fetched(self) -> None:
        copies, self._fetched = self._fetched, []
        for part in slices(copies):
            self._post(calls.add_replicas(part))

    def beat(self, agree: bool, ordinal: int) -> None:
        """Take in whether server and worker agreed about the number of files; a lasting difference is mended."""
        if agree:
            self._disagreed = 0
            self._missing = set()
            return
        self._disagreed += 1
        if self._disagreed >= 2 and (self._mending is None or self._mending.done()):
            self._mending = asyncio.get_running_loop().create_task(self.compare(ordinal))

    async def compare(self, ordinal: int) -> None:
        """Compare the sets, and mend both ways what is surely wrong."""
        believed = await asyncio.to_thread(self._believed, ordinal)
        files = self.directory.files
        missing = {copy for copy in believed if copy not in files}
        surely = [copy for copy in missing if copy in self._missing]
        self._missing = missing
        extra = [copy for copy in list(files) if copy not in believed and self._is_old(copy)]
        if surely:
            logger.warning("the server believed in %d payloads that are not here", len(surely))
        for part in slices(surely):
            self._post(calls.remove_replicas(part))
        for part in slices(extra):
            # voided ones are evicted in answer
            self._post(calls.add_replicas(part))

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

    def _is_old(self, copy: Copy) -> bool:
        try:
            return time.time() - os.stat(self.directory.path_of(*copy)).st_ctime > _ON_ITS_WAY
        except FileNotFoundError:
            return False

    def all_again(self) -> list[Call]:
        """Return the calls that bring every file to a server that forgot this worker."""
        return [calls.add_replicas(part) for part in slices(list(self.directory.files))]
