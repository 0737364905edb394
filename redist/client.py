"""`Client`: the face of a cluster, in Dask's words."""

from __future__ import annotations

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Callable, Collection, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from redist import current, datasets, describing, gathering, scattering
from redist.errors import ClientClosed
from redist.future import DoneCallback, Future
from redist.peers import Peer, Peers
from redist.session.asyncio_driver import AsyncioDriver
from redist.session.operations import AskAll, Operation
from redist.session.session import Session
from redist.session.states import PENDING, FutureState
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from redist.store.connect import Endpoint, endpoint
from redist.store.keys import Key, decode_key, encode_key
from redist.submitting import Options, Submitter

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from redist.memory.broker_client import BrokerClient
    from redist.store.calls import Call

__all__ = ["Client", "seconds"]

P = ParamSpec("P")
T = TypeVar("T")

_NO_DEFAULT: Any = object()
_SLICE = 500


def seconds(timeout: Any) -> float | None:
    """Return a timeout in seconds: a number, text such as ``'2s'``, a `timedelta`, or None."""
    if timeout is None or isinstance(timeout, int | float):
        return timeout
    from dask.utils import parse_timedelta

    return float(parse_timedelta(timeout))


class Client:
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
        Time to connect, and to wait for a worker.
    namespace : str, optional
        Namespace on the server.
    heartbeat_interval : float or str, optional
        A fifth of the lease.
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

    session: Session
    cluster: Any
    _name: str | None
    asynchronous: bool

    def __init__(
        self,
        address: Any = None,
        *,
        n_workers: int | None = None,
        threads_per_worker: int | None = None,
        name: str | None = None,
        grace: float | str | None = None,
        asynchronous: bool = False,
        set_as_default: bool = True,
        timeout: float | str = 10.0,
        namespace: str | None = None,
        heartbeat_interval: float | str | None = None,
        loop: object = None,
        security: object = None,
        serializers: object = None,
        deserializers: object = None,
        extensions: object = None,
        direct_to_workers: object = None,
        connection_limit: int | None = None,
        **kwargs: Any,
    ) -> None:
        self._name = name
        self._prepare(asynchronous, seconds(timeout) or 10.0)
        self._set_as_default = set_as_default
        self._owns_cluster = address is None
        lease = seconds(grace) or 5 * (seconds(heartbeat_interval) or 2.0)
        self._how = (address, namespace, lease, name is not None and grace is not None)
        cluster_options: dict[str, Any] = {
            "n_workers": n_workers,
            "threads_per_worker": threads_per_worker,
            **kwargs,
        }
        self._cluster_options = {key: value for key, value in cluster_options.items() if value is not None}
        if address is not None and self._cluster_options:
            raise TypeError(
                f"{sorted(self._cluster_options)} are options of a local cluster, but an address was given"
            )
        if not asynchronous:
            try:
                self._connect()
                driver = self._driver
                assert isinstance(driver, ThreadDriver)
                driver.start(self._timeout)
            except BaseException:
                self._end()
                raise
            self._started()

    @classmethod
    def _from_session(
        cls, driver: ThreadDriver, *, broker: BrokerClient | None = None, segments: str = ""
    ) -> Client:
        """Return the client of an executor's tasks, on the executor's own session."""
        client = cls.__new__(cls)
        client._prepare(False, 10.0)
        client._owns_session = False
        client._adopt(driver, driver.endpoint)
        client._segments = gathering.Segments(client._peers, broker, segments)
        client.status = "running"
        return client

    def _prepare(self, asynchronous: bool, timeout: float) -> None:
        self.asynchronous = asynchronous
        self.status = "newly-created"
        self.cluster = None
        self._timeout = timeout
        self._set_as_default = False
        self._owns_cluster = False
        self._owns_session = True
        self._workers_seen = 0
        self._brokers: dict[int, BrokerClient] = {}
        self._callbacks: queue.SimpleQueue[tuple[Callable[[Any], object], Future[Any]] | None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._starting: asyncio.Future[None] | None = None

    def _connect(self) -> None:
        """Make the session; blocks while a local cluster starts."""
        address, namespace, lease, named = self._how
        if address is None:
            from redist.cluster import LocalCluster

            address = self.cluster = LocalCluster(**self._cluster_options)
        if not isinstance(address, str | Endpoint):
            self.cluster, address = address, address.endpoint
        where = address if isinstance(address, Endpoint) else endpoint(address, namespace)
        name = self._name or f"Client-{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        details = {"host": socket.gethostname(), "pid": str(os.getpid())}
        session = Session(where, "client", name, details, lease=lease, named=named)
        driver: Any = AsyncioDriver(session, where) if self.asynchronous else ThreadDriver(session, where)
        self._adopt(driver, where)
        session.on_worker = self._on_worker
        session.on_output = _print_output

    def _adopt(self, driver: Any, where: Endpoint) -> None:
        self._driver = driver
        self.session = driver.session
        self._endpoint = where
        self._release = self.session.ledger.release
        self._peers = Peers(where)
        self._segments = gathering.Segments(self._peers)
        self._submitter = Submitter(self)
        if self._owns_session:
            self.session.bring_functions = self._submitter.bring_functions

    def _started(self) -> None:
        self.status = "running"
        current.register(self, default=self._set_as_default)

    def _on_worker(self, ordinal: int) -> None:
        self._workers_seen += 1
        self._peers.forget()

    # --- life -------------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Client]:
        if not self.asynchronous:
            raise TypeError("only a client with asynchronous=True is awaited")
        return self._start_async().__await__()

    async def _start_async(self) -> Client:
        if self.status == "closed":
            raise ClientClosed("the client is closed")
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_future()
            try:
                await asyncio.to_thread(self._connect)
                await self._driver.start(self._timeout)
            except BaseException as error:
                self._starting.set_exception(error)
                self._starting.exception()
                await asyncio.to_thread(self._end)
                raise
            self._started()
            self._starting.set_result(None)
        else:
            await asyncio.shield(self._starting)
        return self

    def __enter__(self) -> Client:
        if self.asynchronous:
            raise TypeError("a client with asynchronous=True wants `async with`")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Client:
        return await self._start_async()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._close_async(None)

    def close(self, timeout: Any = _NO_DEFAULT) -> Any:
        """Release everything this client holds, and leave. Its Futures are of no use afterwards."""
        limit = 5.0 if timeout is _NO_DEFAULT else seconds(timeout)
        if self.asynchronous:
            return self._close_async(limit)
        if self.status == "closed" or not self._owns_session:
            return None
        self.status = "closing"
        try:
            if hasattr(self, "_driver"):
                self._driver.close(5.0 if limit is None else limit)
        finally:
            self._end()
        return None

    async def _close_async(self, timeout: float | None) -> None:
        if self.status == "closed":
            return
        self.status = "closing"
        try:
            for task in list(self._tasks):
                task.cancel()
            if hasattr(self, "_driver"):
                await self._driver.close(5.0 if timeout is None else timeout)
        finally:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self.status = "closed"
        current.unregister(self)
        if hasattr(self, "_peers"):
            self._peers.close()
            self._segments.close()
        for broker in self._brokers.values():
            broker.close()
        self._brokers.clear()
        if self._callbacks is not None:
            self._callbacks.put(None)
        if self._owns_cluster and self.cluster is not None:
            self.cluster.close()

    def shutdown(self) -> Any:
        """Close the client and the cluster that it was given or started."""
        cluster, self.cluster = self.cluster, None
        if not self.asynchronous:
            self.close()
            if cluster is not None:
                cluster.close()
            return None

        async def both() -> None:
            await self._close_async(None)
            if cluster is not None:
                await asyncio.to_thread(cluster.close)

        return both()

    @property
    def closed(self) -> bool:
        """Whether it was closed, or belongs to the process that this one was forked from."""
        return self.status in ("closed", "closing") or (hasattr(self, "_driver") and self._driver.closed)

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether this is an asynchronous client of `loop`."""
        return self.asynchronous and hasattr(self, "_driver") and self._driver.loop is loop

    def connects_to(self, address: str) -> bool:
        """Return whether `address` is this client's server."""
        return endpoint(address, self.namespace).url == self.url

    def as_current(self) -> AbstractContextManager[Client]:
        """Return a context in which this client is the one that is meant."""
        return current.as_current(self)

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """Return the client that is meant when none is named."""
        return current.default_client()

    @property
    def url(self) -> str:
        """The server's URL, without passwords."""
        return self._endpoint.url

    @property
    def namespace(self) -> str:
        """The namespace on the server."""
        return self._endpoint.namespace

    @property
    def name(self) -> str:
        """Name for people."""
        return self.session.name

    id = name

    @property
    def generation(self) -> int:
        """How often the cluster was restarted, and one."""
        return self.session.generation

    @property
    def futures(self) -> Mapping[Key, FutureState]:
        """What this client refers to: key -> state, with its count."""
        with self.session.lock:
            return {decode_key(name): state for name, state in self.session.states.records.items()}

    def __repr__(self) -> str:
        if not hasattr(self, "session"):
            return f"<Client: {self.status}>"
        return f"<Client: {self.name!r} of {self.url} namespace={self.namespace!r}, {self.status}>"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<b>Client</b> {escape(repr(self)[9:-1])}"

    # --- glue -------------------------------------------------------------------------------------------------------

    def _check_alive(self) -> None:
        if not hasattr(self, "_driver"):
            raise ClientClosed("the client has not been started: `await client` first")
        self._driver.check_alive()

    def _run(self, operation: Operation[T]) -> Any:
        """Run an operation: return its result, or with an asynchronous client a coroutine."""
        self._check_alive()
        return self._driver.run(operation)

    def _post(self, call: Call) -> None:
        self._check_alive()
        with self.session.lock:
            self._driver.check_alive()
            self.session.enqueue(call)
            self._driver.push_out()

    def _bind(self, name: str) -> FutureState:
        """Count one more reference to a key and return its state."""
        self._check_alive()
        with self.session.lock:
            self._driver.check_alive()
            state = self.session.ledger.up(name)
        self._wake_releases()
        return state

    def _wake_releases(self) -> None:
        """Have counts that changed leave soon."""
        ledger = self.session.ledger
        if not ledger.armed:
            ledger.armed = True
            if ledger.wake is not None:
                ledger.wake()

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _broker_of(self, peer: Peer) -> BrokerClient:
        from redist.memory.broker_client import BrokerClient

        broker = self._brokers.get(peer.ordinal)
        if broker is None or broker.address != peer.socket:
            broker = self._brokers[peer.ordinal] = BrokerClient(peer.socket)
        return broker

    # --- Futures ask ------------------------------------------------------------------------------------------------

    def _result(self, future: Future[Any], timeout: Any, copy: bool, writable: bool) -> Any:
        return self._run(self._result_of(future, seconds(timeout), copy, writable))

    def _result_of(
        self, future: Future[Any], timeout: float | None, copy: bool = False, writable: bool = False
    ) -> Operation[Any]:
        deadline = None if timeout is None else _now() + timeout
        return (yield from gathering.result_of(self, future._state, deadline, copy, writable))

    def _error_of(self, future: Future[Any], timeout: float | None, index: int) -> Operation[Any]:
        state = future._state
        deadline = None if timeout is None else _now() + timeout
        yield from gathering.wait_for(self, [state], deadline, stop_on_error=False)
        if state.status == "finished":
            return None
        return (yield from gathering.error_of(self, state))[index]

    def _exception(self, future: Future[Any], timeout: Any) -> Any:
        return self._run(self._error_of(future, seconds(timeout), 0))

    def _traceback(self, future: Future[Any], timeout: Any) -> Any:
        return self._run(self._error_of(future, seconds(timeout), 1))

    async def _await_result(self, future: Future[T]) -> T:
        self._check_alive()
        operation = self._result_of(future, None)
        if self.asynchronous:
            result: T = await self._driver.run(operation)
        else:
            result = await asyncio.to_thread(self._driver.run, operation)
        return result

    def _on_done(self, future: Future[Any], fn: Callable[[Any], object]) -> None:
        callback = DoneCallback(future, fn)
        with self.session.lock:
            if future._state.status == PENDING and not future._cleared:
                future._state.add_waiter(callback)
                return
        self._call_back(fn, future)

    def _call_back(self, fn: Callable[[Any], object], future: Future[Any]) -> None:
        """Call ``fn(future)`` in the loop, or in the thread for callbacks. With or without the lock."""
        if self.asynchronous:
            self._driver.loop.call_soon(fn, future)
            return
        if self._callbacks is None:
            self._callbacks = queue.SimpleQueue()
            threading.Thread(
                target=_run_callbacks,
                args=(self._callbacks,),
                name=f"redist-callbacks-{self.name}",
                daemon=True,
            ).start()
        self._callbacks.put((fn, future))

    def _store(self, values: Sequence[Any]) -> list[Future[Any]]:
        """Store large arguments of tasks; the Futures are to be kept until the tasks are on their way."""
        items = scattering.prepare(self, values, [None] * len(values), unique=False)
        futures = [Future._of(item.state, self) for item in items]
        if self.asynchronous:
            if any(item.payload is not None for item in items):
                scattering.store_soon(self, items)
        else:
            self._driver.run(scattering.store(self, items, keep=True))
        return futures

    def _fire(self, futures: list[Future[Any]]) -> None:
        names = [future.name for future in futures if not future._cleared]
        for i in range(0, len(names), _SLICE):
            self._post(calls.fire(names[i : i + _SLICE]))

    # --- tasks ------------------------------------------------------------------------------------------------------

    def submit(
        self,
        func: Callable[..., T],
        *args: Any,
        key: Key | None = None,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        fifo_timeout: str = "100 ms",
        allow_other_workers: bool = False,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> Future[T]:
        """Submit ``func(*args, **kwargs)`` and return its Future at once.

        Parameters
        ----------
        func : callable
            What to run.
        *args, **kwargs
            Its arguments. Futures in them, at any depth of lists, tuples, dicts and sets, arrive as values; what is large
            becomes a payload by itself.
        key : str or tuple, optional
            The result's key; default: made of function and arguments.
        workers : str or iterable of str, optional
            Names, addresses or hosts of the workers that may run it.
        resources : mapping, optional
            What it takes while it runs, such as ``{'GPU': 1}``.
        retries : int, optional
            How often it may fail before its error counts.
        priority : int
            Higher ones run first.
        fifo_timeout : str
            Accepted for Dask's sake.
        allow_other_workers : bool
            Whether others may run it when none of `workers` is idle.
        actor, actors : bool
            Not offered.
        pure : bool
            Whether the same call is the same task; otherwise every call runs.

        Returns
        -------
        Future
        """
        if actor or actors:
            raise NotImplementedError(
                "actors are not offered: keep state in a task's result, or in your own process"
            )
        self._check_alive()
        options = None
        if workers is not None or resources or retries or priority or allow_other_workers:
            options = Options(workers, resources, retries, priority, allow_other_workers)
        return self._submitter.submit(func, args, kwargs, key, options, pure)

    def map(
        self,
        func: Callable[..., T],
        *iterables: Iterable[Any],
        key: str | list[Any] | None = None,
        workers: str | Iterable[str] | None = None,
        retries: int | None = None,
        resources: Mapping[str, float] | None = None,
        priority: int = 0,
        allow_other_workers: bool = False,
        fifo_timeout: str = "100 ms",
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[Future[T]]:
        """Submit one call for each item of `iterables`, zipped as by `map`, and return the Futures in order.

        Parameters
        ----------
        func : callable
            What to run.
        *iterables
            Its arguments, item by item.
        key : str or list of keys, optional
            Prefix of the keys, or one for each call.
        batch_size : int, optional
            Submit so many at a time.
        workers, retries, resources, priority, allow_other_workers, fifo_timeout, actor, actors, pure
            As in `submit`.
        **kwargs
            Keyword arguments of every call.
        """
        if actor or actors:
            raise NotImplementedError(
                "actors are not offered: keep state in a task's result, or in your own process"
            )
        if not iterables:
            raise ValueError("map needs at least one iterable")
        options = None
        if workers is not None or resources or retries or priority or allow_other_workers:
            options = Options(workers, resources, retries, priority, allow_other_workers)
        rows: Iterable[tuple[Any, ...]] = zip(*iterables)
        keys: list[str] | None = None
        if isinstance(key, list):
            rows = list(rows)
            if len(rows) != len(key):
                raise ValueError(f"{len(key)} keys were given for {len(rows)} calls")
            keys = [encode_key(one) for one in key]
        elif key is not None:
            rows = list(rows)
            from redist.protocol import function_of, key_of_call

            function = function_of(func)
            tokens = [key_of_call(function, row, kwargs, pure)[len(function.stem) :] for row in rows]
            keys = [encode_key(f"{key}-{token}") for token in tokens]
        return self._submitter.map(func, rows, kwargs, keys, options, pure, min(batch_size or _SLICE, _SLICE))

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
            Whether to cancel it for everybody.
        reason, msg : str, optional
            What `CancelledError` says.
        """
        names = describing.names_of(futures)
        return self._run(self._cancel(names, force, reason or msg or "cancelled by user"))

    def _cancel(self, names: list[str], force: bool, reason: str) -> Operation[None]:
        session = self.session
        with session.lock:
            until = session.clock() + 2 * session.lease
            session.flush(everything=True)
            for name in names:
                state = session.states.get(name)
                if state is not None:
                    # Our own push comes later, maybe after a new life of the name began.
                    session.notifications.doubtful[name] = until
                    session.ledger.forfeit(state)
                    state.cancel(reason)
        yield AskAll([
            calls.cancel(names[i : i + _SLICE], force=force, reason=reason) for i in range(0, len(names), _SLICE)
        ])  # fmt: skip

    def retry(self, futures: Any, asynchronous: bool | None = None) -> Any:
        """Run failed tasks again, and the failed tasks that they depend on."""
        return self._run(self._retry(describing.names_of(futures)))

    def _retry(self, names: list[str]) -> Operation[None]:
        with self.session.lock:
            for name in names:
                state = self.session.states.get(name)
                if state is not None:
                    state.again()
        yield AskAll([calls.retry(names[i : i + _SLICE]) for i in range(0, len(names), _SLICE)])
        with self.session.lock:
            # A push that was on its way may have said the old error again.
            self.session.ask(names)

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
            Whether to raise the first error, or to leave out what failed.
        copy : bool
            Return private, writable copies.
        writable : bool
            Let arrays be written to: pages that are written to become private copies.
        """
        return self._run(gathering.gather(self, futures, errors, copy, writable))

    def scatter(
        self,
        data: Any,
        workers: str | Iterable[str] | None = None,
        broadcast: bool | int = False,
        direct: bool | None = None,
        hash: bool = True,  # noqa: A002 - Dask's word
        timeout: Any = _NO_DEFAULT,
        asynchronous: bool | None = None,
    ) -> Any:
        """Store values in the cluster and return Futures.

        Parameters
        ----------
        data : list, tuple, set, dict or object
            Several values, by key in a dict, or one.
        workers : str or iterable of str, optional
            Which workers may hold it.
        broadcast : bool
            Whether every host gets a copy.
        hash : bool
            Whether equal values are one key; otherwise each gets a key of its own.
        timeout : float or str, optional
            Time to wait for a worker.

        Returns
        -------
        Futures in the shape of `data`.
        """
        limit = self._timeout if timeout is _NO_DEFAULT else seconds(timeout)
        return self._run(scattering.scatter(self, data, workers, broadcast, hash, limit))

    def publish_dataset(
        self, *args: Any, name: Key | None = None, override: bool = False, **kwargs: Any
    ) -> Any:
        """Publish a value, or several by keyword, under a name for all clients.

        With `override` a dataset of that name is replaced; who reads the old version keeps it until done.

        Raises
        ------
        DatasetExists
            If there is one of that name and `override` is False.
        """
        items: dict[Key, Any] = {**kwargs}
        if name is not None:
            if len(args) != 1:
                raise ValueError("with name= one value is published")
            items = {name: args[0], **items}
        elif args:
            raise ValueError(
                "give the value's name: publish_dataset(value, name='x') or publish_dataset(x=value)"
            )
        if not items:
            raise ValueError("there is nothing to publish")
        return self._run(datasets.publish(self, items, override))

    def get_dataset(self, name: Key, default: Any = datasets._ABSENT, **kwargs: Any) -> Any:
        """Return a published value; raises DatasetNotFound without `default`."""
        return self._run(datasets.get(self, name, default))

    def list_datasets(self, **kwargs: Any) -> Any:
        """Return the names of published datasets."""
        return self._run(datasets.names(self))

    def unpublish_dataset(self, name: Key, **kwargs: Any) -> Any:
        """Withdraw a dataset; it goes when the last reader lets go."""
        return self._run(datasets.unpublish(self, name))

    # --- the cluster ------------------------------------------------------------------------------------------------

    def who_has(self, futures: Any = None, **kwargs: Any) -> Any:
        """Return key -> addresses of the workers that have its payload."""
        return self._run(describing.who_has(self, futures))

    def has_what(self, workers: str | Collection[str] | None = None, **kwargs: Any) -> Any:
        """Return address -> keys of the payloads that a worker has."""
        return self._run(describing.has_what(self, workers))

    def processing(self, workers: str | Collection[str] | None = None) -> Any:
        """Return address -> keys of the tasks that a worker has been given."""
        return self._run(describing.processing(self, workers))

    def nthreads(self, workers: str | Collection[str] | None = None, **kwargs: Any) -> Any:
        """Return address -> how many tasks a worker runs at a time."""
        return self._run(describing.nthreads(self, workers))

    ncores = nthreads

    def scheduler_info(self, n_workers: int = -1, **kwargs: Any) -> Any:
        """Return what is known of the cluster and its workers, as Dask has it."""
        return self._run(describing.scheduler_info(self, n_workers))

    def wait_for_workers(self, n_workers: int, timeout: float | str | None = None) -> Any:
        """Wait until so many workers are there; raises TimeoutError."""
        return self._run(describing.wait_for_workers(self, n_workers, seconds(timeout)))

    def restart(self, timeout: Any = _NO_DEFAULT, wait_for_workers: bool = True) -> Any:
        """Forget every key and dataset of the namespace, and start all executors again. Futures are cancelled."""
        limit = 30.0 if timeout is _NO_DEFAULT else seconds(timeout)
        return self._run(describing.restart(self, limit, wait_for_workers))

    def why(self, key: Key | Future[Any]) -> Any:
        """Return every holder of a key: clients with their counts, containers, dependents, replicas; since when."""
        from redist.explaining import why

        return self._run(why(self, key.name if isinstance(key, Future) else encode_key(key)))


def _now() -> float:
    from time import monotonic

    return monotonic()


def _run_callbacks(callbacks: queue.SimpleQueue[tuple[Callable[[Any], object], Future[Any]] | None]) -> None:
    import logging

    while (item := callbacks.get()) is not None:
        fn, future = item
        try:
            fn(future)
        except Exception:
            logging.getLogger("redist.client").exception("a callback of %r failed", future)
        del item, fn, future


def _print_output(stream: int, worker: str, text: str) -> None:
    import sys

    print(text, end="", file=sys.stderr if stream == 2 else sys.stdout, flush=True)
