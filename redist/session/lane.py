"""A caller's lane: its one ordered stream of calls, and what becomes of each.

Sans-IO: `enqueue` and the other methods append RESP commands to `outgoing`; the driver sends them and feeds replies, in
order, to `on_reply`. A numbered call is kept until it is answered, so that it can be sent again under its number: the
script applies n only once, whatever was sent how often.

===========  ===================================================================================================
what comes   what follows
===========  ===================================================================================================
OK, REPEAT   answered
NO           answered: refused
OLD          answered: it belonged to an older generation
GAP last     send again from there, if that is still kept; else the server lost writes: register anew
UNKNOWN      register anew
WAIT         a restart is carried out: help, then send again from there
NOSCRIPT     send again from there, the first time with the script's text
BUSY ...     the server is busy for a while: send again from there after a short back-off
OOM          the call grows and is refused: a no-op takes its number; a call that frees is sent again later
other error  the call is broken: a no-op takes its number
===========  ===================================================================================================

What was pipelined behind a failed call fails too (GAP) or, unnumbered, does not. A send is therefore marked with the *round*
in which it left: going back to a call begins a new round, and errors of older rounds are not news.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import hiredis

from redist.errors import ProtocolError, RedistError
from redist.session.refusals import error_of, quota_error
from redist.store import calls
from redist.store.calls import Call, Header

__all__ = ["Entry", "Lane", "OldGeneration", "Refused"]

OnReply: TypeAlias = Callable[[list[Any]], object]
OnError: TypeAlias = Callable[[BaseException], object]

_TRANSIENT = frozenset(
    ["BUSY", "LOADING", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN", "UNKILLABLE", "MISCONF", "NOREPLICAS"]
)
_ELSEWHERE = frozenset(["READONLY", "MOVED", "ASK"])
_HELP = 50  # slices of work that are carried out before what was told to wait is sent again
_FIRST_BACKOFF, _LAST_BACKOFF = 0.005, 0.25


class Refused(RedistError):
    """A script refused the call; `code` says why, and faces turn it into an error of its own type."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class OldGeneration(RedistError):
    """The call was made before a restart of the cluster, and was not applied."""

    def __init__(self) -> None:
        super().__init__("the cluster was restarted")


@dataclass(slots=True, eq=False)
class Entry:
    """A call on its way.

    `n` is 0 for an unnumbered one, `sent` says how often it left and may have been applied, `done` whether it was answered,
    `abandoned` that nobody waits for it any more. `instead` makes the call that a full server gets in its place.
    """

    n: int
    call: Call
    generation: int
    on_reply: OnReply | None = None
    on_error: OnError | None = None
    done: bool = False
    sent: int = 0
    abandoned: bool = False
    instead: Callable[[], Call] | None = None


