"""What the handles share: the client that they mean, and how a request waits."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Generator, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from redist.current import current_client, inherited_client
from redist.errors import NotInitialized, RedistError
from redist.session.lane import OldGeneration
from redist.session.operations import Ask, Operation, Until
from redist.session.waits import Claim, Wait
from redist.store.calls import Call
from redist.store.coordination import leave
from redist.store.keys import encode_key
from redist.timeouts import seconds

if TYPE_CHECKING:
    from typing import Self

    from redist.client import Client

__all__ = ["Awaitable", "Named", "Request", "given_back", "patience"]

T = TypeVar("T")


class Named:
    """A handle on something that the server knows by name.

    Parameters
    ----------
    name : str or tuple, optional
        Its name; default: one that nobody else has.
    client : Client, optional
        The client to use; default: the one that is current when the handle is first used.
    kind : str
        What it is, for names that are made up.
    """

    def __init__(self, name: Any, client: Client | None, kind: str) -> None:
        self.name = name if name is not None and name != "" else f"{kind}-{secrets.token_hex(16)}"
        self._client = client
        self._wire_name = encode_key(self.name, "name")

    @property
    def client(self) -> Client | None:
        """The client that it means; None if there is none."""
        if self._client is None:
            self._client = current_client() or inherited_client()
        return self._client

    def _bound(self) -> Client:
        client = self.client
        if client is None:
            raise NotInitialized(
                f"{self!r} has no client: it is used before one was made, or was unpickled where there is none"
            )
        client._check_alive()
        return client

    def _run(self, operation: Operation[T], asynchronous: bool | None = None) -> Any:
        """Run an operation: return its result, or with an asynchronous client, or for who asks for it, a coroutine."""
        return self._bound()._run(operation, asynchronous)

    async def _run_in_loop(self, operation: Operation[T]) -> T:
        """Run an operation for ``async with`` and ``async for``."""
        return await self._bound()._awaited(operation)

    def _only_sync(self) -> None:
        if self._bound().asynchronous:
            raise TypeError(
                f"a {type(self).__name__} of an asynchronous client wants `async with` or `async for`"
            )

    def _abandon(self, claims: Iterable[Claim]) -> None:
        """Have requests left whose handle is collected: in any thread, at any moment, so that nothing here waits."""
        client = self._client
        if client is not None:
            with contextlib.suppress(Exception):  # the interpreter ends
                client.session.waits.abandoned.extend([claim.token for claim in claims])
                client._wake_releases()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)


class Awaitable(Named):
    """A handle that may be awaited, as Dask's may: then the server knows of it, where it has to."""

    def __await__(self) -> Generator[Any, None, Self]:
        return self._opened().__await__()

    async def _opened(self) -> Self:
        return self


def patience(blocking: bool, timeout: Any) -> float | None:
    """Return the seconds for which a lock is waited for, None for ever.

    Raises
    ------
    ValueError
        If it is not to be waited for, and a timeout is given.
    """
    if blocking:
        return seconds(timeout)
    if timeout is not None:
        raise ValueError("can't specify a timeout for a non-blocking call")
    return 0.0


def given_back(client: Client, claim: Claim) -> Operation[bool]:
    """Give back what was granted; return False if it was lost before."""
    reply = yield Ask(leave([claim.token]), stays=True)
    client.session.waits.left([claim.token])
    return bool(reply[2])


class _Leaving:
    """See `Request.leaving`.

    No generator: from Python 3.12 on, where a second Ctrl-C strikes in one, its frame and the error before refer to each
    other, and the claim would live until that is collected.
    """

    __slots__ = ("_request",)

    def __init__(self, request: Request) -> None:
        self._request = request

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        request = self._request
        waits = request.client.session.waits
        try:
            if kind is not None:
                request.leave()
            elif not request.kept:
                waits.left([request.token])
        finally:
            waits.end(request.token)


class Request:
    """One request of a client, from its first call until it is left.

    Parameters
    ----------
    client : Client
        Whose request it is.
    timeout : float, optional
        Seconds for all of it; None waits for ever.
    claim : Claim, optional
        Of a request that was made before.

    Attributes
    ----------
    claim : Claim
        What it lives by; who holds what was granted keeps that.
    kept : bool
        Whether somebody does.
    waited : bool
        Whether it was not granted at once.
    """

    def __init__(self, client: Client, timeout: float | None, *, claim: Claim | None = None) -> None:
        self.client = client
        self.claim = claim or client.session.waits.claim()
        self.token = self.claim.token
        self.kept = claim is not None
        self.waited = False
        self._deadline = None if timeout is None else monotonic() + timeout
        self._wait = Wait()

    @property
    def waits(self) -> bool:
        """Whether there is any time left to wait."""
        return self._deadline is None or monotonic() < self._deadline

    def leaving(self) -> _Leaving:
        """Leave the request behind any error, a Ctrl-C or the cancellation of a task: what was given is given back."""
        return _Leaving(self)

    def leave(self, *, taken: bool = False) -> None:
        """End the request, behind all calls that it made, and do not wait for that."""
        with contextlib.suppress(RedistError):  # a client that is closed has left everything
            self.client._post(leave([self.token], taken=taken))
        self.client.session.waits.left([self.token])

    def lock(self, call: Callable[[], Call]) -> Operation[bool]:
        """Make a call until nothing is missing; return whether that came about, else the request is left."""
        reply = yield from self.make(call, lambda reply: reply[2] <= 0, told=True)
        if reply is None:
            self.leave()
            return False
        return bool(reply[2] >= 0)

    def make(
        self, call: Callable[[], Call], granted: Callable[[list[Any]], bool], told: bool
    ) -> Operation[Any]:
        """Make a call until its reply is `granted`; return that reply, or None if the time is over.

        With `told` a push says all that there is to know, and the last reply is returned: whoever is told need not ask.
        """
        session, wait = self.client.session, self._wait
        session.waits.begin(self.token, wait)
        while True:
            wait.rest()
            try:
                reply = yield Ask(call())
            except OldGeneration:  # the cluster was restarted meanwhile
                continue
            if granted(reply):
                return reply
            self.waited = True
            left = None if self._deadline is None else self._deadline - monotonic()
            if (left is not None and left <= 0) or not (yield Until(wait, left)):
                return None
            if told and wait.told:
                return reply
            if session.failure is not None:
                raise session.failure
