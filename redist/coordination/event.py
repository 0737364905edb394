"""`Event`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redist.coordination.base import Awaitable, Request
from redist.session.operations import Ask, Operation
from redist.store.coordination import await_event, set_event, standing
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Event"]


class Event(Awaitable):
    """A flag that anybody can set and clear, and wait for.

    Parameters
    ----------
    name : str or tuple, optional
        Its name, by which all processes mean the same; default: one that nobody else has.
    client : Client, optional
        The client to use; default: the current one.

    Notes
    -----
    Whoever waits when it is set goes on, also if it is cleared at once. An event that is set stays so until it is cleared,
    whoever leaves; one that is not set leaves nothing with the server. A restart of the cluster leaves it as it is. On a
    server that lost its memory it is not set, and whoever waits goes on to wait.

    Examples
    --------
    >>> Event("ready").wait(timeout=1)  # doctest: +SKIP
    False
    >>> Event("ready").set()  # doctest: +SKIP
    """

    def __init__(self, name: Any = None, client: Client | None = None) -> None:
        super().__init__(name, client, "event")

    def wait(self, timeout: Any = None) -> Any:
        """Wait until it is set; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.

        Returns
        -------
        bool
            False if the timeout came first.
        """
        return self._run(self._wait(seconds(timeout)))

    def _wait(self, timeout: float | None) -> Operation[bool]:
        request = Request(self._bound(), timeout)
        with request.leaving():
            reply = yield from request.make(
                lambda: await_event(request.token, self._wire_name, wait=request.waits),
                lambda reply: reply[2] != 0,
                told=True,
            )
            if reply is None or request.waited:
                request.leave()
            return reply is not None and reply[2] >= 0

    def set(self) -> Any:
        """Set it; whoever waits goes on."""
        return self._run(self._set(True))

    def clear(self) -> Any:
        """Clear it; whoever waits from now on waits."""
        return self._run(self._set(False))

    def _set(self, value: bool) -> Operation[None]:
        yield Ask(set_event(self._wire_name, value))

    def is_set(self) -> Any:
        """Return whether it is set."""
        return self._run(self._is_set())

    def _is_set(self) -> Operation[bool]:
        reply = yield Ask(standing("event", self._wire_name))
        return bool(reply[2])
