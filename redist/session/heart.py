"""Heartbeats: they renew the lease, tell what was missed, and compare counts."""

from __future__ import annotations

from collections.abc import Callable

from redist.session.lane import Lane
from redist.session.ledger import Ledger
from redist.session.notifications import Notifications
from redist.store import calls
from redist.store.calls import Call
from redist.store.replies import Beat, parse_heartbeat

__all__ = ["PATIENCE", "Heart"]

#: Heartbeats in a row at which counts differ, before all of them are said anew: once may be a push that is on its way.
PATIENCE = 3
#: Longest time between two, s: what a long lease must not put off are the sweep and the look for missed messages.
LONGEST = 2.0


class Heart:
    """Makes the heartbeats of a session and judges the answers.

    Parameters
    ----------
    lane, ledger, notifications
        Parts of the session.
    lease : float
        Seconds that the caller is believed to live without one; they go out five times as often, and every 2 s at least.
    clock : callable
        Returns seconds that only grow.
    on_loss : callable
        Called without arguments when the server lost writes of ours, or holds other counts than we sent.
    on_beat : callable
        Called with every answer.

    Attributes
    ----------
    at : float or None
        When the next is due.
    make : callable or None
        Makes the call; a worker's differs from the client's.
    compare : bool
        Whether an answer that counts differ is acted on here.
    """

    __slots__ = (
        "_beating", "_clock", "_disagreed", "_lane", "_ledger", "_notifications", "_on_beat", "_on_loss", "at", "compare",
        "lease", "make",
    )  # fmt: skip

    def __init__(
        self,
        lane: Lane,
        ledger: Ledger,
        notifications: Notifications,
        lease: float,
        clock: Callable[[], float],
        on_loss: Callable[[], object],
        on_beat: Callable[[Beat], object],
    ) -> None:
        self.lease = lease
        self.at: float | None = None
        self.make: Callable[[], Call] | None = None
        self.compare = True
        self._lane = lane
        self._ledger = ledger
        self._notifications = notifications
        self._clock = clock
        self._on_loss = on_loss
        self._on_beat = on_beat
        self._beating = False
        self._disagreed = 0

    def stop(self) -> None:
        """Make no more."""
        self.at = None
        self._beating = False

    def lost(self) -> None:
        """Note that the connection broke: nothing is on its way any more."""
        self._beating = False

    def beat(self, now: float | None = None) -> None:
        """Send one, unless one is on its way, and plan the next."""
        now = self._clock() if now is None else now
        self.at = now + min(self.lease / 5, LONGEST)
        if self._beating or not self._lane.open:
            return
        self._beating = True
        ledger, lane = self._ledger, self._lane
        if self.make is not None:
            call = self.make()
        else:
            call = calls.client_heartbeat(
                ledger.keys, ledger.total, ledger.checksum, lane.n, int(self.lease * 1000)
            )
        incarnation = lane.incarnation

        def answered(reply: list[object]) -> None:
            self._beating = False
            if incarnation == lane.incarnation:
                self._judge(parse_heartbeat(reply))

        lane.enqueue(call, answered, self._failed)

    def _failed(self, _: BaseException) -> None:
        self._beating = False

    def _judge(self, beat: Beat) -> None:
        lane = self._lane
        self._notifications.beat(beat.pushed, self._clock())
        first = lane.unanswered[0].n if lane.unanswered else lane.n + 1
        lost = beat.n < first - 1
        if beat.agree or not self.compare:
            self._disagreed = 0
        else:
            self._disagreed += 1
        self._on_beat(beat)
        if lost or self._disagreed >= PATIENCE:
            self._disagreed = 0
            lane.lost_writes = lane.lost_writes or lost
            self._on_loss()
        elif lane.unanswered and not lane.due:
            lane.resume()  # a call that was interrupted before it left
