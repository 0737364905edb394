"""`MultiLock`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redist.coordination.base import Named, Request, given_back, patience
from redist.session.operations import Operation
from redist.store.coordination import acquire
from redist.store.keys import encode_key
from redist.submitting import integer

if TYPE_CHECKING:
    from typing import Self

    from redist.client import Client
    from redist.session.waits import Claim

__all__ = ["MultiLock"]

#: Names that one may have.
_MOST = 1000


class MultiLock(Named):
    """Several locks that are acquired together, or so many of them.

    Parameters
    ----------
    names : list of str or tuple, optional
        Their names, 1000 at most. A `MultiLock` excludes others that share a name with it; a `Lock` of such a name is
        another, as in Dask.
    client : Client, optional
        The client to use; default: the current one.

    Notes
    -----
    It stands in all its lines from the moment of asking, so that MultiLocks never wait for each other in a circle, whatever
    the order of their names. For the rest see `Semaphore`.

    Examples
    --------
    >>> with MultiLock(["x", "y"]):  # doctest: +SKIP
    ...     ...  # nobody else has to do with x or y
    """

    def __init__(self, names: list[Any] | None = None, client: Client | None = None) -> None:
        super().__init__(None, client, "multi-lock")
        self.names = names or []
        # `@`: no wire name of a user's begins with it
        self._wire_names = list(dict.fromkeys(f"@{encode_key(name, 'name')}" for name in self.names))
        if len(self._wire_names) > _MOST:
            raise ValueError(f"a MultiLock has {_MOST} names at most, not {len(self._wire_names)}")
        self._lease: Claim | None = None

    def acquire(self, blocking: bool = True, timeout: Any = None, num_locks: int | None = None) -> Any:
        """Wait for the locks; a coroutine with an asynchronous client.

        Parameters
        ----------
        blocking : bool
            Whether to wait at all.
        timeout : float, str or timedelta, optional
            Seconds to wait, or text such as ``'200ms'``.
        num_locks : int, optional
            How many of the names are needed; default: all. The first that come free are taken.

        Returns
        -------
        bool
            False if they were not to be had (in time).
        """
        limit = patience(blocking, timeout)
        need = len(self._wire_names)
        if num_locks:
            need = integer("num_locks", num_locks, 1)
            if need > len(self._wire_names):
                raise ValueError(f"{need} locks are needed, {len(self._wire_names)} are named")
        return self._run(self._acquire(limit, need))

    def _acquire(self, timeout: float | None, need: int) -> Operation[bool]:
        if self._lease is not None:
            raise RuntimeError(f"{self!r} is acquired already; it is not re-entrant")
        request = Request(self._bound(), timeout)
        token = request.token
        try:
            with request.leaving():
                granted = yield from request.lock(
                    lambda: acquire(token, self._wire_names, wait=request.waits, need=need)
                )
                if granted:
                    request.kept = True
                    self._lease = request.claim
                return granted
        except BaseException:
            if self._lease is request.claim:
                self._lease = None
            raise

    def release(self) -> Any:
        """Give all of them back.

        Returns
        -------
        bool
            False if they were lost before: the client was believed dead, or the server lost its memory.

        Raises
        ------
        ValueError
            If they are not acquired.
        """
        self._bound()
        self._check_held()
        return self._run(self._release())

    def _check_held(self) -> None:
        if self._lease is None:
            raise ValueError("Lock is not yet acquired")

    def _release(self) -> Operation[bool]:
        self._check_held()
        lease, self._lease = self._lease, None  # here: a coroutine that never begins takes nothing away
        assert lease is not None
        return (yield from given_back(self._bound(), lease))

    def locked(self) -> bool:
        """Return whether this object holds them."""
        return self._lease is not None

    def __enter__(self) -> Self:
        self._only_sync()
        self._run(self._acquire(None, len(self._wire_names)))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self._run_in_loop(self._acquire(None, len(self._wire_names)))
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._run_in_loop(self._release())

    def __del__(self) -> None:
        lease = getattr(self, "_lease", None)
        if lease is not None:
            self._abandon([lease])

    def __repr__(self) -> str:
        return f"<MultiLock: {self.names}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.names,)
