"""Races of the thread driver, each made to happen."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import hiredis
import pytest

from faults.handling import HANDLINGS
from faults.transport import Event, Fault, Proxy
from redist.diagnostics.doctor import examine
from redist.errors import ConnectionLost, TransferError
from redist.protocol.arguments import pack_arguments
from redist.protocol.specs import pack_spec
from redist.session.links import Links
from redist.session.session import Session
from redist.session.states import Condition, FutureState
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from redist.store.connect import Endpoint
from redist.store.replies import HandOut
from redist.store.side import Side
from redist.store.wire import Wire
from servers import Server, wait_until


@pytest.fixture
def endpoint(valkey: Server, namespace: str) -> Endpoint:
    return valkey.endpoint(namespace)


@pytest.fixture
def driver(endpoint: Endpoint) -> Iterator[ThreadDriver]:
    driver = ThreadDriver(Session(endpoint, "client", "c"), endpoint)
    driver.start()
    yield driver
    driver.close()


@pytest.fixture
def proxied(proxy: Proxy, endpoint: Endpoint) -> Iterator[ThreadDriver]:
    """One named c, behind the proxy."""
    proxy.start_over(None)
    through = proxy.endpoint(endpoint.namespace)
    driver = ThreadDriver(Session(through, "client", "c"), through, check=False)
    driver.start()
    yield driver
    driver.close()


def test_idle_driver_sleeps(driver: ThreadDriver) -> None:
    driver.call(calls.continue_(), 5)
    time.sleep(0.1)
    before = time.thread_time(), time.process_time()
    time.sleep(1.0)
    others = (time.process_time() - before[1]) - (time.thread_time() - before[0])
    assert others < 0.2


def test_reader_whose_descriptor_became_somebody_elses(driver: ThreadDriver) -> None:
    """The connection is replaced between the moment that a reader picks what to poll and the poll."""
    replies: list[object] = []
    waiter = Condition(lambda: replies)
    outcomes: list[bool] = []
    thread = threading.Thread(target=lambda: outcomes.append(driver.wait(waiter, 10, replies=True)))
    thread.start()
    wait_until(lambda: driver._role.holder is waiter)
    time.sleep(0.05)  # it polls
    with driver.lock:
        old = driver.links.command
        assert old is not None
        # Not closed for real: the number stays in use, as if another thread had opened a file.
        old.closed = True
        driver.links.lost_command()
    wait_until(lambda: driver.links.up)
    driver.post(calls.continue_(), replies.append)
    thread.join(15)
    assert outcomes == [True]
    old._sock.close()


def test_registering_anew_keeps_what_has_not_left(driver: ThreadDriver, endpoint: Endpoint) -> None:
    """Tasks that are still collected have no count on the server yet; said too early, it would cancel them."""
    session = driver.session
    states = []
    with driver.lock:
        for i in range(30):
            state = session.states.obtain(f"k{i}", session.generation, "f")
            state.count += 1
            session.submissions.add_function("f", b"F")
            session.submit(state, calls.Task(f"k{i}", "f", b"spec"))
            session.pump()
            states.append(state)
        assert session.collected
        driver.links.transmit()
    wire = endpoint.open()
    # As after an absence for longer than a lease: the server does not know this registration.
    wire.call("HSET", f"{endpoint.prefix}caller:{session.ordinal}", "inc", "another")
    wire.close()
    with driver.lock:
        session.heart.beat()
        driver.links.transmit()
    wait_until(lambda: not session.lane.unanswered and not session.collected and session.lane.registered)
    assert {state.status for state in states} == {"pending"}
    assert driver.wait(lambda: not session.lane.due, 5, replies=True)
    wire = endpoint.open()
    assert [wire.call("EXISTS", f"{endpoint.prefix}key:k{i}") for i in range(30)] == [1] * 30
    wire.close()


def test_tasks_that_a_ctrl_c_sent_twice_are_counted_once(driver: ThreadDriver, endpoint: Endpoint) -> None:
    session = driver.session
    enqueue = session.lane.enqueue

    def interrupted(*args: Any) -> Any:
        enqueue(*args)
        raise KeyboardInterrupt

    with driver.lock:
        session.submissions.add_function("f", b"F")
        for i in range(3):
            state = session.states.obtain(f"k{i}", session.generation, "f")
            state.count += 1
            session.submit(state, calls.Task(f"k{i}", "f", b"spec", flags=calls.FRESH))
        session.lane.enqueue = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            session.pump()
        session.lane.enqueue = enqueue  # type: ignore[method-assign]
        driver.submitted()
    assert driver.wait(lambda: not session.lane.unanswered, 10, replies=True)
    report = examine(endpoint)
    assert not report.violations, "\n".join(map(str, report.violations))


@pytest.mark.parametrize("how", ["heartbeat", "registration"])
def test_what_is_collected_leaves_although_answers_were_lost(
    driver: ThreadDriver, endpoint: Endpoint, how: str
) -> None:
    session = driver.session
    with driver.lock:
        session.submissions.add_function("f", b"F")
        state = session.states.obtain("k", session.generation, "f")
        state.count += 1
        session.submissions.unanswered = 4  # a Ctrl-C hit where the last answers were dealt with
        session.submit(state, calls.Task("k", "f", b"spec"))
        session.pump()
        assert session.collected
        if how == "registration":
            session.lane._on_unregistered()
        else:
            session.heart.beat()
        driver.push_out()
    wire = endpoint.open()
    wait_until(lambda: wire.call("EXISTS", f"{endpoint.prefix}key:k"))
    wire.close()


@pytest.mark.parametrize("handling", HANDLINGS)
def test_close_right_behind_a_connection_that_broke(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, handling: str
) -> None:
    """What is held is let go at once, not only when the lease is over."""
    handled = HANDLINGS[handling]()
    client = handled.client(endpoint, set_as_default=False)
    broken = threading.Event()
    real = Links.reopen

    def reopen(links: Links) -> Any:
        assert broken.wait(10)
        return real(links)

    monkeypatch.setattr(Links, "reopen", reopen)

    def close() -> Any:
        with client._driver.lock:
            client._driver.links.lost_command()
        threading.Timer(0.05, broken.set).start()
        return client.close()

    handled.do(close)
    handled.close()
    wire = endpoint.open()
    assert not wire.call("EXISTS", f"{endpoint.prefix}caller:{client.session.ordinal}")
    wire.close()


def refuse_next(proxy: Proxy, script: str) -> None:
    """Have the server be full for the next call of a script by the client c."""
    before = sum((event.caller, event.what) == ("c", script) for event in proxy.events)
    proxy.fault = Fault("OOM", Event("c", script, before))


def register_anew(proxy: Proxy, driver: ThreadDriver, wire: Wire) -> None:
    """Have the server not know the client's registration any more, and wait until it has a new one, after the fault."""
    session = driver.session
    wire.call("HSET", f"{driver.endpoint.prefix}caller:{session.ordinal}", "inc", "another")
    with driver.lock:
        session.heart.beat()
        driver.push_out()
    wait_until(lambda: proxy.fault is not None and proxy.fault.fired and session.lane.registered)


