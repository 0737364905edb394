"""One caller's session: lane, ledger, states and notifications put together. Sans-IO.

A driver opens two connections, one for commands and one for the subscription, tells the session what arrives on them, sends
what stands in `Session.outgoing` and `Subscription.outgoing`, and calls `tick` by `deadline`. Nothing here blocks, and
nothing here may be called without the driver's lock unless it says so.

Life: `connected` -> register -> subscribe -> ready. After a broken connection the driver connects again: a lane that is
still registered sends what is unanswered, a new subscription asks for the states of unfinished keys. When the server does
not know the caller, or lost writes of it, the session registers anew under a new incarnation and brings what it has.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from redist.errors import ClientClosed, NameTaken, SchemaMismatch, ServerFull, ServerRefused
from redist.session.bring import bring, take_up, tell_again
from redist.session.heart import Heart
from redist.session.lane import Entry, Lane, OnError, OnReply, Refused
from redist.session.ledger import Ledger
from redist.session.notifications import Notifications, decode_message
from redist.session.reads import Reads
from redist.session.states import FutureState, States
from redist.session.strays import Strays
from redist.session.submissions import SLICE, Submissions
from redist.session.subscription import EndpointLike, Subscription
from redist.session.waits import Waits
from redist.store import calls
from redist.store.calls import Call, Task
from redist.store.coordination import leave
from redist.store.replies import Beat, HandOut, parse_register, parse_tasks

__all__ = ["Session"]

#: How long a release may wait for others, s.
RELEASE_DELAY = 0.002


class Session:
    """A registered caller: a client, a worker or an executor.

    Parameters
    ----------
    endpoint : Endpoint
        The server and the namespace.
    kind : {'client', 'worker', 'executor'}
        What registers.
    name : str
        Name for people; of a `named` client also what its holdings are found by.
    details : mapping of str
        Further fields of ``caller:ORD``.
    parent : int
        The worker's ordinal, for an executor.
    ordinal : int
        An ordinal to be taken over, 0 for none.
    lease : float
        How long the caller is believed to live without a heartbeat, s.
    named : bool
        A client's session that survives it.
    clock : callable
        Returns seconds that only grow.

    Attributes
    ----------
    lane, ledger, states, notifications, submissions, subscription, reads, heart, waits, strays
        The parts. A worker sets `heart.make`.
    lock : context manager
        The driver's lock; guards all of this.
    ready : bool
        Whether it is registered and subscribed.
    failure : BaseException or None
        Why the session can never work again.
    attempt : int
        The highest attempt that was seen.
    on_tasks, on_void, on_control, on_evict, on_output, on_worker, on_generation, on_beat : callable or None
        What a face does with pushes: hand-outs, attempts that nobody wants any more, ``look at the inbox``, (name, attempt)
        pairs to drop, (stream, worker, text) of printing tasks, an ordinal that joined or left, the new generation, a
        heartbeat's answer.
    on_lost : callable or None
        Called when the server lost this caller; returns the calls that bring what it has besides counts and tasks.
    on_failure : callable or None
        Called with the error for which the session can never work again.
    contained : callable or None
        Called after a loss with an inline value; returns the wire names of the keys whose Futures are inside.
    bundles : mapping of FutureState
        What the bundles contain that we hold: their values do not tell.
    copies : mapping of FutureState
        How many copies of values are to be kept since we asked for them, and how many made of one at a time.
    """

    def __init__(
        self,
        endpoint: EndpointLike,
        kind: str,
        name: str,
        details: Mapping[str, str] | None = None,
        parent: int = 0,
        *,
        ordinal: int = 0,
        lease: float = 10.0,
        named: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self.kind = kind
        self.name = name
        self.details = dict(details or {})
        self.parent = parent
        self.lease = lease
        self.named = named
        self.clock = clock
        self.lock: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
        self.ready = False
        self.closing = False
        self.failure: BaseException | None = None
        self.secret = ""
        self.adopted = False
        #: of a worker: a registration is refused while another living one has its name
        self.alone = False
        self.attempt = 0
        self.states = States()
        sharded = endpoint.subscribe == "SSUBSCRIBE"
        self.lane = Lane(
            endpoint.prefix, clock, self._register, self.set_generation, self._moved, sharded=sharded
        )
        self.ledger = Ledger(self.states, self.lane)
        self.subscription = Subscription(endpoint)
        self.submissions = Submissions(self.lane, self.ledger)
        self.reads = Reads(self.lane, self.states, self.submissions)
        self.waits = Waits()
        self.notifications = Notifications(
            self.states, self.ledger.forfeit, partial(tell_again, self), self._missed
        )
        self.reads.apply = self.notifications.read
        self.strays = Strays(self.ledger)
        self.heart = Heart(
            self.lane, self.ledger, self.notifications, lease, clock, self._register, self._beat_answered
        )
        # A worker's counts are its files, which it compares itself.
        self.heart.compare = kind != "worker"
        self.lane.incarnation = _new_incarnation()
        self.lane.ordinal = ordinal
        self.on_tasks: Callable[[list[HandOut]], object] | None = None
        self.on_void: Callable[[list[int]], object] | None = None
        self.on_control: Callable[[], object] | None = None
        self.on_evict: Callable[[list[tuple[str, int]]], object] | None = None
        self.on_output: Callable[[int, str, bytes], object] | None = None
        self.on_worker: Callable[[int], object] | None = None
        self.on_generation: Callable[[int], object] | None = None
        self.on_beat: Callable[[Beat], object] | None = None
        self.on_lost: Callable[[], Iterable[Call]] | None = None
        self.on_failure: Callable[[BaseException], object] | None = None
        self.contained: Callable[[bytes], Sequence[str]] | None = None
        self.bundles: WeakKeyDictionary[FutureState, Sequence[str]] = WeakKeyDictionary()
        self.copies: WeakKeyDictionary[FutureState, tuple[int, int]] = WeakKeyDictionary()
        #: Set by the driver: the command connection leads to the wrong server.
        self.reconnect: Callable[[str], object] | None = None
        self._was_registered = False
        #: when the command connection was last made anew, by `clock`
        self.reconnected = -math.inf
        #: What a session of our name held is being read.
        self._taking_up = False
        #: A registration left, and no answer has come.
        self._registering = False
        self._patience = 0.0
        self._kept: list[Entry] = []
        self._release_at: float | None = None
        self._look_at: float | None = None

    # --- what a driver asks -----------------------------------------------------------------------------------------

    @property
    def outgoing(self) -> list[bytes]:
        """Commands to be sent on the command connection; the driver empties it."""
        return self.lane.outgoing

    @property
    def ordinal(self) -> int:
        """Our ordinal, 0 before the registration."""
        return self.lane.ordinal

    @property
    def generation(self) -> int:
        """The generation that we know of."""
        return self.lane.generation

    @property
    def incarnation(self) -> str:
        """The id of this registration."""
        return self.lane.incarnation

    @property
    def collected(self) -> int:
        """How many tasks wait for an acknowledgement to leave."""
        return len(self.submissions.outbox)

    @property
    def deadline(self) -> float:
        """When `tick` has something to do, by the clock; infinite if nothing is planned."""
        times = (
            self.heart.at, self._release_at, self._look_at, self.lane.deadline, self.notifications.deadline,
        )  # fmt: skip
        return min((t for t in times if t is not None), default=float("inf"))

    def tick(self, now: float | None = None) -> None:
        """Do what is due."""
        now = self.clock() if now is None else now
        self.lane.tick(now)
        self.notifications.tick(now)
        self.states.drop_abandoned()
        if self.waits.abandoned:
            tokens = self.waits.take_abandoned()
            self.enqueue(leave(tokens))
            self.waits.left(tokens)
        if self.heart.at is not None and now >= self.heart.at:
            self.heart.beat(now)
            self.waits.abandon_lost()
            if self.kind == "client" and self.strays.look(self.states.records):
                self.dirty()
        if self._look_at is not None and now >= self._look_at:
            self._look_at = None
            if self.on_tasks is not None:
                self.on_tasks([])
        if self._release_at is not None and now >= self._release_at:
            self.flush()

    def dirty(self) -> None:
        """Note that releases came in: they leave within 2 ms."""
        if self._release_at is None:
            self._release_at = self.clock() + RELEASE_DELAY

    # --- connections ------------------------------------------------------------------------------------------------

    def connected(self) -> None:
        """Begin to use a command connection."""
        self.lane.connect()
        if self._was_registered:
            self.reconnected = self.clock()
        if not self.lane.registered:
            self._register()
        elif self.ready:
            self.heart.beat()

    def disconnected(self) -> None:
        """Note that the command connection broke."""
        self.lane.lost()
        self.heart.lost()

    def subscription_connected(self) -> None:
        """Begin to use a connection for the subscription."""
        self.subscription.lost()
        self._subscribe()

    def subscription_lost(self) -> None:
        """Note that the subscription's connection broke."""
        self.subscription.lost()

    def _moved(self, message: str) -> None:
        if self.reconnect is not None:
            self.reconnect(message)

    # --- registration -----------------------------------------------------------------------------------------------

    def _register(self) -> None:
        """Register, for the first time or anew: the server does not know us, or lost writes of ours."""
        lane = self.lane
        if self.closing and self._was_registered:
            # Nothing is held any more by a caller that the server forgot.
            for entry in lane.unregister(lane.incarnation):
                _settle_closed(entry)
            return
        if lane.registered:
            self._patience = self.clock() + self.lease
        self._kept += lane.unregister(_new_incarnation())
        self.heart.stop()
        if not lane.connected:
            return
        call = calls.register(
            self.kind, self.name, ordinal=lane.ordinal, parent=self.parent, attempt=self.attempt,
            generation=lane.generation, lease_ms=int(self.lease * 1000), named=self.named, lost=lane.lost_writes,
            again=self._registering, alone=self.alone, secret=self.secret, n=lane.n, details=self.details,
        )  # fmt: skip
        self._registering = True
        lane.transmit_registration(call, self._registered, self._register_failed)

    def _registered(self, reply: list[Any]) -> None:
        registered = parse_register(reply)
        self._registering = self.lane.lost_writes = False
        anew, self._was_registered = self._was_registered, True
        self.secret = registered.secret
        self.attempt = max(self.attempt, registered.attempt)
        if not anew:
            self.adopted = registered.adopted
            self.lane.generation = self.ledger.generation = registered.generation
        elif registered.generation > self.generation:
            self.set_generation(registered.generation)
        kept, self._kept = self._kept, []
        kept += self.lane.unregister(self.lane.incarnation)
        self.notifications.since = self.lane.n
        self._taking_up = self._taking_up or (self.adopted and not anew)
        if (anew or kept) and not self._taking_up:
            bring(self, kept)
        self.lane.register(registered.ordinal)
        self.lane.resume()
        if self._taking_up:
            take_up(self, kept, self._taken_up)
        # What was collected waited for answers that will not come.
        self.submissions.pump()
        self._subscribe()

    def _taken_up(self) -> None:
        self._taking_up = False
        if self.subscription.complete:
            self._became_ready()

    def _register_failed(self, error: BaseException) -> None:
        if isinstance(error, ServerFull) and self._was_registered:
            self.lane.hold()  # it has room again once something is released
            return
        if isinstance(error, Refused):
            if error.code == "worker" and self._was_registered and self.clock() < self._patience:
                self.lane.hold()  # our worker has to register anew, too
                return
            if error.code == "schema":
                error = SchemaMismatch(
                    f"the namespace was written with schema {error.message}, this version of redist has another one: "
                    "use the same version everywhere, or another namespace"
                )
            else:
                error = NameTaken(error.message) if error.code == "name" else ServerRefused(error.message)
        self.fail(error)

    def enqueue_counts(self, pairs: list[tuple[str, int]]) -> None:
        """Put counts on the lane."""
        for i in range(0, len(pairs), SLICE):
            self.lane.enqueue(calls.ledger(pairs[i : i + SLICE]))

    def fail(self, error: BaseException) -> None:
        """Give up for good: everything that waits hears why."""
        if self.failure is None:
            self.failure = error
            if self.on_failure is not None:
                self.on_failure(error)
        for entry in self.lane.unregister(self.lane.incarnation) + self.submissions.holding.drop():
            if entry.on_error is not None:
                entry.on_error(error)
        self.states.cancel_all(str(error), lambda _: error)
        self.waits.look()

    # --- subscription -----------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        if not self.lane.registered:
            return
        channels = [f"to:{self.ordinal}", "all"]
        if self.kind == "worker":
            channels.append(f"evict:{self.ordinal}")
        self.subscription.listen(*channels)
        if self.subscription.complete:
            self._became_ready()

    def _became_ready(self) -> None:
        if self._taking_up:
            return
        first = not self.ready
        self.ready = True
        self.notifications.subscribed()
        # The heartbeat tells the number of the last push, and the states that are read after it stand for what was pushed.
        self.heart.lost()
        self.heart.beat()
        if not first or self.adopted:
            self._missed()

    def _missed(self) -> None:
        """Ask for what pushes that did not come may have told."""
        self.reads.unsettled()
        self.waits.look()

    # --- what arrives -----------------------------------------------------------------------------------------------

    def on_reply(self, reply: Any) -> None:
        """Take the next reply of the command connection."""
        self.lane.on_reply(reply)

    def on_push(self, frame: Any) -> None:
        """Take the next frame of the subscription's connection."""
        if isinstance(frame, Exception):
            self.fail(
                ServerRefused(
                    f"the subscription was refused: {frame}; `redist acl USER` prints the rights that it needs"
                )
            )
            return
        kind = frame[0]
        if kind == b"message" or kind == b"smessage":
            self.on_message(frame[1], frame[2])
        elif kind in (b"subscribe", b"ssubscribe"):
            self.subscription.confirmed(frame[1])
            if self.ready and self.subscription.concerns_topic(frame[1]):
                pass  # on a new connection our own channel comes last
            elif self.subscription.complete:
                self._became_ready()

    def on_message(self, channel: bytes, data: bytes) -> None:
        """Take a published message."""
        if self.subscription.concerns_topic(channel):
            return
        message = decode_message(data)
        if channel.rfind(b"}:evict:") >= 0:
            if self.on_evict is not None:
                flat = iter(message)
                self.on_evict([(name.decode(), int(attempt)) for name, attempt in zip(flat, flat)])
            return
        kind = message[0]
        if kind == b"s":
            self.notifications.states(message)
        elif kind == b"y":
            self.notifications.numbered(message[1], int(message[2]))
            self.waits.heard([token.decode() for token in message[3:]])
        elif kind == b"t":
            if self.on_tasks is not None:
                if len(message) == 2 and message[1] > 0:  # there may be something in so many ms
                    at = self.clock() + (message[1] + 1) / 1000
                    self._look_at = at if self._look_at is None else min(at, self._look_at)
                    return
                tasks = parse_tasks(message, 2)
                for task in tasks:
                    self.attempt = max(self.attempt, task.attempt)
                self.on_tasks(tasks)
        elif kind == b"x":
            if self.on_void is not None:
                self.on_void([int(attempt) for attempt in message[1:]])
        elif kind == b"c":
            if self.on_control is not None:
                self.on_control()
        elif kind == b"g":
            self.set_generation(int(message[1]))
        elif kind == b"o":
            if self.on_output is not None:
                self.on_output(int(message[1]), message[2].decode(), message[3])
        elif kind == b"w" and self.on_worker is not None:
            self.on_worker(int(message[1]))

    def set_generation(self, generation: int) -> None:
        """Enter a generation: what belongs to an older one is cancelled."""
        if generation <= self.generation:
            return
        self.lane.generation = generation
        self.submissions.drop()
        self.ledger.reset(generation)
        self.states.cancel_all("the cluster was restarted")
        self.waits.look()
        if self.on_generation is not None:
            self.on_generation(generation)

    # --- calls ------------------------------------------------------------------------------------------------------

    def enqueue(self, call: Call, on_reply: OnReply | None = None, on_error: OnError | None = None) -> Entry:
        """Put a call on the lane, behind the tasks and counts that came before it."""
        if call.numbered:
            if self.submissions.outbox or self.ledger.dirty:
                self.flush(everything=True)
            if (holding := self.submissions.holding).tasks and holding.holds(call):
                return holding.keep(call, on_reply, on_error)
        return self.lane.enqueue(call, on_reply, on_error)

    # --- tasks and counts -------------------------------------------------------------------------------------------

    def submit(self, state: FutureState, task: Task) -> None:
        """Have `task` leave with the next `pump`; its count is the one that `state` has then."""
        self.submissions.add(state, task)

    def pump(self) -> None:
        """Send what is collected as far as few enough submissions are unanswered."""
        self.submissions.pump()

    def flush(self, *, everything: bool = False) -> None:
        """Send counts that the server has not heard, after the submissions that came before them.

        With `everything`, all that is collected goes out now, whatever is unanswered.
        """
        if everything:
            self.submissions.send_all()
        if not self.ledger.drain():
            self._release_at = None
            return
        self.pump()
        if self.submissions.outbox:
            # Submissions leave first; a chain would hang if a release overtook the task that needs the key.
            self._release_at = self.clock() + RELEASE_DELAY
            return
        self._release_at = None
        self.enqueue_counts(self.ledger.take(self.submissions.holding.needed))

    def stored(self, names: Iterable[str], broken: Mapping[str, Exception]) -> None:
        """Note that values are stored, or never will be for the errors in `broken`: what needs them leaves, or fails."""
        if not self.closing:
            self.submissions.stored(names, broken)
            self.dirty()

    def _beat_answered(self, beat: Beat) -> None:
        if beat.generation > self.generation:
            self.set_generation(beat.generation)
        if self.submissions.outbox:
            self.submissions.recount()
        if self.on_beat is not None:
            self.on_beat(beat)
        self.subscription.look_at_topics()

    # --- the end ----------------------------------------------------------------------------------------------------

    def close(self, on_done: Callable[[], object] | None = None) -> None:
        """Leave: what is collected goes out, then everything is released. Futures become inert."""
        self.submissions.send_all()
        self.closing = True
        self.heart.stop()
        self._release_at = None

        def done(_: object) -> None:
            if on_done is not None:
                on_done()

        self.lane.enqueue(calls.close(), done, done)


def _settle_closed(entry: Entry) -> None:
    if entry.call.script.name == "close":
        if entry.on_reply is not None:
            entry.on_reply([b"OK", 0])
    elif entry.on_error is not None:
        entry.on_error(ClientClosed("the client is closed"))


def _new_incarnation() -> str:
    return os.urandom(8).hex()
