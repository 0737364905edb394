"""Copies that this worker brought from others and that may go when memory is short, since others have enough of them.

That is for the server to say: two workers that ask at the same moment never both give up the last.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from redist.errors import RedistError
from redist.memory.headers import file_name
from redist.memory.locks import try_lock
from redist.store.copying import drop_surplus, parse_surplus

if TYPE_CHECKING:
    from redist.memory.directory import SegmentDirectory
    from redist.store.calls import Call

__all__ = ["Surplus"]

logger = logging.getLogger("redist.worker")

Copy = tuple[str, int]

_MOST = 200  # copies that are asked about at once
_LATER = 30.0  # s until it is asked again about one that had to stay


class Surplus:
    """Gives up copies.

    Parameters
    ----------
    directory : SegmentDirectory
        The files.
    ask : callable
        Sends a call on the worker's lane and returns its reply.
    """

    def __init__(self, directory: SegmentDirectory, ask: Callable[[Call], Awaitable[list[Any]]]) -> None:
        self._directory = directory
        self._ask = ask
        #: when it may be asked about each copy that was brought, `time.monotonic`
        self._brought: dict[Copy, float] = {}

    def note(self, name: str, attempt: int) -> None:
        """Note a copy that came from another worker."""
        self._brought[name, attempt] = 0.0

    async def drop(self, need: int) -> int:
        """Give up copies in memory that nobody maps, until `need` bytes are free; return how many are."""
        chosen = self._choose(need)
        if not chosen:
            return 0
        try:
            reply = await self._ask(drop_surplus(chosen))
        except RedistError as error:
            logger.info("it is not known which copies may go: %s", error)
            return 0
        gone = parse_surplus(reply, chosen)
        freed = sum(self._directory.files.get(copy, 0) for copy in gone)
        self._directory.drop_all(gone)
        for copy in gone:
            self._brought.pop(copy, None)
        if gone:
            logger.info("gave up %d copies that other workers have as well", len(gone))
        return freed

    def _choose(self, need: int) -> list[Copy]:
        """Return the coldest copies, `need` bytes together if there are so many; none of them again for a while."""
        files, now = self._directory.files, time.monotonic()
        for copy in [copy for copy in self._brought if copy not in files]:
            del self._brought[copy]
        last = self._directory.touched.last
        due = [copy for copy, at in self._brought.items() if at <= now and files.get(copy)]
        due.sort(key=lambda copy: last(file_name(*copy)))
        chosen: list[Copy] = []
        for copy in due:
            if need <= 0 or len(chosen) == _MOST:
                break
            if self._is_mapped(copy):
                continue
            need -= files[copy]
            chosen.append(copy)
            self._brought[copy] = now + _LATER
        return chosen

    def _is_mapped(self, copy: Copy) -> bool:
        try:
            fd = os.open(self._directory.path_of(*copy), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return True
        try:
            return not try_lock(fd)
        finally:
            os.close(fd)
