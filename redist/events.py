"""Events: plain data under topics, kept in bounded lists, and handlers that are called with what is logged.

What is published to a topic's channel only says that there is something to read: a handler gets the list behind what it had
before, also after a connection broke.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeAlias

from redist.metadata import pack_plain, unpack_plain
from redist.session.operations import Ask, Operation, Run
from redist.store import beside
from redist.store.calls import Call
from redist.store.keys import decode_key, encode_key

if TYPE_CHECKING:
    import asyncio

    from redist.client import Client

__all__ = ["Event", "Topics", "event_call", "get_events"]

logger = logging.getLogger("redist.client")

Event: TypeAlias = "tuple[float, Any]"
"""When it was logged, by the server's clock in seconds of the epoch; and what."""


def event_call(topic: str | Collection[str], msg: Any) -> Call:
    """Return the call that logs `msg` under a topic, or several.

    Raises
    ------
    TypeError
        If it is not plain data.
    """
    topics = [topic] if isinstance(topic, str) else list(topic)
    return beside.log_event(pack_plain(msg, "an event"), [encode_key(name, "topic") for name in topics])


def get_events(client: Client, topic: str | None) -> Operation[Any]:
    """Return the events of a topic that are kept, or those of all topics."""
    if topic is not None:
        return _events((yield Ask(beside.events(encode_key(topic, "topic"), 0))))
    names: dict[str, str] = yield Run(client._peers.fields, ("logs",))
    found = {}
    for name in names:
        found[decode_key(name)] = _events((yield Ask(beside.events(name, 0))))
    return found


def _events(reply: list[Any]) -> tuple[Event, ...]:
    return tuple(_event(item) for item in reply[2:])


def _event(item: bytes) -> Event:
    ms, _, data = item.partition(b" ")
    return int(ms) / 1000, unpack_plain(data)


class Topics:
    """The topics that a client listens to.

    Parameters
    ----------
    client : Client
        Whose.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        #: None for one that is not listened to any more
        self._handlers: dict[str, Callable[[Event], Any] | None] = {}
        self._seen: dict[str, int] = {}
        self._asked: set[str] = set()
        self._again: set[str] = set()
        self._awaited: set[asyncio.Task[Any]] = set()

    def subscribe(self, topic: str, handler: Callable[[Event], Any]) -> None:
        """Have `handler` called with every event that is logged from now on."""
        name = encode_key(topic, "topic")
        client = self._client
        client._check_alive()
        with client.session.lock:
            known = self._handlers.get(name) is not None
            self._handlers[name] = handler
            if not known:
                self._seen.pop(name, None)
                self._listen()
                self._ask(name)
            client._driver.push_out()

    def unsubscribe(self, topic: str) -> None:
        """Stop that.

        Raises
        ------
        ValueError
            If there never was a handler.
        """
        name = encode_key(topic, "topic")
        client = self._client
        client._check_alive()
        with client.session.lock:
            if name not in self._handlers:
                raise ValueError(f"no handler of the topic {topic!r} is known: subscribe_topic() sets one")
            self._handlers[name] = None
            self._listen()
            client._driver.push_out()

    def _listen(self) -> None:
        """Hear of the topics that have a handler. Under the client's lock."""
        heard = {name for name, handler in self._handlers.items() if handler}
        self._client.session.subscription.listen_to_topics(heard)

    def look(self, name: str) -> None:
        """Read what is new under a topic. Called back by the session."""
        if self._handlers.get(name) is not None:
            self._ask(name)

    def _ask(self, name: str) -> None:
        if name in self._asked:
            self._again.add(name)
            return
        self._asked.add(name)
        call = beside.events(name, self._seen.get(name, -1))
        self._client.session.lane.enqueue(
            call, lambda reply: self._answered(name, reply), lambda _: self._asked.discard(name)
        )

    def _answered(self, name: str, reply: list[Any]) -> None:
        self._asked.discard(name)
        count, before = int(reply[1]), self._seen.get(name, -1)
        self._seen[name] = count
        if before > count:  # the server lost what it had
            self._seen[name] = 0
            self._again.add(name)
        elif before >= 0 and len(reply) > 2:
            self._deliver(name, list(_events(reply)))
        if name in self._again:
            self._again.discard(name)
            self.look(name)

    def _deliver(self, name: str, events: list[Event]) -> None:
        client = self._client
        if client.asynchronous:
            client._driver.loop.call_soon(self._handle, name, events)
        else:
            client._in_background(lambda: self._handle(name, events))

    def _handle(self, name: str, events: list[Event]) -> None:
        """Call the handler: in the loop, or in the thread for callbacks."""
        for event in events:
            handler = self._handlers.get(name)
            if handler is None:
                return
            try:
                result = handler(event)
                if inspect.isawaitable(result):
                    self._await(result)
            except Exception:
                logger.exception("the handler of the topic %r failed", decode_key(name))

    def _await(self, result: Any) -> None:
        import asyncio

        if self._client.asynchronous:
            task = asyncio.ensure_future(result)
            self._awaited.add(task)
            task.add_done_callback(self._awaited.discard)
        else:
            asyncio.run(_complete(result))


async def _complete(result: Any) -> Any:
    return await result