class Lane:
    """Numbers calls, keeps them until they are answered, and decides what follows a reply.

    Parameters
    ----------
    prefix : str
        Prefix of the namespace's keys.
    clock : callable
        Returns seconds that only grow.
    on_unregistered : callable
        Called when the server does not know this caller, or lost writes of it.
    on_generation : callable
        Called with a generation that the server spoke of.
    on_moved : callable
        Called with a message when this connection leads to the wrong server and must be made anew.

    Attributes
    ----------
    outgoing : list of bytes
        Commands to be sent, in order; the driver empties it.
    connected, registered : bool
        Whether commands can leave, and whether numbered ones may.
    ordinal, incarnation, generation : int, str, int
        What every call's header says.
    n : int
        The last number that was given out.
    unanswered : deque of Entry
        Numbered calls without an answer, in order.
    trouble : str
        The error with which the server keeps calls waiting, empty when it takes them.
    progress : int
        How often the server did something for us.
    """

    def __init__(
        self,
        prefix: str,
        clock: Callable[[], float],
        on_unregistered: Callable[[], object],
        on_generation: Callable[[int], object] = lambda _: None,
        on_moved: Callable[[str], object] = lambda _: None,
        *,
        sharded: bool = False,
    ) -> None:
        self.prefix = prefix
        self._sharded = sharded
        self.outgoing: list[bytes] = []
        self.connected = False
        self.registered = False
        self.ordinal = 0
        self.incarnation = ""
        self.generation = 0
        self.n = 0
        self.unanswered: deque[Entry] = deque()
        #: Whether the server was seen to have lost writes of ours since the last registration.
        self.lost_writes = False
        #: How often calls had to be sent again on a connection: who reads state may see it without them.
        self.round = 0
        self.trouble = ""
        self.progress = 0
        self._inflight: deque[tuple[Entry, int]] = deque()
        self._loose: list[Entry] = []  # unnumbered ones that wait for a connection or a registration
        self._untold: tuple[Callable[[Any], object], Any] | None = None
        self._telling = False
        self._born = 0  # the round in which this incarnation began
        self._used = 0  # the number of the registration: that of the first is 0
        self._with_text: set[str] = set()
        self._resume_at: float | None = None
        self._backoff = _FIRST_BACKOFF
        self._helping = 0  # so many slices at most, then what was told to wait is sent again
        self._continuing = False
        self._clock = clock
        self._on_unregistered = on_unregistered
        self._on_generation = on_generation
        self._on_moved = on_moved

    # --- calls ------------------------------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether calls leave as they come."""
        return self.connected and self.registered and self._resume_at is None and not self._helping

    @property
    def due(self) -> bool:
        """Whether a reply is on its way."""
        return bool(self._inflight)

    @property
    def inflight(self) -> int:
        """How many replies are on their way."""
        return len(self._inflight)

    def enqueue(
        self,
        call: Call,
        on_reply: OnReply | None = None,
        on_error: OnError | None = None,
        instead: Callable[[], Call] | None = None,
    ) -> Entry:
        """Take a call: number it if it is to be numbered, and send it as soon as that is possible.

        `on_reply` is called with the reply, ``OK`` or ``REPEAT`` and what follows; `on_error` with what became of it
        otherwise: `Refused`, `OldGeneration`, `ServerFull` or another `StoreError`. Where a full server refuses it and
        `instead` is given, the call that this makes takes its number, and is answered in its place.
        """
        n = 0
        if call.numbered:
            n = self.n + 1
        entry = Entry(n, call, self.generation, on_reply, on_error, instead=instead)
        if n:
            # In this order: a number that is lost to a Ctrl-C in between shows as a GAP, one given out twice would not.
            self.n = n
            self.unanswered.append(entry)
            if self.open:
                self._transmit(entry)
        elif self.open:
            self._transmit(entry)
        else:
            self._loose.append(entry)
        return entry

    def withdraw(self, entry: Entry, *, stays: bool = False) -> bool:
        """Nobody waits for `entry` any more; return whether it may be applied all the same.

        What never left, or was refused, is taken off unless it `stays`, and what is on its way as soon as it is refused.
        What is unnumbered changes nothing.
        """
        if not entry.n:
            entry.done = True
            self._loose = [other for other in self._loose if other is not entry]
            return False
        if entry.done or stays or entry not in self.unanswered:  # else it was brought under another number
            return not entry.done
        if entry.sent:
            entry.abandoned = True
            return True
        if self.unanswered[-1] is entry:
            self.n = self.unanswered.pop().n - 1
        self._take_off(entry)
        return False

    def _take_off(self, entry: Entry) -> None:
        """Have a no-op take the number of a call that was not applied."""
        entry.call = calls.noop()
        entry.on_reply = entry.on_error = None

    def transmit_registration(self, call: Call, on_reply: OnReply, on_error: OnError) -> None:
        """Send a registration, ahead of everything."""
        self._transmit(Entry(0, call, self.generation, on_reply, on_error))

    def _transmit(self, entry: Entry) -> None:
        call = entry.call
        first = self.unanswered[0].n if self.unanswered else self.n + 1
        header = Header(
            self.prefix, self.ordinal, self.incarnation, entry.generation, entry.n, first - 1, self._sharded
        )
        if self._with_text and call.script.sha in self._with_text:
            self._with_text.discard(call.script.sha)
            data = calls.pack_eval(call, header)
        else:
            data = calls.pack(call, header)
        entry.sent += 1
        self._inflight.append((entry, self.round))
        self.outgoing.append(data)

    # --- the connection ---------------------------------------------------------------------------------------------

    def lost(self) -> None:
        """Note that the connection broke: what was in flight is to be sent again over the next one."""
        self.connected = False
        self.round += 1
        loose = [entry for entry, _ in self._inflight if not (entry.n or entry.done or _is_own(entry))]
        self._inflight.clear()
        self._loose = loose + self._loose
        self.outgoing.clear()
        self._resume_at = None
        self._helping = self._continuing = False
        self._with_text.clear()
        self._tell_again()

    def connect(self) -> None:
        """Note that there is a connection again; what is unanswered goes out if we are registered."""
        self._tell_again()
        self.connected = True
        self._backoff = _FIRST_BACKOFF
        if self.registered:
            self._resume()

    def unregister(self, incarnation: str) -> list[Entry]:
        """Begin a new incarnation. Return the entries that were unanswered.

        Numbers go on, and the registration takes one, so that a push tells under which it was sent.
        """
        self.round += 1
        self._born = self.round
        old = list(self.unanswered)
        self.unanswered.clear()
        if self.registered:
            self._used = self.n + 1
        self.n = self._used
        self.registered = False
        self.incarnation = incarnation
        self._resume_at = None
        self._helping = self._continuing = False
        return old

    def register(self, ordinal: int) -> None:
        """Note that we are registered: calls may leave."""
        self.ordinal = ordinal
        self.registered = True

    def _resume(self) -> None:
        """Begin a new round: everything that is unanswered or waits goes out, in order."""
        self._resume_at = None
        if not self.open:
            return
        self.round += 1
        for entry in self.unanswered:
            self._transmit(entry)
        loose, self._loose = self._loose, []
        for entry in loose:
            self._transmit(entry)

    def resume(self) -> None:
        """After a registration: send what came meanwhile."""
        self._resume()

    def hold(self) -> None:
        """Send nothing for a while, then go on where it stopped."""
        self._resume_at = self._clock() + self._backoff
        self._backoff = min(2 * self._backoff, _LAST_BACKOFF)
        self._helping = 0
        self.round += 1

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do, or None."""
        return self._resume_at

    def tick(self, now: float) -> None:
        """Go on after a back-off."""
        if self._resume_at is not None and now >= self._resume_at:
            self._resume_at = None
            if self.registered:
                self._resume()
            else:
                self._on_unregistered()

    # --- replies ----------------------------------------------------------------------------------------------------

    def on_reply(self, reply: Any) -> None:
        """Take the next reply of this connection.

        Raises
        ------
        ProtocolError
            If nothing was asked, or it is no reply of a script.
        """
        if not self._inflight:
            raise ProtocolError(f"a reply that nobody asked for: {reply!r:.100}")
        entry, sent_in = self._inflight[0]
        # Unnumbered calls are not sent again with a new round, so their errors are always news.
        news = sent_in == self.round or (not entry.n and sent_in >= self._born)
        if isinstance(reply, hiredis.ReplyError):
            if news and not entry.done:
                self._failed(entry, str(reply))
        elif type(reply) is list and reply:
            word = reply[0]
            if word == b"OK" or word == b"REPEAT":
                self._backoff = _FIRST_BACKOFF
                if entry.n or entry.call.script.name == "continue":
                    self.progress += 1
                    self.trouble = ""
                elif self.trouble and _is_own(entry):
                    self.trouble = ""
                # Answers of a lost incarnation are answers to nobody: its calls were taken over.
                if not entry.done and (not entry.n or (self.unanswered and self.unanswered[0] is entry)):
                    self._settle(entry, entry.on_reply, reply)
                    if len(reply) > 1 and reply[1] == 1 and entry.call.script.name != "continue":
                        self.continue_()
            elif not entry.done:
                self._other(entry, word, reply, news)
        else:
            raise ProtocolError(f"not the reply of a script: {reply!r:.100}")
        if self._inflight and self._inflight[0][0] is entry and self._inflight[0][1] == sent_in:
            self._inflight.popleft()

    def _settle(self, entry: Entry, callback: Callable[[Any], object] | None, outcome: Any) -> None:
        """End a call and tell. Before the first step a Ctrl-C leaves it to be sent again, behind that to be told again."""
        if callback is not None and entry.call.script.name == "register":
            self._answered(entry)
            callback(outcome)  # a session registers once more, rather than hear twice of one registration
            return
        self._untold = None if callback is None else (callback, outcome)
        self._answered(entry)
        self._tell()

    def _answered(self, entry: Entry) -> None:
        # In this order: what is done but not gone would never be answered again.
        if entry.n:
            while self.unanswered and self.unanswered[0].n <= entry.n:
                self.unanswered.popleft()
        entry.done = True

    def _tell(self) -> None:
        """Tell what came of a call: again after a Ctrl-C, so that callbacks must bear to hear the same twice."""
        if self._untold is None:
            return
        callback, outcome = self._untold
        try:
            self._telling = True
            callback(outcome)
        except Exception:
            self._untold = None
            raise
        finally:
            self._telling = False
        self._untold = None

    def _tell_again(self) -> None:
        """Make up for what a Ctrl-C kept from being told."""
        if not self._telling:  # the callback itself may have found the connection broken
            self._tell()

    def _other(self, entry: Entry, word: bytes, reply: list[Any], news: bool) -> None:
        if word in (b"NO", b"OLD") and entry.n and not (self.unanswered and self.unanswered[0] is entry):
            return
        if word == b"NO":
            code, message = (_text(part) for part in (*reply[1:3], b"", b"")[:2])
            error = quota_error(message) if code == "quota" else Refused(code, message)
            self._settle(entry, entry.on_error, error)
        elif word == b"OLD":
            self._on_generation(int(reply[1]))
            self._settle(entry, entry.on_error, OldGeneration())
        elif not news:
            return
        elif word == b"GAP":
            if self.unanswered and int(reply[1]) + 1 >= self.unanswered[0].n:
                self._resume()
            else:
                self.lost_writes = True
                self._on_unregistered()
        elif word == b"UNKNOWN":
            if entry.call.script.name == "close":
                self._settle(entry, entry.on_reply, reply)
            else:
                if not entry.n and not _is_own(entry):
                    self._loose.append(entry)
                self._on_unregistered()
        elif word == b"WAIT":
            self.round += 1
            self._helping = _HELP
            self._transmit(Entry(0, calls.continue_(), self.generation, self._helped, self._helped))
        else:
            raise ProtocolError(f"not the reply of a script: {reply!r:.100}")

    def _helped(self, reply: object) -> None:
        if self._helping > 1 and isinstance(reply, list) and reply[1:2] == [1]:
            self._helping -= 1
            self._transmit(Entry(0, calls.continue_(), self.generation, self._helped, self._helped))
        elif self._helping:
            self._helping = 0
            self._resume()

    def _failed(self, entry: Entry, message: str) -> None:
        code = message.split(" ", 1)[0]
        for other, sent_in in self._inflight if entry.n else ():
            if other.n >= entry.n and sent_in == self.round:
                other.sent -= 1  # nothing is applied behind a number that is missing
        if code in _TRANSIENT or code in _ELSEWHERE:
            for other in self.unanswered:
                if other.abandoned and not other.sent:
                    self._take_off(other)
        if code == "NOSCRIPT":
            self._with_text.add(entry.call.script.sha)
            if entry.n:
                self._resume()
            elif self.open or entry.call.script.name == "register" or entry.on_reply == self._helped:
                self._transmit(entry)  # what waits for help leaves only when that was answered
            else:
                self._loose.append(entry)
        elif code in _TRANSIENT or (code == "OOM" and not entry.call.grows):
            if not entry.n and entry.call.script.name != "register":
                self._loose.append(entry)
            self.trouble = message
            self.hold()
        elif code in _ELSEWHERE:
            self.trouble = message
            # What follows a heartbeat is to hear as well that it was refused.
            if entry.call.script.name == "heartbeat" and self._numbered_due():
                self._give_up(entry, error_of(code, message, entry.call))
            else:
                self._on_moved(message)
        elif code == "OOM" and entry.instead is not None:
            # In this order: after a Ctrl-C in between it is refused again. What is left to be sent is left to `tick`.
            entry.call, self._resume_at = entry.instead(), self._clock()
            entry.instead = None
            self._resume()
        else:
            self._give_up(entry, error_of(code, message, entry.call))

    def _numbered_due(self) -> bool:
        return any(entry.n and sent_in == self.round for entry, sent_in in self._inflight)

    def _give_up(self, entry: Entry, error: BaseException) -> None:
        """Drop a call that the server will never take: a no-op takes its number, so that it blocks nothing."""
        if entry.on_error is not None:
            self._untold = entry.on_error, error
        entry.on_error = entry.on_reply = None
        if not entry.n:
            entry.done = True
            self._tell()
            return
        entry.call = calls.noop()
        # Told before others leave: they may have relied on what the call was to bring. A Ctrl-C here leaves it to `tick`.
        self._resume_at = self._clock()
        self._tell()
        self._resume()

    # --- long work --------------------------------------------------------------------------------------------------

    def continue_(self) -> None:
        """Carry out slices of the namespace's work list until it is empty."""
        if not self._continuing:
            self._continuing = True
            self.enqueue(calls.continue_(), self._continued, self._stop)

    def _continued(self, reply: list[Any]) -> None:
        self._continuing = False
        if len(reply) > 1 and reply[1] == 1:
            self.continue_()

    def _stop(self, _: BaseException) -> None:
        self._continuing = False


def _is_own(entry: Entry) -> bool:
    """Whether the lane or the session makes such a call again by itself."""
    return entry.call.script.name in ("register", "heartbeat", "continue")


def _text(part: Any) -> str:
    return part.decode(errors="replace") if isinstance(part, bytes) else str(part)
