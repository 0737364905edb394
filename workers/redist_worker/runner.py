"""The threads of an executor: they take tasks from the server, run them and hand in what came of it.

Any thread that needs work makes the `turn`. A thread that runs a task holds one of T *slots*; one that waits for other
tasks inside its task gives its slot up until it has what it waited for, so tasks that wait for tasks never starve an
executor. What one turn brought is a *batch*; its unstarted tail goes to another thread when its thread blocks, and back to
the server when the current task drags on, or by the worker if that task holds the GIL (`redist_worker.tokens`).

Invariants: an attempt is started once; a batch is open from its arrival until its last task's hand-in was answered; no
result is dropped before the turn that carries it is on the lane.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from redist.store import calls
from redist.store.calls import Call, Result
from redist.store.replies import HandOut, Turn, parse_turn
from redist_worker.batches import Batches
from redist_worker.chains import Chain
from redist_worker.deadline import Deadline
from redist_worker.marks import Marks
from redist_worker.pace import Pace
from redist_worker.places import Places
from redist_worker.shelf import Shelf
from redist_worker.threads import Lane, TaskThread, take_next, take_results, take_tail
from redist_worker.tokens import Tokens

__all__ = ["Runner"]

logger = logging.getLogger("redist.worker")

_SILENCE = 1.0  # s without a word from the server, after which an idle executor asks
_DRAGS = 0.005  # s of one task, after which the rest of its batch goes back
_CUT_AFTER = 0.02  # s of a batch, after which it is cut short
_HAND_IN_AFTER = 0.0025  # s that a result waits for others of its batch, and for the task that runs then
_SPARE_THREADS = 1

_Post: TypeAlias = Callable[[Call, Callable[[Any], None]], None]


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
    ) -> None:
        self.threads = threads
        self._lane = lane
        self._execute = execute
        self._marks = marks
        self._before_hand_in = before_hand_in
        self._on_failure = on_failure
        self._shares = shares
        self.places = Places(self._secede, self._rejoin)
        self._pace = Pace()
        self._lock = threading.Lock()
        self._slot_free = threading.Condition(self._lock)
        self._all: set[TaskThread] = set()
        self._deadline = Deadline(_DRAGS)
        # under the lock:
        self._pending: deque[list[HandOut]] = deque()
        self._running = 0
        self._returning = 0
        self._blocked = 0
        self._alive = 0
        self._batches = Batches()
        self._told_free = 0  # how many idle threads the server believes in
        self._stopping = False
        self._heard = time.monotonic()

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
            self._stopping = True
            pending, self._pending = list(self._pending), deque()
        back = [task for batch in pending for task in batch]
        with self._lock:
            for thread in list(self._all):
                back += take_tail(thread)
            finished = [thread for thread in self._all if thread.results]
        self._deadline.expire()
        for thread in finished:
            self._hand_in(thread)
        # its answer also wakes threads that wait
        self._give_back(back)
        while self._all and time.monotonic() < deadline:
            time.sleep(0.005)
        running = [thread.task for thread in list(self._all) if thread.task is not None]
        if running:
            self._give_back(running)

    @property
    def busy(self) -> int:
        """How many tasks run or wait inside this executor now."""
        return self._running + self._blocked

    # --- what the server sends --------------------------------------------------------------------------------------

    def on_tasks(self, tasks: Sequence[HandOut]) -> None:
        """Take what was pushed; an empty list says that there may be something to take. Called back by the session."""
        with self._lock:
            self._heard = time.monotonic()
            if not tasks:
                self._told_free = 0
                return
            new = self._batches.open(tasks, pushed=True)
            self._told_free -= len(new)
            self._pending += new
            surplus = self._surplus()
        if surplus:
            self._give_back(surplus, self._lane.enqueue)

    def on_void(self, attempts: Iterable[int]) -> None:
        """Skip what nobody wants any more, as far as it is here and not started. Called back by the session."""
        void = frozenset(attempts)
        with self._lock:
            for thread in list(self._all):
                thread.void.update(void.intersection(task.attempt for task in list(thread.queue)))
            back = [task for batch in self._pending for task in batch if task.attempt in void]
            if back:
                left = ([task for task in batch if task.attempt not in void] for batch in self._pending)
                self._pending = deque(batch for batch in left if batch)
        if back:
            self._give_back(back, self._lane.enqueue)

    def _surplus(self) -> list[HandOut]:
        """Return what no thread is free for, taken off the pending batches; the lock is held."""
        surplus: list[HandOut] = []
        while self._pending and (self._stopping or self._free() < 0):
            surplus += self._pending.pop()
        return surplus

    def _free(self) -> int:
        """Return how many slots neither run a task nor have one waiting for them; the lock is held."""
        return self.threads - self._running - self._returning - len(self._pending)

    def _give_back(self, tasks: Sequence[HandOut], post: _Post | None = None) -> None:
        results = [Result(task.name, task.attempt, "back") for task in tasks]
        self._post(results, [task.batch for task in tasks], post)

    # --- turns ------------------------------------------------------------------------------------------------------

    def _turn(
        self, results: list[Result], batches: list[int], *, resync: bool = False
    ) -> tuple[Call, list[int]]:
        """Return the call that hands in `results` of `batches` and takes what this executor has threads for."""
        with self._lock:
            finished = self._batches.hand_in(batches)
            free = max(0, self._free())
            if free == 0 or self._stopping:
                want = free = 0
            elif resync:
                want = calls.RESYNC
            else:
                want = self._pace.want
            self._told_free = free
            capacity = len(self._batches) + free
        quick = self._pace.quick if want > 1 else ()
        return calls.turn(capacity, want, quick, finished, results), finished

    def _answered(self, reply: Any, finished: Sequence[int], *, resync: bool = False) -> list[list[HandOut]]:
        """Take in the reply of a turn; return the new batches that it brought."""
        code = reply[0]
        with self._lock:
            self._heard = time.monotonic()
            self._batches.answered(finished)
            if code not in (b"OK", b"REPEAT"):
                return []
            turn: Turn = parse_turn(reply)
            if not turn.tasks:
                return []
            new = self._batches.open(turn.tasks, listed=resync or code == b"REPEAT")
            self._told_free -= len(new)
            return new

    def _post(self, results: list[Result], batches: list[int], post: _Post | None = None) -> None:
        """Make a turn without waiting; what it brings goes to whichever thread is free."""
        call, finished = self._turn(results, batches)
        (post or self._lane.post)(call, lambda reply: self._posted(reply, finished))

    def _posted(self, reply: Any, finished: Sequence[int]) -> None:
        new = self._answered(reply, finished)
        if new:
            with self._lock:
                self._pending += new
                surplus = self._surplus()
            if surplus:
                self._give_back(surplus, self._lane.enqueue)

    def _hand_in(self, me: TaskThread) -> None:
        """Hand in what `me` has finished, without waiting."""
        self._before_hand_in()
        results, batches, values = take_results(me)
        self._post(results, batches)
        values.clear()

    def _take(self, me: TaskThread, *, resync: bool) -> list[HandOut] | None:
        """Hand in what `me` has finished, and wait for what comes next."""
        if me.results:
            self._before_hand_in()
        results, batches, values = take_results(me)
        call, finished = self._turn(results, batches, resync=resync)
        reply = self._lane.call(call)
        values.clear()
        new = self._answered(reply, finished, resync=resync)
        if not new:
            return None
        with self._lock:
            if self._running + self._returning < self.threads and not self._stopping:
                mine: list[HandOut] | None = new.pop(0)
                self._running += 1
                me.holds = True
            else:
                mine = None
            self._pending += new
            surplus = self._surplus()
        if surplus or new:
            # the answer also wakes the threads that are to run the others
            self._give_back(surplus)
        return mine

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
            if not (self._stopping or self._lane.failed):
                logger.exception("a task thread failed")
        finally:
            with self._lock:
                self._leave_slot(me)
                self._alive -= 1
            self._marks.give_slot(me.slot)
            self._all.discard(me)
        if failed and not self._stopping:
            self._on_failure()

    def _next(self, me: TaskThread) -> list[HandOut] | None:
        """Return what `me` runs next, with a slot for it; None when the thread is to end."""
        resync = False
        while True:
            work, ask = None, False
            with self._lock:
                self._leave_slot(me)
                ends = (
                    self._stopping
                    or self._lane.failed
                    or self._alive - self._blocked > self.threads + _SPARE_THREADS
                )
                if not ends:
                    free = self._free()
                    if self._pending and free + len(self._pending) > 0:
                        work = self._pending.popleft()
                        self._running += 1
                        me.holds = True
                    elif free > 0 and (resync or free > self._told_free):
                        # nobody else asks for the same slots
                        self._told_free = free
                        ask = True
            if ask:
                work = self._take(me, resync=resync)
                resync = False
                if work is not None:
                    return work
                continue
            if me.results:
                self._hand_in(me)
            if work is not None or ends:
                return work
            if not self._lane.wait(self._something, _SILENCE):
                resync = self._silent()

    def _something(self) -> bool:
        """Whether a waiting thread has a reason to look."""
        if self._stopping or self._lane.failed:
            return True
        waiting = len(self._pending)
        free = self.threads - self._running - self._returning - waiting
        return free + waiting > 0 and (waiting > 0 or free > self._told_free)

    def _silent(self) -> bool:
        """Whether nothing was heard for long; true for one thread at a time."""
        with self._lock:
            now = time.monotonic()
            if now - self._heard < 0.9 * _SILENCE:
                return False
            self._heard = now
            return True

    def _leave_slot(self, me: TaskThread) -> None:
        if me.holds:
            me.holds = False
            self._running -= 1
            if self._returning:
                self._slot_free.notify()

    def _run(self, me: TaskThread, work: list[HandOut]) -> None:
        if len(work) == 1:
            self._run_one(me, work[0])
            return
        task: HandOut | None = work[0]
        me.begin(work[1:])
        self._deadline.arm()
        begun = handed_in = time.perf_counter()
        chain = Chain()
        while task is not None:
            linked = chain.link(task) if task.deps else task
            if linked is None:
                result = Result(task.name, task.attempt, "back")
                me.results.append((result, task.batch, None))
            else:
                result = self._run_one(me, linked)
                chain.note(result)
            if me.started - begun > _CUT_AFTER:
                break  # not as quick as they were: others get the rest
            task = take_next(me)
            if task is not None and (
                me.started - handed_in > _HAND_IN_AFTER
                or task.fn not in self._pace.quick
                or not me.lay_by(result)  # the task may hold the GIL, and then only the worker could
            ):
                self._hand_in(me)
                me.handed_in()
                handed_in = me.started
        with self._lock:  # whoever takes tokens takes the tasks before the lock is free
            back = me.end()
        # The worker says the same of what it took; one of the two finds the attempt void.
        me.results.extend((Result(task.name, task.attempt, "back"), task.batch, None) for task in back)

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
        if me.seceded or me.blocks:
            self._come_back_unslotted(me)
        else:
            self._pace.note(task.fn, ended - begun, 1, inline=result.value != b"")
        return result

    def _come_back_unslotted(self, me: TaskThread) -> None:
        """Note that the task ended while it was seceded: its thread holds no slot, and looks for work like any other."""
        with self._lock:
            self._blocked -= 1
        me.seceded = False
        me.blocks = 0

    # --- blocking ---------------------------------------------------------------------------------------------------

    def _secede(self, me: TaskThread) -> None:
        with self._lock:
            tail = take_tail(me)
            self._blocked += 1
            self._leave_slot(me)
            if tail:
                self._pending.appendleft(tail)
            needed = self._alive - self._blocked < self.threads and not self._stopping
            if needed:
                self._alive += 1
        # hands in what is finished; what this turn takes is for the thread that takes over, and its answer wakes that
        self._hand_in(me)
        if needed:
            self._start_thread()

    def _rejoin(self, me: TaskThread) -> None:
        with self._lock:
            self._blocked -= 1
            self._returning += 1
            while self._running >= self.threads:
                self._slot_free.wait()
            self._returning -= 1
            self._running += 1
            me.holds = True
            surplus = self._surplus()
            wrong = self._told_free > max(0, self._free())
        if surplus:
            self._give_back(surplus)
        elif wrong:
            self._post([], [])

    # --- tasks that drag on -----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Hand in and give back what is before and behind tasks that take too long."""
        while True:
            self._deadline.wait()
            if self._stopping:
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
                        self._give_back(tail)
                    if thread.results:
                        self._hand_in(thread)
                except Exception:
                    if self._stopping or self._lane.failed:
                        return
                    logger.exception("a batch could not be cut short")
            if again:
                self._deadline.arm()
