"""Whether a Future may be used with a client: the one place where Futures of other clients are looked at.

Keys mean something on one server and in one namespace only, so a Future of another cluster is refused. One of another
client of the same cluster is taken: what that client has collected or counted leaves first, and the Future is kept until the
call that needs it was answered, since the two clients' calls go to the server on separate lanes.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from redist.errors import ClientClosed, DependencyUnknown, ForeignFutureError
from redist.protocol.futures import is_future
from redist.session.states import CANCELLED, PENDING

if TYPE_CHECKING:
    from redist.client import Client
    from redist.future import Future

__all__ = ["Borrowing", "borrowed_by_graph", "check", "check_server", "server_of"]


def server_of(client: Client) -> str:
    """Return an id of the client's server, which says nothing about the server's secret."""
    return blake2b(client.session.secret.encode(), digest_size=8).hexdigest()


def check_server(client: Client, future: Future[Any]) -> None:
    """Refuse a Future of another server or namespace.

    Raises
    ------
    ForeignFutureError
        If it is one.
    """
    owner = future._client
    if owner is client:
        return
    if owner.namespace == client.namespace and (
        owner.session.secret == client.session.secret
        # A server that lost its memory has another secret, of which one of the two may not have heard yet.
        or owner.url == client.url
    ):
        return
    raise ForeignFutureError(
        f"{future!r} belongs to another cluster, namespace {owner.namespace!r} of {owner.url}, and cannot be used with a "
        f"client of namespace {client.namespace!r} of {client.url}: pass its value instead"
    )


def check(client: Client, future: Future[Any]) -> None:
    """Refuse a Future of another cluster; of another client of the same one: have that client's calls arrive first.

    Raises
    ------
    ForeignFutureError
        If it is of another server or namespace.
    """
    owner = future._client
    if owner is client:
        return
    check_server(client, future)
    state = future._state
    heard = state.sent > 0 and (state.status != PENDING or not owner.session.lane.unanswered)
    if not heard and not owner.closed:
        owner._settle()


class Borrowing:
    """Gives the names of Futures to one call of a client, and keeps those that other clients hold.

    Parameters
    ----------
    client : Client
        Whose call it is.

    Attributes
    ----------
    kept : list of Future
        To be kept until the server has answered the call.
    """

    __slots__ = ("_client", "kept")

    def __init__(self, client: Client) -> None:
        self._client = client
        self.kept: list[Future[Any]] = []

    def name_of(self, future: Future[Any]) -> str:
        """Return the wire name of a Future that a call or a value refers to, if it can be used there.

        Raises
        ------
        ForeignFutureError
            If it is of another cluster.
        DependencyUnknown
            If it was released or cancelled.
        ClientClosed
            If its client is closed.
        """
        if future._cleared:
            raise DependencyUnknown(future.key, "its reference was released, it cannot be an argument")
        state = future._state
        owner = future._client
        if owner is not self._client:
            try:
                owner._check_alive()
            except ClientClosed as closed:
                raise _of_closed(future, closed) from None
            check(self._client, future)
            self.kept.append(future)
        if state.status == CANCELLED:
            error = state.cache if isinstance(state.cache, BaseException) else None
            if isinstance(error, ClientClosed):
                raise _of_closed(future, error)
            raise DependencyUnknown(future.key, "it was cancelled and cannot be an argument")
        return state.name


def _of_closed(future: Future[Any], closed: ClientClosed) -> ClientClosed:
    return type(closed)(f"the Future {future.key!r} cannot be an argument: {closed}")


def borrowed_by_graph(client: Client, tasks: Iterable[Any]) -> list[Future[Any]]:
    """Check the Futures that stand openly in tasks of a graph, of which Dask takes the keys alone; see `Borrowing`.

    Returns
    -------
    list of Future
        To be kept until the tasks are submitted.
    """
    borrowing = Borrowing(client)
    todo = list(tasks)
    while todo:
        item = todo.pop()
        if is_future(item):
            borrowing.name_of(item)
        elif type(item) in (tuple, list, set, frozenset):
            todo += item
        elif type(item) is dict:
            todo += item.values()
    return borrowing.kept
