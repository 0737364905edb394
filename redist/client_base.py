"""The life of a client: how it is connected, and how it ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Generator, Mapping
from typing import TYPE_CHECKING, Any

from redist import config, current, describing
from redist.callbacks import Callbacks, close_behind, weakly
from redist.client_core import ClientCore
from redist.dask_options import check_client_options, check_flags
from redist.dropping import wait_for_drops
from redist.errors import ClientClosed
from redist.events import Topics
from redist.explaining import Inbox
from redist.missing import check_options, why_not
from redist.peers import Peers
from redist.placing import PlacesAhead
from redist.printing import say
from redist.protocol import names_inside
from redist.quotas import quotas
from redist.running import Runs
from redist.segments import Segments
from redist.session.session import Session
from redist.session.states import FutureState
from redist.session.thread_driver import ThreadDriver
from redist.store.connect import Endpoint, endpoint
from redist.store.keys import Key, decode_key
from redist.submitting import Submitter
from redist.timeouts import seconds

if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractContextManager
    from threading import Thread
    from typing import Self

    from redist.client import Client
    from redist.executor import ClientExecutor
    from redist.memory.broker_client import BrokerClient

__all__ = ["NO_DEFAULT", "ClientBase"]

NO_DEFAULT: Any = object()

#: s that the end waits for workers to drop what was being written when it was given up
_LAST_DROPS = 5.0


def _time(setting: str) -> float:
    return seconds(config.get(f"client.{setting}")) or 0.0


class ClientBase(ClientCore):
    """The part of `Client` that is not its list of methods; see there."""

    cluster: Any
    _name: str | None

    if not TYPE_CHECKING:  # for a type checker every name would be there

        def __getattr__(self, name: str) -> Any:
            if told := why_not(name):
                raise AttributeError(told, name=name, obj=self)
            return object.__getattribute__(self, name)  # says what is missing, in a property too

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
        timeout: float | str | None = None,
        namespace: str | None = None,
        heartbeat_interval: float | str | None = None,
        silence: float | str | None = None,
        loop: object = None,
        security: object = None,
        serializers: object = None,
        deserializers: object = None,
        extensions: object = None,
        direct_to_workers: object = None,
        connection_limit: int | None = None,
        scheduler_file: str | None = None,
        quota: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        if scheduler_file is not None and (address is not None or namespace is not None):
            raise ValueError("the scheduler file names address and namespace: give either it or them")
        self.scheduler_file = scheduler_file
        if grace is not None and name is None:
            raise ValueError(
                "grace= is how long what a named client holds is kept for its next life: give it a name= as well"
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"the name of a client is a str, not {type(name).__name__}: {name!r:.80}")
        check_client_options(loop, security, serializers, deserializers, extensions, connection_limit)
        check_flags(
            asynchronous=asynchronous, set_as_default=set_as_default, direct_to_workers=direct_to_workers
        )
        self._name = name
        self._prepare(asynchronous, seconds(timeout) or _time("timeout"))
        self._set_as_default = set_as_default
        lease = seconds(grace) or 5 * (seconds(heartbeat_interval) or _time("heartbeat-interval"))
        self._silence = seconds(config.get("client.silence") if silence is None else silence)
        self._quotas = quotas(quota)
        cluster_options: dict[str, Any] = {
            "n_workers": n_workers,
            "threads_per_worker": threads_per_worker,
            **kwargs,
        }
        if kwargs:
            check_options(type(self), kwargs)
        self._cluster_options = {key: value for key, value in cluster_options.items() if value is not None}
        if address is None and scheduler_file is None and not self._cluster_options:
            address = config.get("address")
        self._owns_cluster = address is None and scheduler_file is None
        self._how = (address, namespace, lease, name is not None and grace is not None)
        if not self._owns_cluster and self._cluster_options:
            raise TypeError(
                f"{sorted(self._cluster_options)} are options of a local cluster, but an address was given"
            )
        if not asynchronous:
            try:
                self._connect()
                driver = self._driver
                assert isinstance(driver, ThreadDriver)
                driver.start(self._timeout)
                close_behind(self._me, driver, self._peers)
                if self._owns_cluster:
                    self.cluster.wait_ready()
            except BaseException:
                self.close(timeout=0.0)
                raise
            self._started()

    @classmethod
    def _from_session(
        cls, driver: ThreadDriver, *, broker: BrokerClient | None = None, segments: str = ""
    ) -> Self:
        """Return the client of an executor's tasks, on the executor's own session."""
        client = cls.__new__(cls)
        client._prepare(False, 10.0)
        client._owns_session = False
        client._adopt(driver, driver.endpoint)
        client._segments = Segments(client._peers, broker, segments)
        client.status = "running"
        return client

    def _prepare(self, asynchronous: bool, timeout: float) -> None:
        self.asynchronous = asynchronous
        self._pid = os.getpid()
        self.status = "newly-created"
        self._callbacks = Callbacks("redist-callbacks")
        self.cluster = None
        self._timeout = timeout
        self._set_as_default = False
        self._owns_cluster = False
        self._owns_session = True
        self._workers_seen = 0
        self._places = PlacesAhead()
        self._brokers: dict[int, BrokerClient] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._drops: set[Thread] = set()
        self._starting: asyncio.Future[None] | None = None

    def _connect(self) -> None:
        """Make the session; blocks while a local cluster starts."""
        address, namespace, lease, named = self._how
        if self.scheduler_file is not None:
            from redist.files import read_scheduler_file

            address, namespace = read_scheduler_file(self.scheduler_file, self._timeout)
        if address is None:
            from redist.cluster import LocalCluster

            # Its workers start while this client connects.
            options = {"wait": False, "namespace": namespace, **self._cluster_options}
            address = self.cluster = LocalCluster(**options)
            if address.server is not None:
                address.server.wait_ready()
        if not isinstance(address, str | Endpoint):
            if not hasattr(address, "endpoint"):
                raise TypeError(
                    f"a Client takes the URL of a server, or a LocalCluster, not {type(address).__name__}: {address!r:.80}"
                )
            self.cluster, address = address, address.endpoint
        if isinstance(address, Endpoint) and namespace not in (None, address.namespace):
            raise ValueError(
                f"the cluster's namespace is {address.namespace!r}, and its workers serve no other: give "
                f"namespace={namespace!r} to the cluster, not to its client"
            )
        where = address if isinstance(address, Endpoint) else endpoint(address, namespace)
        name = self._name or f"Client-{socket.gethostname()}-{os.getpid()}-{os.urandom(2).hex()}"
        details = {"host": socket.gethostname(), "pid": str(os.getpid())}
        if self._silence is not None:
            details["silence"] = str(int(1000 * self._silence))
        details.update(self._quotas)
        session = Session(where, "client", name, details, lease=lease, named=named)
        driver: Any
        if self.asynchronous:
            from redist.session.asyncio_driver import AsyncioDriver

            driver = AsyncioDriver(session, where)
        else:
            driver = ThreadDriver(session, where)
        self._adopt(driver, where)
        # The session's thread keeps no client alive that was dropped.
        session.on_worker = weakly(self._on_worker)
        session.on_output = say
        session.on_control = weakly(self._on_control)

    def _adopt(self, driver: Any, where: Endpoint) -> None:
        self._driver = driver
        server = getattr(self.cluster, "server", None)
        if server is not None and not server.persistent:
            driver.links.gone = server.why_gone
        if self._owns_session:
            driver.reply_timeout = self._timeout
        self.session = driver.session
        self._endpoint = where
        self._release = self.session.ledger.release
        self._peers = Peers(where, self._timeout)
        self._segments = Segments(self._peers)
        self._submitter = Submitter(self._me)
        self._inbox = Inbox(self._me)
        self._runs = Runs()
        self._topics = Topics(self._me)
        self.session.subscription.on_event = weakly(self._topics.look)
        self.session.contained = names_inside

    def _started(self) -> None:
        self.status = "running"
        current.register(self._me, default=self._set_as_default)

    def _on_control(self) -> None:
        self._in_background(self._inbox.look)

    def _on_worker(self, ordinal: int) -> None:
        self._workers_seen += 1
        self._peers.forget()

    # --- life -------------------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, Self]:
        if not self.asynchronous:
            raise TypeError("only a client with asynchronous=True is awaited")
        return self._start_async().__await__()

    async def _start_async(self) -> Self:
        import asyncio

        if self.status == "closed":
            raise ClientClosed("the client is closed")
        if self._starting is None:
            self._starting = asyncio.get_running_loop().create_future()
            try:
                await asyncio.to_thread(self._connect)
                await self._driver.start(self._timeout)
                close_behind(self._me, self._driver, self._peers)
                if self._owns_cluster:
                    await asyncio.to_thread(self.cluster.wait_ready)
            except BaseException as error:
                self._starting.set_exception(error)
                self._starting.exception()
                if hasattr(self, "_driver"):
                    await self._driver.close(0.0)
                await asyncio.to_thread(self._end)
                raise
            self._started()
            self._starting.set_result(None)
        else:
            await asyncio.shield(self._starting)
        return self

    def __enter__(self) -> Self:
        if self.asynchronous:
            raise TypeError("a client with asynchronous=True wants `async with`")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await self._start_async()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._close_async(None)

    def close(self, timeout: Any = NO_DEFAULT) -> Any:
        """Release everything this client holds, and leave. Its Futures are of no use afterwards."""
        limit = _time("close-timeout") if timeout is NO_DEFAULT else seconds(timeout)
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
        import asyncio

        if self.status == "closed":
            return
        self.status = "closing"
        limit = _time("close-timeout") if timeout is None else timeout
        try:
            if hasattr(self, "_driver"):
                await self._driver.see_off(limit)
            tasks = self._tasks - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks, timeout=limit)
            if hasattr(self, "_driver"):
                await self._driver.close(limit)
        finally:
            await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self.status = "closed"
        current.unregister(self._me)
        if hasattr(self, "_peers"):
            if os.getpid() == self._pid:
                wait_for_drops(self._me, _LAST_DROPS)
            self._peers.close()
            self._segments.close()
        for broker in self._brokers.values():
            broker.close()
        self._brokers.clear()
        self._callbacks.close()
        if self._owns_cluster and self.cluster is not None and os.getpid() == self._pid:
            self.cluster.close()

    def _at_exit(self) -> None:
        if self.asynchronous:
            self._driver.end()
            self._end()
        else:
            self.close(timeout=1.0)

    def shutdown(self) -> Any:
        """Close the client and the cluster that it was given or started; of an address, all workers of the namespace.

        Other clients lose their workers with that; the server stays.
        """
        cluster, self.cluster = self.cluster, None
        if not self.asynchronous:
            if cluster is None and not self.closed:
                self._run(describing.close_workers(self._me))
            self.close()
            if cluster is not None:
                cluster.close()
            return None

        async def both() -> None:
            import asyncio

            if cluster is None and not self.closed:
                await self._run(describing.close_workers(self._me))
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
        return current.as_current(self._me)

    @classmethod
    def current(cls, allow_global: bool = True) -> Client:
        """Return the client that is meant when none is named; without `allow_global` only that of ``as_current()``.

        Raises
        ------
        NoClientError
            If there is none; it is a ValueError.
        """
        return current.default_client() if allow_global else current.context_client()

    def get_executor(self, **kwargs: Any) -> ClientExecutor:
        """Return a `concurrent.futures.Executor` that runs calls in the cluster.

        Parameters
        ----------
        **kwargs
            ``pure`` (default False), ``workers``, ``resources``, ``retries``, ``priority``, ``allow_other_workers``: as in
            `submit`, for every call.
        """
        from redist.executor import ClientExecutor

        return ClientExecutor(self._me, **kwargs)

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

    @property
    def generation(self) -> int:
        """How often the cluster was restarted, and one."""
        return self.session.generation

    @property
    def futures(self) -> Mapping[Key, FutureState]:
        """What this client refers to: key -> state, with its count."""
        with self.session.lock:
            return {decode_key(name): state for name, state in self.session.states.records.items()}

    def __reduce__(self) -> Any:
        raise TypeError(
            "a Client cannot be pickled: it is a connection of this process. In a task get_client() gives one; pass "
            "Futures, which travel, and to another process the address, for a Client of its own"
        )

    def __repr__(self) -> str:
        if not hasattr(self, "session"):
            return f"<Client: {self.status}>"
        return f"<Client: {self.name!r} of {self.url} namespace={self.namespace!r}, {self.status}>"

    def _repr_html_(self) -> str:
        from redist.showing import client_html

        return client_html(self._me)
