"""Connections whose content cannot be dealt with are made again, with pauses that grow."""

from __future__ import annotations

import time
from typing import Any

import pytest

from redist.session.links import Links


class Wire:
    """Gives the same frames to everybody."""

    def __init__(self, *frames: Any) -> None:
        self.frames = frames

    def receive_ready(self) -> int:
        return 1

    def replies(self) -> Any:
        return iter(self.frames)

    def close(self) -> None:
        pass


class Session:
    """Cannot deal with what is bad."""

    kind = "client"
    reconnect = None

    class lane:
        outgoing: list[bytes] = []
        trouble = ""

    subscription = lane

    def on_push(self, frame: Any) -> None:
        if b"bad" in frame:
            raise ValueError(frame)

    on_reply = on_push

    def connected(self) -> None: ...
    def disconnected(self) -> None: ...
    def subscription_connected(self) -> None: ...
    def subscription_lost(self) -> None: ...


SUBSCRIBED = [b"subscribe", b"channel", 1]
BAD, GOOD = [b"message", b"channel", b"bad"], [b"message", b"channel", b"good"]


@pytest.mark.parametrize("which", ["push", "command"])
def test_pauses_grow_until_something_was_dealt_with(which: str) -> None:
    links = Links(Session(), None, lambda: None)  # type: ignore[arg-type]
    adopt, take = {
        "push": (links.adopt_push, links.take_pushes),
        "command": (links.adopt_command, links.take_replies),
    }[which]

    def pause_after(*frames: Any) -> float:
        adopt(Wire(*frames))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="bad"):
            take()
        return links.retry_at - time.monotonic()

    before = [SUBSCRIBED] if which == "push" else []
    assert pause_after(*before, BAD) <= 0
    pauses = [pause_after(*before, BAD) for _ in range(8)]
    assert 0 < pauses[0] < 0.03
    assert pauses[4] > 0.2
    assert 0.9 < pauses[7] <= 1.0
    links.retry_at = 0.0
    assert pause_after(GOOD, BAD) <= 0


class Narrow(Wire):
    """Takes few bytes at a time."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.taken = bytearray()
        self.full = False

    def try_send(self, data: memoryview) -> int:
        if self.full:
            return 0
        self.full = len(data) > self.most
        self.taken += data[: self.most]
        return min(len(data), self.most)


def test_what_a_connection_does_not_take_is_copied_no_more_and_sent_in_order() -> None:
    """It was all copied with each piece that the server took, and with each that came: 20 s for 180 MB."""
    changes = []
    session = Session()
    session.lane = type("lane", (), {"outgoing": [], "trouble": ""})  # type: ignore[misc,assignment]
    links = Links(session, None, lambda: changes.append(bool(links.rest)))  # type: ignore[arg-type]
    wire = Narrow(1000)
    links.adopt_command(wire)  # type: ignore[arg-type]
    large = bytes(range(250)) * 4000
    pieces = [large, *(b"%d," % i for i in range(5000)), large, b"the end"]
    del changes[:]
    for piece in pieces:
        session.lane.outgoing.append(piece)
        links.transmit()
    assert changes == [True]
    assert links.rest[0].obj is large
    while links.rest:
        wire.full = False
        links.send_rest()
    assert bytes(wire.taken) == b"".join(pieces)
    assert changes == [True, False]
    session.lane.outgoing.append(b"x")
    wire.full = False
    links.transmit()
    assert wire.taken.endswith(b"the endx")
    assert changes == [True, False]
