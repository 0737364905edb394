"""The part of `Client` that deals with the cluster's processes, and with what is kept beside keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Literal

from redist import (
    config,
    datasets,
    describing,
    events,
    files,
    forwarding,
    inspecting,
    metadata,
    plugins,
    restarting,
    running,
)
from redist.client_base import NO_DEFAULT
from redist.client_copies import ClientCopies
from redist.current import futures_of
from redist.dask_options import asynchronous_in
from redist.errors import NoScheduler, NotOffered
from redist.future import Future
from redist.session.operations import Ask, Operation, Run
from redist.store.calls import Call
from redist.timeouts import seconds

__all__ = ["ClientCluster"]

_ON_ERROR = ("raise", "return", "ignore")


class ClientCluster(ClientCopies):
    """Looks at, and prepares, the processes of a cluster; see `Client`."""

    # --- functions beside tasks -------------------------------------------------------------------------------------

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: str | Collection[str] | None = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Run a function once in every process that runs tasks, beside the tasks, however busy their threads are.

        Parameters
        ----------
        function : callable
            What to run, in a thread of its own; a coroutine in the process's loop. If it has an argument ``dask_worker``
            it is given what `get_worker` returns there.
        *args, **kwargs
            Its arguments, as they are: a Future stays one.
        workers : str or collection of str, optional
            Addresses or names of workers, or keys of results; default: all.
        wait : bool
            Whether to wait for the end of a coroutine; otherwise nothing is returned.
        nanny : bool
            Not offered: the worker's own process runs no code of users.
        on_error : {'raise', 'return', 'ignore'}
            Whether an error is raised, stands among the results, or is left out.

        Returns
        -------
        dict
            Results by the worker's address. A worker with several executors has several results: ``ADDRESS/0``,
            ``ADDRESS/1`` and so on.

        Raises
        ------
        WorkerGone
            If there is no such worker, or its process ended before it answered.
        SerializationError
            If function and arguments, or a result, cannot be serialized, or take more than 64 MiB.
        Exception
            What the function raised in one of them.
        """
        if on_error not in _ON_ERROR:
            raise ValueError(f"on_error is 'raise', 'return' or 'ignore', not {on_error!r}")
        if nanny:
            raise NoScheduler(
                "there is no nanny: run() reaches every process that runs tasks, and the worker's own process runs no code "
                "of users"
            )
        asynchronous = kwargs.pop("asynchronous", None)
        return self._run(
            running.run(self._me, function, args, kwargs, workers, wait=wait, on_error=on_error), asynchronous
        )

    def run_on_scheduler(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Raise `NoScheduler`: its state is in Redis."""
        raise NoScheduler(
            "there is no scheduler process: its state is in Redis, see docs/redis-schema.md; scheduler_info(), why() and "
            "dump_cluster_state() show it, and run() runs a function in the processes that run tasks"
        )

    def restart_workers(
        self, workers: list[str], timeout: Any = NO_DEFAULT, raise_for_error: bool = True
    ) -> Any:
        """Start the processes that run the tasks of some workers anew, and wait until they are there.

        What runs there runs again elsewhere and is not blamed, actors there are lost; the values stay, as the workers' own
        processes do.

        Parameters
        ----------
        workers : list of str
            Addresses or names.
        timeout : float or str, optional
            How long to wait; default: the setting ``client.restart-timeout``, None for ever.
        raise_for_error : bool
            Whether a worker that is not there, or whose processes are not there in time, is an error.

        Returns
        -------
        dict
            For each of `workers`, as it was given, ``'OK'``, ``'removed'`` or ``'timed out'``.

        Raises
        ------
        TimeoutError
            If they are not there within `timeout`.
        WorkerGone
            If there is no such worker.
        """
        limit = seconds(config.get("client.restart-timeout") if timeout is NO_DEFAULT else timeout)
        return self._run(restarting.restart_workers(self._me, workers, limit, raise_for_error))

    # --- what there is ----------------------------------------------------------------------------------------------

    def get_versions(self, check: bool = False, packages: Sequence[str] | None = None) -> Any:
        """Return the versions of Python and of packages in this process and in those that run tasks.

        Parameters
        ----------
        check : bool
            Whether to raise ValueError if they differ.
        packages : sequence of str, optional
            Packages to tell of besides those that redist itself looks at.

        Returns
        -------
        dict
            ``client`` and, by address, ``workers``: each with ``host`` and ``packages``. There is no scheduler process:
            ``scheduler`` has the server and its version among its ``packages``.
        """
        return self._run(inspecting.get_versions(self._me, check, list(packages or ())))

    def memory(self) -> Any:
        """Return what memory and disk of the workers hold (`redist.diagnostics.memory.Memory`), which prints as a table.

        Its `workers`, `hosts` and `total` have bytes that are ``managed``, ``unmanaged``, ``spilled``, ``lingering``,
        ``pooled``, ``granted`` and ``overhead``, as the workers said last: every 2 s, and within a second of a change that
        counts; so they are up to a heartbeat old.
        """
        from redist.diagnostics.memory import read_memory

        return self._run(_read(read_memory, self._me._peers))

    def nbytes(self, keys: Any = None, summary: bool = True, **kwargs: Any) -> Any:
        """Return how many bytes values take as they are stored, -1 for one that is not there.

        Parameters
        ----------
        keys : list of keys or Futures, optional
            Which; default: all that anybody refers to, or that workers have.
        summary : bool
            Whether to add up keys that begin alike.

        Raises
        ------
        KeyError
            If a key is not known.
        """
        return self._run(inspecting.nbytes(self._me, keys, summary), asynchronous_in("nbytes", kwargs))

    def call_stack(self, futures: Any = None, keys: Sequence[Any] | None = None) -> Any:
        """Return what running tasks do now, worker by worker and key by key, as a text for each frame.

        Parameters
        ----------
        futures : Future or collection of Futures, optional
            Which; a task that waits stands for those that it waits for.
        keys : list of keys, optional
            Further ones. Without both: whatever runs.

        Raises
        ------
        KeyError
            If a key is not known.
        """
        names = None
        if futures is not None or keys:
            names = [] if futures is None else describing.names_of(self._me, futures)
            names += [] if not keys else describing.names_of(self._me, list(keys))
        return self._run(inspecting.call_stack(self._me, names))

    # --- beside keys ------------------------------------------------------------------------------------------------

    def set_metadata(self, key: Any, value: Any) -> Any:
        """Keep small plain data in Redis, for all clients.

        Parameters
        ----------
        key : str, tuple or list
            A list is a way into nested dicts, which are made where there are none. Of a key that is known, its metadata go
            with it; a restart forgets all.
        value : object
            What msgpack can pack: None, numbers, str, bytes, lists and dicts. Lists come back as tuples.

        Raises
        ------
        TypeError
            If it is not plain data.
        """
        return self._run(metadata.put(self._me, key if isinstance(key, list) else [key], value))

    def get_metadata(self, keys: Any, default: Any = NO_DEFAULT) -> Any:
        """Return what `set_metadata` kept; `keys` is a key, or a list or tuple of them that leads into nested dicts.

        Raises
        ------
        KeyError
            If there is nothing and no `default`.
        """
        path = list(keys) if isinstance(keys, list | tuple) else [keys]
        absent = metadata.ABSENT if default is NO_DEFAULT else default
        return self._run(metadata.get(self._me, path, absent))

    def log_event(self, topic: str | Collection[str], msg: Any) -> Any:
        """Log plain data under a topic, or several; see also ``get_worker().log_event``.

        Parameters
        ----------
        topic : str or collection of str
            Where.
        msg : object
            What msgpack can pack.

        Raises
        ------
        TypeError
            If it is not plain data.
        """
        return self._run(_ask(events.event_call(topic, msg)))

    def get_events(self, topic: str | None = None) -> Any:
        """Return the newest 1,000 events of a topic as pairs of time and data, the oldest first; for None of all topics."""
        return self._run(events.get_events(self._me, topic))

    def subscribe_topic(self, topic: str, handler: Callable[[Any], Any]) -> None:
        """Have `handler` called with every event that is logged under `topic` from now on.

        Parameters
        ----------
        topic : str
            Which.
        handler : callable or coroutine function
            Called with a pair of time and data, in the order of events, in a thread for callbacks or in the loop. A second
            one takes the place of the first.
        """
        self._topics.subscribe(topic, handler)
        if not self.asynchronous:
            self._settle()  # what anybody logs after this is handled

    def unsubscribe_topic(self, topic: str) -> None:
        """Stop that; raises ValueError for a topic that never was subscribed to."""
        self._topics.unsubscribe(topic)

    # --- plugins ----------------------------------------------------------------------------------------------------

    def register_plugin(self, plugin: Any, name: str | None = None) -> Any:
        """Set a plugin up in every process that runs tasks, and in those that start later before they run any.

        Parameters
        ----------
        plugin : WorkerPlugin
            An instance. Its pickle is kept in Redis until it is unregistered.
        name : str, optional
            One of that name is torn down and replaced, or stays if the plugin is ``idempotent``; default: the plugin's
            ``name``, or one that is made.

        Returns
        -------
        dict
            ``{'status': 'OK'}`` by address as in `run`; nothing if an idempotent one was there.

        Raises
        ------
        NoScheduler
            For a plugin of a scheduler or nanny.
        TypeError
            For what is no plugin.
        Exception
            What `setup` raised in a process. In one that starts later that is logged, and it runs tasks all the same.
        """
        return self._run(plugins.register(self._me, plugin, plugins.checked(plugin, name)))

    def unregister_worker_plugin(self, name: str, nanny: bool | None = None) -> Any:
        """Tear a plugin down everywhere, for good; raises ValueError if there is none, or what `teardown` raises."""
        if nanny:
            raise NoScheduler("there is no nanny, and so no plugin of one")
        return self._run(plugins.unregister(self._me, name))

    def unregister_scheduler_plugin(self, name: str) -> Any:
        """Raise `NoScheduler`: there are none."""
        raise NoScheduler("there is no scheduler process, and so no plugin of one")

    def register_worker_callbacks(self, setup: Callable[..., Any] | None = None) -> Any:
        """Have a function called in every process that runs tasks, now and later; see `register_plugin`.

        It is given the worker if it has an argument ``dask_worker``. Without a function nothing is called.
        """
        return self.register_plugin(plugins.Setup(setup))

    def upload_file(self, filename: str, load: bool = True) -> Any:
        """Bring a ``.py``, ``.zip`` or ``.egg`` file to every process that runs tasks, now and later, to be imported there.

        Parameters
        ----------
        filename : str
            The file. It lies in ``get_worker().local_directory``, and in Redis until a file of that name takes its place.
        load : bool
            Whether to import it, again if it was.

        Returns
        -------
        dict
            As of `register_plugin`.
        """
        plugin = plugins.UploadFile(filename, load)
        return self.register_plugin(plugin, f"upload-file-{plugin.filename}")

    def forward_logging(self, logger_name: str | None = None, level: int | str = 0) -> Any:
        """Have log records of the processes that run tasks handled here, by the logger of the same name.

        Parameters
        ----------
        logger_name : str, optional
            This logger and those below it; default: all, without those of redist.
        level : int or str
            The least level. The loggers' own levels count as well, there and here.
        """
        plugin, topic = forwarding.names_for(logger_name)
        self.subscribe_topic(topic, forwarding.handle)
        return self.register_plugin(forwarding.ForwardLogging(logger_name, level, topic), plugin)

    def unforward_logging(self, logger_name: str | None = None) -> Any:
        """Stop that; raises ValueError if it was not begun."""
        plugin, topic = forwarding.names_for(logger_name)
        self.unsubscribe_topic(topic)
        return self.unregister_worker_plugin(plugin)

    # --- files, and what only looks alike ---------------------------------------------------------------------------

    @property
    def datasets(self) -> datasets.Datasets:
        """The published datasets as a mapping: ``client.datasets["x"] = value``, ``in``, ``del``, iteration.

        Setting one that is there raises `DatasetExists`; `publish_dataset` replaces it with ``override=True``.
        """
        return datasets.Datasets(self._me)

    @property
    def dashboard_link(self) -> None:
        """None: there is no dashboard; `scheduler_info`, `usage`, `why` and the notebook's look of a client tell."""
        return None

    def futures_of(self, futures: Any) -> list[Future[Any]]:
        """Return the Futures in a nested collection, each once; see `redist.futures_of`."""
        return futures_of(futures, client=self._me)

    def write_scheduler_file(self, scheduler_file: str) -> Any:
        """Write a JSON file that another client finds the cluster by: ``Client(scheduler_file=...)``.

        It has no password: that is taken from ``REDIST_PASSWORD``.

        Raises
        ------
        ValueError
            If this client wrote one, or was made from one.
        """
        if self.scheduler_file:
            raise ValueError(f"this client has a scheduler file already: {self.scheduler_file}")
        return self._run(files.write_scheduler_file(self._me, scheduler_file))

    def dump_cluster_state(
        self,
        filename: str = "dask-cluster-dump",
        write_from_scheduler: bool | None = None,
        exclude: Collection[str] = (),
        format: Literal["msgpack", "yaml"] = "msgpack",  # noqa: A002 - Dask's word
        **storage_options: Any,
    ) -> Any:
        """Write the state of the namespace into a file: what `redist doctor` reads, by Redis keys, and `scheduler_info`.

        Values of users are not in it, but for those that are so small that they lie in the records of their keys.

        Parameters
        ----------
        filename : str
            Path or URL; ``.msgpack.gz`` or ``.yaml`` is put behind it.
        write_from_scheduler : bool, optional
            Not offered: this process writes.
        exclude : collection of str
            Redis keys, or their first words (``key``, ``log``), or parts of the dump, to leave out.
        format : {'msgpack', 'yaml'}
            Of the file.
        **storage_options
            For `fsspec.open`, with a URL.
        """
        if write_from_scheduler:
            raise NoScheduler("there is no scheduler process that could write: this process does")
        asynchronous = storage_options.pop("asynchronous", None)
        return self._run(
            files.dump_cluster_state(self._me, str(filename), exclude, format, storage_options), asynchronous
        )

    def story(self, *keys_or_stimuli: Any, on_error: str = "raise") -> Any:
        """Raise `NoScheduler`: transitions are not recorded."""
        raise NoScheduler(
            "there is no scheduler process, and nothing records transitions: why(key) tells how a key stands and who holds "
            "it, and a WorkerPlugin's transition() hears of tasks"
        )

    def get_scheduler_logs(self, n: int | None = None) -> Any:
        """Raise `NoScheduler`: there is none that could log."""
        raise NoScheduler("there is no scheduler process that could log: see the log of the Redis server")

    def get_worker_logs(self, n: int | None = None, workers: Any = None, nanny: bool = False) -> Any:
        """Raise `NotOffered`: workers log to standard error."""
        raise NotOffered(
            "workers keep no logs: they write them to standard error, where whoever starts them keeps it. "
            "forward_logging() brings what is logged in tasks to this process, from now on"
        )

    def get_task_stream(
        self,
        start: Any = None,
        stop: Any = None,
        count: int | None = None,
        plot: Any = False,
        filename: str = "task-stream.html",
        bokeh_resources: Any = None,
    ) -> Any:
        """Raise `NotOffered`: when tasks ran is not recorded."""
        raise NotOffered(
            "when each task ran is not recorded: a WorkerPlugin's transition() hears of every task in the process that runs "
            "it, and worker.log_event() there with subscribe_topic() here brings what it notes to this process"
        )

    def profile(
        self,
        key: str | None = None,
        start: Any = None,
        stop: Any = None,
        workers: Iterable[str] | None = None,
        merge_workers: bool = True,
        plot: Any = False,
        filename: str | None = None,
        server: bool = False,
        scheduler: bool = False,
    ) -> Any:
        """Raise `NotOffered`: what tasks do is not sampled."""
        raise NotOffered(
            "what tasks do is not sampled: call_stack() shows it now, and `py-spy record --pid` the processes whose ids "
            "client.run(os.getpid) returns"
        )


def _ask(call: Call) -> Operation[None]:
    yield Ask(call)


def _read(function: Callable[..., Any], *args: Any) -> Operation[Any]:
    return (yield Run(function, args))
