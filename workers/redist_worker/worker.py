"""The worker process: owner of the payloads of its host, and parent of its executors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
from typing import TYPE_CHECKING, Any

import hiredis

from redist.ends import REFUSED, RETIRED, UNAVAILABLE
from redist.errors import ClientClosed, ConnectionLost, RedistError, ServerRefused
from redist.memory.broker import Broker
from redist.memory.data_client import DataClient
from redist.memory.data_server import DataServer, ip_towards
from redist.memory.fetcher import Fetcher
from redist.memory.host import memory_id, process_id
from redist.memory.locks import small_shm_warning
from redist.memory.places import check_spill
from redist.quotas import quotas
from redist.session.asyncio_driver import AsyncioDriver
from redist.session.session import Session
from redist.store import calls
from redist.store.calls import Result
from redist.store.side import Side
from redist.tls import client_context, server_context
from redist_worker.checking import Checker
from redist_worker.control import Control
from redist_worker.executor import Options as ExecutorOptions
from redist_worker.executors import Executor, Executors
from redist_worker.handing_over import hand_over, retire
from redist_worker.naming import await_name
from redist_worker.pressure import Pressure
from redist_worker.replicas import Replicas
from redist_worker.segments import Home, Sweeper, find_home, sweep_last
from redist_worker.surplus import Surplus

if TYPE_CHECKING:
    from redist.store.calls import Call
    from redist.store.replies import Beat
    from redist_worker.forkserver import ForkServer
    from redist_worker.options import WorkerOptions

__all__ = ["Worker"]

logger = logging.getLogger("redist.worker")

_STARTS = 0.5  # s that a server has which is started together with its workers
_GOODBYE = 1.0  # s that the server has to answer the last call
_HAND_OVER = 3.0  # s that others get to bring payloads, at least
_LAST_WRITES = 1.0  # s that clients get to finish what they write
_ANSWER = 5.0  # s that it has to answer
_LAST_SWEEP = 2.0  # s that the last worker of a host takes for what dead ones left
_FIRST_ANSWER = 1.0  # s that the server has to answer when a worker ends


class Worker:
    """One worker; `run` is its life.

    Parameters
    ----------
    options : WorkerOptions
        What it is told.
    server : ForkServer
        Started already.
    """

    def __init__(self, options: WorkerOptions, server: ForkServer) -> None:
        self.options = options
        self.endpoint = options.endpoint
        self.server = server
        self.side = Side(options.endpoint)
        self.stopping = asyncio.Event()
        self.exit_code = 0
        self.name = options.name
        self.address = ""
        self._ordinal = 0
        self._remembered = (0, "")
        self._orphaned = False
        self._retiring: asyncio.Task[None] | None = None
        self.home: Home
        self.replicas: Replicas
        self.session: Session
        #: who know the token of the namespace's data servers
        self._bearers: tuple[DataClient, DataServer]
        self.driver: AsyncioDriver
        self.executors: Executors
        self._parts = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Be a worker until told to stop; return the exit code."""
        loop = asyncio.get_running_loop()
        self.server.attach(loop)
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop)
        if self.options.parent_fd >= 0:
            loop.add_reader(self.options.parent_fd, self._parent_gone)
        starting = loop.create_task(self._start())
        stopped = loop.create_task(self.stopping.wait())
        try:
            await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                await starting
                await stopped
        finally:
            ending = [task for task in (starting, stopped, self._retiring) if task is not None]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)
            await self._parts.aclose()
        return self.exit_code

    def stop(self) -> None:
        """End in good order."""
        self.stopping.set()

    def retire(self, *, close: bool) -> None:
        """Get no more tasks, and with `close` end when all is done and nothing would be lost."""
        if self._retiring is None:
            self._retiring = asyncio.get_running_loop().create_task(self._retire(close))
            logger.info("this worker retires")

    async def _retire(self, close: bool) -> None:
        await retire(self.driver, self.side, self.session.ordinal)
        if close:
            self.exit_code = RETIRED if self.options.parent_fd >= 0 else 0
            self.stop()

    def _parent_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self.options.parent_fd)
        if not self.stopping.is_set():
            logger.info("the process that started this worker is gone")
        self._orphaned = True
        self.stop()

    # --- start ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        options = self.options
        secret = await self._meet_server()
        if options.spill_dir:  # before a dead worker's payloads are taken over, which would go with this one
            check_spill(options.spill_dir)
        self.home = home = find_home(
            self.endpoint, options.name, options.memory_limit, options.segments or None
        )
        self._parts.push_async_callback(self._sweep_last)
        # Behind all that others wait for: in this loop, many GiB take seconds.
        self._parts.callback(home.directory.close)
        self.name = home.directory.worker = options.name or home.name or options.default_name()
        home.directory.spill.configure(options.spill_dir, options.max_spill)
        memory = memory_id(home.directory.path)
        dead = await await_name(self.side, self.name, home.ordinal) if options.name else []
        warning = small_shm_warning(home.directory.path, options.memory_limit)
        if warning:
            logger.warning("%s", warning)

        client = DataClient(secret, tls=client_context())
        self.replicas = replicas = Replicas(
            home.directory, self.side, self.post, lambda: self.session.reconnected, options.hostname
        )
        self._parts.callback(replicas.close)
        surplus = Surplus(home.directory, self._ask)
        checker = Checker(home.directory)
        self.pressure = pressure = Pressure(
            home.directory, options.memory_limit, options.memory, self._tell, surplus, checker.check
        )
        self._parts.push_async_callback(pressure.close)

        def fetched(name: str, attempt: int, nbytes: int) -> None:
            replicas.fetched(name, attempt, nbytes)
            surplus.note(name, attempt)

        fetcher = Fetcher(home.directory, client, on_fetched=fetched, make_room=pressure.make_room)
        self._parts.push_async_callback(fetcher.close)
        broker = Broker(
            home.directory, fetch=fetcher.fetch, on_committed=pressure.committed, on_gone=self._gone,
            make_room=pressure.make_room, check=checker.check,
        )  # fmt: skip
        self._parts.push_async_callback(broker.close)
        data_server = DataServer(
            home.directory,
            secret,
            tls=server_context(),
            make_room=pressure.make_room,
            on_unread=checker.doubt,
        )
        self._parts.push_async_callback(data_server.close)
        self._parts.callback(pressure.give_up)  # before anybody waits for those who wait for room
        socket_path = await broker.start()
        host = options.host or self._address_towards_server()
        self.address = await data_server.start(host, options.port)

        details = {
            "address": self.address,
            "segments": home.directory.path,
            "hostid": home.directory.hostid,
            "memory": memory,
            "socket": socket_path,
            "host": options.hostname,
            "pid": str(os.getpid()),
            "process": process_id(),
            "memory_limit": str(options.memory_limit),
            "resources": options.resources,
            "threads": str(options.threads),
            "executors": str(options.executors),
            **quotas(own=False),
        }
        self.session = session = Session(
            self.endpoint, "worker", self.name, details, ordinal=home.ordinal, lease=options.lease
        )
        session.alone = bool(options.name) and not dead
        session.secret, session.attempt = home.secret, home.directory.newest
        session.on_evict = replicas.evict
        session.on_lost = lambda: self._lost_registration(replicas)
        self._bearers = client, data_server
        session.on_generation = self._new_generation
        session.on_beat = lambda beat: self._beat(beat, replicas)
        session.heart.make = self._heartbeat
        self._broker = broker
        self._sweeper = Sweeper(self.endpoint, home.directory.path, options.lease)
        self._sweeping: asyncio.Future[list[str]] | None = None
        self.executors = Executors(
            self.server, options.executors, options.threads, self.name, home.directory.path,
            self._executor_options, self._lost, self._taken,
        )  # fmt: skip
        pressure.executors = self.executors
        self.driver = AsyncioDriver(session, self.endpoint, check=False)
        await self.driver.start(timeout=options.connect_timeout)
        self._parts.push_async_callback(self.driver.close, _GOODBYE)
        session.on_failure = self._failed
        self._ordinal = session.ordinal
        self._remember()
        self.executors.generation = session.generation
        for before in dead:
            logger.info(
                "of the worker %s there was %s, which is dead: its executors get nothing more",
                self.name,
                before,
            )
            self.post(calls.lost_worker(int(before.ordinal), before.record["inc"]))
        await self._settle_predecessor(replicas)
        checker.ask = self._ask

        self._parts.push_async_callback(self._stop_executors)
        control = Control(self, self.side, fetcher)
        session.on_control = control.look
        control.look()
        await self.executors.start()
        pressure.start()
        home.directory.grants.ready.keep(options.memory.ready_of(options.memory_limit))
        logger.info(
            "worker %s at %s is ready, in Redis as caller:%d", self.name, self.address, session.ordinal
        )

    async def _meet_server(self) -> str:
        """Wait for the server, see whether it is fit, and return the token of the namespace's data servers."""
        loop = asyncio.get_running_loop()
        patience = self.options.connect_timeout
        began = loop.time()
        deadline, said = began + patience, False
        while True:
            # short tries, so that a worker that waits for its server can be stopped
            trying = asyncio.to_thread(self._try_server, max(0.05, min(1.0, deadline - loop.time())))
            try:
                secret = await trying
            except ConnectionLost as error:
                if loop.time() > deadline:
                    raise ConnectionLost(
                        f"{error}. Gave up after {patience:g} s (--connect-timeout)"
                    ) from error
                if not said and loop.time() - began >= _STARTS:
                    said = True
                    logger.warning("%s. Trying again for %g s (--connect-timeout)", error, patience)
            else:
                if said:
                    logger.warning("%s answers after %.1f s", self.endpoint.url, loop.time() - began)
                return secret
            await asyncio.sleep(0.05)

    def _try_server(self, timeout: float) -> str:
        endpoint = self.endpoint
        wire = endpoint.open(timeout)
        try:
            endpoint.check(wire)
            meta = f"{endpoint.prefix}meta"
            secret: bytes | None = wire.call("HGET", meta, "secret")
            if secret is None:
                wire.call("HSETNX", meta, "secret", os.urandom(16).hex())
                secret = wire.call("HGET", meta, "secret")
        except hiredis.ReplyError as error:
            raise ServerRefused(f"{endpoint.url} does not let a worker in: {error}") from error
        finally:
            wire.close()
        assert secret is not None
        return secret.decode()

    def _address_towards_server(self) -> str:
        hosts = self.endpoint.address.hosts
        return ip_towards(hosts[0][0]) if hosts else "127.0.0.1"

    async def _settle_predecessor(self, replicas: Replicas) -> None:
        """Have the server know what became of the worker that had this directory before."""
        home = self.home
        if not home.ordinal:
            return
        prefix, ordinal = self.endpoint.prefix, self.session.ordinal
        command = self.side.command
        if await asyncio.to_thread(command, "HEXISTS", f"{prefix}meta", "recovering"):
            await replicas.bring_all()
        taken = set(home.directory.files)
        # Before its executors go: who gets what they ran shall not look for copies that are not there.
        await replicas.settle(ordinal, kept=ordinal == home.ordinal)
        for member in await asyncio.to_thread(command, "SMEMBERS", f"{prefix}executors:{ordinal}"):
            running = (home.blamed or {}).get(int(member), [])
            self.post(
                calls.lost_executor(int(member), f"worker {self.name} died with its executors", running)
            )
        await replicas.tell_wanted(ordinal, taken, self._ask, given_up=ordinal != home.ordinal)

    def _executor_options(self, executor: Executor) -> ExecutorOptions:
        return ExecutorOptions(
            endpoint=self.endpoint,
            name=executor.name,
            threads=self.options.threads,
            marks=executor.marks.path,
            worker=self.session.ordinal,
            worker_name=self.name,
            address=self.address,
            host=self.options.hostname,
            segments=self.home.directory.path,
            socket=self._broker.address,
            echo=self.options.echo,
        )

    # --- life -------------------------------------------------------------------------------------------------------

    def post(self, call: Call) -> None:
        """Put a call on the worker's lane; nothing happens once that is closed: the server knows that the worker ends."""
        with contextlib.suppress(ClientClosed):
            self.driver.post(call)

    async def _ask(self, call: Call) -> list[Any]:
        """Send a call on the worker's lane and return its reply."""
        return await self.driver.call(call, _ANSWER)

    def _heartbeat(self) -> Call:
        directory = self.home.directory
        self.session.attempt = max(self.session.attempt, directory.newest)
        self.executors.sample()
        metrics = {
            **self.pressure.metrics(self._broker.granted),
            "executors": [
                {
                    "name": e.name,
                    "ordinal": e.ordinal,
                    "pid": e.pid,
                    "rss": e.rss,
                    "unmanaged": e.private,
                    "running": len(e.marks.running()),
                    "actors": e.marks.actors,
                }
                for e in self.executors
            ],
        }
        closing = self.stopping.is_set() or self._retiring
        status = "closing" if closing else self.pressure.status
        return calls.worker_heartbeat(
            len(directory.files),
            self.session.lane.n,
            int(self.options.lease * 1000),
            status=status,
            metrics=json.dumps(metrics, separators=(",", ":")),
        )

    def _tell(self) -> None:
        """Send a heartbeat at once."""
        self.session.heart.beat()
        self.driver.push_out()

    def _beat(self, beat: Beat, replicas: Replicas) -> None:
        self._check_ordinal()
        replicas.beat(beat.agree, self.session.ordinal)
        if self._sweeper.due and (self._sweeping is None or self._sweeping.done()):
            # Heartbeats that are answered say that the server counts leases.
            self._sweeping = asyncio.get_running_loop().run_in_executor(None, self._sweeper.look)

    def _failed(self, error: BaseException) -> None:
        """End: the server does not take this worker any more, and nobody would hear of what it does."""
        if self.stopping.is_set():
            return
        logger.error("%s", error)
        self.exit_code = REFUSED
        self.stop()

    def _lost_registration(self, replicas: Replicas) -> list[Call]:
        """Return what the server is to hear after it lost this worker."""
        for bearer in self._bearers:
            bearer.token = self.session.secret  # a server that lost its memory has made another one
        asyncio.get_running_loop().call_soon(self._check_ordinal)
        replicas.bring()
        return []

    def _check_ordinal(self) -> None:
        """Replace the executors if they belong to an ordinal that this worker has lost."""
        before, self._ordinal = self._ordinal, self.session.ordinal
        if self._remembered != (self._ordinal, self.session.secret):
            self._remember()
        if self._ordinal != before:
            self.executors.kill("was replaced, because its worker had to register anew")

    def _remember(self) -> None:
        self._remembered = self._ordinal, self.session.secret
        self.home.remember(self.name, self._ordinal, self.options.lease, self.session.secret)

    def _new_generation(self, generation: int) -> None:
        self.executors.renew(generation)

    async def _lost(self, executor: Executor, reason: str, running: list[int]) -> None:
        """Tell the server that an executor died."""
        self._broker.disconnect(executor.pid)
        finished = executor.tails.finished()
        if finished and executor.ordinal:
            self.post(calls.hand_in_for(executor.ordinal, finished))
        ordinals = [executor.ordinal] if executor.ordinal else await self._strangers()
        for ordinal in ordinals:
            self.post(calls.lost_executor(ordinal, reason, running))

    def _gone(self, pid: int) -> None:
        if self._ordinal and not self.stopping.is_set():
            self.replicas.gone(pid, self._ordinal)

    async def _taken(self, executor: Executor, attempts: list[int], finished: list[Result]) -> None:
        """Hand in for an executor that does not come to it: what it will not start, and what it has finished."""
        if finished:
            self.post(calls.hand_in_for(executor.ordinal, finished))
        if not attempts:
            return
        key = f"{self.endpoint.prefix}batches:{executor.ordinal}"
        flat = iter(await asyncio.to_thread(self.side.command, "HGETALL", key))
        taken = set(attempts)
        tasks = [
            Result(name.decode(), attempt, "back")
            for batch, names in zip(flat, flat)
            for attempt, name in enumerate(names.split(b"\n"), int(batch))
            if attempt in taken
        ]
        logger.info("%s does not come to %d of its tasks, others get them", executor.name, len(tasks))
        self.post(calls.hand_in_for(executor.ordinal, tasks))

    async def _strangers(self) -> list[int]:
        """Return executors that the server counts as ours and we do not know: dead before they could say their ordinal."""
        members = await asyncio.to_thread(
            self.side.command, "SMEMBERS", f"{self.endpoint.prefix}executors:{self.session.ordinal}"
        )
        known = {executor.ordinal for executor in self.executors}
        return [int(member) for member in members if int(member) not in known]

    # --- end --------------------------------------------------------------------------------------------------------

    async def _stop_executors(self) -> None:
        with contextlib.suppress(RedistError):
            self.post(self._heartbeat())  # paused: nothing more is handed out
        loop = asyncio.get_running_loop()
        until = loop.time() + self.options.grace
        await self.executors.stop(self.options.grace)
        if self._orphaned or not self.session.lane.connected:
            return
        # Clients may not have heard yet that it closes: nothing is to come behind the last look at what only it has.
        self._bearers[1].refusing = True
        await self._broker.grant_no_more(_LAST_WRITES)
        seconds = max(until - loop.time(), _HAND_OVER)
        try:
            work = hand_over(self.driver, self.session.ordinal, seconds, _FIRST_ANSWER)
            await asyncio.wait_for(work, seconds + 1.0)
        except (RedistError, TimeoutError) as error:
            logger.warning("what only this worker has was not handed over to others: %r", error)

    async def _sweep_last(self) -> None:
        """Leave nothing that nobody needs, if no other worker is left on this host."""
        directory = self.home.directory
        try:
            work = asyncio.to_thread(
                sweep_last, self.endpoint, directory.path, directory.spill.parent, self._is_needed
            )
            for path in await asyncio.wait_for(work, _LAST_SWEEP):
                logger.info("removed %s: its worker died, and nobody needs it", path)
        except TimeoutError:
            logger.info("what dead workers left is not swept: the server does not answer")

    def _is_needed(self, ordinal: int) -> bool:
        """Whether the server knows of values on a worker, or may hear of them yet."""
        prefix, command = self.endpoint.prefix, self.side.command
        try:
            return bool(
                command("EXISTS", f"{prefix}has:{ordinal}")
                or command("HEXISTS", f"{prefix}meta", "recovering")
            )
        except (RedistError, hiredis.ReplyError):
            return True


def serve(options: WorkerOptions, server: ForkServer) -> int:
    """Run a worker to its end, in the main thread of a process that ends with it."""
    # not asyncio.run, which at the end waits for threads that may wait for a dead server
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(Worker(options, server).run())
    except ConnectionLost as error:
        logger.error("%s", error)
        return UNAVAILABLE
    except RedistError as error:
        logger.error("%s", error)
        return REFUSED
    finally:
        server.close()
