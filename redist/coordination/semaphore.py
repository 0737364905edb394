"""`Semaphore` and `Lock`."""

from __future__ import annotations

import logging
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from redist.coordination.base import Awaitable, Request, given_back, patience
from redist.dask_options import asynchronous_in, check_loop
from redist.errors import SemaphoreClosed
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation
from redist.store.coordination import LOCK, MAY_OPEN, OPEN, acquire, shut, standing
from redist.timeouts import seconds

if TYPE_CHECKING:
    from typing import Self

    from redist.client import Client
    from redist.session.waits import Claim
    from redist.store.calls import Call

__all__ = ["Lock", "Semaphore"]

logger = logging.getLogger("redist.coordination")


class Semaphore(Awaitable):
    """Leases that are given out, `max_leases` at a time, to whoever asked first.

    Parameters
    ----------
    max_leases : int
        How many may be held at a time.
    name : str or tuple, optional
        Its name, by which all processes mean the same; default: one that nobody else has. A `Lock` of the same name is
        the same as a semaphore with one lease.
    scheduler_rpc, loop : object
        Accepted for Dask's sake.
    client : Client, optional
        The client to use; default: the current one.

    Notes
    -----
    A lease belongs to the object that acquired it, and to its client, in a task to the task's process. It ends with
    `release`, when the object is collected, when the client is closed, and when it is believed dead: 10 s after its last
    heartbeat by default. Who waits and dies is passed
    over. A semaphore is known until it is closed, or until all clients that opened it have left; tasks open none.

    A server that lost its memory has lost all leases: whoever waits goes on to wait in a new order, ``release`` of a lease
    that is lost returns False. A restart of the cluster leaves semaphores alone, but for the leases of tasks that it ended.

    Examples
    --------
    >>> semaphore = Semaphore(2, "database")  # doctest: +SKIP
    >>> with semaphore:  # doctest: +SKIP
    ...     ...  # one of two at most
    """

    _kind = "semaphore"

    def __init__(
        self,
        max_leases: int = 1,
        name: Any = None,
        scheduler_rpc: object = None,
        loop: object = None,
        *,
        client: Client | None = None,
    ) -> None:
        if isinstance(max_leases, bool) or not isinstance(max_leases, int) or not 0 < max_leases < 2**31:
            raise ValueError(f"max_leases is a positive whole number, not {max_leases!r}")
        check_loop(loop)
        super().__init__(name, client, self._kind)
        self.max_leases = max_leases
        #: The leases that were acquired by this object, oldest first.
        self._leases: deque[Claim] = deque()
        #: The registration of the client under which the semaphore was opened.
        self._opened_in = ""

    # --- opening ----------------------------------------------------------------------------------------------------

    def register(self, **kwargs: Any) -> Any:
        """Make the semaphore known; `acquire` does so by itself.

        Raises
        ------
        ValueError
            If it is known with another number of leases.
        """
        return self._run(self._register(), asynchronous_in("register", kwargs))

    async def _opened(self) -> Self:
        await self._run_in_loop(self._register())
        return self

    def _register(self) -> Operation[None]:
        if self._how() != OPEN:
            yield from self._ask(self._bound(), self._bound().session.waits.token(), wait=False, need=0)

    def _how(self) -> int:
        """How the server is to take our name: opened under another registration is not opened any more."""
        session = self._bound().session
        if session.kind != "client":
            return LOCK  # an executor outlives the tasks that use it
        return OPEN if self._opened_in == session.incarnation else MAY_OPEN

    def _call(self, token: str, *, wait: bool, need: int) -> Call:
        return acquire(
            token, [self._wire_name], leases=self.max_leases, how=self._how(), wait=wait, need=need
        )

    def _ask(self, client: Client, token: str, *, wait: bool, need: int) -> Operation[None]:
        incarnation = client.session.incarnation
        try:
            yield Ask(self._call(token, wait=wait, need=need))
        except Refused as refused:
            raise self._error(refused) from None
        self._opened_in = incarnation

    def _error(self, refused: Refused) -> Exception:
        if refused.code == "closed":
            return SemaphoreClosed(f"Semaphore or Lock `{self.name}` not known: it was closed")
        return ValueError(f"Inconsistent max leases: {self.max_leases}, expected: {refused.message}")

    def _too_often(self) -> RuntimeError:
        return RuntimeError(
            f"Released too often: this {type(self).__name__} object of the name {self.name!r} holds nothing; what another "
            "object of the name acquired, that one releases"
        )

    # --- leases -----------------------------------------------------------------------------------------------------

    def acquire(self, timeout: Any = None) -> Any:
        """Wait for a lease; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``; 0 does not wait.

        Returns
        -------
        bool
            False if the timeout came first.

        Raises
        ------
        ValueError
            If the semaphore is known with another number of leases.
        SemaphoreClosed
            If it was closed since this object opened it.
        """
        return self._run(self._acquire(seconds(timeout)))

    def _acquire(self, timeout: float | None) -> Operation[bool]:
        client = self._bound()
        request = Request(client, timeout)
        token = request.token
        try:
            with request.leaving():
                incarnation = client.session.incarnation
                granted = yield from request.lock(lambda: self._call(token, wait=request.waits, need=1))
                self._opened_in = incarnation
                if granted:
                    request.kept = True
                    self._leases.append(request.claim)
                return granted
        except Refused as refused:
            raise self._error(refused) from None
        except BaseException:
            if request.claim in self._leases:
                self._leases.remove(request.claim)
            raise

    def release(self) -> Any:
        """Give back the oldest lease that this object acquired.

        Returns
        -------
        bool
            False if the lease was lost before: its client was believed dead, or the server lost its memory.

        Raises
        ------
        RuntimeError
            If there is none.
        """
        self._bound()
        self._check_held()
        return self._run(self._release())

    def _check_held(self) -> None:
        if not self._leases:
            raise self._too_often()

    def _release(self) -> Operation[bool]:
        self._check_held()
        lease = self._leases.popleft()  # here: a coroutine that never begins takes nothing away
        reply = yield from given_back(self._bound(), lease)
        if not reply:
            logger.warning("a lease of %r was lost before it was released", self)
        return reply

    def get_value(self) -> Any:
        """Return how many leases are held, by anybody."""
        return self._run(self._value())

    def _value(self) -> Operation[int]:
        reply = yield Ask(standing("lock", self._wire_name))
        return int(reply[2])

    def close(self) -> Any:
        """Close the semaphore for everybody: it has to be made anew to be acquired again.

        Leases that are held stay until they are released, and who waits still gets one in turn.
        """
        return self._run(self._close())

    def _close(self) -> Operation[None]:
        reply = yield Ask(shut(self._wire_name))
        if reply[2]:
            warnings.warn(
                f"{self!r} was closed while {reply[2]} leases were held or waited for",
                RuntimeWarning,
                stacklevel=2,
            )

    # --- contexts ---------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._only_sync()
        self._run(self._acquire(None))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self._run_in_loop(self._acquire(None))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._run_in_loop(self._release())

    def __del__(self) -> None:
        leases = getattr(self, "_leases", None)
        if leases:
            self._abandon(leases)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.max_leases, self.name)


