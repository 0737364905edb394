"""Which client is meant when none is named.

Inside a task it is the executor's own. Otherwise the innermost ``with client.as_current()``, then the newest client with
``set_as_default``: a synchronous one, or an asynchronous one of the running loop. Clients are known weakly.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from redist.dask_default import offer, withdraw
from redist.errors import NoClientError
from redist.imported import imported

if TYPE_CHECKING:
    from redist.client import Client

__all__ = [
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "living_clients",
    "set_task_client",
]

_current: ContextVar[Client | None] = ContextVar("redist_current_client", default=None)
_living: weakref.WeakSet[Client] = weakref.WeakSet()
_defaults: list[weakref.ref[Client]] = []
_of_tasks: Callable[[], Client] | None = None
#: Held while a client comes or goes, and while all are gone over; re-entrant, as a garbage collection may end one.
_lock = threading.RLock()


def register(client: Client, *, default: bool) -> None:
    """Make a client known; with `default` it is the one that is meant from now on."""
    with _lock:
        _living.add(client)
        offer(current_client)
        if default:
            _defaults[:] = [ref for ref in _defaults if ref() is not None]
            _defaults.append(weakref.ref(client))


def unregister(client: Client) -> None:
    """Forget a client that was closed."""
    with _lock:
        _living.discard(client)
        _defaults[:] = [ref for ref in _defaults if ref() not in (None, client)]
        if not _living and _of_tasks is None:
            withdraw()


def living_clients() -> list[Client]:
    """Return all clients of this process that are not closed."""
    with _lock:
        return list(_living)


def set_task_client(make: Callable[[], Client] | None) -> None:
    """In an executor: `make` returns the client for the task that the calling thread runs."""
    global _of_tasks
    _of_tasks = make
    if make is not None:
        offer(current_client)
    elif not _living:
        withdraw()


class as_current:  # read as a verb, as `contextlib.suppress`; a generator would take ten times as long
    """Make `client` the one that is meant, in this context."""

    __slots__ = ("_client", "_token")

    def __init__(self, client: Client) -> None:
        self._client = client

    def __enter__(self) -> Client:
        self._token = _current.set(self._client)
        return self._client

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def current_client() -> Client | None:
    """Return the client that is meant, None if there is none."""
    client = _current.get()
    if client is not None and not client.closed:
        return client
    if _of_tasks is not None:
        return _of_tasks()
    asyncio: Any = imported("asyncio")
    loop = asyncio._get_running_loop() if asyncio is not None else None
    for ref in reversed(_defaults[:]):
        client = ref()
        if client is None or client.closed:
            continue
        if not client.asynchronous or (loop is not None and client.is_of(loop)):
            return client
    return None


def default_client(c: Client | None = None) -> Client:
    """Return `c`, or the client that is meant when none is named.

    Raises
    ------
    NoClientError
        If there is none.
    """
    client = c or current_client()
    if client is None:
        raise NoClientError("there is no client: start one with redist.Client()")
    return client


def context_client() -> Client:
    """Return the client of the innermost ``with client.as_current()``.

    Raises
    ------
    NoClientError
        Outside of one.
    """
    client = _current.get()
    if client is None:
        raise NoClientError(
            "there is no current client in this context: use `with client.as_current()`, or allow_global=True"
        )
    return client


def inherited_client() -> Client | None:
    """Return a client of the process that this one was forked from: it can do nothing here but say so."""
    pid = os.getpid()
    return next((client for client in living_clients() if client._pid != pid), None)


def get_client(address: Any = None, timeout: Any = None, resolve_address: bool = True) -> Client:
    """Return a client, inside a task the executor's own.

    Parameters
    ----------
    address : str, optional
        Server to connect to if there is no client for it yet.
    timeout : float or str, optional
        Time to connect.
    resolve_address : bool
        Accepted for Dask's sake.

    Raises
    ------
    NoClientError
        If there is none and no address was given.
    """
    client = current_client()
    if client is not None and (address is None or client.connects_to(str(address))):
        return client
    if address is None:
        raise NoClientError("there is no client: start one with redist.Client(), or name an address")
    from redist.client import Client

    return Client(address, **({} if timeout is None else {"timeout": timeout}))


def fire_and_forget(obj: Any) -> None:
    """Run tasks to their end even if nobody keeps their Futures.

    Parameters
    ----------
    obj : Future, or collection of Futures
        Futures in lists, tuples, dicts and sets, at any depth.
    """
    futures = futures_of(obj)
    clients = {future.client for future in futures}
    for client in clients:
        client._fire([future for future in futures if future.client is client and not future.cancelled()])


def futures_of(o: Any, client: Client | None = None) -> list[Any]:
    """Return the Futures in a nested collection, each once; a Dask collection gives those of its graph.

    Parameters
    ----------
    o : object
        The collection.
    client : Client, optional
        Who would do something with them: one that is cancelled is refused.

    Raises
    ------
    CancelledError
        If a client is given, and one of them is cancelled.
    """
    from redist.errors import FutureCancelledError
    from redist.future import Future

    found: dict[int, Any] = {}
    seen: set[int] = set()
    todo = [o]
    while todo:
        item = todo.pop()
        if isinstance(item, Future):
            found.setdefault(id(item), item)
        elif isinstance(item, list | tuple | set | frozenset | dict):
            if id(item) not in seen:
                seen.add(id(item))
                todo.extend(reversed(list(item.values() if isinstance(item, dict) else item)))
        elif hasattr(item, "__dask_graph__") and (graph := item.__dask_graph__()) is not None:
            todo.extend(graph.values())
    for future in found.values():
        if client is not None and future.cancelled():
            if future.client is not None:
                future.client._check_alive()  # a closed client's Futures are cancelled, too
            raise FutureCancelledError(future.key, "it was cancelled before")
    return list(found.values())


def _close_all() -> None:
    """At the interpreter's end: leave in good order, while threads and modules are still there."""
    for client in living_clients():
        client._at_exit()


def _forked() -> None:
    """In a forked child: nobody holds the lock."""
    global _lock
    _lock = threading.RLock()


# What is registered first is called last: finalizers, of clusters among them, behind the clients.
weakref.finalize(_close_all, int).detach()
atexit.register(_close_all)
os.register_at_fork(after_in_child=_forked)
