"""`Future`: a counted reference to a remote value, and what it says of it.

A Future is a thin handle; what is known of its key stands in the session's `FutureState`, which all Futures of the key in
this client share. Making one counts up, and `release`, ``del``, garbage collection and the client's end count down; the
value lives as long as anybody's count is not zero.
"""

from __future__ import annotations

import secrets
from _thread import get_ident, interrupt_main, start_new_thread
from collections.abc import Callable, Generator
from contextvars import ContextVar
from os import getpid
from threading import main_thread
from time import sleep
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from redist.belonging import check_server, server_of
from redist.dask_options import asynchronous_in
from redist.errors import ForeignFutureError, FutureCancelledError
from redist.protocol.futures import collect, register_future_type
from redist.raising import without_way
from redist.session.states import CANCELLED, PENDING, FutureState, Status, Waiter
from redist.store import calls
from redist.store.keys import Key, decode_key, encode_key
from redist.unbound import Unbound

if TYPE_CHECKING:
    from types import TracebackType

    from redist.client import Client

__all__ = ["Future"]

T = TypeVar("T")

#: Collects the records of the Futures that a value brings, where whoever loads it asks for that. Not those that there were
#: already: what the server says of their keys may be news of somebody else's task, with ours refused or still on its way.
BROUGHT: ContextVar[list[FutureState] | None] = ContextVar("redist_brought", default=None)


class Future(Generic[T]):
    """A remote value, finished or on its way.

    Parameters
    ----------
    key : str, tuple, number or bytes
        Its key.
    client : Client, optional
        The client that holds the reference; default: the current one.

    Attributes
    ----------
    name : str
        Wire name of the key.
    """

    __slots__ = ("__weakref__", "_cleared", "_client", "_state")

    #: Dask's word for what stands in a graph for the value of a key.
    __dask_future__ = True

    _client: Client
    _state: FutureState
    _cleared: bool

    def __init__(self, key: Key, client: Client | None = None, state: FutureState | None = None) -> None:
        self._cleared = True
        if client is None:
            from redist.current import default_client

            client = default_client()
        self._client = client
        self._state = client._bind(encode_key(key)) if state is None else state
        self._cleared = False

    @classmethod
    def _of(cls, state: FutureState, client: Client) -> Future[Any]:
        """Return a Future for a reference that is counted already."""
        future = cls.__new__(cls)
        future._state = state
        future._client = client
        future._cleared = False
        return future

    # --- what it says -----------------------------------------------------------------------------------------------

    @property
    def key(self) -> Key:
        """The user's key."""
        return decode_key(self._state.name)

    @property
    def name(self) -> str:
        """Wire name of the key."""
        return self._state.name

    @property
    def client(self) -> Client:
        """The client that holds the reference."""
        return self._client

    @property
    def executor(self) -> Client:
        """The client, under Dask's other name for it."""
        return self._client

    def bind_client(self, client: Client) -> None:
        """Hold the reference by `client` from now on."""
        if client is self._client and not self._cleared:
            return
        if isinstance(self._client, Unbound):
            unbound = self._client
            self._state = _bind_handed(client, unbound.name, unbound.token, unbound.namespace, unbound.server)
            self._client, self._cleared = client, False
            return
        check_server(client, self)
        if not self._cleared and not self._client.closed:
            self._client._settle()  # the other client's count must not overtake the submission
        state = client._bind(self._state.name)
        if not self._cleared:
            client._settle()  # nor may the release overtake that count
        self.release()
        self._state, self._client, self._cleared = state, client, False

    @property
    def status(self) -> Status:
        """``pending``, ``finished``, ``error``, ``lost`` or ``cancelled``."""
        return CANCELLED if self._cleared else self._state.status

    @property
    def type(self) -> str | None:
        """Short name of the value's type (or of the exception's), None while it is not known."""
        return self._state.type or None

    @property
    def nbytes(self) -> int:
        """Size of the serialized value, 0 while it is not known."""
        return self._state.nbytes

    def done(self) -> bool:
        """Return whether it is not pending any more, for better or worse."""
        return self.status != PENDING

    def cancelled(self) -> bool:
        """Return whether it was cancelled."""
        return self.status == CANCELLED

    def __repr__(self) -> str:
        type_ = f" type: {self._state.type}," if self._state.type else ""
        status = "unbound" if isinstance(self._client, Unbound) else self.status
        return f"<Future: {status},{type_} key: {self.key!s}>"

    def _repr_html_(self) -> str:
        from html import escape

        type_ = f", type: {escape(self._state.type)}" if self._state.type else ""
        status = "unbound" if isinstance(self._client, Unbound) else self.status
        return f"<b>Future: {escape(str(self.key))}</b> <font color='gray'>status: </font>{status}{type_}"

    # --- its value --------------------------------------------------------------------------------------------------

    def result(self, timeout: float | str | None = None, *, copy: bool = False, writable: bool = False) -> T:
        """Wait for the value and return it; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds to wait, or text such as ``'2s'``.
        copy : bool
            Return a private, writable copy.
        writable : bool
            Let arrays be written to: pages that are written to become private copies.

        Raises
        ------
        TimeoutError
            If it is not there in time.
        CancelledError
            If it was cancelled.
        Exception
            What the task raised.
        """
        self._check()
        try:
            return cast(T, self._client._result(self, timeout, copy, writable))
        except BaseException as error:
            if not without_way(error):
                raise
            raise error

    def exception(self, timeout: float | str | None = None, **kwargs: Any) -> BaseException | None:
        """Wait, and return the exception of a failed task, None if it succeeded."""
        self._check()
        return cast(
            "BaseException | None",
            self._client._exception(self, timeout, asynchronous_in("exception", kwargs)),
        )

    def traceback(self, timeout: float | str | None = None, **kwargs: Any) -> TracebackType | None:
        """Wait, and return the traceback of a failed task, for `traceback.format_tb`; None if it succeeded."""
        self._check()
        return cast(
            "TracebackType | None",
            self._client._traceback(self, timeout, asynchronous_in("traceback", kwargs)),
        )

    def __await__(self) -> Generator[Any, None, T]:
        self._check()
        return cast("Generator[Any, None, T]", self._client._await_result(self).__await__())

    def add_done_callback(self, fn: Callable[[Future[T]], object]) -> None:
        """Have ``fn(future)`` called when it is done, at once if it is; in a thread of its own, or in the loop."""
        self._client._on_done(self, fn)

    # --- its life ---------------------------------------------------------------------------------------------------

    def cancel(self, reason: str | None = None, msg: str | None = None, **kwargs: Any) -> Any:
        """Cancel it; see `Client.cancel`."""
        return self._client.cancel([self], reason=reason, msg=msg, **kwargs)

    def retry(self, **kwargs: Any) -> Any:
        """Run a failed task again; see `Client.retry`."""
        return self._client.retry([self], **kwargs)

    def release(self) -> None:
        """Give the reference up; the Future is of no use afterwards."""
        if not self._cleared:
            self._cleared = True
            self._client._release(self._state)

    def __del__(self) -> None:
        try:
            if not self._cleared:
                self._cleared = True
                self._client._release(self._state)
        except KeyboardInterrupt:
            if get_ident() != main_thread().ident:
                raise
            # From here Python would only print it. A thread begins without any lock that a collection may hold.
            start_new_thread(_interrupt_soon, (self._client,))
        except Exception:
            pass  # the interpreter ends, or it was never made

    def _check(self) -> None:
        if self._cleared:
            raise FutureCancelledError(self.key, "its reference was released")

    # --- travelling -------------------------------------------------------------------------------------------------

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "redist.Future", self._state.name

    def __copy__(self) -> Future[T]:
        """Return another reference of the same client."""
        self._check()
        if isinstance(self._client, Unbound):
            return Future._of(self._state, self._client)
        return Future._of(self._client._bind(self._state.name), self._client)

    def __deepcopy__(self, memo: dict[int, Any]) -> Future[T]:
        return self.__copy__()

    def __reduce__(self) -> tuple[Any, ...]:
        bare = collect(self)
        return self._hand_over() if bare is None else bare

    def _hand_over(self) -> tuple[Any, ...]:
        """Reduce to what takes it over in the process that loads it, within the hand-off's time."""
        self._check()
        if isinstance(self._client, Unbound):
            unbound = self._client
            return _take_over, (unbound.name, unbound.token, unbound.namespace, unbound.server)
        token = secrets.token_hex(8)
        # Answered before the pickle leaves: who loads it speaks to the server on a connection of its own.
        self._client._driver.call_now(calls.handoff([(token, self._state.name)]))
        return _take_over, (self._state.name, token, self._client.namespace, server_of(self._client))


