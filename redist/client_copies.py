"""The part of `Client` that deals with copies of values, and with workers that are to have less or to go."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from redist import replicating
from redist.client_base import ClientBase
from redist.dask_options import asynchronous_in
from redist.submitting import integer
from redist.timeouts import seconds

__all__ = ["ClientCopies"]


class ClientCopies(ClientBase):
    """Makes, moves and keeps copies; see `Client`."""

    def replicate(
        self,
        futures: Any,
        n: int | None = None,
        workers: str | Collection[str] | None = None,
        branching_factor: int = 2,
        **kwargs: Any,
    ) -> Any:
        """Have copies of values on several workers, and keep so many when workers die; returns when they are there.

        Copies are made of copies, and on other hosts first. Values of up to 4 KiB lie in the server and have none.

        Parameters
        ----------
        futures : Future or collection of Futures
            Which; those that are not finished are waited for.
        n : int, optional
            How many workers are to have each; default: all of `workers`. 1 keeps no further copies: those that there are go
            when memory is short.
        workers : str or collection of str, optional
            Names, addresses or hosts of those that are to have them now; default: any. Where one dies, any other follows.
        branching_factor : int
            How many copies are made of one at a time.
        **kwargs
            `timeout`, s: how long without a copy is too long; default: the client's.

        Raises
        ------
        NoWorkers
            If none of the workers is there.
        TimeoutError
            If for so long no copy was made. What is missing is still made as soon as that is possible.
        """
        timeout = seconds(kwargs.pop("timeout", None))
        count = None if n is None else integer("n", n, 1)
        branching = integer("branching_factor", branching_factor, 1)
        return self._run(
            replicating.replicate(self._me, futures, count, workers, branching, timeout),
            asynchronous_in("replicate", kwargs),
        )

    def rebalance(
        self, futures: Any = None, workers: str | Collection[str] | None = None, **kwargs: Any
    ) -> Any:
        """Even out the bytes of workers: values move from the fullest to the emptiest. Returns when they have moved.

        A value that moves is copied first, and goes from its sender when it has arrived.

        Parameters
        ----------
        futures : Future or collection of Futures, optional
            What may move; default: everything.
        workers : str or collection of str, optional
            Names, addresses or hosts of the workers between which it may; default: all.
        **kwargs
            `timeout` as in `replicate`.

        Raises
        ------
        UnknownWorker
            If there is no worker of one of these names.
        """
        timeout = seconds(kwargs.pop("timeout", None))
        return self._run(
            replicating.rebalance(self._me, futures, workers, timeout), asynchronous_in("rebalance", kwargs)
        )

    def retire_workers(
        self, workers: str | Collection[str] | None = None, close_workers: bool = True, **kwargs: Any
    ) -> Any:
        """Have workers get no more tasks, move to others what only they have, and end when their tasks are done.

        Returns when everything has been moved and those without tasks have ended; the others end by themselves later. A
        cluster that started such a worker does not start it again.

        Parameters
        ----------
        workers : str or collection of str, optional
            Names, addresses or hosts.
        close_workers : bool
            Whether they end. Otherwise they stay, without tasks, and their values can still be read.
        **kwargs
            `names`: as `workers`; `n`: instead of both, so many of those that have the fewest tasks and values; `timeout` as
            in `replicate`; `remove` is taken for Dask's sake: a worker is removed when it ends.

        Returns
        -------
        dict
            What `scheduler_info` told of them before, by address; as in Dask, names of nobody are passed over.

        Raises
        ------
        NoWorkers
            If no worker would be left to take what they have.
        """
        timeout = seconds(kwargs.pop("timeout", None))
        names, n = kwargs.pop("names", None), kwargs.pop("n", None)
        kwargs.pop("remove", None)
        asynchronous = kwargs.pop("asynchronous", None)
        if kwargs:
            raise TypeError(
                f"retire_workers() takes no {', '.join(sorted(kwargs))}; name the workers, or give n="
            )
        if workers is None and names is None and n is None:
            raise TypeError("say which workers: workers=, names=, or how many with n=")
        count = None if n is None else integer("n", n, 0)
        return self._run(
            replicating.retire(self._me, workers, names, count, close_workers, timeout), asynchronous
        )
