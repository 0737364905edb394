"""Sessions on a real server, and an executor that lives in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from redist.errors import RedistError
from redist.session.session import Session
from redist.session.states import FutureState, Waiter, hang
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from redist.store.connect import Endpoint
from redist.store.replies import HandOut, parse_turn
from servers import Server


class Executor:
    """A worker and its executor: runs every task by giving its spec back as the value, when `gate` lets it."""

    def __init__(self, endpoint: Endpoint) -> None:
        worker = Session(endpoint, "worker", "w1", {"address": "tcp://x:1", "hostid": "h"})
        worker.heart.make = lambda: calls.worker_heartbeat(0, worker.lane.n)
        self.worker = ThreadDriver(worker, endpoint)
        self.worker.start()
        self.session = Session(endpoint, "executor", "e1", {"threads": "1"}, worker.ordinal)
        self.driver = ThreadDriver(self.session, endpoint, check=False)
        self.gate = threading.Event()
        self.gate.set()
        self._tasks: list[HandOut] = []
        self._look = True
        self.session.on_tasks = self._take
        self.driver.start()
        self._stop = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _take(self, tasks: list[HandOut]) -> None:
        self._tasks += tasks
        self._look = True

    def _run(self) -> None:
        results: list[calls.Result] = []
        batches: list[int] = []
        while not self._stop:
            try:
                self._look = False
                turn = parse_turn(self.driver.call(calls.turn(1, calls.RESYNC, [], batches, results)))
                results, batches = [], []
                tasks = turn.tasks
                if not tasks:
                    self.driver.wait(lambda: self._stop or self._look, 0.5)
                    self._tasks.clear()
                    continue
                self.gate.wait()
                for task in tasks:
                    if task.spec == b"boom":
                        results.append(
                            calls.Result(
                                task.name, task.attempt, "erred", 0, "ValueError", b"!RedistError\0boom"
                            )
                        )
                    else:
                        results.append(
                            calls.Result(
                                task.name, task.attempt, "memory", len(task.spec), "bytes", task.spec
                            )
                        )
                    if task.batch not in batches:
                        batches.append(task.batch)
            except RedistError:
                if self.driver.closed:
                    return

    def close(self) -> None:
        self._stop = True
        self.gate.set()
        self._thread.join(20)
        self.driver.close()
        self.worker.close()


class Caller:
    """A client's session with the few steps that tests need."""

    def __init__(self, endpoint: Endpoint, name: str = "c", **options: Any) -> None:
        self.session = Session(endpoint, "client", name, **options)
        self.driver = ThreadDriver(self.session, endpoint)
        self.driver.start()

    def submit(self, name: str, spec: bytes | None = None, deps: tuple[str, ...] = ()) -> FutureState:
        session = self.session
        with session.lock:
            self.driver.check_alive()
            state = session.states.obtain(name, session.generation, "f")
            state.count += 1
            session.submissions.add_function("f", b"F")
            session.submit(state, calls.Task(name, "f", name.encode() if spec is None else spec, deps))
            self.driver.submitted()
        return state

    def wait(self, *states: FutureState, timeout: float = 20.0) -> bool:
        waiter = Waiter()
        with self.session.lock:
            waiter.remaining = hang(waiter, states)
        return self.driver.wait(waiter, timeout)

    def release(self, *states: FutureState) -> None:
        for state in states:
            self.session.ledger.release(state)

    def close(self) -> None:
        self.driver.close()


@pytest.fixture
def endpoint(valkey: Server, namespace: str) -> Endpoint:
    return valkey.endpoint(namespace)


@pytest.fixture
def executor(endpoint: Endpoint) -> Iterator[Executor]:
    executor = Executor(endpoint)
    yield executor
    executor.close()


@pytest.fixture
def new_caller(endpoint: Endpoint) -> Iterator[Callable[..., Caller]]:
    callers: list[Caller] = []

    def make(**options: Any) -> Caller:
        caller = Caller(endpoint, f"c{len(callers)}", **options)
        callers.append(caller)
        return caller

    yield make
    for caller in callers:
        caller.close()


@pytest.fixture
def caller(executor: Executor, new_caller: Callable[..., Caller]) -> Caller:
    return new_caller()