def test_full_server_does_not_end_a_session_that_registers_anew(
    proxy: Proxy, proxied: ThreadDriver, endpoint: Endpoint
) -> None:
    driver, session = proxied, proxied.session
    refuse_next(proxy, "register")
    wire = endpoint.open()
    register_anew(proxy, driver, wire)
    assert session.failure is None
    assert (
        wire.call("HGET", f"{endpoint.prefix}caller:{session.ordinal}", "inc").decode() == session.incarnation
    )
    wire.close()


def test_full_server_keeps_the_tasks_of_who_registers_anew(
    proxy: Proxy, proxied: ThreadDriver, endpoint: Endpoint
) -> None:
    """It refuses to be told them once more, and takes the counts."""
    driver, session = proxied, proxied.session

    def submit(name: str, *deps: str) -> FutureState:
        with driver.lock:
            session.submissions.add_function("f", b"F")
            state = session.states.obtain(name, session.generation, "f")
            state.count += 1
            session.submit(state, calls.Task(name, "f", b"spec", deps))
            driver.submitted()
        return state

    def field(name: str) -> bytes | None:
        value: bytes | None = wire.call("HGET", f"{endpoint.prefix}key:{name}", f"refs:{session.ordinal}")
        return value

    x, on_x = submit("x"), submit("on x", "x")
    assert driver.wait(lambda: not session.lane.unanswered, 10, replies=True)
    refuse_next(proxy, "submit")
    wire = endpoint.open()
    register_anew(proxy, driver, wire)
    assert driver.wait(lambda: not (session.lane.unanswered or session.lane.due), 10, replies=True)
    assert not wire.call("EXISTS", f"{endpoint.prefix}stale:{session.ordinal}")
    assert [state.status for state in (x, on_x)] == ["pending", "pending"]
    assert [field("x"), field("on x")] == [b"1", b"1"]
    again = submit("y")  # its function was to be brought by what was refused
    assert driver.wait(lambda: not session.lane.unanswered, 10, replies=True)
    assert again.status == "pending"
    wire.close()
    report = examine(endpoint)
    assert not report.violations, "\n".join(map(str, report.violations))


