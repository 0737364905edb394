"""The channels that a caller listens on: what is subscribed to, and what the server confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

__all__ = ["EndpointLike", "Subscription"]


class EndpointLike(Protocol):
    """What a session needs to know of the server."""

    prefix: str
    subscribe: str


class Subscription:
    """The subscription of one caller.

    Parameters
    ----------
    endpoint : EndpointLike
        Names the commands and what channels begin with.

    Attributes
    ----------
    outgoing : list of bytes
        Commands to be sent; the driver empties it.
    on_event : callable or None
        Called with a topic under which something may have been logged.
    """

    __slots__ = ("_confirmed", "_endpoint", "_logs", "_others", "_topics", "_wanted", "on_event", "outgoing")

    def __init__(self, endpoint: EndpointLike) -> None:
        self.outgoing: list[bytes] = []
        self.on_event: Callable[[str], object] | None = None
        self._logs = f"{endpoint.prefix}log:".encode()
        self._topics: frozenset[str] = frozenset()
        self._others: tuple[str, ...] = ()
        self._endpoint = endpoint
        self._wanted: set[str] = set()
        self._confirmed: set[str] = set()

    @property
    def complete(self) -> bool:
        """Whether every channel that is listened on was confirmed."""
        return bool(self._wanted) and self._wanted <= self._confirmed

    def lost(self) -> None:
        """Note that the connection is another one, or none: nothing is confirmed on it."""
        self._confirmed.clear()
        self.outgoing.clear()

    def listen(self, *channels: str) -> None:
        """Listen on these channels, on those of topics, and no others; their names are without the prefix."""
        self._others = channels
        topics = (f"log:{topic}" for topic in self._topics)
        self._wanted = {self._endpoint.prefix + channel for channel in (*channels, *topics)}
        subscribe = self._endpoint.subscribe
        for channel in sorted(self._wanted - self._confirmed):
            self.outgoing.append(_command(subscribe, channel))
        for channel in sorted(self._confirmed - self._wanted):
            self.outgoing.append(_command(subscribe.replace("SUB", "UNSUB"), channel))
            self._confirmed.discard(channel)

    def listen_to_topics(self, topics: Iterable[str]) -> None:
        """Listen to what is logged under these topics and no others."""
        self._topics = frozenset(topics)
        if self._others:
            self.listen(*self._others)

    def concerns_topic(self, channel: bytes) -> bool:
        """Tell whether a channel is a topic's; something came, or it is listened to only from now on."""
        if not channel.startswith(self._logs):
            return False
        if self.on_event is not None:
            self.on_event(channel[len(self._logs) :].decode())
        return True

    def look_at_topics(self) -> None:
        """Have all topics looked at: a message may have been lost."""
        if self.on_event is not None:
            for topic in self._topics:
                self.on_event(topic)

    def confirmed(self, channel: bytes) -> None:
        """Note that the server confirmed a channel."""
        self._confirmed.add(channel.decode())


def _command(*words: str) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)
