"""`Pub` and `Sub`."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from redist.belonging import Borrowing
from redist.coordination.base import Named, Request
from redist.errors import SerializationError
from redist.named_values import dump_pair, load
from redist.protocol.functions import may_hold_futures
from redist.session.operations import Ask, Operation
from redist.store.calls import MOST_CONTAINED
from redist.store.coordination import announce, hark, standing
from redist.timeouts import seconds

if TYPE_CHECKING:
    from typing import Self

    from redist.client import Client
    from redist.session.waits import Claim

__all__ = ["Pub", "Sub"]

logger = logging.getLogger("redist.coordination")

#: Bytes of the longest message.
_MOST = 1 << 20


class Pub(Named):
    """Publishes messages under a topic, to all who are subscribed then.

    Parameters
    ----------
    name : str or tuple
        The topic.
    worker : object
        Accepted for Dask's sake.
    client : Client, optional
        The client to use; default: the current one.

    See Also
    --------
    Sub
    """

    def __init__(self, name: Any, worker: object = None, client: Client | None = None) -> None:
        super().__init__(name, client, "topic")

    def put(self, msg: Any) -> None:
        """Publish a message, and do not wait for it to arrive.

        Parameters
        ----------
        msg : object
            Futures in it are kept alive until every subscriber has it.

        Raises
        ------
        SerializationError
            If it takes more than 1 MiB or holds more than 500 Futures: scatter it, and publish its Future.
        """
        client = self._bound()
        borrowing = Borrowing(client)
        payload = dump_pair(msg, f"the message of {self!r}", _MOST, borrowing)
        if payload.inline is None or len(payload.contains) > MOST_CONTAINED:
            raise SerializationError(
                f"a message of {self!r} takes at most {_MOST} bytes and holds at most {MOST_CONTAINED} Futures: "
                "scatter what is larger, and publish the Future"
            )

        def failed(error: BaseException, kept: object = (msg, borrowing)) -> None:
            logger.warning("a message of %r was not published: %s", self, error)

        client._driver.post(announce(self._wire_name, payload.inline, payload.contains), None, failed)

    @property
    def subscribers(self) -> Any:
        """How many are subscribed; a coroutine with an asynchronous client."""
        return self._run(self._subscribers())

    def _subscribers(self) -> Operation[int]:
        reply = yield Ask(standing("topic", self._wire_name))
        return int(reply[2])


class Sub(Named):
    """Gets what is published under a topic from now on, in order.

    Parameters
    ----------
    name : str or tuple
        The topic.
    worker : object
        Accepted for Dask's sake.
    client : Client, optional
        The client to use; default: the current one.

    Notes
    -----
    It is an iterator, with ``for`` and ``async for``, for one thread or task at a time. Messages wait with the server until
    all who are subscribed have got them, 10,000 a topic at most: who lags further behind misses the oldest. A restart of the
    cluster drops what was not got yet. So does a server that lost its memory, which is subscribed to anew.

    A pickled Sub is another one, which begins where it is unpickled.

    Examples
    --------
    >>> sub = Sub("news")  # doctest: +SKIP
    >>> Pub("news").put(1)  # doctest: +SKIP
    >>> sub.get(timeout=1)  # doctest: +SKIP
    1
    """

    def __init__(self, name: Any, worker: object = None, client: Client | None = None) -> None:
        self._claim: Claim | None = None
        self._token = ""
        super().__init__(name, client, "topic")
        self._messages: deque[bytes] = deque()
        self._last = 0
        if self.client is not None:
            self._subscribe()

    def _subscribe(self) -> Client:
        """Be subscribed from now on. With an asynchronous client from when it has told the server."""
        client = self._bound()
        if not self._token:
            self._claim = client.session.waits.claim()
            self._token = self._claim.token
            call = hark(self._token, self._wire_name)
            if client.asynchronous:
                client._post(call)
            else:
                client._run(self._begin())
        return client

    def _begin(self) -> Operation[None]:
        yield Ask(hark(self._token, self._wire_name))

    def get(self, timeout: Any = None) -> Any:
        """Return the next message, waiting for it; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.

        Raises
        ------
        TimeoutError
            If there was none in time.
        """
        return self._run(self._get(seconds(timeout)))

    next = __next__ = get

    def _get(self, timeout: float | None) -> Operation[Any]:
        client = self._subscribe()
        if not self._messages:
            request = Request(client, timeout, claim=self._claim)
            try:
                reply = yield from request.make(
                    lambda: hark(self._token, self._wire_name, self._last), self._heard, told=False
                )
            finally:
                client.session.waits.end(self._token)
            if reply is None:
                raise TimeoutError(f"{self!r} had no message in time")
        return self._open(client)

    def _heard(self, reply: list[Any]) -> bool:
        self._last = int(reply[2])
        self._messages.extend(reply[3:])
        return bool(self._messages)

    def _open(self, client: Client) -> Any:
        data = self._messages.popleft()
        message = load(client, data)[1]
        if not self._messages and may_hold_futures(data):
            # Our own references are counted by now, on the same lane: what the message holds is ours to let go of.
            client._post(hark(self._token, self._wire_name, self._last, more=False))
        return message

    def __iter__(self) -> Self:
        self._only_sync()
        return self

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        return await self._run_in_loop(self._get(None))

    def __del__(self) -> None:
        claim = getattr(self, "_claim", None)
        if claim is not None:
            self._abandon([claim])
