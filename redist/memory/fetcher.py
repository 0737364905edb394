"""Fetching into a worker's segments: one transfer for all who wait for the same payload."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from redist.errors import RedistError, SegmentsFull, TransferError
from redist.memory.broker_messages import Wanted
from redist.memory.data_client import DataClient
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import footprint
from redist.memory.holders import HolderPlan
from redist.memory.receive import Received, SegmentSink
from redist.memory.space import waited_error

__all__ = ["Fetcher"]

logger = logging.getLogger("redist.memory")


class Fetcher:
    """Brings payloads of other hosts into a segment directory; lives in the worker's event loop.

    Transfers run in threads, at most `a_source` at a time from one data server. A payload that is here already, or on
    its way, is not asked for again.

    Parameters
    ----------
    directory : SegmentDirectory
        Where payloads go.
    client : DataClient
        Fetches them.
    threads : int
        Most transfers at a time.
    a_source : int
        Most transfers at a time from one data server.
    on_fetched : callable, optional
        Called in the event loop with name, attempt and payload size for every payload that arrived.
    make_room : callable, optional
        Coroutine called with the bytes that are missing when there is no space; True: try again.
    """

    def __init__(
        self,
        directory: SegmentDirectory,
        client: DataClient,
        *,
        threads: int = 4,
        a_source: int = 2,
        on_fetched: Callable[[str, int, int], None] | None = None,
        make_room: Callable[[int], Awaitable[bool]] | None = None,
    ) -> None:
        self._directory = directory
        self._client = client
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="redist-fetch")
        self._a_source = a_source
        self._sources: dict[str, tuple[asyncio.Semaphore, int]] = {}
        self._on_fetched = on_fetched
        self._make_room = make_room
        self._on_the_way: dict[tuple[str, int], asyncio.Future[RedistError | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def fetch(self, wanted: Sequence[Wanted]) -> list[RedistError | None]:
        """Fetch payloads; return for each None (it is here now) or what went wrong.

        Parameters
        ----------
        wanted : sequence of (name, attempt, addresses)
            The payloads, each with the data servers that have it, the best first.
        """
        loop = asyncio.get_running_loop()
        waits: list[asyncio.Future[RedistError | None] | None] = []
        new: list[Wanted] = []
        for item in wanted:
            key = item[0], item[1]
            if self._directory.has(*key):
                waits.append(None)
                continue
            future = self._on_the_way.get(key)
            if future is None:
                future = self._on_the_way[key] = loop.create_future()
                new.append(item)
            waits.append(future)
        if new:
            # a task of its own: whoever asked first may give up, the others still wait
            task = loop.create_task(self._transfer(new))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return [None if future is None else await asyncio.shield(future) for future in waits]

    async def close(self) -> None:
        """Give up what is on its way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._client.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _transfer(self, wanted: list[Wanted]) -> None:
        outcomes: list[Received | RedistError] = []
        try:
            outcomes = await self._fetch_with_room(wanted)
        except Exception as error:
            logger.exception("a fetch failed")
            outcomes = [TransferError(f"the fetch failed: {error!r}")] * len(wanted)
        finally:
            for index, (name, attempt, _) in enumerate(wanted):
                future = self._on_the_way.pop((name, attempt))
                if future.done():
                    continue
                if index < len(outcomes):
                    outcome = outcomes[index]
                    future.set_result(None if isinstance(outcome, Received) else outcome)
                else:
                    future.cancel()

    async def _fetch_with_room(self, wanted: list[Wanted]) -> list[Received | RedistError]:
        sink = SegmentSink(self._directory)
        outcomes = await self._fetch_all(wanted, sink)
        full = [index for index, outcome in enumerate(outcomes) if isinstance(outcome, SegmentsFull)]
        while full and self._make_room is not None:
            limit = self._directory.space.limit
            sizes = [footprint(size) for size in sink.refused]
            # room for all, or for as many as can be there at once beside others
            need = max(*sizes, min(sum(sizes), limit // 2 or sum(sizes)))
            if limit and max(sizes) > limit:
                break
            if not await self._make_room(need):
                for index in full:
                    outcomes[index] = waited_error(outcomes[index])
                break
            sink = SegmentSink(self._directory)
            again = await self._fetch_all([wanted[index] for index in full], sink)
            for index, outcome in zip(full, again, strict=True):
                outcomes[index] = outcome
            full = [index for index in full if isinstance(outcomes[index], SegmentsFull)]
        return outcomes

    async def _fetch_all(self, wanted: list[Wanted], sink: SegmentSink) -> list[Received | RedistError]:
        plan = HolderPlan(wanted)
        while groups := plan.groups():
            answers = await asyncio.gather(
                *(
                    self._from_source(address, plan.payloads(indices), sink)
                    for address, indices in groups.items()
                )
            )
            for indices, answer in zip(groups.values(), answers, strict=True):
                plan.record(indices, answer)
                if self._on_fetched is not None:
                    for outcome in answer:
                        if isinstance(outcome, Received):
                            self._on_fetched(
                                outcome.header.name, outcome.header.attempt, outcome.header.nbytes
                            )
        return plan.outcomes()

    async def _from_source(
        self, address: str, payloads: list[tuple[str, int]], sink: SegmentSink
    ) -> list[Received | RedistError]:
        semaphore, users = self._sources.get(address, (None, 0))
        if semaphore is None:
            semaphore = asyncio.Semaphore(self._a_source)
        self._sources[address] = semaphore, users + 1
        try:
            async with semaphore:
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._pool, self._client.get, address, payloads, sink)
        finally:
            semaphore, users = self._sources[address]
            if users == 1:
                del self._sources[address]
            else:
                self._sources[address] = semaphore, users - 1
