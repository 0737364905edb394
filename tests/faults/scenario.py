"""A fixed small story of two clients, a worker and an executor, told step by step by one thread.

The executor is driven here, by `calls.turn`, so that every run makes the same calls in the same order. What a task returns
hangs on its key. A step that fails is noted and the story goes on; a step can be left out.
"""

from __future__ import annotations

import pickle
import re
import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from redist import Client
from redist.diagnostics.invariants import check
from redist.diagnostics.reading import Snapshot, kind_of
from redist.errors import CancelledError, RedistError
from redist.protocol import dumps, pack_error
from redist.session.session import Session
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from redist.store.connect import Endpoint
from redist.store.replies import HandOut, parse_place, parse_turn
from redist.store.wire import pack_command

__all__ = ["Story"]

#: Long enough that nobody beats by himself: when nothing moves, the story does it.
LEASE = 1000.0
STALLED = 0.15
TIMEOUT = 15.0
MANY = 16  # tasks that a turn takes where they are quick


def work(*args: Any) -> None:
    """What is submitted; nobody calls it."""


class Story:
    """The processes of the story, and its steps.

    Parameters
    ----------
    endpoint : Endpoint
        The server, through the proxy.
    direct : Endpoint
        The server itself.
    skip : collection of str
        Steps that are left out.

    Attributes
    ----------
    failed : dict
        Step -> the error that it ended with.
    seen : list
        What the clients got to see.
    states : list
        The state in the server at each stop, without what differs from run to run.
    along : list of str
        Tasks that were taken with the one that they wait for; the repeat of a turn does not say so.
    """

    def __init__(self, endpoint: Endpoint, direct: Endpoint, skip: Collection[str] = ()) -> None:
        self.endpoint, self.direct, self.skip = endpoint, direct, skip
        self.failed: dict[str, BaseException] = {}
        self.seen: list[Any] = []
        self.states: list[dict[str, Any]] = []
        self.along: list[str] = []
        self.futures: dict[str, Any] = {}
        self.drivers: list[ThreadDriver] = []
        self.clients: dict[str, Client] = {}
        self.errs = {"bad", "flaky"}
        self.wire = direct.open()
        self.moves = 0
        self.over = threading.Event()
        self.metronome = threading.Thread(target=self.beat)
        self.metronome.start()

    # --- the processes ----------------------------------------------------------------------------------------------

    def driver(self, kind: str, name: str, details: dict[str, str], parent: int = 0) -> ThreadDriver:
        session = Session(self.endpoint, kind, name, details, parent, lease=LEASE)
        if kind == "worker":
            session.heart.make = lambda: calls.worker_heartbeat(self.files, session.lane.n, int(LEASE * 1000))
        driver = ThreadDriver(session, self.endpoint, check=False)
        self.drivers.append(driver)
        driver.start(TIMEOUT)
        return driver

    def client(self, name: str) -> Client:
        client = Client(self.endpoint, name=name, heartbeat_interval=LEASE / 5, timeout=TIMEOUT)
        self.drivers.append(client._driver)
        self.clients[name] = client
        return client

    files = 0

    def open(self) -> None:
        self.worker = self.driver("worker", "w", {"address": "tcp://w:1", "hostid": "h", "pid": "1"})
        self.executor = self.driver(
            "executor", "e", {"threads": "1", "pid": "2"}, self.worker.session.ordinal
        )
        self.c1 = self.client("c1")
        self.c2 = self.client("c2")

    def wait(self, what: Callable[[], Any], text: str) -> None:
        """Wait until `what`."""
        deadline = time.monotonic() + TIMEOUT
        while not what():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {TIMEOUT:g} s: {text}; {self.describe()}")
            time.sleep(0.001)

    def beat(self) -> None:
        """While the story stands still, make heartbeats that would come later by themselves."""
        before = -1
        while not self.over.wait(STALLED):
            if self.moves == before:
                for driver in list(self.drivers):
                    if not driver.closed:
                        with driver.lock:
                            driver.session.heart.beat()
                            driver.push_out()
            before = self.moves

    def describe(self) -> str:
        return "; ".join(
            f"{driver!r} unanswered {[(e.n, e.call.script.name) for e in driver.session.lane.unanswered]} "
            f"failure {driver.session.failure!r} states {list(driver.session.states)}"
            for driver in self.drivers
        )

    def done(self, *names: str, client: Client | None = None) -> None:
        futures = [self.futures[name] for name in names]
        self.wait(lambda: all(future.done() for future in futures), f"{names} are done")

    def run(self, *, quick: bool = False) -> None:
        """Have the executor run everything that there is; `quick` has it take several tasks a turn, and chains of them."""
        tasks: list[HandOut] = []
        while True:
            results = [self.result(task) for task in tasks]
            batches = sorted({task.batch for task in tasks})
            functions = sorted({task.fn for task in tasks}) if quick else []
            turn = calls.turn(1, MANY if functions else calls.RESYNC, functions, batches, results)
            tasks = parse_turn(self.executor.call(turn, TIMEOUT)).tasks
            if not tasks:
                return
            self.along += [task.name for task in tasks if any(where == "+" for _, where, _ in task.deps)]

    def result(self, task: HandOut) -> calls.Result:
        name = task.name
        if name in self.errs:
            self.errs.discard(name)
            error = pack_error(ValueError(f"{name} failed"), None, name)
            return calls.Result(name, task.attempt, "erred", len(error), "ValueError", error)
        value: Any = f"value of {name} " + "x" * (100 if name == "b" else 0)
        if name == "container":
            value = {"inner": self.futures["a"]} if "a" in self.futures else {}
        payload = dumps(value)
        assert payload.inline is not None
        return calls.Result(
            name, task.attempt, "memory", payload.nbytes, payload.type, payload.inline, payload.contains
        )

    # --- the steps --------------------------------------------------------------------------------------------------

    def step(self, name: str, body: Callable[[], Any]) -> None:
        """Do one step, unless it is to be left out; one that cannot be done for lack of another is left out too."""
        if name in self.skip:
            return
        try:
            body()
        except KeyError:
            pass
        except (RedistError, CancelledError) as error:
            # The frames hold Futures.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self.failed[name] = error

    def submit(
        self, name: str, *deps: str, client: Client | None = None, retries: int = 0, step: str = ""
    ) -> None:
        def body() -> None:
            args = [[self.futures[d]] for d in deps]
            future = (client or self.c1).submit(work, name, *args, key=name, retries=retries)
            self.futures[step or name] = future
            self.settle()
            if future.status == "error":
                self.futures.pop(step or name)
                error = future.exception()
                if type(error).__module__.startswith("redist"):
                    raise error

        self.step(f"submit {step or name}", body)

    def settle(self) -> None:
        """Wait until every call is answered and the work list is empty."""
        self.moves += 1
        self.wait(
            lambda: not any(map(_busy, self.drivers)) and not self.command("EXISTS", "work"), "it is quiet"
        )

    def command(self, word: str, key: str, *args: str) -> Any:
        return self.wire.call(word, self.direct.prefix + key, *args)

    def value(self, name: str) -> None:
        self.done(name)
        self.seen.append(
            (name, self.futures[name].status, self.futures[name].exception() or self.futures[name].result())
        )

    def scatter_segment(self) -> None:
        session = self.c1.session
        ((attempt, worker),) = parse_place(self.c1._driver.call(calls.place(1, 5000), TIMEOUT))
        with session.lock:
            state = session.states.obtain("segment", session.generation)
            state.count += 1
            session.ledger.settled(state, 1)
        try:
            self.c1._driver.call(
                calls.commit([calls.Value("segment", 1, attempt, worker, 5000, "bytes")]), TIMEOUT
            )
        except RedistError:
            with session.lock:
                session.ledger.forfeit(state)
                session.states.discard(state)
            raise
        self.files = 1
        self.futures["segment"] = state

    def lose_segment(self) -> None:
        """The worker finds that the file is gone; what depends on it cannot be computed."""
        copies = [(self.futures["segment"].name, int(self.futures["segment"].where.partition(".")[2]))]
        self.worker.call(calls.remove_replicas(copies), TIMEOUT)
        self.files = 0

    def hand_over(self) -> None:
        packed = pickle.dumps(self.futures["a"])
        self.settle()
        with self.c2.as_current():
            self.futures["a of c2"] = pickle.loads(packed)

    def read_dataset(self) -> None:
        self.futures["read"] = self.c2.get_dataset("ds")
        self.seen.append(("dataset", [future.key for future in self.futures["read"]]))

    def drop(self, *names: str) -> None:
        for name in names:
            del self.futures[name]

    def tell(self) -> None:
        """The whole story."""
        self.open()
        self.settle()
        step, futures = self.step, self.futures
        self.submit("a")
        self.submit("b", "a")
        self.submit("c", "a", "b")
        self.submit("a", step="a again")
        self.submit("b", client=self.c2, step="b of c2")
        self.submit("z")
        self.submit("on z", "z")
        self.submit("y", client=self.c2)
        self.submit("y", step="y of c1")
        step("cancel z", lambda: self.c1.cancel([futures["z"]]))
        self.settle()
        step("cancel y", lambda: self.c1.cancel([futures["y of c1"]], force=True))
        self.settle()
        self.run()
        self.settle()
        for name in ("a", "b", "c", "a again", "b of c2"):
            step(f"value {name}", lambda name=name: self.value(name))
        step("cancelled", lambda: self.done("z", "on z", "y", "y of c1"))
        step("release a", lambda: self.drop("a again"))
        self.settle()

        self.submit("container")
        self.submit("bad")
        self.submit("on bad", "bad")
        self.submit("flaky", retries=1)
        self.run()
        self.settle()
        for name in ("bad", "on bad", "flaky"):
            step(f"value {name} 1", lambda name=name: self.value(name))
        step("open container", lambda: futures.update(futures["container"].result()))
        step("inner", lambda: self.value("inner"))
        step("release container", lambda: self.drop("container"))
        self.settle()
        step("retry", lambda: self.c1.retry([futures["bad"]]))
        self.settle()
        self.run()
        self.settle()
        step("value bad 2", lambda: self.value("bad"))
        step("value on bad 2", lambda: self.value("on bad"))

        self.submit("q0")
        for i in range(1, 5):
            self.submit(f"q{i}", f"q{i - 1}")
        self.run(quick=True)
        self.settle()
        step("value of the chain", lambda: self.value("q4"))
        step("release the chain", lambda: self.drop("q0", "q1", "q2", "q3", "q4"))
        self.settle()

        step(
            "scatter", lambda: futures.update(zip(("s", "t"), self.c1.scatter([b"s" * 200, [futures["c"]]])))
        )
        self.settle()
        step("value s", lambda: self.value("s"))
        step("scatter segment", self.scatter_segment)
        self.settle()
        self.submit("fire")
        self.submit("hold", "s")
        step("fire", lambda: self.c1._fire([futures["fire"]]))
        step("drop fire", lambda: self.drop("fire"))
        self.settle()
        self.stop()

        self.run()
        self.settle()
        step("hand over", self.hand_over)
        self.settle()
        step("publish", lambda: self.c1.publish_dataset([futures["a"], futures["b"]], name="ds"))
        step("publish kept", lambda: self.c1.publish_dataset([futures["c"]], name="kept"))
        step("read", self.read_dataset)
        self.settle()
        step("override", lambda: self.c1.publish_dataset([futures["s"]], name="ds", override=True))
        step("read value", lambda: self.seen.append(self.c2.gather(futures["read"])))
        step("unpublish", lambda: self.c2.unpublish_dataset("ds"))
        step("lose segment", self.lose_segment)
        self.settle()
        self.stop()

        step("release", lambda: self.drop("a", "b", "read"))
        self.settle()
        self.stop()

        self.c2.close()
        self.settle()
        self.stop()

    def finish(self) -> None:
        """All leave; only what is published is left."""
        futures, self.futures = self.futures, {}
        futures.clear()
        self.c1.close()
        self.settle()
        self.executor.close()
        self.settle()
        self.worker.close()
        self.wait(lambda: not self.command("EXISTS", "work") or self.help(), "the work is done")
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
            client.close(timeout=1.0)
        for driver in reversed(self.drivers):
            driver.close(timeout=1.0)
        self.wire.close()

    # --- the state in the server ------------------------------------------------------------------------------------

    def stop(self, *, closed: bool = False) -> None:
        snapshot = Snapshot(self.execute, self.direct.prefix)
        broken = check(snapshot, quiescent=True, closed=closed)
        assert not broken, "; ".join(map(str, broken))
        self.states.append(normalised(snapshot))

    def execute(self, commands: Any) -> list[Any]:
        self.wire.send(b"".join(pack_command(tuple(command)) for command in commands))
        return [self.wire.read_reply() for _ in commands]


