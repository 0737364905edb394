"""A worker's memory against its limit: it spills, pauses, and ends what takes too much.

What counts is *managed* memory, payloads in shared memory, and *unmanaged*, what executors have of their own. A look every
0.1 to 0.5 s compares them with the fractions of `redist.memory.limits`. Payloads move, and what is dropped is given
back, in a thread of its own, one at a time: the event loop never waits for a disk, nor for the kernel to free pages.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from redist.errors import RedistError, SegmentError
from redist.memory.moving import Mover
from redist.memory.space import format_size
from redist.memory.verifying import vanished

if TYPE_CHECKING:
    from redist.memory.directory import SegmentDirectory
    from redist.memory.limits import MemoryLimits
    from redist_worker.executors import Executors
    from redist_worker.surplus import Surplus

__all__ = ["Pressure"]

logger = logging.getLogger("redist.worker")

T = TypeVar("T")

_PERIOD = 0.2  # s between two looks
_SHORT_PERIOD = 0.1  # the same when more than half of the limit is used
_LONG_PERIOD = 0.5  # the same when less than a quarter is, and nothing changes: each look wakes the process
_STILL = 5  # looks without a change after which nothing changes
_AT_ONCE = 256 << 20  # bytes that are spilled before it is looked again how much has to be
_AT_ONCE_HERE = 8 << 20  # bytes that are given back in the event loop: 0.5 ms
_AGAIN, _LONGEST_AGAIN = 0.2, 2.0  # s until spilling is tried again after it freed nothing
_STRAINED = 1.0  # s after the last payload was spilled, in which tasks with dependencies still go first
_DISK_AGAIN, _LONGEST_DISK_AGAIN = 1.0, 30.0  # s until a disk that could not be written is tried again
_BACK = 0.9  # of the target, to which hot payloads come back
_BACK_PERIOD = 1.0  # s between two looks for them
_RESUME = 0.95  # of what pauses, below which executors go on
_MOST_WAIT = 50.0  # s that a reservation waits in all; who asks gives up after 60
_TELL_PERIOD = 0.4  # s between two heartbeats that are early since memory changed
_TELL_CHANGE = 0.02  # of the limit, that is worth one
_WARN_PERIOD = 60.0  # s in which what keeps payloads from disk is told once, also if it comes and goes
_VANISHED_PERIOD = 1.0  # s between two looks whether somebody has removed files on disk
_LONG = 5.0  # s of a pause that are worth a warning


class Pressure:
    """Keeps one worker within its memory limit.

    Parameters
    ----------
    directory : SegmentDirectory
        Its payloads.
    limit : int
        Its memory limit; 0 for none, and then payloads are spilled only where shared memory is full.
    limits : MemoryLimits
        What is done at which fraction of it.
    tell : callable
        Sends a heartbeat now: `status` or memory have changed.
    surplus : Surplus, optional
        Copies that go before anything is spilled.
    check : callable, optional
        Coroutine called with names and attempts of payloads whose files on disk somebody has removed.
    """

    def __init__(
        self,
        directory: SegmentDirectory,
        limit: int,
        limits: MemoryLimits,
        tell: Callable[[], None] = lambda: None,
        surplus: Surplus | None = None,
        check: Callable[[Sequence[tuple[str, int]]], Awaitable[object]] | None = None,
    ) -> None:
        self.executors: Executors | None = None
        self._directory = directory
        self._limit = limit
        self._limits = limits
        self._tell = tell
        self._surplus = surplus
        self._check = check
        stat = os.statvfs(directory.path)
        #: where shared memory is smaller than the limit, payloads have that
        self._room = min(limit, stat.f_blocks * stat.f_frsize)
        directory.grants.at_once = _AT_ONCE_HERE
        self._mover = Mover(directory)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="redist-spill")
        self._line = asyncio.Lock()
        self._spilling: asyncio.Task[None] | None = None
        self._returning: asyncio.Task[None] | None = None
        self._reaping: asyncio.Task[None] | None = None
        self._missing: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._paused = self._strained = self._let_through = False
        self._stuck = False  # whether the last try to spill freed nothing
        self._moved_at = float("-inf")  # when something was last spilled
        self._ran = time.monotonic()
        self._since = 0.0  # of the pause
        self._spill_after = 0.0
        self._again = _AGAIN
        self._disk_again = _DISK_AGAIN
        self._warned: dict[object, float] = {}  # what was told to keep payloads from disk, and when
        self._looked_back = self._looked_for_missing = 0.0
        self._told: tuple[str, int, int, int] = ("running", 0, 0, 0)
        self._told_at = 0.0
        self._seen = (0, 0, 0)  # at the last look: bytes in memory, on disk and of executors
        self._still = 0  # looks since they changed

    # --- figures ----------------------------------------------------------------------------------------------------

    @property
    def managed(self) -> int:
        """Bytes of shared memory that payloads, and what is being written, take; the pool is not in it."""
        return self._directory.space.used - self._directory.pool.total

    @property
    def unmanaged(self) -> int:
        """Bytes that executors have of their own, as they were sampled."""
        return sum(executor.private for executor in self.executors or ())

    @property
    def status(self) -> str:
        """``running``; ``strained``: tasks that have dependencies go first; or ``paused``."""
        if self._paused:
            return "strained" if self._let_through else "paused"
        return "strained" if self._strained else "running"

    def metrics(self, granted: int) -> dict[str, Any]:
        """Return what a heartbeat says of memory, and note that it was said."""
        directory = self._directory
        self._told = self._now()
        self._told_at = time.monotonic()
        managed, lingering, pooled = directory.total, directory.lingering, directory.pool.total
        return {
            "files": len(directory.files),
            "managed": managed,
            "spilled": directory.spill.used,
            "lingering": lingering,
            "pooled": pooled,
            "granted": granted,
            "overhead": max(0, directory.space.used - managed - lingering - pooled - granted),
            "unmanaged": self.unmanaged,
            "spilled_in_all": self._mover.moved_out,
            "unspilled_in_all": self._mover.moved_in,
        }

    def _now(self) -> tuple[str, int, int, int]:
        return self.status, self._directory.space.used, self._directory.spill.used, self.unmanaged

    # --- looking ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look."""
        self._ran = time.monotonic()
        self._look_later()

    def give_up(self) -> None:
        """Stop looking, and have nobody wait for room any more."""
        self._directory.spill.closing = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def close(self) -> None:
        """Stop looking; what is being moved is given up."""
        self.give_up()
        started = self._spilling, self._returning, self._reaping, self._missing
        tasks = [task for task in started if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # the thread sees within a piece that the directory is closing
        await asyncio.to_thread(self._pool.shutdown, cancel_futures=True)

    @property
    def period(self) -> float:
        """Seconds until the next look."""
        used, limit = self.managed + self.unmanaged, self._limit
        if limit and 2 * used > limit:
            return _SHORT_PERIOD
        far = not limit or 4 * used < limit
        return _LONG_PERIOD if far and self._still >= _STILL else _PERIOD

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.period, self._look)

    def _look(self) -> None:
        try:
            self.look()
        except Exception:
            logger.exception("the look at memory failed")
        if not self._directory.spill.closing:
            self._look_later()

    def look(self) -> None:
        """Compare memory with the limit once, and do what there is to do."""
        # not with heartbeats: there are none while the server is away
        if self._directory.due and _done(self._reaping):
            self._reaping = asyncio.get_running_loop().create_task(self._reap())
        if self.executors is None or self._directory.spill.closing:
            return
        self.executors.sample(roughly=True)
        now = time.monotonic()
        if (
            self._directory.spill.files
            and now - self._looked_for_missing > _VANISHED_PERIOD
            and _done(self._missing)
        ):
            self._looked_for_missing = now
            self._missing = asyncio.get_running_loop().create_task(self._look_for_missing())
        if self._limit:
            self._settle()
            self.check()
            if not self._paused and self._directory.spill.files and now - self._looked_back > _BACK_PERIOD:
                self._looked_back = now
                self._bring_back()
        seen = self._now()[1:]
        self._still = self._still + 1 if seen == self._seen else 0
        self._seen = seen
        worth = max(1 << 20, int(_TELL_CHANGE * self._limit))
        changed = any(abs(a - b) > worth for a, b in zip(seen, self._told[1:], strict=True))
        if changed and now - self._told_at > _TELL_PERIOD:
            self._tell()

    def check(self) -> None:
        """Begin to spill if that is due; cheap, for whoever has just made memory more."""
        if self._excess() > 0 and time.monotonic() >= self._spill_after and _done(self._spilling):
            self._spilling = asyncio.get_running_loop().create_task(self._spill())

    def committed(self, *_: object) -> None:
        """Take note of a new payload."""
        if self._directory.total > self._limits.target * self._room > 0:
            self.check()

    def _excess(self) -> int:
        """Return how many bytes of payloads are to leave memory."""
        limits, managed = self._limits, self.managed
        excess = 0.0
        if limits.target and self._limit:
            excess = managed - limits.target * self._room
        if limits.spill and self._limit:
            # files that wait to be used again go first, so they count here
            excess = max(excess, self._directory.space.used + self.unmanaged - limits.spill * self._limit)
        return int(min(excess, self._directory.space.used))

    def _settle(self) -> None:
        """Settle whether executors take tasks, and which; end one if nothing else helps."""
        limits, limit, now = self._limits, self._limit, time.monotonic()
        managed = self.managed
        total = managed + self.unmanaged
        # What was just made is best used before it goes to disk.
        above = bool(limits.target) and managed > limits.target * self._room
        self._strained = above or now - self._moved_at < _STRAINED
        pause = limits.pause * limit
        if not self._paused and pause and total > pause:
            self._paused, self._let_through, self._ran, self._since = True, False, now, now
            logger.info(
                "paused: %s of payloads and %s of executors are above pause=%g of the memory limit of %s",
                format_size(managed), format_size(total - managed), limits.pause, format_size(limit),
            )  # fmt: skip
        elif self._paused and total < _RESUME * pause:
            self._paused = self._let_through = False
            logger.info("goes on: %s of %s are in use", format_size(total), format_size(limit))
        if self._paused:
            if now - self._since > _LONG:
                self._since = float("inf")
                logger.warning(
                    "executors have taken no tasks for %g s: %s of payloads and %s of their own memory are in use, above"
                    " pause=%g of the memory limit of %s",
                    _LONG, format_size(managed), format_size(total - managed), limits.pause, format_size(limit),
                )  # fmt: skip
            self._let_one_through(now)
        if self.status != self._told[0]:
            self._tell()
        if limits.terminate:
            # Payloads that are about to go to disk are no reason to kill, nor those above their target.
            unavoidable = min(managed, limits.target * self._room or managed) if self._stuck else 0
            if unavoidable + total - managed > limits.terminate * limit:
                self._terminate(total, unavoidable + total - managed - limits.terminate * limit)

    def _let_one_through(self, now: float) -> None:
        """Have executors take a task after a long pause: it may be what lets memory go, and nothing else will."""
        assert self.executors is not None
        if any(executor.marks.running() for executor in self.executors):
            self._ran, self._let_through = now, False
        elif now - self._ran > self._limits.longest_pause and not self._let_through:
            self._let_through = True
            logger.info("nothing ran for %g s: a task is taken all the same", self._limits.longest_pause)

    def _terminate(self, total: int, excess: float) -> None:
        """Kill the executor with most memory of its own, if executors have grown by `excess` since their start."""
        executors = list(self.executors or ())
        if not executors or any(executor.killed for executor in executors):
            return  # one is on its way out
        # What an executor has from its start comes back with its successor.
        if sum(max(0, executor.private - executor.base) for executor in executors) < excess:
            return
        largest = max(executors, key=lambda executor: executor.private - executor.base)
        assert self.executors is not None
        self.executors.end(
            largest,
            f"was killed for its memory: the worker's payloads and executors took {format_size(total)}, more than"
            f" terminate={self._limits.terminate:g} of its limit of {format_size(self._limit)}, and this executor"
            f" {format_size(largest.private)} of that",
        )

    # --- moving -----------------------------------------------------------------------------------------------------

    async def _run(self, function: Callable[..., T], *args: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    async def _reap(self) -> None:
        try:
            await self._run(self._directory.reap)
        except Exception:
            logger.exception("what was dropped could not be given back")

    async def _spill(self) -> None:
        while (excess := self._excess()) > 0 and not self._directory.spill.closing:
            freed = await self._free(min(excess, _AT_ONCE))
            self._stuck = not freed
            if freed:
                self._moved_at = time.monotonic()
            else:
                self._spill_after = max(self._spill_after, time.monotonic() + self._again)
                self._again = min(2 * self._again, _LONGEST_AGAIN)
                return
            self._again = _AGAIN
            self._settle()

    async def _free(self, need: int) -> int:
        """Spill until `need` bytes are free; return how many are. What fails is told once, and tried again later."""
        freed = 0
        try:
            freed = await self._run(self._directory.reap)
            if freed < need:
                freed += await self._run(self._directory.trim, need - freed)
            if freed < need and self._surplus is not None:
                freed += await self._surplus.drop(need - freed)
            if freed < need:
                moved = await self._run(self._mover.make_room, need - freed)
                freed += moved
                if moved:
                    self._disk_again = _DISK_AGAIN
        except (SegmentError, OSError) as error:
            self._spill_later(error)
        return freed

    def _spill_later(self, error: SegmentError | OSError) -> None:
        """Have nothing be spilled for a while, each time for longer."""
        now = time.monotonic()
        self._spill_after = now + self._disk_again
        self._disk_again = min(2 * self._disk_again, _LONGEST_DISK_AGAIN)
        failed = error.__cause__ or error
        cause = type(failed), getattr(failed, "errno", None)
        # One that lasts is not told again; the tries are at most this far from each other.
        lately = now - self._warned.get(cause, float("-inf")) < _WARN_PERIOD
        self._warned[cause] = now
        if not lately and not self._directory.spill.closing:
            logger.warning("%s; it is tried again, at least each %g s", error, _LONGEST_DISK_AGAIN)

    async def make_room(self, need: int) -> bool:
        """Wait until `need` bytes can be reserved; False if they cannot be, though nothing got free for a while.

        Those who wait are served in the order in which they came.
        """
        space = self._directory.space
        began = since = time.monotonic()
        async with self._line:
            left = space.free()
            while True:
                now = time.monotonic()
                free = space.free()
                if free >= need:
                    return True
                if free != left:
                    left, since = free, now
                if (
                    now - since > self._limits.wait
                    or now - began > _MOST_WAIT
                    or self._directory.spill.closing
                ):
                    return False
                if not (now >= self._spill_after and await self._free(need - free)):
                    await asyncio.sleep(0.02)

    async def _look_for_missing(self) -> None:
        """Have payloads forgotten whose files on disk somebody has removed, so that they are made again elsewhere."""
        missing = await self._run(vanished, self._directory)
        if not missing or self._check is None or self._directory.spill.closing:
            return
        try:
            await self._check(missing)
        except RedistError as error:  # as when the worker is not so far yet; it is looked again
            logger.info("payloads whose files are gone were not told of: %s", error)

    def _bring_back(self) -> None:
        if _done(self._returning):
            self._returning = asyncio.get_running_loop().create_task(self._return())

    async def _return(self) -> None:
        """Have hot payloads in memory again, as far as there is room."""
        for hot in await self._run(self._mover.hot):
            managed = self.managed + self._mover.nbytes(hot)
            above = managed > _BACK * self._limits.target * self._room if self._limits.target else False
            if above or managed + self.unmanaged > _BACK * (self._limits.spill or 1.0) * self._limit:
                return
            await self._run(self._mover.bring_back, hot)


def _done(task: asyncio.Task[None] | None) -> bool:
    return task is None or task.done()
