"""The executor process: a session of its own, task threads, and a main thread that listens to the worker.

Modules that a task needs are imported here, once, in the fork server.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import select
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgpack

from redist.actor_tasks import is_call, set_host
from redist.current import set_task_client
from redist.errors import RedistError
from redist.memory.broker_client import BrokerClient
from redist.memory.reader import raise_file_limit
from redist.session.driver import Driver
from redist.session.session import Session
from redist.session.thread_driver import ThreadDriver
from redist.store.connect import Endpoint
from redist.store.side import Side
from redist_worker.actors import Actors
from redist_worker.lane import DriverLane
from redist_worker.local import Local, set_local
from redist_worker.marks import Marks
from redist_worker.orders import Loop, Orders
from redist_worker.output import Output
from redist_worker.plugins import Plugins
from redist_worker.runner import Runner
from redist_worker.shelf import Shelf, open_shelves
from redist_worker.tasks import Tasks
from redist_worker.tokens import Tokens
from redist_worker.values import Values

if TYPE_CHECKING:
    from redist.client import Client
    from redist.store.replies import Beat

__all__ = ["UNREGISTERED", "Options", "run"]

logger = logging.getLogger("redist.worker")

UNREGISTERED = 75
"""Exit code of an executor that the server does not take (any more); its worker starts another one."""

_OUTPUT_DELAY = 0.05
_GOODBYE = 1.0  # s that the server has to answer the last call


@dataclass(frozen=True, slots=True)
class Options:
    """What an executor is told by its worker.

    Parameters
    ----------
    endpoint : Endpoint
        The server.
    name : str
        The executor's name.
    threads : int
        How many tasks it runs at a time.
    marks : str
        Path of its marks.
    worker : int
        The worker's ordinal.
    worker_name, address, host : str
        The worker, for people and for tasks.
    segments, socket : str
        Its segment directory and its local socket.
    echo : bool
        Whether what tasks print also goes to the worker's own output.
    """

    endpoint: Endpoint
    name: str
    threads: int
    marks: str
    worker: int
    worker_name: str
    address: str
    host: str
    segments: str
    socket: str
    echo: bool = True


def run(packed: bytes, fds: list[int]) -> int:
    """Be an executor, in a freshly forked process; return the exit code.

    Parameters
    ----------
    packed : bytes
        Pickled `Options`.
    fds : list of int
        The control socket; the threads' shelves; reading and writing descriptors of their tokens.
    """
    options: Options = pickle.loads(packed)
    control = socket.socket(fileno=fds[0])
    # not ignored: that would be inherited by programs that tasks start
    signal.signal(signal.SIGINT, lambda *_: None)
    raise_file_limit()
    try:
        tokens = [Tokens(*pipe) for pipe in zip(fds[2::2], fds[3::2])]
        executor = Executor(options, [*zip(tokens, open_shelves(fds[1], len(tokens)), strict=True)])
    except RedistError as error:
        logger.error("%s cannot start: %s", options.name, error)
        return UNREGISTERED
    return executor.listen(control)


def _no_places() -> None:
    """Know that this is no executor, but what a task forked."""
    Driver.on_block = Driver.on_unblock = None


class Executor:
    """One executor.

    Parameters
    ----------
    options : Options
        What the worker says.
    shares : list of (Tokens, Shelf)
        What its threads share with the worker.
    """

    def __init__(self, options: Options, shares: list[tuple[Tokens, Shelf]]) -> None:
        self.options = options
        self.marks = Marks(options.marks)
        self.side = Side(options.endpoint)
        self.broker = BrokerClient(options.socket)
        self.output = Output(self._publish, echo=options.echo)
        details = {"host": options.host, "pid": str(os.getpid()), "threads": str(options.threads)}
        self.session = Session(options.endpoint, "executor", options.name, details, options.worker)
        self.driver = ThreadDriver(self.session, options.endpoint, check=False)
        lane = DriverLane(self.driver)
        values = Values(options.worker, options.segments, self.broker, self.side, lane.call)
        self._client: Client | None = None
        self._client_lock = threading.Lock()
        self._wake_in, self._wake_out = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.loop = Loop()
        tasks = Tasks(self.side, values, self.broker)
        self.plugins = Plugins(self.side, self.loop, tasks.execute)
        self.runner = Runner(
            lane,
            self.plugins.execute,
            self.marks,
            options.threads,
            self._before_hand_in,
            self._failed,
            shares,
            is_call,
        )
        self.session.on_tasks = self.runner.on_tasks
        self.session.on_void = self.runner.on_void
        self.session.on_beat = self._beat
        # For any session: a task may wait with a client of its own, too.
        Driver.on_block = self.runner.places.block
        Driver.on_unblock = self.runner.places.unblock
        os.register_at_fork(after_in_child=_no_places)
        self.driver.start()
        self.marks.ordinal = self.session.ordinal
        self.local = self.plugins.worker = Local(
            options, self.driver, self.runner, self.plugins, tasks, self.output
        )
        set_local(self.local)
        set_task_client(self.client)
        self.actors = Actors(self.session, lane.call, self.runner.places, self.loop, self._count_actors)
        set_host(self.actors)
        self.output.install()
        self.orders = Orders(self.driver, self.side, self.local, self.loop, self.client)
        self.session.on_control = self.orders.look
        self.orders.look()  # something may have come before
        self.plugins.add_all()  # behind: a plugin may run functions everywhere, here too
        self.orders.set_up.set()
        self.runner.start()

    def client(self) -> Client:
        """Return the client of this executor's tasks, on the executor's own session."""
        with self._client_lock:
            if self._client is None:
                from redist.client import Client

                self._client = Client._from_session(
                    self.driver, broker=self.broker, segments=self.options.segments
                )
            return self._client

    def _count_actors(self, count: int) -> None:
        self.marks.actors = count

    def _beat(self, _: Beat) -> None:
        self.marks.ordinal = self.session.ordinal  # another one after a registration anew

    def _before_hand_in(self) -> None:
        if self.output.waiting:
            self.output.flush()

    def _publish(self, stream: int, data: bytes) -> None:
        endpoint = self.options.endpoint
        message = msgpack.packb([b"o", stream, self.options.worker_name, data])
        self.side.command(endpoint.publish, endpoint.prefix + "all", message)

    def _failed(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._wake_out, b"x")

    def listen(self, control: socket.socket) -> int:
        """Obey the worker until it says stop or is gone; return the exit code."""
        poll = select.poll()
        for fd in (control.fileno(), self.output.fileno(), self._wake_in):
            poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == self._wake_in:
                    return UNREGISTERED
                if fd == self.output.fileno():
                    # a moment, so that a loop of prints makes few messages
                    threading.Event().wait(_OUTPUT_DELAY)
                    with contextlib.suppress(RedistError):
                        self.output.flush()
                    continue
                data = control.recv(65536)
                if not data:
                    return 1
                message = json.loads(data)
                if message["op"] == "stop":
                    self.stop(message["grace"])
                    return 0

    def stop(self, grace: float) -> None:
        """Finish what runs, hand back the rest, leave."""
        self.runner.stop(grace)
        self.plugins.remove_all()
        with contextlib.suppress(RedistError):
            self.output.flush()
        self.local.close()
        self.driver.close(timeout=_GOODBYE)
        self.marks.ordinal = 0
        sys.stdout.flush()
        sys.stderr.flush()