def _busy(driver: ThreadDriver) -> bool:
    session = driver.session
    lane = session.lane
    if driver.closed or session.failure is not None:
        return False
    with driver.lock:
        return bool(
            lane.unanswered or lane.due or lane._loose or session.ledger.dirty or session.collected
            or not lane.open or not driver.links.up or not session.ready
        )  # fmt: skip


#: Fields that tell how it came about, not how it stands.
_HISTORY = frozenset((
    "since", "seen", "n", "inc", "pushed", "checked", "checksum", "enqueued",
    "attempt", "ordinal", "secret", "swept", "revivals", "version", "placed",
    "grown", "quiet_until", "lease", "metrics",
))  # fmt: skip


def normalised(snapshot: Snapshot) -> dict[str, Any]:
    """Return the state without numbers of attempts, ordinals, and times."""
    names = {}
    for key in snapshot.keys():  # noqa: SIM118
        if key.startswith("caller:"):
            names[key[7:]] = snapshot.hgetall(key).get("name", "?")

    def holder(ordinal: str) -> str:
        return f"<{names.get(ordinal, ordinal)}>"

    def plain(text: str) -> str:
        text = re.sub(r"^queued \d+$", "queued", text)
        text = re.sub(r"^processing e(\d+)\.\d+$", lambda m: f"processing {holder(m[1])}", text)
        return re.sub(r"^(@.*@)\d+$", r"\1#", text)

    def named(key: str) -> str:
        family, _, rest = key.partition(":")
        if family == "contains":
            return f"contains:{plain(rest.partition(' ')[2])}"
        if family in (
            "refs",
            "w",
            "caller",
            "holds",
            "has",
            "batches",
            "functions",
            "executors",
            "inbox",
            "stale",
        ):
            return f"{family}:{holder(rest)}" if rest else key
        return f"{family}:{plain(rest)}" if rest else key

    state: dict[str, Any] = {}
    for key in snapshot.keys():  # noqa: SIM118
        kind = kind_of(key)
        family = key.partition(":")[0]
        if family == "answers":
            continue
        if kind == "hash":
            fields = snapshot.hgetall(key)
            if family in ("has", "datasets"):
                value: Any = sorted(fields)
            elif family in ("clients", "workers", "executors", "batches"):
                value = sorted(fields.values())
            else:
                value = {
                    named(f): "#"
                    if f.startswith("w:") or f == "contains"
                    else holder(v)
                    if f == "worker"
                    else plain(v)
                    for f, v in fields.items()
                    if f not in _HISTORY and not f.startswith("claim")
                }
        elif kind == "set":
            members = snapshot.smembers(key)
            if family == "executors":
                value = sorted(map(holder, members))
            else:
                value = sorted(plain(m.partition(" ")[2] if family == "containers" else m) for m in members)
        elif kind == "zset":
            ordinals = family in ("idle", "leases")
            value = sorted(holder(member) if ordinals else member for member in snapshot.zrange(key))
        elif kind == "list":
            value = [item.rpartition(" ")[2] for item in snapshot.lrange(key)]
        else:
            value = snapshot.get(key)
        state[named(key)] = value
    return state
