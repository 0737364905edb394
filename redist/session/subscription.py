"""The channels that a caller listens on: what is subscribed to, and what the server confirmed."""

from __future__ import annotations

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
    """

    __slots__ = ("_confirmed", "_endpoint", "_wanted", "outgoing")

    def __init__(self, endpoint: EndpointLike) -> None:
        self.outgoing: list[bytes] = []
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
        """Listen on these channels and no others; their names are without the prefix."""
        self._wanted = {self._endpoint.prefix + channel for channel in channels}
        subscribe = self._endpoint.subscribe
        for channel in sorted(self._wanted - self._confirmed):
            self.outgoing.append(_command(subscribe, channel))
        for channel in sorted(self._confirmed - self._wanted):
            self.outgoing.append(_command(subscribe.replace("SUB", "UNSUB"), channel))
            self._confirmed.discard(channel)

    def confirmed(self, channel: bytes) -> None:
        """Note that the server confirmed a channel."""
        self._confirmed.add(channel.decode())


def _command(*words: str) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        data = word.encode()
        parts.append(b"$%d\r\n%b\r\n" % (len(data), data))
    return b"".join(parts)
