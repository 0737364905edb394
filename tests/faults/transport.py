"""A proxy between sessions and a real server that injects one fault at one call, or at one push.

It listens on a unix socket, in a thread of its own, and takes RESP apart into single commands and single replies. Every
script call and every push is known by who sends (or gets) it, by what it is, and by how many there were of it before:
`Event("c1", "submit", 2)` is the third `submit` of the caller named c1. A fault happens once.

============  ==========================================================================================================
``cut-before``  the connection breaks before the command reaches the server, with all that is pipelined behind it
``cut-after``   the command is applied, its reply is lost and the connection with it
``delay``       the reply, and all behind it, come late
``repeat``      the command arrives twice, and only the reply to its repeat comes back
``NOSCRIPT`` ``BUSY`` ``OOM`` ``LOADING``   the server's own words instead of the command's reply; it is not applied
``drop-push``   one message of a subscription is lost
``cut-push``    the subscription breaks where one message was to come
``delay-push``  the message, and all behind it, come late
``repeat-push`` the message comes twice
============  ==========================================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import selectors
import socket
import threading
import time
from collections import Counter, deque
from typing import Any, NamedTuple

import hiredis
import msgpack

from redist.store.connect import Endpoint, endpoint
from redist.store.scripts import load, names

__all__ = ["CALL_FAULTS", "PUSH_FAULTS", "Event", "Fault", "Proxy"]

ERRORS = {
    "NOSCRIPT": b"-NOSCRIPT No matching script. Please use EVAL.\r\n",
    "BUSY": b"-BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.\r\n",
    "OOM": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "LOADING": b"-LOADING Redis is loading the dataset in memory\r\n",
}
CALL_FAULTS = ("cut-before", "cut-after", "delay", "repeat", "NOSCRIPT", "BUSY", "LOADING")
PUSH_FAULTS = ("drop-push", "cut-push", "delay-push", "repeat-push")
DELAY = 0.03

_SCRIPTS = {load(name).sha: name for name in names()}
_NOTHING: Any = object()


class Event(NamedTuple):
    """One call or push: whose, what, and how many there were before."""

    caller: str
    what: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.caller}.{self.what}.{self.number}"


class Fault:
    """What goes wrong, and where; `fired` says whether it did."""

    def __init__(self, kind: str, event: Event) -> None:
        self.kind = kind
        self.event = event
        self.fired = False

    def __repr__(self) -> str:
        return f"{self.kind}@{self.event}"

    def hits(self, event: Event) -> bool:
        if self.fired or event != self.event:
            return False
        self.fired = True
        return True


class _Slot:
    """A reply that is to come; `data` once it has. One that is `lost` is not passed on."""

    __slots__ = ("cut", "data", "late", "lost")

    def __init__(
        self, data: bytes | None = None, *, cut: bool = False, late: bool = False, lost: bool = False
    ) -> None:
        self.data, self.cut, self.late, self.lost = data, cut, late, lost


class _Link:
    """One connection through the proxy."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.commands = hiredis.Reader(notEnoughData=_NOTHING)
        self.replies = hiredis.Reader(notEnoughData=_NOTHING)
        self.slots: deque[_Slot] = deque()
        self.subscribed = False
        self.deaf = False  # nothing more is taken from the client: it is about to be cut
        self.held: deque[bytes] = deque()
        self.until = 0.0


