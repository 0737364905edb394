"""`Queue`."""

from __future__ import annotations

import contextlib
import weakref
from typing import TYPE_CHECKING, Any

from redist.coordination.base import Awaitable, Request
from redist.dask_options import asynchronous_in
from redist.errors import DependencyUnknown, RedistError
from redist.named_values import enclose, open_up
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation
from redist.store.coordination import close_queue, get, leave, open_queue, put, standing
from redist.store.keys import decode_key
from redist.submitting import integer
from redist.timeouts import seconds

if TYPE_CHECKING:
    from typing import Self

    from redist.client import Client

__all__ = ["Queue"]

#: Items that are got at a time.
_SLICE = 200
#: The living queues of each session, by name: the last that is closed tells the server.
_living: weakref.WeakKeyDictionary[Any, dict[str, weakref.WeakSet[Queue]]] = weakref.WeakKeyDictionary()


class Queue(Awaitable):
    """Items that anybody can put and get: first in, first out, and who asks first is served first.

    Parameters
    ----------
    name : str or tuple, optional
        Its name, by which all processes mean the same; default: one that nobody else has.
    client : Client, optional
        The client to use; default: the current one.
    maxsize : int
        How many items it holds before `put` waits; 0: any number. Who makes a queue first decides.

    Notes
    -----
    Futures in an item keep their data until whoever gets the item holds them. An item above 64 KiB that holds no Futures is
    scattered, and takes a worker. An item that was got by a process that dies in that moment goes back to its place.

    A queue with items stays until it is closed by all clients that use it, whoever leaves; one without goes with its last
    client. A restart of the cluster empties it, as a server that lost its memory does; whoever waits goes on to wait. A
    `put` that the server was carrying out when it took this client for dead may be carried out twice.

    Examples
    --------
    >>> queue = Queue("jobs")  # doctest: +SKIP
    >>> queue.put(client.submit(load, 1))  # doctest: +SKIP
    >>> queue.get().result()  # doctest: +SKIP
    """

    def __init__(self, name: Any = None, client: Client | None = None, maxsize: int = 0) -> None:
        super().__init__(name, client, "queue")
        self.maxsize = max(0, integer("maxsize", maxsize))
        self._opened_in = ""
        with contextlib.suppress(RedistError):
            if self.client is not None:
                self._open()

    async def _opened(self) -> Self:
        self._open()
        return self

    def _open(self) -> Client:
        """Note that this client uses the queue, once a registration; an executor uses it for its tasks only."""
        client = self._bound()
        session = client.session
        if self._opened_in != session.incarnation:
            self._opened_in = session.incarnation
            if session.kind == "client":
                _living.setdefault(session, {}).setdefault(self._wire_name, weakref.WeakSet()).add(self)
                client._post(open_queue(self._wire_name, self.maxsize))
        return client

    # --- putting ----------------------------------------------------------------------------------------------------

    def put(self, value: Any, timeout: Any = None, **kwargs: Any) -> Any:
        """Put an item, waiting while the queue is full; a coroutine with an asynchronous client.

        Parameters
        ----------
        value : object
            Futures in it, at any depth, are kept alive.
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.

        Raises
        ------
        TimeoutError
            If it was full all the time; then nothing was put.
        """
        return self._run(self._put(value, seconds(timeout)), asynchronous_in("put", kwargs))

    def _put(self, value: Any, timeout: float | None) -> Operation[None]:
        client = self._open()
        try:
            enclosed = yield from enclose(client, value, f"the item for {self!r}")
            request = Request(client, timeout)
            with enclosed, request.leaving():
                try:
                    reply = yield from request.make(
                        lambda: put(
                            request.token, self._wire_name, enclosed.data, enclosed.contains, maxsize=self.maxsize,
                            wait=request.waits,
                        ),
                        lambda reply: reply[2] != 0,
                        told=True,
                    )  # fmt: skip
                except Refused as refused:
                    raise (yield from enclosed.bundles.explain(refused)) from None
                if reply is None:
                    left = yield Ask(leave([request.token]), stays=True)
                    if left[3]:
                        return  # it came in, and somebody got it, in that very moment
                if reply is None or reply[2] < 0:
                    raise TimeoutError(f"{self!r} stayed full: nothing was put")
                if request.waited or not request.waits:
                    request.leave(taken=True)
        except Refused as refused:
            raise DependencyUnknown(
                decode_key(refused.message), f"it is not known any more and cannot be put into {self!r}"
            ) from None

    # --- getting ----------------------------------------------------------------------------------------------------

    def get(self, timeout: Any = None, batch: bool | int = False, **kwargs: Any) -> Any:
        """Get an item, waiting for one; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.
        batch : bool or int
            True: a list of all items that are there, without waiting. A number: a list of so many, waiting for them.

        Raises
        ------
        TimeoutError
            If there was none in time.
        NotImplementedError
            If a number and a timeout are given.
        """
        limit, asynchronous = seconds(timeout), asynchronous_in("get", kwargs)
        if batch is True:
            return self._run(self._get_all(), asynchronous)
        if batch:
            count = integer("batch", batch, 1)
            if timeout is not None:
                raise NotImplementedError("a timeout cannot be combined with a number of items")
            return self._run(self._get_many(count, None), asynchronous)
        return self._run(self._get(limit), asynchronous)

    def _get(self, timeout: float | None) -> Operation[Any]:
        request = Request(self._open(), timeout)
        with request.leaving():
            values = yield from self._items(request, 1)
            if not values:
                request.leave()
                raise TimeoutError(f"{self!r} had no item in time")
            request.leave(taken=True)
            return values[0]

    def _get_all(self) -> Operation[list[Any]]:
        self._open()
        size = yield from self._size()
        return (yield from self._get_many(size, 0))

    def _get_many(self, count: int, timeout: float | None) -> Operation[list[Any]]:
        """Get `count` items, or fewer where it is waited for none of them any longer."""
        client = self._open()
        values: list[Any] = []
        with contextlib.ExitStack() as stack:  # who gives up on the way gives all of them back
            requests = []
            while len(values) < count:
                request = Request(client, timeout)
                stack.enter_context(request.leaving())
                requests.append(request)
                some = yield from self._items(request, min(count - len(values), _SLICE))
                if not some:
                    break
                values += some
            for request in requests:
                request.leave(taken=True)
        return values

    def _items(self, request: Request, most: int) -> Operation[list[Any]]:
        """Get up to `most` items, none if the time is over; they are ours once the request is left with them taken."""
        reply = yield from request.make(
            lambda: get(request.token, self._wire_name, most=most, maxsize=self.maxsize, wait=request.waits),
            lambda reply: len(reply) > 2,
            told=False,
        )
        values: list[Any] = []
        for data in reply[2:] if reply is not None else ():
            value = yield from open_up(request.client, data)
            values.append(value)
        return values

    # --- the rest ---------------------------------------------------------------------------------------------------

    def qsize(self, **kwargs: Any) -> Any:
        """Return how many items there are."""
        asynchronous = asynchronous_in("qsize", kwargs)
        self._open()
        return self._run(self._size(), asynchronous)

    def _size(self) -> Operation[int]:
        reply = yield Ask(standing("queue", self._wire_name))
        return int(reply[2])

    def close(self) -> None:
        """Use the queue no more. When no client uses it any more, its items go. It can be used again."""
        client = self._bound()
        mine = _living.get(client.session, {}).get(self._wire_name, weakref.WeakSet())
        mine.discard(self)
        self._opened_in = ""
        if not mine:
            _living.get(client.session, {}).pop(self._wire_name, None)
            client._post(close_queue(self._wire_name))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, None, self.maxsize)
