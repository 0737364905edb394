"""`Client`: the face of a cluster, in Dask's words."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from operator import index
from typing import Any, TypeVar, overload

from redist import config, datasets, describing, gathering, scattering
from redist.annotations import how_to_run
from redist.belonging import check
from redist.client_base import NO_DEFAULT
from redist.client_cluster import ClientCluster
from redist.client_graphs import ClientGraphs
from redist.dask_options import asynchronous_in, check_flags
from redist.errors import FutureCancelledError
from redist.future import Future
from redist.raising import without_way
from redist.session.operations import AskAll, Operation
from redist.session.states import ERROR
from redist.store import calls
from redist.store.keys import Key, decode_key, encode_key
from redist.submitting import integer, zipped
from redist.timeouts import seconds

__all__ = ["Client"]

T = TypeVar("T")

_SLICE = 500


class Client(ClientGraphs, ClientCluster):
    """Submits tasks, shares data, and holds references to it.

    Parameters
    ----------
    address : str, cluster or Endpoint, optional
        URL of the Redis or Valkey server, or what has such a ``url``; None starts a `LocalCluster`, which ends with the
        client.
    n_workers, threads_per_worker : int, optional
        Of the local cluster; other keywords are passed on to it too.
    name : str, optional
        Name for people.
    grace : float or str, optional
        How long the server keeps what a named client holds after it vanished. A client of the same name takes it up.
    asynchronous : bool
        Whether methods are coroutines for the loop that awaits the client.
    set_as_default : bool
        Whether Futures and functions that name no client mean this one.
    timeout : float or str
        Time to connect, to wait for a worker, and for replies: a call that the server does not answer for so long raises
        `ConnectionLost` or `ServerRefused`, whose ``pending`` says whether it may be applied when the server is back.
    namespace : str, optional
        Namespace on the server, also on one that this client starts. A cluster that is given has its own.
    heartbeat_interval : float or str, optional
        A fifth of the lease, after which a client without a connection is believed gone; default 2 s.
    quota : int or str, optional
        Most bytes of values on workers that it may hold, as ``"4 GiB"``; what is refused then raises `QuotaExceeded`.
        Default: the setting ``quota.client``; 0: any number.
    silence : float or str, optional
        How long a client without heartbeats is believed to live while its connection stands, since a long hold of the
        interpreter's lock is not death; default 300 s.
    scheduler_file : str, optional
        What `write_scheduler_file` wrote, instead of `address`; it is waited for, for `timeout` seconds.
    loop, security, serializers, deserializers, extensions, direct_to_workers, connection_limit : object
        Accepted for Dask's sake.

    Attributes
    ----------
    asynchronous : bool
        As given.
    cluster : LocalCluster or None
        The cluster that was given or started.
    session : Session
        The session; internal.
    """

    # --- tasks ------------------------------------------------------------------------------------------------------

    @overload
    def submit(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        *args: Any,
        key: Key | None = ...,
        workers: str | Iterable[str] | None = ...,
        resources: Mapping[str, float] | None = ...,
        retries: int | None = ...,
        priority: float = ...,
        fifo_timeout: str = ...,
        allow_other_workers: bool = ...,
        actor: bool = ...,
        actors: bool = ...,
        pure: bool = ...,
        **kwargs: Any,
    ) -> Future[T]: ...

    @overload
    def submit(
        self,
        func: Callable[..., T],
        *args: Any,
        key: Key | None = ...,
        workers: str | Iterable[str] | None = ...,
        resources: Mapping[str, float] | None = ...,
        retries: int | None = ...,
        priority: float = ...,
        fifo_timeout: str = ...,
        allow_other_workers: bool = ...,
        actor: bool = ...,
        actors: bool = ...,
        pure: bool = ...,
        **kwargs: Any,
    ) -> Future[T]: ...

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: Key | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: float = 0,
        fifo_timeout: str = "100 ms",
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> Future[Any]:
        """Submit ``func(*args, **kwargs)`` and return its Future at once.

        Parameters
        ----------
        func : callable
            What to run.
        *args, **kwargs
            Its arguments. Futures in them, at any depth of lists, (named) tuples, dicts and sets, arrive as values; what is
            large becomes a payload by itself.
        key : str, tuple, number or bytes, optional
            The result's key; default: made of function and arguments.
        workers : str or iterable of str, optional
            Names, addresses or hosts of the workers that may run it.
        resources : mapping, optional
            What it takes while it runs, such as ``{'GPU': 1}``.
        retries : int, optional
            How often it may fail before its error counts.
        priority : number
            Higher ones run first; fractions are served.
        fifo_timeout : str
            Accepted for Dask's sake.
        allow_other_workers : bool
            Whether others may run it when none of `workers` is idle.
        actor, actors : bool
            Whether what `func` returns stays where it is made, to be called there: the Future's result is an
            `redist.actor.Actor`. Every call makes one.
        pure : bool
            Whether the same call is the same task; otherwise every call runs.

        Returns
        -------
        Future
        """
        self._check_alive()
        how = how_to_run(workers, resources, retries, priority, allow_other_workers, fifo_timeout)
        if actor or actors:
            from redist.actor import create

            return create(self, func, args, kwargs, key, how)
        return self._submitter.submit(func, args, kwargs, key, how, pure)

    @overload
    def map(
        self,
        func: Callable[..., Coroutine[Any, Any, T]],
        *iterables: Iterable[Any],
        key: str | Iterable[Any] | None = ...,
        workers: str | Iterable[str] | None = ...,
        retries: int | None = ...,
        resources: Mapping[str, float] | None = ...,
        priority: float = ...,
        allow_other_workers: bool = ...,
        fifo_timeout: str = ...,
        actor: bool = ...,
        actors: bool = ...,
        pure: bool = ...,
        batch_size: int | None = ...,
        **kwargs: Any,
    ) -> list[Future[T]]: ...

    @overload
    def map(
        self,
        func: Callable[..., T],
        *iterables: Iterable[Any],
        key: str | Iterable[Any] | None = ...,
        workers: str | Iterable[str] | None = ...,
        retries: int | None = ...,
        resources: Mapping[str, float] | None = ...,
        priority: float = ...,
        allow_other_workers: bool = ...,
        fifo_timeout: str = ...,
        actor: bool = ...,
        actors: bool = ...,
        pure: bool = ...,
        batch_size: int | None = ...,
        **kwargs: Any,
    ) -> list[Future[T]]: ...

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: str | Iterable[Any] | None = None,
        workers: str | Iterable[str] | None = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        priority: float = 0,
        allow_other_workers: bool = False,
        fifo_timeout: str = "100 ms",
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Future[Any]]:
        """Submit one call for each item of `iterables`, zipped as by `map`, and return the Futures in order.

        Parameters
        ----------
        func : callable
            What to run.
        *iterables
            Its arguments, item by item.
        key : str or iterable of keys, optional
            Prefix of the keys, or one for each call.
        batch_size : int, optional
            Submit so many at a time.
        workers, retries, resources, priority, allow_other_workers, fifo_timeout, actor, actors, pure
            As in `submit`.
        **kwargs
            Keyword arguments of every call.
        """
        how = how_to_run(workers, resources, retries, priority, allow_other_workers, fifo_timeout)
        size = _SLICE if batch_size is None else min(integer("batch_size", batch_size, 1), _SLICE)
        rows = zipped(func, iterables)
        keys: list[str] | None = None
        if isinstance(key, Iterable) and not isinstance(key, str):
            rows, given = list(rows), list(key)
            if len(rows) != len(given):
                raise ValueError(f"{len(given)} keys were given for {len(rows)} calls")
            keys = [encode_key(one) for one in given]
        elif key is not None:
            rows = list(rows)
            from redist.protocol import function_of, key_of_call

            function = function_of(func)
            tokens = [key_of_call(function, row, kwargs, pure)[len(function.stem) :] for row in rows]
            keys = [encode_key(f"{key}-{token}") for token in tokens]
        if actor or actors:
            from redist.actor import create_many

            return create_many(self, func, rows, kwargs, keys, how)
        return self._submitter.map(func, rows, kwargs, keys, how, pure, size)

    def cancel(
        self,
        futures: Any,
        asynchronous: bool | None = None,
        force: bool = False,
        reason: str | None = None,
        msg: str | None = None,
    ) -> Any:
        """Give Futures up and cancel them; what nobody else wants is not run.

        Parameters
        ----------
        futures : Future or collection of Futures
            Which.
        force : bool
            Whether to cancel it for everybody, and interrupt what runs: its process is replaced, and what runs
            beside it there runs again.
        reason, msg : str, optional
            What `CancelledError` says.

        Raises
        ------
        ConnectionLost, ServerRefused
            If the server did not reply in time. The Futures are cancelled; the server hears of it when it takes calls again.
        """
        names = describing.names_of(self, futures, cancelled=True)
        return self._run(self._cancel(names, force, reason or "cancelled by user", msg), asynchronous)

    def _cancel(self, names: list[str], force: bool, reason: str, msg: str | None) -> Operation[None]:
        session = self.session
        with session.lock:
            session.flush(everything=True)
            for name in names:
                state = session.states.get(name)
                if state is not None:
                    session.ledger.forfeit(state)
                    state.cancel(reason, FutureCancelledError(decode_key(name), reason, msg))
        told = f"{reason}: {msg}" if msg else reason
        slices = [names[i : i + _SLICE] for i in range(0, len(names), _SLICE)]
        # They stay whatever comes: here the Futures are cancelled already.
        yield AskAll([calls.cancel(part, force=force, reason=told) for part in slices], stays=True)

    def retry(self, futures: Any, asynchronous: bool | None = None) -> Any:
        """Run failed tasks again, and the failed tasks that they depend on."""
        return self._run(self._retry(describing.names_of(self, futures)), asynchronous)

    def _retry(self, names: list[str]) -> Operation[None]:
        causes = set(names)
        again = list(names)
        with self.session.lock:
            for name in names:
                state = self.session.states.get(name)
                if state is not None:
                    if state.status == ERROR and state.where:
                        causes.add(state.where)
                    state.again()
            # What failed for the same error is run again with them.
            for state in self.session.states:
                if state.status == ERROR and state.where in causes:
                    state.again()
                    again.append(state.name)
        try:
            yield AskAll([calls.retry(names[i : i + _SLICE]) for i in range(0, len(names), _SLICE)])
        finally:
            with self.session.lock:
                # A push that was on its way may have said the old error again; and a full server may have refused.
                self.session.reads.unfinished(again)

    # --- data -------------------------------------------------------------------------------------------------------

    def gather(
        self,
        futures: Any,
        errors: str = "raise",
        direct: bool | None = None,
        asynchronous: bool | None = None,
        *,
        copy: bool = False,
        writable: bool = False,
    ) -> Any:
        """Return the values of a Future, or of a nested collection of them, in the same shape.

        Parameters
        ----------
        futures : Future, or collection of Futures
            Lists, tuples, sets and dicts, nested.
        errors : {'raise', 'skip'}
            Whether to raise the first error, or to leave out of a list what failed; elsewhere None stands for it.
        copy : bool
            Return private, writable copies.
        writable : bool
            Let arrays be written to: pages that are written to become private copies.
        """
        check_flags(direct=direct)
        try:
            return self._fetch(gathering.gather(self, futures, errors, copy, writable), asynchronous)
        except BaseException as error:
            if not without_way(error):
                raise
            raise error

    def scatter(
        self,
        data: Any,
        workers: str | Iterable[str] | None = None,
        broadcast: bool | int = False,
        direct: bool | None = None,
        hash: bool = True,  # noqa: A002 - Dask's word
        timeout: Any = NO_DEFAULT,
        asynchronous: bool | None = None,
        *,
        replicas: int = 1,
    ) -> Any:
        """Store values in the cluster and return Futures.

        Parameters
        ----------
        data : list, tuple, set, dict or object
            Several values, by key in a dict, or one.
        workers : str or iterable of str, optional
            Which workers may hold it.
        broadcast : bool or int
            Whether every host gets a copy, or on how many hosts there is to be one. Workers of a host share its memory.
        hash : bool
            Whether equal values are one key; otherwise each gets a key of its own.
        timeout : float or str, optional
            Time to wait for a worker, and for each reply of it and of the server; default: the client's, for a worker that
            does not answer until its lease has ended or for a minute.
        replicas : int
            How many workers are to have each value that is not small, on several hosts if there are some. The number is kept
            when workers die; while there are fewer workers, they all have it.

        Returns
        -------
        Futures in the shape of `data`.

        Raises
        ------
        NoWorkers
            If there was no worker for large values in time.
        WorkerUnreached
            If the worker that was to have a value has died, or did not answer in time, and no other one came.
        ConnectionLost, ServerRefused
            If the server did not reply in time. Nothing is kept then: what it may yet take in is released behind that.
        """
        check_flags(direct=direct, hash=hash)
        limit = None if timeout is NO_DEFAULT else seconds(timeout)
        count = integer("replicas", replicas, 1)
        return self._run(scattering.scatter(self, data, workers, broadcast, hash, limit, count), asynchronous)

    def publish_dataset(
        self, *args: Any, name: Key | None = None, override: bool = False, replicas: int = 1, **kwargs: Any
    ) -> Any:
        """Publish a value, or several by keyword, under a name for all clients.

        With `override` a dataset of that name is replaced; who reads the old version keeps it until done. Of what it holds
        there are `replicas` copies from now on, as in `scatter`.

        Raises
        ------
        DatasetExists
            If there is one of that name and `override` is False.
        ConnectionLost, ServerRefused
            If the server did not reply in time. With ``pending`` the dataset is published once it takes calls again.
        """
        asynchronous = kwargs.pop("asynchronous", None)
        items: dict[Key, Any] = {key: value for key, value in kwargs.items()}  # noqa: C416 - its keys are typed wider
        if name is not None:
            if len(args) != 1:
                raise ValueError("with name= one value is published")
            datasets.wire_name(name)  # refuses what cannot be a key of a dict either
            items = {name: args[0], **items}
        elif args:
            raise ValueError(
                "give the value's name: publish_dataset(value, name='x') or publish_dataset(x=value)"
            )
        if not items:
            raise ValueError("there is nothing to publish")
        return self._run(
            datasets.publish(self, items, override, integer("replicas", replicas, 1)), asynchronous
        )

    def get_dataset(self, name: Key, default: Any = datasets._ABSENT, **kwargs: Any) -> Any:
        """Return a published value; raises DatasetNotFound without `default`, ConnectionLost if there is no reply."""
        return self._run(datasets.get(self, name, default), asynchronous_in("get_dataset", kwargs))

    def list_datasets(self, **kwargs: Any) -> Any:
        """Return the names of published datasets."""
        return self._run(datasets.names(self), asynchronous_in("list_datasets", kwargs))

    def unpublish_dataset(self, name: Key, **kwargs: Any) -> Any:
        """Withdraw a dataset if there is one; it goes with its last reader. `ConnectionLost` with ``pending``: later."""
        return self._run(datasets.unpublish(self, name), asynchronous_in("unpublish_dataset", kwargs))

    # --- the cluster ------------------------------------------------------------------------------------------------

    def who_has(self, futures: Any = None, **kwargs: Any) -> Any:
        """Return key -> addresses of the workers that have its payload; of all keys that anybody refers to for None."""
        return self._run(describing.who_has(self, futures), asynchronous_in("who_has", kwargs))

    def has_what(self, workers: str | Collection[str] | None = None, **kwargs: Any) -> Any:
        """Return address -> keys of the payloads that a worker has."""
        return self._run(describing.has_what(self, workers), asynchronous_in("has_what", kwargs))

    def processing(self, workers: str | Collection[str] | None = None) -> Any:
        """Return address -> keys of the tasks that a worker has been given; raises `UnknownWorker` if one is not there."""
        return self._run(describing.processing(self, workers))

    def nthreads(self, workers: str | Collection[str] | None = None, **kwargs: Any) -> Any:
        """Return address -> how many tasks a worker runs at a time."""
        return self._run(describing.nthreads(self, workers), asynchronous_in("nthreads", kwargs))

    ncores = nthreads

    def usage(self) -> Any:
        """Return how many keys the cluster knows, and the bytes of their values, on workers and in the server.

        Returns
        -------
        redist.usage.Usage
            `nbytes` are those on workers, which are what counts for quotas; `inline` those that the server keeps.
        """
        from redist.usage import usage

        return self._run(usage(self))

    def scheduler_info(self, n_workers: int = -1, **kwargs: Any) -> Any:
        """Return what is known of the cluster and its workers, as Dask has it."""
        return self._run(describing.scheduler_info(self, n_workers))

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until so many workers are there.

        Raises
        ------
        ValueError
            If `n_workers` is no positive whole number.
        TimeoutError
            If they are not there within `timeout`.
        ConnectionLost, ServerRefused
            If the server cannot be asked.
        """
        if not hasattr(n_workers, "__index__") or index(n_workers) < 1:
            raise ValueError(f"n_workers is a positive whole number, not {n_workers!r:.80}")
        return self._run(describing.wait_for_workers(self, index(n_workers), seconds(timeout)))

    def restart(self, timeout: Any = NO_DEFAULT, wait_for_workers: bool = True) -> Any:
        """Forget every key and dataset of the namespace, and start all executors again. Futures are cancelled.

        Raises
        ------
        TimeoutError
            If the workers are not there again within `timeout` (30 s).
        ConnectionLost, ServerRefused
            If the server does not reply within `timeout`, the client's by default; with ``pending`` it restarts later.
        """
        limit = None if timeout is NO_DEFAULT else seconds(timeout)
        patience = seconds(config.get("client.restart-timeout")) if timeout is NO_DEFAULT else limit
        return self._run(describing.restart(self, patience, wait_for_workers, limit))

    def why(self, key: Key | Future[Any]) -> Any:
        """Return every holder of a key: clients with their counts, containers, dependents, replicas; since when."""
        from redist.explaining import why

        if isinstance(key, Future):
            check(self, key)
        return self._run(why(self, key.name if isinstance(key, Future) else encode_key(key)))
