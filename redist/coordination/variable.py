"""`Variable`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redist.coordination.base import Awaitable, Request
from redist.dask_options import asynchronous_in
from redist.errors import DependencyUnknown
from redist.named_values import enclose, open_up
from redist.session.lane import OldGeneration, Refused
from redist.session.operations import Ask, Operation
from redist.store.coordination import delete_variable, get_variable, set_variable
from redist.store.keys import decode_key
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Variable"]


class Variable(Awaitable):
    """A value that anybody can set and read.

    Parameters
    ----------
    name : str or tuple, optional
        Its name, by which all processes mean the same; default: one that nobody else has.
    client : Client, optional
        The client to use; default: the current one.

    Notes
    -----
    It keeps its value, and the data of the Futures in it, until it is set anew or deleted, whoever leaves. A value above
    64 KiB that holds no Futures is scattered, and takes a worker. A restart of the cluster forgets the value, as a server
    that lost its memory does: whoever reads it then waits until it is set.

    Examples
    --------
    >>> Variable("best").set(client.submit(train, 1))  # doctest: +SKIP
    >>> Variable("best").get().result()  # doctest: +SKIP
    """

    def __init__(self, name: Any = None, client: Client | None = None) -> None:
        super().__init__(name, client, "variable")

    def set(self, value: Any, timeout: Any = "30 s", **kwargs: Any) -> Any:
        """Give it a value; a coroutine with an asynchronous client.

        Parameters
        ----------
        value : object
            Futures in it, at any depth, are kept alive.
        timeout : float, str or timedelta, optional
            Seconds to wait for the server's reply.
        """
        return self._run(self._set(value, seconds(timeout)), asynchronous_in("set", kwargs))

    def _set(self, value: Any, timeout: float | None) -> Operation[None]:
        try:
            with (yield from enclose(self._bound(), value, f"the value of {self!r}")) as enclosed:
                call = set_variable(self._wire_name, enclosed.data, enclosed.contains)
                try:
                    try:
                        yield Ask(call, timeout)
                    except OldGeneration:  # the cluster was restarted meanwhile
                        yield Ask(call, timeout)
                except Refused as refused:
                    raise (yield from enclosed.bundles.explain(refused, timeout)) from None
        except Refused as refused:
            raise DependencyUnknown(
                decode_key(refused.message), f"it is not known any more and cannot be set as {self!r}"
            ) from None

    def get(self, timeout: Any = None, **kwargs: Any) -> Any:
        """Return its value, waiting until it has one; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.

        Raises
        ------
        TimeoutError
            If it has none in time.
        """
        return self._run(self._get(seconds(timeout)), asynchronous_in("get", kwargs))

    def _get(self, timeout: float | None) -> Operation[Any]:
        client = self._bound()
        request = Request(client, timeout)
        with request.leaving():
            reply = yield from request.make(
                lambda: get_variable(request.token, self._wire_name, wait=request.waits),
                lambda reply: len(reply) > 2,
                told=False,
            )
            if reply is None:
                request.leave()
                raise TimeoutError(f"{self!r} got no value in time")
            value = yield from open_up(client, reply[3])
            request.leave()  # what the value holds is counted by now, on the same lane
            return value

    def delete(self) -> None:
        """Take its value away, for everybody; it can be set again."""
        self._bound()._post(delete_variable(self._wire_name))