def _interrupt_soon(client: Client) -> None:
    """Interrupt the main thread again, once it has left the `__del__` that a Ctrl-C hit."""
    wake = client.session.ledger.wake
    if wake is not None:
        wake()  # in case it hit before the release was told of
    sleep(0.001)
    interrupt_main()


def _bare(future: Future[Any]) -> tuple[Any, ...]:
    future._check()
    return _rebuild, (future._state.name,)


def _rebuild(name: str) -> Future[Any]:
    """Return a Future of the current client; what holds it meanwhile is the value that it came in."""
    from redist.current import default_client

    client = default_client()
    brought = BROUGHT.get()
    known = client.session.states.get(name) if brought is not None else None
    state = client._bind(name)
    if brought is not None and state is not known:
        brought.append(state)
    return Future._of(state, client)


def _take_over(name: str, token: str, namespace: str, server: str) -> Future[Any]:
    """Return a Future of the current client, whose hand-off ends, or an unbound one if there is no client."""
    from redist.current import current_client, inherited_client

    client = current_client() or inherited_client()
    if client is None:
        nobody: Any = Unbound(name, token, namespace, server)
        return Future._of(nobody, nobody)
    if client._pid != getpid():
        # Inert as the copies of Futures that were forked. An error here would end a worker of `multiprocessing.Pool`, and
        # whoever waits for its result would wait for ever.
        return Future._of(FutureState(name, 0), client)
    return Future._of(_bind_handed(client, name, token, namespace, server), client)


def _bind_handed(client: Client, name: str, token: str, namespace: str, server: str) -> FutureState:
    """Count a reference of `client` to a key that was handed off, and end the hand-off."""
    if client.namespace != namespace:
        raise ForeignFutureError(
            f"the Future {decode_key(name)!r} is of the namespace {namespace!r}, the current client of {client.namespace!r}"
        )
    if server_of(client) != server:
        raise ForeignFutureError(
            f"the Future {decode_key(name)!r} is of another server than the current client, which is of {client.url}, or of "
            "before that lost its memory: load it under a client of its own cluster (`with client.as_current()`)"
        )
    state = client._bind(name)
    try:
        client._post(calls.drop_handoffs([(token, name)]))
    except BaseException:
        client._release(state)
        raise
    return state


class DoneCallback(Waiter):
    """Calls back when a Future is done; keeps it alive until then."""

    __slots__ = ("_fn", "_future")

    def __init__(self, future: Future[Any], fn: Callable[[Future[Any]], object]) -> None:
        super().__init__(1)
        self._future = future
        self._fn = fn

    def hit(self, state: FutureState) -> None:
        """Hand the call to whatever runs callbacks of the client."""
        self.remaining = 0
        self._future._client._call_back(self._fn, self._future)


register_future_type(Future, _bare, _rebuild)
