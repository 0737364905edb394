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
