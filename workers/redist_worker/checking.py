"""Payloads that somebody could not read: the worker that owns the files looks itself, and tells what is not there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from redist.errors import RedistError, TransferError
from redist.memory.verifying import flaw
from redist.store import calls
from redist_worker.replicas import slices

if TYPE_CHECKING:
    from redist.memory.directory import SegmentDirectory
    from redist.store.calls import Call

__all__ = ["Checker"]

logger = logging.getLogger("redist.worker")

Copy = tuple[str, int]

_MOST_TEXT = 500  # characters that the server is told of what is wrong


class Checker:
    """Looks at files on request, and drops those that are damaged; lives in the worker's event loop.

    What it tells the server is what it has just seen in its own directory, and names the attempt: for a copy that went as it
    should, that changes nothing. The server has a wanted value computed again then, a few times at most.

    Parameters
    ----------
    directory : SegmentDirectory
        The files.

    Attributes
    ----------
    ask : callable or None
        Sends a call on the worker's lane and returns its reply; None until there is a lane.
    """

    ask: Callable[[Call], Awaitable[list[Any]]] | None

    def __init__(self, directory: SegmentDirectory) -> None:
        self.ask = None
        self._directory = directory
        self._doubted: dict[Copy, None] = {}
        self._checking: asyncio.Task[None] | None = None

    async def check(self, copies: Sequence[Copy]) -> list[RedistError | None]:
        """Return for each copy what is wrong with its file, None if nothing is; the server knows by then.

        Raises
        ------
        TransferError
            If the worker is not so far yet.
        """
        ask = self.ask
        if ask is None:
            raise TransferError("this worker is not ready yet")
        found: dict[Copy, RedistError] = {}
        for part in slices(list(await asyncio.to_thread(self._look, copies))):
            wrong = self._look(part)
            if not wrong:
                continue
            found.update(wrong)
            ours = [copy for copy in wrong if self._directory.has(*copy)]
            if ours:
                logger.warning("%d payloads are damaged or gone, the first: %s", len(ours), wrong[ours[0]])
                self._directory.drop_all(ours)
            try:
                # Sent before anything else runs: a copy that is fetched anew is told of after it.
                await ask(calls.remove_replicas(wrong, [str(error)[:_MOST_TEXT] for error in wrong.values()]))
            except RedistError as error:
                logger.info("it is not known whether the server heard of damaged payloads: %s", error)
        return [found.get(copy) for copy in copies]

    def _look(self, copies: Sequence[Copy]) -> dict[Copy, RedistError]:
        return {copy: error for copy in copies if (error := flaw(self._directory, *copy)) is not None}

    def doubt(self, name: str, attempt: int) -> None:
        """Have a copy looked at that nobody waits for; many at once if they come at once."""
        self._doubted[name, attempt] = None
        if self._checking is None or self._checking.done():
            self._checking = asyncio.get_running_loop().create_task(self._check_doubted())

    async def _check_doubted(self) -> None:
        while self._doubted:
            copies = list(self._doubted)
            self._doubted.clear()
            try:
                await self.check(copies)
            except RedistError as error:
                logger.info("payloads that could not be read were not looked at: %s", error)
