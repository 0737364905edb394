"""Small fixed stories of clients, a worker and an executor, each told step by step by one thread.

The executor is driven here, by `calls.turn`, so that every run makes the same calls in the same order. What a task returns
hangs on its key. A step that fails is noted and the story goes on; a step can be left out.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from faults.handling import Handling
from faults.standing import normalised
from redist import Client, Future
from redist.diagnostics.invariants import check
from redist.diagnostics.reading import Snapshot
from redist.errors import CancelledError, RedistError, ServerFull
from redist.protocol import dumps, pack_error
from redist.session.driver import Driver
from redist.session.session import Session
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from redist.store.calls import Call
from redist.store.connect import Endpoint
from redist.store.replies import HandOut, parse_place, parse_turn
from redist.store.wire import pack_command

__all__ = ["Story", "other", "work"]

#: Long enough that nobody beats by himself: when nothing moves, the story does it.
LEASE = 1000.0
STALLED = 0.06
TIMEOUT = 15.0
MANY = 16  # tasks that a turn takes where they are quick


def work(*args: Any) -> None:
    """What is submitted; nobody calls it."""


def other(*args: Any) -> None:
    """Another function; nobody calls it."""


class Story:
    """The processes of a story, and what its steps are made of; `tell` tells it.

    Parameters
    ----------
    endpoint : Endpoint
        The server, through the proxy.
    direct : Endpoint
        The server itself.
    handling : Handling
        How the clients are driven.
    skip : collection of str
        Steps that are left out.

    Attributes
    ----------
    did : set of str
        Steps that were done.
    failed : dict
        Step -> the error that it ended with.
    seen : list
        What the clients got to see.
    states : list
        The state in the server at each stop, without what differs from run to run.
    along : list of str
        Tasks that were taken with the one that they wait for; the repeat of a turn does not say so.
    errs : set of str
        Tasks that fail the next time that they run.
    files : Counter of str
        Payloads that each worker has.
    """

    #: Calls, all of a script or single ones, whose refusal by a full server no step hears of: nobody waits for them, or
    #: they come again by themselves.
    unheard: Collection[str] = ("register",)

    def __init__(
        self, endpoint: Endpoint, direct: Endpoint, handling: Handling, skip: Collection[str] = ()
    ) -> None:
        self.endpoint, self.direct, self.handling, self.skip = endpoint, direct, handling, skip
        self.do = handling.do
        self.did: set[str] = set()
        self.failed: dict[str, BaseException] = {}
        self.seen: list[Any] = []
        self.states: list[dict[str, Any]] = []
        self.along: list[str] = []
        self.futures: dict[str, Any] = {}
        self.drivers: list[Any] = []
        self.clients: dict[str, Client] = {}
        self.errs: set[str] = set()
        self.files: Counter[str] = Counter()
        self.wire = direct.open()
        self.moves = 0
        self.over = threading.Event()
        self.metronome = threading.Thread(target=self.beat)
        self.metronome.start()

    def tell(self) -> None:
        """Tell the whole story, but for its end."""
        raise NotImplementedError

    # --- the processes ----------------------------------------------------------------------------------------------

    def driver(self, kind: str, name: str, details: dict[str, str], parent: int = 0) -> ThreadDriver:
        session = Session(self.endpoint, kind, name, details, parent, lease=LEASE)
        if kind == "worker":
            session.heart.make = lambda: calls.worker_heartbeat(
                self.files[name], session.lane.n, int(LEASE * 1000)
            )
        driver = ThreadDriver(session, self.endpoint, check=False)
        self.drivers.append(driver)
        driver.start(TIMEOUT)
        return driver

    def client(self, name: str, **options: Any) -> Client:
        options = {"heartbeat_interval": LEASE / 5, **options}
        client = self.handling.client(self.endpoint, name=name, timeout=TIMEOUT, **options)
        self.drivers.append(client._driver)
        self.clients[name] = client
        return client

    def open(self) -> None:
        """Have everybody come."""
        self.worker = self.driver("worker", "w", {"address": "tcp://w:1", "hostid": "h", "pid": "1"})
        self.executor = self.new_executor("e", 2)
        self.c1 = self.client("c1")
        self.c2 = self.client("c2")
        self.settle()

    def new_executor(self, name: str, pid: int) -> ThreadDriver:
        details = {"threads": "1", "pid": str(pid)}
        return self.driver("executor", name, details, self.worker.session.ordinal)

    def beat(self) -> None:
        """While the story stands still, do what would come later by itself."""
        before = -1
        while not self.over.wait(STALLED):
            if self.moves == before:
                self.handling.beat(list(self.drivers))
            before = self.moves

    # --- waiting ----------------------------------------------------------------------------------------------------

    def wait(self, what: Callable[[], Any], text: str) -> None:
        """Wait until `what`."""
        deadline = time.monotonic() + TIMEOUT
        while not what():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {TIMEOUT:g} s: {text}; {self.describe()}")
            self.handling.pause()

    def describe(self) -> str:
        return "; ".join(
            f"{driver!r} unanswered {[(e.n, e.call.script.name) for e in driver.session.lane.unanswered]} "
            f"failure {driver.session.failure!r} states {list(driver.session.states)}"
            for driver in self.drivers
        )

    def done(self, *names: str) -> None:
        futures = [self.futures[name] for name in names]
        self.wait(lambda: all(future.done() for future in futures), f"{names} are done")

    def settle(self) -> None:
        """Wait until every call is answered, every push has arrived, and the work list is empty."""
        self.moves += 1
        self.wait(self.quiet, "it is quiet")

    def quiet(self) -> bool:
        for driver in self.drivers:
            if _busy(driver):
                with driver.lock:
                    driver.session.flush()
                    driver.session.tick()
                    driver.links.transmit()
                self.handling.wait(driver, lambda driver=driver: not _busy(driver), STALLED)
            if missing := self.missing(driver):
                self.handling.wait(driver, missing, STALLED)
        return not (any(map(_busy, self.drivers)) or any(map(self.missing, self.drivers)) or self.left())

    def missing(self, driver: Driver) -> Callable[[], bool] | None:
        """None if a driver has heard of all that was pushed to it, else what says that it has."""
        session = driver.session
        if _gone(driver) or not session.ready:
            return None
        generation = int(self.command("HGET", "meta", "generation") or 1)
        pushed = -1
        if session.kind == "client" and session.notifications.number >= 0:
            pushed = int(self.command("HGET", f"caller:{session.ordinal}", "pushed") or 0)

        def heard() -> bool:
            return session.generation >= generation and session.notifications.number >= pushed

        return None if heard() else heard

    def left(self) -> bool:
        """Whether there is work for whoever comes next."""
        return bool(self.command("EXISTS", "work"))

    def command(self, word: str, key: str, *args: str) -> Any:
        return self.wire.call(word, self.direct.prefix + key, *args)

    # --- what steps are made of -------------------------------------------------------------------------------------

    def step(self, name: str, body: Callable[..., Any], *args: Any, needs: Collection[str] = ()) -> None:
        """Do one step, unless it is to be left out; one that cannot be done for lack of another is left out too."""
        if name in self.skip or not self.did.issuperset(needs):
            return
        try:
            body(*args)
            self.did.add(name)
        except KeyError:
            pass
        except (RedistError, CancelledError) as error:
            # The frames hold Futures.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self.failed[name] = error

    def call(self, client: Client, call: Call) -> Any:
        """Have a client make a call of which there is no method that needs nobody else."""
        return self.do(client._driver.call, call, TIMEOUT)

    def submit(
        self,
        name: str,
        *deps: str,
        client: Client | None = None,
        retries: int = 0,
        step: str = "",
        function: Callable[..., Any] = work,
    ) -> None:
        def body() -> None:
            args = [[self.futures[d]] for d in deps]
            future = self.do((client or self.c1).submit, function, name, *args, key=name, retries=retries)
            self.futures[step or name] = future
            self.settle()
            if future.status == "error":
                self.futures.pop(step or name)
                error = self.do(future.exception)
                if type(error).__module__.startswith("redist"):
                    raise error

        self.step(f"submit {step or name}", body)

    def scatter_segment(self, worker: str) -> None:
        """Have a value whose payload is a file of a worker's; there is none."""
        session = self.c1.session
        ((attempt, ordinal),) = parse_place(self.call(self.c1, calls.place(1, 5000, [worker])))
        with session.lock:
            state = session.states.obtain("segment", session.generation)
            state.count += 1
            session.ledger.settled(state, 1)
        try:
            self.call(self.c1, calls.commit([calls.Value("segment", 1, attempt, ordinal, 5000, "bytes")]))
        except RedistError:
            with session.lock:
                session.ledger.forfeit(state)
                session.states.discard(state)
            raise
        self.files[worker] = 1
        # without a Future it would be a stray, which a heartbeat lets go of
        self.futures["segment"] = Future._of(state, self.c1)

    def segment(self) -> tuple[str, int]:
        """Name and attempt of that value."""
        state = self.futures["segment"]._state
        return state.name, int(state.where.partition(".")[2])

    def value(self, name: str) -> None:
        self.done(name)
        future = self.futures[name]
        self.seen.append((name, future.status, self.do(future.exception) or self.do(future.result)))

    def refused(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        """See that something is refused, whatever becomes of the first answer."""
        try:
            self.do(function, *args, **options)
        except ServerFull:
            raise
        except Exception as error:
            self.seen.append(type(error).__name__)
        else:
            self.seen.append("not refused")

    def drop(self, *names: str) -> None:
        for name in names:
            del self.futures[name]

    # --- the executor -----------------------------------------------------------------------------------------------

    def run(self, *, quick: bool = False) -> None:
        """Have the executor run everything that there is; `quick` has it take several tasks a turn, and chains of them."""
        tasks: list[HandOut] = []
        while True:
            tasks = self.turn([self.result(task) for task in tasks], tasks, quick=quick)
            if not tasks:
                return
            self.along += [task.name for task in tasks if any(where == "+" for _, where, _ in task.deps)]

    def turn(
        self, results: list[calls.Result], tasks: list[HandOut], *, quick: bool = False
    ) -> list[HandOut]:
        """Hand in what came of `tasks`, and take what is next."""
        batches = sorted({task.batch for task in tasks})
        functions = sorted({task.fn for task in tasks}) if quick else []
        turn = calls.turn(1, MANY if functions else calls.RESYNC, functions, batches, results)
        return list(parse_turn(self.executor.call(turn, TIMEOUT)).tasks)

    def result(self, task: HandOut) -> calls.Result:
        """What comes of a task."""
        name = task.name
        if name in self.errs:
            self.errs.discard(name)
            error = pack_error(ValueError(f"{name} failed"), None, name)
            return calls.Result(name, task.attempt, "erred", len(error), "ValueError", error)
        payload = dumps(self.outcome(name))
        assert payload.inline is not None
        return calls.Result(
            name, task.attempt, "memory", payload.nbytes, payload.type, payload.inline, payload.contains
        )

    def outcome(self, name: str) -> Any:
        """What a task that does not fail returns."""
        return f"value of {name}"

    # --- the end ----------------------------------------------------------------------------------------------------

    def stop(self, *, closed: bool = False) -> None:
        """See that everything is in order, and note how it stands."""
        snapshot = Snapshot(self.execute, self.direct.prefix)
        broken = check(snapshot, quiescent=True, closed=closed)
        assert not broken, "; ".join(map(str, broken))
        self.states.append(normalised(snapshot))

    def execute(self, commands: Any) -> list[Any]:
        self.wire.send(b"".join(pack_command(tuple(command)) for command in commands))
        return [self.wire.read_reply() for _ in commands]

    def finish(self) -> None:
        """All leave; only what is published is left."""
        futures, self.futures = self.futures, {}
        futures.clear()
        for client in self.clients.values():
            self.do(client.close)
            self.settle()
        for kind in ("executor", "worker"):
            for driver in self.drivers:
                if driver.session.kind == kind and not driver.closed:
                    self.wait(lambda: not self.left(), "the work is done")
                    driver.close()
        self.wait(lambda: not self.left() or self.help(), "the work is done")
        self.stop(closed=True)

    def help(self) -> bool:
        """Carry out what the last to leave left to be done."""
        header = calls.Header(self.direct.prefix, 0, "", 0, 0, 0)
        self.wire.send(calls.pack_eval(calls.continue_(), header))
        self.wire.read_reply()
        return False

    def clear(self) -> None:
        """End everything, whatever happened."""
        self.over.set()
        self.metronome.join()
        self.futures.clear()
        for client in self.clients.values():
            self.do(client.close, timeout=1.0)
        for driver in reversed(self.drivers):
            if isinstance(driver, ThreadDriver):
                driver.close(timeout=1.0)
        self.handling.close()
        self.wire.close()


def _gone(driver: Driver) -> bool:
    return driver.closed or driver.session.failure is not None


def _busy(driver: Driver) -> bool:
    session = driver.session
    lane = session.lane
    return not _gone(driver) and bool(
        lane.unanswered or lane.due or lane._loose or session.ledger.dirty or session.collected or session.waits.abandoned
        or not lane.open or not driver.links.up or not session.ready
    )  # fmt: skip
