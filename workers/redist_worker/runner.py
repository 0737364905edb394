"""The threads of an executor: they take tasks from the server, run them and hand in what came of it.

Any thread that needs work makes the turn (`redist_worker.turns`). A thread that runs a task holds one of T slots; one that
waits for other tasks inside its task gives its slot up until it has what it waited for, so tasks that wait for tasks never
starve an executor. The unstarted tail of a batch goes to another thread when its thread blocks, and back to the server when
the current task drags on, or by the worker if that task holds the GIL (`redist_worker.tokens`).

Invariant: an attempt is started once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from redist.store.calls import Result
from redist.store.replies import HandOut
from redist_worker.chains import Chain
from redist_worker.deadline import Deadline
from redist_worker.marks import Marks
from redist_worker.places import Places
from redist_worker.shelf import Shelf
from redist_worker.threads import Lane, TaskThread, take_next, take_tail
from redist_worker.tokens import Tokens
from redist_worker.turns import Turns

__all__ = ["Runner"]

logger = logging.getLogger("redist.worker")

_DRAGS = 0.005  # s of one task, after which the rest of its batch goes back
_CUT_AFTER = 0.02  # s of a batch, after which it is cut short
_HAND_IN_AFTER = 0.0025  # s that a result waits for others of its batch, and for the task that runs then
_SPARE_THREADS = 1


class Runner:
    """Runs the tasks of one executor in T threads.

    Parameters
    ----------
    lane : Lane
        The executor's session.
    execute : callable
        Runs one task, and returns its result and the object to be kept alive until the result is handed in. Never raises.
    marks : Marks
        Where each thread says what it runs.
    threads : int
        T, how many tasks run at a time.
    before_hand_in : callable
        Called before results leave.
    on_failure : callable
        Called when a thread ended because the session failed.
    shares : sequence of (Tokens, Shelf)
        What the first threads, by their slots, share with the worker.
    is_call : callable
        Returns whether a function, by its hash, calls actors.

    Attributes
    ----------
    places : Places
        Where a task gives its slot up, and takes one again.
    """

    threads: int
    places: Places

    def __init__(
        self,
        lane: Lane,
        execute: Callable[[HandOut], tuple[Result, object]],
        marks: Marks,
        threads: int,
        before_hand_in: Callable[[], None],
        on_failure: Callable[[], None] = lambda: None,
        shares: Sequence[tuple[Tokens, Shelf]] = (),
        is_call: Callable[[str], bool] = lambda fn: False,
    ) -> None:
        self.threads = threads
        self._lane = lane
        self._execute = execute
        self._marks = marks
        self._on_failure = on_failure
        self._shares = shares
        self._is_call = is_call
        self._turns = Turns(lane, threads, before_hand_in, is_call)
        self._turns.on_calls = self._add_thread
        self._lock = self._turns.lock
        self.places = Places(self._secede, self._turns.regain)
        self._all: set[TaskThread] = set()
        self._alive = 0  # threads that look for work again when they have none; under the lock
        self._deadline = Deadline(_DRAGS)

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the threads."""
        threading.Thread(target=self._watch, name="redist-watch", daemon=True).start()
        with self._lock:
            self._alive += self.threads
        for _ in range(self.threads):
            self._start_thread()

    def _start_thread(self) -> None:
        threading.Thread(target=self._main, name="redist-task", daemon=True).start()

    def stop(self, grace: float) -> None:
        """Take nothing more, wait `grace` seconds for what runs, and give back what then still runs or never started."""
        deadline = time.monotonic() + grace
        with self._lock:
            back = self._turns.stop()
            for thread in list(self._all):
                back += take_tail(thread)
            finished = [thread for thread in self._all if thread.results]
        self._deadline.expire()
        for thread in finished:
            self._turns.hand_in(thread)
        # its answer also wakes threads that wait
        self._turns.give_back(back)
        while self._all and time.monotonic() < deadline:
            time.sleep(0.005)
        running = [thread.task for thread in list(self._all) if thread.task is not None]
        if running:
            self._turns.give_back(running)

    @property
    def busy(self) -> int:
        """How many tasks run or wait inside this executor now."""
        return self._turns.running + self._turns.calling + self._turns.blocked

    def executing(self) -> dict[str, int]:
        """Return which tasks run now: wire name -> thread."""
        return {task.name: thread.ident for thread in list(self._all) if (task := thread.task) is not None}

    # --- what the server sends --------------------------------------------------------------------------------------

    def on_tasks(self, tasks: Sequence[HandOut]) -> None:
        """Take what was pushed; an empty list says that there may be something to take. Called back by the session."""
        self._turns.pushed(tasks)

    def on_void(self, attempts: Iterable[int]) -> None:
        """Skip what nobody wants any more, as far as it is here and not started. Called back by the session."""
        void = frozenset(attempts)
        with self._lock:
            for thread in list(self._all):
                thread.void.update(void.intersection(task.attempt for task in list(thread.queue)))
            back = self._turns.withdraw(void)
        if back:
            self._turns.give_back(back, self._lane.enqueue)

    # --- a thread ---------------------------------------------------------------------------------------------------

    def _main(self) -> None:
        slot = self._marks.take_slot()
        me = TaskThread(slot)
        if slot < len(self._shares):
            me.tokens, me.shelf = self._shares[slot]
            me.tokens.take_all()  # of a predecessor that failed
        self._all.add(me)
        self.places.enter(me)
        try:
            while (work := self._next(me)) is not None:
                self._run(me, work)
            failed = self._lane.failed
        except Exception:
            failed = True
            if not (self._turns.stopping or self._lane.failed):
                logger.exception("a task thread failed")
        finally:
            with self._lock:
                self._turns.leave(me)
                self._count_out(me)
            self._marks.give_slot(me.slot)
            self._all.discard(me)
        if failed and not self._turns.stopping:
            self._on_failure()

    def _next(self, me: TaskThread) -> list[HandOut] | None:
        """Return what `me` runs next, with a slot for it; None when the thread is to end."""
        turns = self._turns
        resync = False
        while True:
            work, ask = None, False
            with self._lock:
                turns.leave(me)
                ends = turns.stopping or self._lane.failed or self._superfluous()
                if ends:
                    # at once: from here on it takes up nothing, and who counts on it would wait for ever
                    self._count_out(me)
                else:
                    work, ask = turns.claim(me, resync=resync)
            if ask:
                work = turns.take(me, resync=resync)
                resync = False
                if work is not None:
                    return work
                continue
            if me.results:
                turns.hand_in(me)
            if work is not None or ends:
                return work
            if not turns.wait():
                resync = turns.silent()

    def _superfluous(self) -> bool:
        """Whether the other threads are enough for all slots and for the calls that wait. The lock is held."""
        turns = self._turns
        others = self._alive - 1
        return others - turns.blocked >= self.threads + _SPARE_THREADS and not turns.short(others)

    def _count_out(self, me: TaskThread) -> None:
        """Count `me`, which ends, no longer as alive. The lock is held."""
        if not me.ended:
            me.ended = True
            self._alive -= 1

    def _run(self, me: TaskThread, work: list[HandOut]) -> None:
        chain = Chain()
        if len(work) == 1:
            self._run_link(me, work[0], chain)
            return
        task: HandOut | None = work[0]
        me.begin(work[1:])
        self._deadline.arm()
        begun = handed_in = time.perf_counter()
        while task is not None:
            result = self._run_link(me, task, chain)
            chain.note(result)
            if me.started - begun > _CUT_AFTER:
                break  # not as quick as they were: others get the rest
            task = take_next(me)
            if task is not None and (
                me.started - handed_in > _HAND_IN_AFTER
                or task.fn not in self._turns.pace.quick
                # the task may hold the GIL, and then only the worker could; what goes back has time
                or not (result.status == "back" or me.lay_by(result))
            ):
                self._turns.hand_in(me)
                me.handed_in()
                handed_in = me.started
        with self._lock:  # whoever takes tokens takes the tasks before the lock is free
            back = me.end()
        # The worker says the same of what it took; one of the two finds the attempt void.
        me.results.extend((Result(task.name, task.attempt, "back"), task.batch, None) for task in back)

    def _run_link(self, me: TaskThread, task: HandOut, chain: Chain) -> Result:
        """Run `task`, or give it back where what it waits for was not computed ahead of it."""
        linked = chain.link(task) if task.deps else task
        if linked is not None:
            return self._run_one(me, linked)
        result = Result(task.name, task.attempt, "back")
        me.results.append((result, task.batch, None))
        return result

    def _run_one(self, me: TaskThread, task: HandOut) -> Result:
        clock = time.perf_counter
        slot = me.slot
        me.task = task
        self._marks.set(slot, task.attempt)
        me.started = begun = clock()
        result, value = self._execute(task)
        ended = clock()
        self._marks.clear(slot)
        me.task = None
        me.started = ended
        me.results.append((result, task.batch, value if result.contains else None))
        gave_up = me.seceded or me.blocks
        if gave_up:
            self._come_back_unslotted(me)
        if not gave_up or self._is_call(task.fn):  # what else a task waits for is not its own time
            self._turns.pace.note(task.fn, ended - begun, 1, inline=result.value != b"")
        return result

    def _come_back_unslotted(self, me: TaskThread) -> None:
        """Note that the task ended while it was seceded: its thread holds no slot, and looks for work like any other."""
        with self._lock:
            self._turns.blocked -= 1
        me.seceded = False
        me.blocks = 0

    def _secede(self, me: TaskThread) -> None:
        turns = self._turns
        with self._lock:
            turns.give_up(me)
            needed = self._alive - turns.blocked < self.threads and not turns.stopping
            needed = needed or turns.short(self._alive)
            if needed:
                self._alive += 1
        # hands in what is finished; what this turn takes is for the thread that takes over, and its answer wakes that
        turns.hand_in(me)
        if needed:
            self._start_thread()

    def _add_thread(self) -> None:
        """Start a thread for calls of actors if one is missing."""
        with self._lock:
            needed = self._turns.short(self._alive)
            if needed:
                self._alive += 1
        if needed:
            self._start_thread()

    # --- tasks that drag on -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Hand in and give back what is before and behind tasks that take too long."""
        while True:
            self._deadline.wait()
            if self._turns.stopping:
                return
            again = False
            now = time.perf_counter()
            for thread in list(self._all):
                if not (thread.queue or thread.results):
                    continue
                if thread.task is None or now - thread.started < _DRAGS:
                    again = True
                    continue
                try:
                    with self._lock:
                        tail = take_tail(thread)
                    if tail:
                        self._turns.give_back(tail)
                    if thread.results:
                        self._turns.hand_in(thread)
                except Exception:
                    if self._turns.stopping or self._lane.failed:
                        return
                    logger.exception("a batch could not be cut short")
            if again:
                self._deadline.arm()
