"""A worker's executors: started, watched, reported when they die, and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from redist.memory.task_files import remove_task_directories
from redist.store.calls import Result
from redist_worker.forkserver import ForkServer
from redist_worker.local import directories_of
from redist_worker.marks import Marks
from redist_worker.shelf import make_shelves, open_shelves
from redist_worker.tails import Tails
from redist_worker.tokens import Tokens, token_pipes

__all__ = ["Executor", "Executors"]

logger = logging.getLogger("redist.worker")

_LONGEST_PAUSE = 10.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_STEADY = 5.0  # an executor that lived so long, s, did not die of its start


@dataclass(slots=True)
class Executor:
    """One executor process as its worker sees it.

    Parameters
    ----------
    index : int
        Its place among the worker's executors; a successor takes the same.
    name : str
        Name for people.
    marks : Marks
        What its threads run.
    control : socket.socket
        The worker's end of its control socket.
    tails : Tails
        Takes what it does not come to.
    """

    index: int
    name: str
    marks: Marks
    control: socket.socket
    tails: Tails
    pid: int = 0
    started: float = field(default_factory=time.monotonic)
    #: resident bytes, those of its own among them, and monotonic time of the last sample
    rss: int = 0
    private: int = 0
    sampled: float = 0.0
    #: bytes of its own that are not only its own: it shares them with the fork server until one of them writes there
    inherited: int = 0
    #: bytes of its own at the first sample
    base: int = 0
    #: how many processes the kernel had killed for lack of memory by then
    memory_kills: int = 0
    #: the most memory that it had, bytes; known when it is dead
    peak: int = 0
    #: generation of the cluster in which it was started
    generation: int = 0
    #: why it is being killed, for the report
    killed: str = ""
    #: whether what it runs had nothing to do with its death
    blameless: bool = False
    stopping: bool = False
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ordinal(self) -> int:
        """Ordinal on the server, 0 until it is registered."""
        return self.marks.ordinal


class Executors:
    """Keeps `count` executors running.

    Parameters
    ----------
    server : ForkServer
        What forks them.
    count : int
        How many.
    name : str
        The worker's name.
    threads : int
        Threads of each.
    segments : str
        The segment directory, where marks are kept.
    options : callable
        Returns what an executor is told, to be pickled.
    on_lost : callable
        Coroutine called with an executor that died, a text that says how, and the attempts that ran.
    on_taken : callable
        Coroutine called with an executor that does not go on, the attempts that it was given and will not start, and what
        it has finished.
    """

    def __init__(
        self,
        server: ForkServer,
        count: int,
        threads: int,
        name: str,
        segments: str,
        options: Callable[[Executor], object],
        on_lost: Callable[[Executor, str, list[int]], Awaitable[None]],
        on_taken: Callable[[Executor, list[int], list[Result]], Awaitable[None]],
    ) -> None:
        self._server = server
        self._count = count
        self.generation = 0
        self._name = name
        self._segments = segments
        self._options = options
        self._on_lost = on_lost
        self._on_taken = on_taken
        self._threads = threads
        self._number = 0
        self._living: dict[int, Executor] = {}
        self._failures = 0
        self._closing = False
        self._tasks: set[asyncio.Task[None]] = set()
        server.on_exit = self._exited
        server.on_lost = self._server_lost

    def __iter__(self) -> Iterator[Executor]:
        return iter(list(self._living.values()))

    def __len__(self) -> int:
        return len(self._living)

    async def start(self) -> None:
        """Start all executors."""
        await asyncio.gather(*(self._start(index) for index in range(self._count)))

    async def _start(self, index: int) -> None:
        self._number += 1
        number = self._number
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        marks = Marks(os.path.join(self._segments, f"marks-{os.getpid()}-{number}"))
        pipes = token_pipes(self._threads)
        shelves = make_shelves(len(pipes))
        tails = Tails(
            [Tokens(reading) for reading, _ in pipes],
            open_shelves(os.dup(shelves), len(pipes)),
            marks,
            lambda attempts, finished: self._spawn(self._on_taken(executor, attempts, finished)),
        )
        executor = Executor(index, f"{self._name}-{index}", marks, ours, tails, generation=self.generation)
        self._living[number] = executor
        try:
            options = pickle.dumps(self._options(executor))
            fds = [theirs.fileno(), shelves, *(fd for pipe in pipes for fd in pipe)]
            executor.pid = await self._server.spawn(number, options, fds)
            self._sample(executor)  # it may die before a heartbeat does so
        except OSError as error:
            self._living.pop(number, None)
            self._discard(executor)
            if not self._closing:
                logger.error("%s cannot be started: %s", executor.name, error)
                self._start_later(index)
        finally:
            theirs.close()
            os.close(shelves)
            for _, writing in pipes:
                os.close(writing)

    def _start_later(self, index: int) -> None:
        self._failures += 1
        pause = min(_LONGEST_PAUSE, 0.05 * 2 ** min(self._failures, 20))
        self._spawn(self._start_after(index, pause))

    async def _start_after(self, index: int, pause: float) -> None:
        await asyncio.sleep(pause)
        if not self._closing:
            await self._start(index)

    # --- death ------------------------------------------------------------------------------------------------------

    def _exited(self, number: int, status: int, peak: int) -> None:
        executor = self._living.pop(number, None)
        if executor is not None:
            executor.peak = peak
            how = _how(status)
            if -status == signal.SIGKILL and memory_kills() > executor.memory_kills:
                how += " (the kernel did so for lack of memory, or to another process at that time)"
            self._spawn(self._bury(executor, how, clean=executor.stopping and status == 0))

    def _server_lost(self) -> None:
        lost, self._living = list(self._living.values()), {}
        if self._closing:
            return
        logger.error("the process that starts executors died, and they with it; starting another one")
        self._server.start_again()
        for executor in lost:
            self._spawn(self._bury(executor, "died with the process that had started it", clean=False))

    async def _bury(self, executor: Executor, how: str, *, clean: bool) -> None:
        running = [] if executor.blameless else [attempt for attempt, _ in executor.marks.running()]
        steady = time.monotonic() - executor.started > _STEADY
        if steady:
            self._failures = 0
        text = self._reason(executor, how)
        if not executor.stopping:
            logger.log(logging.INFO if executor.killed else logging.WARNING, "%s", text)
        if not self._closing and not executor.stopping:
            # its successor first: it is needed at once, and the report may have to wait for the server
            if executor.ordinal and (self._failures == 0 or executor.killed):
                # what a task did to it is counted by the task's deaths
                if not (steady or running or executor.killed):
                    self._failures += 1
                self._spawn(self._start(executor.index))
            else:
                self._start_later(executor.index)
        try:
            if not clean:
                await self._on_lost(executor, text, running)
                prefix = directories_of(executor.name, executor.pid)
                await asyncio.to_thread(remove_task_directories, self._segments, prefix)
        finally:
            self._discard(executor)
            executor.exited.set()

    def _reason(self, executor: Executor, how: str) -> str:
        text = f"executor {executor.name} (pid {executor.pid}) {executor.killed or how}"
        if executor.rss:
            ago = time.monotonic() - executor.sampled
            text += f"; its last memory sample, {ago:.1f} s before, was {executor.rss / 2**20:.0f} MiB"
        if executor.peak:
            text += f"; at most it had {executor.peak / 2**20:.0f} MiB"
        return text

    def _discard(self, executor: Executor) -> None:
        executor.tails.close()
        executor.control.close()
        executor.marks.close(remove=True)

    # --- control ----------------------------------------------------------------------------------------------------

    def sample(self, *, roughly: bool = False) -> None:
        """Note how much memory each executor has; `roughly` takes over how much of it is shared with the fork server."""
        for executor in self._living.values():
            self._sample(executor, roughly)

    def _sample(self, executor: Executor, roughly: bool = False) -> None:
        rss, own = resident_bytes(executor.pid)
        if rss:
            if not roughly:
                executor.inherited = inherited_bytes(executor.pid)
            executor.rss, executor.sampled = rss, time.monotonic()
            executor.private = max(0, own - executor.inherited)
            executor.base = executor.base or executor.private

    def end(self, executor: Executor, why: str) -> None:
        """Kill one executor; see `kill`."""
        self._kill(why, [executor])

    def kill(self, why: str, ordinals: list[int] | None = None, *, blame: bool = True) -> None:
        """Kill executors, all or those with `ordinals`; successors are started.

        Parameters
        ----------
        why : str
            Ends a sentence that begins with the executor's name.
        ordinals : list of int, optional
            Which.
        blame : bool
            Whether the death counts for the tasks that run.
        """
        chosen = [e for e in self._living.values() if ordinals is None or e.ordinal in ordinals]
        for executor in chosen:
            executor.blameless = executor.blameless or not blame
        self._kill(why, chosen)

    def interrupt(self, ordinal: int, attempt: int) -> bool:
        """Kill the executor with this ordinal if it runs `attempt`, and blame nobody; return whether it did."""
        for executor in self._living.values():
            if executor.ordinal == ordinal and any(a == attempt for a, _ in executor.marks.running()):
                executor.blameless = True
                self._kill("was killed to interrupt a cancelled task", [executor])
                return True
        return False

    def _kill(self, why: str, executors: list[Executor]) -> None:
        for executor in executors:
            if executor.pid:
                executor.killed = why
                with contextlib.suppress(ProcessLookupError):
                    os.kill(executor.pid, signal.SIGKILL)

    def renew(self, generation: int) -> None:
        """Replace the executors of older generations."""
        self.generation = max(self.generation, generation)
        old = [executor for executor in self._living.values() if executor.generation < self.generation]
        self._kill("was restarted with the cluster", old)

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message to every executor."""
        data = json.dumps(message).encode()
        for executor in self._living.values():
            with contextlib.suppress(OSError):
                executor.control.send(data, socket.MSG_DONTWAIT)

    async def stop(self, grace: float) -> None:
        """Let executors finish what they run for `grace` seconds, hand back the rest, and end."""
        self._closing = True
        living = list(self._living.values())
        for executor in living:
            executor.stopping = True
        self.tell({"op": "stop", "grace": grace})
        ends = [asyncio.ensure_future(executor.exited.wait()) for executor in living]
        if ends:
            # what hangs beyond its grace is killed with the fork server
            await asyncio.wait(ends, timeout=grace + 2.0)
        for executor, end in zip(living, ends, strict=True):
            if not end.done():
                end.cancel()
                executor.killed = "did not stop in time and was killed"
                with contextlib.suppress(ProcessLookupError):
                    os.kill(executor.pid, signal.SIGKILL)
        if self._living:
            await asyncio.wait([asyncio.ensure_future(e.exited.wait()) for e in living], timeout=2.0)
        for task in list(self._tasks):
            task.cancel()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("watching an executor failed", exc_info=task.exception())


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return f"was killed by {name}"


def memory_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory since it started; 0 where it does not tell."""
    with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as file:
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0


def resident_bytes(pid: int) -> tuple[int, int]:
    """Return how much memory a process has, and how much of that is no file and no shared memory; zeros if it is gone."""
    if sys.platform == "linux":  # psutil takes 0.1 s to import
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:
                _, resident, shared, *_ = file.read().split()
            return int(resident) * _PAGE, (int(resident) - int(shared)) * _PAGE
        except (OSError, ValueError):
            return 0, 0
    else:
        import psutil

        try:
            rss = int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return 0, 0
        return rss, rss


def inherited_bytes(pid: int) -> int:
    """Return how much of a process's own memory belongs to others as well: pages that nobody wrote since it was forked."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            sizes = {line[0]: int(line[1]) for line in map(bytes.split, file) if len(line) == 3}
    except (OSError, ValueError):  # no Linux, an old one, or it is gone
        return 0
    return (
        max(0, sizes.get(b"Anonymous:", 0) - sizes.get(b"Pss_Anon:", 0)) * 1024
        if b"Pss_Anon:" in sizes
        else 0
    )
