"""What an executor holds and has room for, and the turns that say so to the server.

A task runs in one of T *slots*. What one turn brought is a *batch*; a free slot takes it, and what no slot is free for goes
back. Calls of actors come however busy the slots are: there is one more slot for them alone, which they give up when they
take long. Invariants: a batch is open from its arrival until its last task's hand-in was answered; no result is dropped
before the turn that carries it is on the lane.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

from redist.store import calls
from redist.store.calls import Call, Result
from redist.store.replies import HandOut, Turn, parse_turn
from redist_worker.batches import Batches
from redist_worker.pace import Pace
from redist_worker.threads import Lane, TaskThread, take_results, take_tail

__all__ = ["Turns"]

_SILENCE = 1.0  # s without a word from the server, after which an idle executor asks

_Post: TypeAlias = Callable[[Call, Callable[[Any], None]], None]


class _Sent(NamedTuple):
    """A turn on its way: its number, and the batches that it finishes."""

    number: int
    finished: Sequence[int]


class Turns:
    """The slots of one executor, its batches, and its turns.

    Parameters
    ----------
    lane : Lane
        The executor's session.
    slots : int
        T, how many tasks run at a time.
    before_hand_in : callable
        Called before results leave.
    is_call : callable
        Returns whether a function, by its hash, calls actors.

    Attributes
    ----------
    lock : threading.Lock
        Guards all of this, and the queues of task threads.
    pace : Pace
        How long functions take.
    running, calling, blocked : int
        Tasks with a slot, with the one for calls, and tasks that gave theirs up.
    stopping : bool
        Whether nothing more is taken.
    on_calls : callable
        Called when there are calls, without the lock: a thread may be missing for them.
    """

    def __init__(
        self,
        lane: Lane,
        slots: int,
        before_hand_in: Callable[[], None],
        is_call: Callable[[str], bool] = lambda fn: False,
    ) -> None:
        self.lock = threading.Lock()
        self.pace = Pace()
        self.running = 0
        self.calling = 0
        self.blocked = 0
        self.stopping = False
        self.on_calls: Callable[[], object] = lambda: None
        self._lane = lane
        self._slots = slots
        self._before_hand_in = before_hand_in
        self._is_call = is_call
        self._calls: deque[list[HandOut]] = deque()
        self._met_calls = False
        self._slot_free = threading.Condition(self.lock)
        self._returning = 0
        self._pending: deque[list[HandOut]] = deque()
        self._batches = Batches()
        self._told_free = 0  # how many idle threads the server believes in
        self._heard = time.monotonic()

    def stop(self) -> list[HandOut]:
        """Take nothing more from now on; return what waits for a slot. The lock is held."""
        self.stopping = True
        pending, self._pending, self._calls = [*self._pending, *self._calls], deque(), deque()
        return [task for batch in pending for task in batch]

    def withdraw(self, void: frozenset[int]) -> list[HandOut]:
        """Return the tasks with these attempts that wait for a slot, and keep them no more. The lock is held."""
        back = [task for batch in (*self._pending, *self._calls) for task in batch if task.attempt in void]
        if back:
            self._pending, self._calls = _without(self._pending, void), _without(self._calls, void)
        return back

    # --- slots ------------------------------------------------------------------------------------------------------

    def claim(self, me: TaskThread, *, resync: bool) -> tuple[list[HandOut] | None, bool]:
        """Return the batch that `me` now has a slot for, or whether it is to `take` one. The lock is held."""
        free = self._free()
        if self._calls and (free > 0 or not self.calling):
            self._hold(me, call=free <= 0)
            return self._calls.popleft(), False
        if self._pending and free + len(self._pending) > 0:
            self._hold(me)
            return self._pending.popleft(), False
        if free > 0 and (resync or free > self._told_free):
            # nobody else asks for the same slots
            self._told_free = free
            return None, True
        return None, False

    def _hold(self, me: TaskThread, *, call: bool = False) -> None:
        """Give `me` a slot, or the one for calls."""
        if call:
            self.calling += 1
            me.calls = True
        else:
            self.running += 1
            me.holds = True

    def leave(self, me: TaskThread) -> None:
        """Free the slot of `me`, if it has one. The lock is held."""
        if me.calls:
            me.calls = False
            self.calling -= 1
        if me.holds:
            me.holds = False
            self.running -= 1
            if self._returning:
                self._slot_free.notify()

    def give_up(self, me: TaskThread) -> None:
        """Free the slot of `me` while its task waits; another thread gets the rest of its batch. The lock is held."""
        tail = take_tail(me)
        self.blocked += 1
        self.leave(me)
        if tail:
            (self._calls if self._is_call(tail[0].fn) else self._pending).appendleft(tail)

    def regain(self, me: TaskThread) -> None:
        """Give `me` a slot again as soon as one is free; a call ends without."""
        if me.task is not None and self._is_call(me.task.fn):
            me.seceded = True
            return
        with self.lock:
            self.blocked -= 1
            self._returning += 1
            while self.running >= self._slots:
                self._slot_free.wait()
            self._returning -= 1
            self.running += 1
            me.holds = True
            surplus = self._surplus()
            wrong = self._told_free > max(0, self._free())
        if surplus:
            self.give_back(surplus)
        elif wrong:
            self._post([], [])

    def _free(self) -> int:
        """Return how many slots neither run a task nor have one waiting for them; the lock is held."""
        return self._slots - self.running - self._returning - len(self._pending)

    def _surplus(self) -> list[HandOut]:
        """Return what no thread is free for, taken off the pending batches; the lock is held."""
        surplus: list[HandOut] = []
        while self._calls and self.stopping:
            surplus += self._calls.pop()
        while self._pending and (self.stopping or self._free() < 0):
            surplus += self._pending.pop()
        return surplus

    def _put(self, batches: Sequence[list[HandOut]]) -> bool:
        """Have batches wait for slots; return whether there are calls among them. The lock is held."""
        calls_before = len(self._calls)
        for batch in batches:
            (self._calls if self._is_call(batch[0].fn) else self._pending).append(batch)
        came = len(self._calls) > calls_before
        self._met_calls = self._met_calls or came
        return came

    def short(self, alive: int) -> bool:
        """Whether one more thread than `alive` is needed: all are busy, and one could run a call. The lock is held."""
        idle = alive - self.running - self.calling - self.blocked - self._returning
        return idle <= 0 and bool(self._calls) and not self.calling and not self.stopping

    # --- what the server sends --------------------------------------------------------------------------------------

    def pushed(self, tasks: Sequence[HandOut]) -> None:
        """Take what was pushed; an empty list says that there may be something to take."""
        with self.lock:
            self._heard = time.monotonic()
            if not tasks:
                self._told_free = 0
                return
            new = self._batches.open(tasks, pushed=True)
            self._told_free -= len(new)
            came = self._put(new)
            surplus = self._surplus()
        if surplus:
            self.give_back(surplus, self._lane.enqueue)
        if came:
            self.on_calls()

    def wait(self) -> bool:
        """Wait until a thread has a reason to look, or nothing was heard for long; return whether there is a reason."""
        return self._lane.wait(self._something, _SILENCE)

    def _something(self) -> bool:
        if self.stopping or self._lane.failed:
            return True
        waiting = len(self._pending)
        free = self._slots - self.running - self._returning - waiting
        if self._calls and (free > 0 or not self.calling):
            return True
        return free + waiting > 0 and (waiting > 0 or free > self._told_free)

    def silent(self) -> bool:
        """Whether nothing was heard for long; true for one thread at a time."""
        with self.lock:
            now = time.monotonic()
            if now - self._heard < 0.9 * _SILENCE:
                return False
            self._heard = now
            return True

    # --- turns ------------------------------------------------------------------------------------------------------

    def take(self, me: TaskThread, *, resync: bool) -> list[HandOut] | None:
        """Hand in what `me` has finished, and wait for what comes next."""
        if me.results:
            self._before_hand_in()
        results, batches, values = take_results(me)
        call, sent = self._turn(results, batches, resync=resync)
        try:
            reply = self._lane.call(call)
        except BaseException:
            with self.lock:
                self._batches.taken_in(sent.number)
            raise
        values.clear()
        new = self._answered(reply, sent, resync=resync)
        if not new:
            return None
        with self.lock:
            mine: list[HandOut] | None = None
            free = self.running + self._returning < self._slots
            if not self.stopping and (free or (self._is_call(new[0][0].fn) and not self.calling)):
                mine = new.pop(0)
                self._hold(me, call=not free)
            came = self._put(new)
            surplus = self._surplus()
        if surplus or new:
            # the answer also wakes the threads that are to run the others
            self.give_back(surplus)
        if came:
            self.on_calls()
        return mine

    def hand_in(self, me: TaskThread) -> None:
        """Hand in what `me` has finished, without waiting."""
        self._before_hand_in()
        results, batches, values = take_results(me)
        self._post(results, batches)
        values.clear()

    def give_back(self, tasks: Sequence[HandOut], post: _Post | None = None) -> None:
        """Give back what is not started here, without waiting."""
        results = [Result(task.name, task.attempt, "back") for task in tasks]
        self._post(results, [task.batch for task in tasks], post)

    def _post(self, results: list[Result], batches: list[int], post: _Post | None = None) -> None:
        """Make a turn without waiting; what it brings goes to whichever thread is free."""
        call, sent = self._turn(results, batches)
        (post or self._lane.post)(call, lambda reply: self._posted(reply, sent))

    def _posted(self, reply: Any, sent: _Sent) -> None:
        new = self._answered(reply, sent)
        if new:
            with self.lock:
                came = self._put(new)
                surplus = self._surplus()
            if surplus:
                self.give_back(surplus, self._lane.enqueue)
            if came:
                self.on_calls()

    def _turn(self, results: list[Result], batches: list[int], *, resync: bool = False) -> tuple[Call, _Sent]:
        """Return the call that hands in `results` of `batches` and takes what this executor has threads for."""
        with self.lock:
            finished = self._batches.hand_in(batches)
            sent = _Sent(self._batches.turn(), finished)
            free = max(0, self._free())
            if self.stopping:
                want = free = 0
            elif free == 0:
                want = calls.OWN if self._met_calls else 0
            elif resync:
                want = calls.RESYNC
            else:
                want = self.pace.want
            self._told_free = free
            capacity = len(self._batches) + free
        quick = self.pace.quick if want > 1 else ()
        return calls.turn(capacity, want, quick, finished, results), sent

    def _answered(self, reply: Any, sent: _Sent, *, resync: bool = False) -> list[list[HandOut]]:
        """Take in the reply of a turn; return the new batches that it brought."""
        code = reply[0]
        new: list[list[HandOut]] = []
        with self.lock:
            self._heard = time.monotonic()
            self._batches.answered(sent.finished)
            if code in (b"OK", b"REPEAT"):
                turn: Turn = parse_turn(reply)
                if turn.tasks:
                    new = self._batches.open(turn.tasks, listed=resync or code == b"REPEAT")
                    self._told_free -= len(new)
            self._batches.taken_in(sent.number)
        return new


def _without(batches: deque[list[HandOut]], void: frozenset[int]) -> deque[list[HandOut]]:
    left = ([task for task in batch if task.attempt not in void] for batch in batches)
    return deque(batch for batch in left if batch)
