"""The two connections of a session, for commands and for the subscription: what moves bytes between wires and session.

Used by both drivers, under the driver's lock. What is read but not dealt with is never lost quietly: whatever interrupts the
dealing (Ctrl-C too) breaks that connection, and a new one sends again what is unanswered or asks for what was pushed.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

from redist.errors import ConnectionLost, RedistError, ServerRefused, StoreError
from redist.session.session import Session
from redist.store.connect import Endpoint
from redist.store.wire import Wire

__all__ = ["Links"]

logger = logging.getLogger("redist.session")

_TOGETHER = 64 << 10  # bytes of small pieces that are sent in one call
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 1.0
#: How long nothing must go before the log says so, s.
_QUIET = 0.2
_ADVICE = {
    "READONLY": "it is a replica; make it a master (REPLICAOF NO ONE), or give the address of the master or of Sentinels",
    "MISCONF": "it cannot write its data to the disk; see its log",
    "NOREPLICAS": "too few of its replicas are connected; bring them back, or lower min-replicas-to-write",
    "BUSY": "a script runs too long there; SCRIPT KILL ends it",
    "LOADING": "it reads its data from the disk and goes on then",
    "OOM": "it is at maxmemory; release something, or give it more memory",
}
_MESSAGES = frozenset([b"message", b"smessage"])


class Links:
    """A session's connections.

    Parameters
    ----------
    session : Session
        What is fed and what is sent.
    endpoint : Endpoint
        Where to connect.
    on_change : callable
        Called without arguments when a connection came or went, or when not all could be sent at once.

    Attributes
    ----------
    command, push : Wire or None
        The connections; None while there is none.
    rest : deque of memoryview
        What the command connection did not take yet.
    retry_at : float
        Not before this time (`time.monotonic`) a broken connection is to be made again.
    since : float or None
        Since when the server takes no calls, None while it does.
    error : StoreError or None
        Why the connection broke or could not be made; None while it stands.
    """

    __slots__ = (
        "_level", "_on_change", "_pause", "_told", "_troubles", "command", "endpoint", "error", "gone", "push", "rest",
        "retry_at", "session", "since",
    )  # fmt: skip

    def __init__(self, session: Session, endpoint: Endpoint, on_change: Callable[[], object]) -> None:
        self.session = session
        self.endpoint = endpoint
        self.command: Wire | None = None
        self.push: Wire | None = None
        self.rest: deque[memoryview] = deque()
        self.retry_at = 0.0
        self._pause = 0.0
        self.since: float | None = None
        self.error: StoreError | None = None
        #: Says why the server will never answer again, empty while it may.
        self.gone: Callable[[], str] = str
        self._told = False  # whether the log says that there is no connection
        # An executor's worker says the same.
        self._level = logging.DEBUG if session.kind == "executor" else logging.WARNING
        self._troubles = {"command": 0.0, "push": 0.0}  # pauses after exceptions in dealing with what came
        self._on_change = on_change
        session.reconnect = self._moved

    @property
    def up(self) -> bool:
        """Whether both connections stand."""
        return self.command is not None and self.push is not None

    @property
    def coming(self) -> bool:
        """Whether both stand, or nobody has tried in vain yet to make them anew."""
        return self.up or self._pause == 0.0

    # --- making -----------------------------------------------------------------------------------------------------

    def open(self, timeout: float, *, check: bool) -> tuple[Wire, Wire]:
        """Return two new connections; blocks, and is not to be called under the lock."""
        deadline = time.monotonic() + timeout
        command = self.endpoint.open(timeout)
        try:
            if check:
                self.endpoint.check(command)
            return command, self.endpoint.open(max(0.001, deadline - time.monotonic()))
        except BaseException:
            command.close()
            raise

    def reopen(self) -> Wire | None:
        """Return a new connection in place of a broken one, None if that fails for now; blocks, not under the lock.

        Raises
        ------
        ConnectionLost
            If there never will be one.
        """
        try:
            wire = self.endpoint.open(5.0)
        except RedistError as error:
            self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
            self.retry_at = time.monotonic() + self._pause
            if gone := self.gone():
                raise ConnectionLost(
                    f"{gone}; all that it held is gone. Close this client and its cluster, and make another"
                ) from error
            self._note(error)
            return None
        self._pause = 0.0
        return wire

    # --- how it stands ----------------------------------------------------------------------------------------------

    def _note(self, error: RedistError | None = None) -> None:
        """Take note of what keeps calls waiting, or that nothing does any more; the log says each once."""
        now = time.monotonic()
        if isinstance(error, StoreError):
            self.error = error.with_traceback(None)
        elif self.up:
            self.error = None
        if self.up and not self.session.lane.trouble:
            self.since = None
            if self._told:
                self._told = False
                logger.log(self._level, "connected to %s again", self.endpoint.url)
            return
        if self.since is None:
            self.since = now
        elif not self._told and now - self.since > _QUIET:
            self._told = True
            logger.log(self._level, "%s; trying again until it answers", self._why())

    def _why(self) -> str:
        trouble = self.session.lane.trouble
        if self.error is None and trouble:
            advice = _ADVICE.get(trouble.split(" ", 1)[0], "see the server's log")
            return f"{self.endpoint.url} takes no calls: {trouble} ({advice})"
        return str(self.error or f"there is no connection to {self.endpoint.url}")

    def standing(self) -> str:
        """Return what there is to add to a message of something that did not come in time; empty if the connection is up."""
        since = self.since
        if since is None:
            return ""
        return f"; no calls get through since {time.monotonic() - since:.1f} s: {self._why()}"

    def unanswered(self, timeout: float, pending: bool) -> StoreError:
        """Return the error of a call that got no reply within `timeout` seconds."""
        refused = isinstance(self.error, ServerRefused) or (self.error is None and self.session.lane.trouble)
        why = self.standing() or (
            "; the connection stands, but the server does not answer: it is busy or stopped, or the network is cut"
        )
        fate = (
            "the call is applied, once, when the server takes calls again"
            if pending
            else "nothing of the call is applied"
        )
        error = (ServerRefused if refused else ConnectionLost)(
            f"no reply from {self.endpoint.url} within {timeout:g} s{why}. Until that is mended calls wait; {fate}"
        )
        error.pending = pending
        return error

    def adopt_command(self, wire: Wire) -> None:
        """Use `wire` for commands from now on."""
        self.command = wire
        self.rest.clear()
        self._on_change()
        self.session.connected()
        self.transmit()

    def adopt_push(self, wire: Wire) -> None:
        """Use `wire` for the subscription from now on."""
        self.push = wire
        self._on_change()
        self.session.subscription_connected()
        self.transmit()

    def adopt(self, wire: Wire) -> None:
        """Use `wire` for what is missing."""
        if self.command is None:
            self.adopt_command(wire)
        elif self.push is None:
            self.adopt_push(wire)
        else:
            wire.close()
        self._note()

    # --- sending ----------------------------------------------------------------------------------------------------

    def transmit(self) -> None:
        """Send what the session has to say."""
        session = self.session
        out = session.lane.outgoing
        if out and self.command is not None:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            self.rest.append(memoryview(data))
            if len(self.rest) == 1:  # else it waits behind what was not taken
                self._send(False)
        subscriptions = session.subscription.outgoing
        if subscriptions and self.push is not None:
            data = b"".join(subscriptions)
            subscriptions.clear()
            try:
                self.push.send(data)
            except ConnectionLost as error:
                self.lost_push(error)

    def send_rest(self) -> None:
        """Send more of what the command connection did not take before."""
        if self.rest and self.command is not None:
            self._send(True)

    def _send(self, waited: bool) -> None:
        assert self.command is not None
        rest = self.rest
        try:
            while rest:
                if len(rest) > 1 and len(rest[0]) < _TOGETHER:
                    self._join()
                sent = self.command.try_send(rest[0])
                if sent < len(rest[0]):
                    rest[0] = rest[0][sent:]
                    break
                rest.popleft()
        except ConnectionLost as error:
            self.lost_command(error)
            return
        except BaseException:
            self.lost_command()
            raise
        if waited != bool(rest):
            self._on_change()

    def _join(self) -> None:
        """Make one piece of the first small ones."""
        pieces = []
        size = 0
        while self.rest and size < _TOGETHER:
            pieces.append(self.rest.popleft())
            size += len(pieces[-1])
        self.rest.appendleft(memoryview(b"".join(pieces)))

    # --- receiving --------------------------------------------------------------------------------------------------

    def take_replies(self) -> None:
        """Read what has arrived on the command connection and feed it to the session."""
        wire = self.command
        if wire is None:
            return
        on_reply, lane = self.session.on_reply, self.session.lane
        try:
            try:
                wire.receive_ready()
            finally:
                for reply in wire.replies():
                    on_reply(reply)
                    if not lane.trouble:
                        self._troubles["command"] = 0.0
                    elif self.command is not wire:
                        break  # what follows was refused as well, and is sent again
        except RedistError as error:
            if not isinstance(error, ConnectionLost):
                logger.warning("%r; connecting again", error)
                self._stumbled("command")
            self.lost_command(error)
        except BaseException as error:
            self._stumbled("command", error)
            self.lost_command()
            raise
        if lane.trouble or self.since is not None:
            self._note()

    def take_pushes(self) -> None:
        """Read what has arrived on the subscription's connection and feed it to the session."""
        wire = self.push
        if wire is None:
            return
        on_push = self.session.on_push
        try:
            try:
                wire.receive_ready()
            finally:
                for frame in wire.replies():
                    on_push(frame)
                    if (
                        isinstance(frame, list) and frame[0] in _MESSAGES
                    ):  # a confirmed subscription comes with every new connection
                        self._troubles["push"] = 0.0
        except RedistError as error:
            if not isinstance(error, ConnectionLost):
                logger.warning("%r; connecting again", error)
                self._stumbled("push")
            self.lost_push(error)
        except BaseException as error:
            self._stumbled("push", error)
            self.lost_push()
            raise

    def _stumbled(self, which: str, error: BaseException | None = None) -> None:
        """After an exception in dealing with what came: connect again, but not at once if that happens again and again."""
        if error is not None and not isinstance(error, Exception):
            return  # Ctrl-C
        pause = self._troubles[which]
        self._troubles[which] = min(max(_FIRST_PAUSE, 2 * pause), _LONGEST_PAUSE)
        self.retry_at = max(self.retry_at, time.monotonic() + pause)

    # --- losing -----------------------------------------------------------------------------------------------------

    def _moved(self, message: str) -> None:
        logger.debug("connecting again: %s", message)
        self._stumbled(
            "command", RedistError(message)
        )  # a failover is followed at once, a replica asked now and then
        self.lost_command()

    def lost_command(self, error: RedistError | None = None) -> None:
        """Drop the command connection, because of `error`."""
        wire, self.command = self.command, None
        self.rest.clear()
        if wire is not None:
            wire.close()
            self._note(error)
            self.session.disconnected()
            self._on_change()

    def lost_push(self, error: RedistError | None = None) -> None:
        """Drop the subscription's connection, because of `error`."""
        wire, self.push = self.push, None
        if wire is not None:
            wire.close()
            self._note(error)
            self.session.subscription_lost()
            self._on_change()

    def interrupted(self, error: BaseException) -> None:
        """After an exception in the middle of something: if it may have come anywhere (Ctrl-C), connect anew.

        What was half done on the lane is then done again, which changes nothing.
        """
        if not isinstance(error, Exception):
            self.lost_command()

    def close(self) -> None:
        """Close both connections without a word to the session."""
        for wire in (self.command, self.push):
            if wire is not None:
                wire.close()
        self.command = self.push = None
        self.rest.clear()