def test_server_that_stays_away_fails_no_task() -> None:
    from redist_worker.tasks import Tasks

    class Away:
        endpoint = Endpoint.__new__(Endpoint)

        def command(self, *args: object) -> None:
            raise ConnectionLost("away")

    Away.endpoint.prefix = "redist:{x}:"
    tasks = Tasks(Away(), None, None)  # type: ignore[arg-type]
    result, _ = tasks.execute(HandOut(1, 1, "k", "f" * 24, b"", [], 0))
    assert result.status == "retry"


@pytest.mark.parametrize(("of_an_actor", "status"), [(False, "retry"), (True, "memory")])
def test_a_worker_that_dies_before_it_has_the_result_fails_no_task(of_an_actor: bool, status: str) -> None:
    """Its executors live a moment longer. A call of an actor may run once: its value is the error."""
    from redist_worker.tasks import Tasks

    class Dead:
        def put(self, *args: object) -> None:
            raise TransferError("the worker cannot be reached: Broken pipe")

    tasks = Tasks(None, None, Dead())  # type: ignore[arg-type]
    fn = "f" * 24
    tasks._functions[fn] = lambda: bytes(100_000)
    if of_an_actor:
        tasks._of_actors.add(fn)
    spec = pack_spec(fn, pack_arguments((), {}).data)
    result, _ = tasks.execute(HandOut(1, 1, "k", fn, spec, [], 0))
    assert result.status == status


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ("LOADING Redis is loading the dataset in memory", "retry"),
        ("READONLY You can't write against a read only replica.", "retry"),
        ("NOPERM No permissions to access a key", "erred"),
    ],
)
def test_server_that_does_not_answer_for_longer_than_a_read_may_last(words: str, status: str) -> None:
    """While it loads its data, as when it is away, the task waits; what does not pass by itself is told."""
    from redist_worker.tasks import Tasks

    class Refusing:
        def call(self, *args: object) -> None:
            raise hiredis.ReplyError(words)

    class At:
        url, prefix, timeout = "unix:///loading", "redist:{x}:", 0.1

        def open(self, timeout: float, *, retry: bool) -> Refusing:
            return Refusing()

    tasks = Tasks(Side(At()), None, None)  # type: ignore[arg-type]
    result, _ = tasks.execute(HandOut(1, 1, "k", "f" * 24, b"", [], 0))
    assert result.status == status