class Proxy:
    """Stands in front of the server at unix socket `path`; its own socket is in `directory`.

    Attributes
    ----------
    events : list of Event
        Every call that arrived and every push that left, in order.
    fault : Fault or None
        What is to go wrong.
    """

    def __init__(self, path: str, directory: str) -> None:
        self.path = os.path.join(directory, "p.sock")
        self.events: list[Event] = []
        self.fault: Fault | None = None
        self._far = path
        self._counts: Counter[tuple[str, str]] = Counter()
        self._callers: dict[str, str] = {}
        self._ordinals: dict[int, str] = {}
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._wake, self._waker = socket.socketpair()
        self._links: set[_Link] = set()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def endpoint(self, namespace: str) -> Endpoint:
        """Return the server as seen through this proxy."""
        return endpoint(f"unix://{self.path}", namespace)

    def start_over(self, fault: Fault | None = None) -> None:
        """Count from the beginning, with another fault. Nobody may be connected."""
        self.fault = fault
        self.events = []
        self._counts.clear()
        self._callers.clear()
        self._ordinals.clear()

    def cut_all(self) -> None:
        """Break every connection."""
        self._waker.send(b"c")

    def close(self) -> None:
        self._waker.send(b"x")
        self._thread.join(10)
        for sock in (self._listener, self._wake, self._waker):
            sock.close()
        os.unlink(self.path)

    # --- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._selector = selector = selectors.DefaultSelector()
        selector.register(self._listener, selectors.EVENT_READ, self._accept)
        selector.register(self._wake, selectors.EVENT_READ, None)
        while True:
            now = time.monotonic()
            waits = [link.until - now for link in self._links if link.until]
            for key, _ in selector.select(max(0.0, min(waits)) if waits else None):
                if key.fileobj is self._wake:
                    orders = self._wake.recv(100)
                    for link in list(self._links):
                        self._cut(link)
                    if b"x" in orders:
                        selector.close()
                        return
                elif key.data == self._accept:
                    self._accept()
                else:
                    link, take = key.data
                    if link in self._links:
                        with contextlib.suppress(OSError):
                            take(link)
            for link in list(self._links):
                self._flush(link)

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(self._far)
        except OSError:
            near.close()
            far.close()
            return
        link = _Link(near, far)
        self._links.add(link)
        self._selector.register(near, selectors.EVENT_READ, (link, self._from_client))
        self._selector.register(far, selectors.EVENT_READ, (link, self._from_server))

    def _cut(self, link: _Link) -> None:
        if link in self._links:
            self._links.discard(link)
            for sock in (link.near, link.far):
                self._selector.unregister(sock)
                sock.close()

    # --- commands ---------------------------------------------------------------------------------------------------

    def _from_client(self, link: _Link) -> None:
        try:
            data = link.near.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self._cut(link)
            return
        link.commands.feed(data)
        while not link.deaf and (command := link.commands.gets()) is not _NOTHING:
            self._command(link, command)
            if link not in self._links:
                return

    def _command(self, link: _Link, command: list[bytes]) -> None:
        word = command[0].upper()
        raw = hiredis.pack_command(tuple(command))
        if word in (b"SUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"SUNSUBSCRIBE"):
            link.subscribed = True
            link.far.sendall(raw)
            return
        slot = _Slot()
        if word in (b"EVALSHA", b"EVAL"):
            event = self._note(*self._describe(word, command))
            fault = self.fault
            if fault is not None and fault.kind in (*CALL_FAULTS, "OOM") and fault.hits(event):
                if fault.kind == "cut-before":
                    # What the server says to earlier commands still arrives.
                    link.deaf = True
                    slot = _Slot(b"", cut=True)
                elif fault.kind == "cut-after":
                    link.deaf = True
                    slot = _Slot(cut=True)
                elif fault.kind == "delay":
                    slot = _Slot(late=True)
                elif fault.kind == "repeat":
                    link.slots.append(_Slot(lost=True))
                    link.far.sendall(raw)
                else:
                    slot = _Slot(ERRORS[fault.kind])
        link.slots.append(slot)
        if slot.data is None:
            link.far.sendall(raw)
        self._deliver(link)

    def _describe(self, word: bytes, command: list[bytes]) -> tuple[str, str]:
        sha = command[1].decode() if word == b"EVALSHA" else hashlib.sha1(command[1]).hexdigest()
        script = _SCRIPTS[sha]
        argument = msgpack.unpackb(command[4], strict_map_key=False, raw=True)
        incarnation = argument[1].decode()
        if script == "register":
            self._callers[incarnation] = argument[6].decode()
        caller = self._callers.get(incarnation, "?")
        if argument[0]:
            self._ordinals[int(argument[0])] = caller
        return caller, script

    def _note(self, caller: str, what: str) -> Event:
        event = Event(caller, what, self._counts[caller, what])
        self._counts[caller, what] += 1
        self.events.append(event)
        return event

    # --- replies ----------------------------------------------------------------------------------------------------

    def _from_server(self, link: _Link) -> None:
        try:
            data = link.far.recv(1 << 16)
        except ConnectionResetError:
            data = b""
        if not data:
            self._cut(link)
            return
        link.replies.feed(data)
        while (reply := link.replies.gets()) is not _NOTHING:
            if link.subscribed:
                self._push(link, reply)
                if link not in self._links:
                    return
            else:
                next(slot for slot in link.slots if slot.data is None).data = encode(reply)
        self._deliver(link)

    def _push(self, link: _Link, frame: Any) -> None:
        if frame[0] in (b"message", b"smessage"):
            place, _, ordinal = frame[1].rpartition(b"}:")[2].partition(b":")
            if place == b"log":
                event = self._note("log", "push-log")
            else:
                kind = (
                    msgpack.unpackb(frame[2], raw=True, strict_map_key=False)[:1]
                    if place != b"evict"
                    else [b"e"]
                )
                what = "push-" + (kind or [b"e"])[0].decode()
                event = self._note(self._ordinals.get(int(ordinal or 0), "all"), what)
            fault = self.fault
            if fault is not None and fault.kind in PUSH_FAULTS and fault.hits(event):
                if fault.kind == "drop-push":
                    return
                if fault.kind == "cut-push":
                    self._cut(link)
                    return
                if fault.kind == "repeat-push":
                    link.held.append(encode(frame))
                else:
                    link.until = time.monotonic() + DELAY
        link.held.append(encode(frame))
        self._flush(link)

    def _deliver(self, link: _Link) -> None:
        while link.slots and link.slots[0].data is not None:
            slot = link.slots.popleft()
            if slot.lost:
                continue
            if slot.cut:
                self._flush(link, now=True)
                self._cut(link)
                return
            if slot.late:
                link.until = time.monotonic() + DELAY
            link.held.append(slot.data)
        self._flush(link)

    def _flush(self, link: _Link, *, now: bool = False) -> None:
        if link.until and not now and time.monotonic() < link.until:
            return
        link.until = 0.0
        try:
            while link.held:
                data = link.held.popleft()
                link.near.settimeout(10)
                link.near.sendall(data)
        except OSError:
            self._cut(link)


def encode(reply: Any) -> bytes:
    """Return a reply as RESP2."""
    if reply is None:
        return b"$-1\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, Exception):
        return b"-%b\r\n" % str(reply).encode()
    return b"*%d\r\n%b" % (len(reply), b"".join(map(encode, reply)))