class Lock(Semaphore):
    """A lock that one holds at a time, in the order of asking.

    Parameters
    ----------
    name : str or tuple, optional
        Its name, by which all processes mean the same; default: one that nobody else has.
    client : Client, optional
        The client to use; default: the current one.
    scheduler_rpc, loop : object
        Accepted for Dask's sake.

    Notes
    -----
    As a `Semaphore` with one lease, but there is nothing to close: a lock that nobody holds leaves nothing with the server.
    It is not re-entrant, and belongs to the object that acquired it: another object of the same name cannot release it, and
    it is free when that object is collected. So keep the object: ``Lock("x").acquire()`` alone holds nothing.

    Examples
    --------
    >>> lock = Lock("x")  # doctest: +SKIP
    >>> with lock:  # doctest: +SKIP
    ...     ...  # nobody else
    """

    _kind = "lock"

    def __init__(
        self,
        name: Any = None,
        client: Client | None = None,
        scheduler_rpc: object = None,
        loop: object = None,
    ) -> None:
        super().__init__(1, name, loop=loop, client=client)

    def _how(self) -> int:
        return LOCK

    def _register(self) -> Operation[None]:
        return
        yield

    def acquire(self, blocking: bool = True, timeout: Any = None) -> Any:  # type: ignore[override]  # as in Dask
        """Wait for the lock; a coroutine with an asynchronous client.

        Parameters
        ----------
        blocking : bool
            Whether to wait at all.
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.

        Returns
        -------
        bool
            False if it was not to be had (in time).
        """
        return self._run(self._acquire(patience(blocking, timeout)))

    def locked(self) -> Any:
        """Return whether anybody holds it."""
        return self._run(self._locked())

    def _locked(self) -> Operation[bool]:
        return (yield from self._value()) == 1

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name,)
