"""The thread driver on a real server: waiting, many threads, broken connections, lost state, fork, Ctrl-C, close."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import msgpack
import pytest

from redist.errors import ClientClosed, ForkedClientError
from redist.session.links import Links
from redist.session.session import Session
from redist.session.thread_driver import ThreadDriver
from redist.store import calls, connect
from redist.store.connect import Endpoint
from redist.store.replies import Beat, parse_states
from redist.store.server import EmbeddedServer
from servers import Server, wait_until


def keys(endpoint: Endpoint) -> list[str]:
    wire = endpoint.open()
    try:
        return sorted(
            key.decode()[len(endpoint.prefix) :] for key in wire.call("KEYS", f"{endpoint.prefix}*")
        )
    finally:
        wire.close()


def record(endpoint: Endpoint, name: str) -> dict[str, str]:
    wire = endpoint.open()
    try:
        flat = wire.call("HGETALL", f"{endpoint.prefix}key:{name}")
    finally:
        wire.close()
    return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}


def test_simple(caller: Any, endpoint: Endpoint) -> None:
    state = caller.submit("a")
    assert caller.wait(state)
    assert (state.status, state.value) == ("finished", b"a")
    caller.release(state)
    wait_until(lambda: not record(endpoint, "a"), what="the key is gone")
    assert len(caller.session.states) == 0


def test_error(caller: Any) -> None:
    state = caller.submit("a", b"boom")
    assert caller.wait(state)
    assert (state.status, state.type) == ("error", "ValueError")


def test_many(caller: Any, endpoint: Endpoint) -> None:
    states = [caller.submit(f"k{i}") for i in range(1000)]
    assert caller.wait(*states)
    assert all(state.value == state.name.encode() for state in states)
    caller.release(*states)
    wait_until(
        lambda: not [key for key in keys(endpoint) if key.startswith("key:")], what="all keys are gone"
    )
    wait_until(lambda: caller.session.ledger.keys == 0)


def test_chain_whose_links_are_dropped_at_once(caller: Any) -> None:
    state = caller.submit("c0")
    for i in range(1, 300):
        after = caller.submit(f"c{i}", deps=(state.name,))
        caller.release(state)
        state = after
    assert caller.wait(state)
    assert state.status == "finished"


def test_a_task_with_many_dependencies_that_are_dropped_at_once(caller: Any, endpoint: Endpoint) -> None:
    states = [caller.submit(f"k{i}") for i in range(3000)]
    assert caller.wait(*states)
    after = caller.submit("all", deps=tuple(state.name for state in states))
    caller.release(*states)
    assert caller.wait(after)
    assert after.status == "finished"
    caller.release(after)
    wait_until(lambda: not [key for key in keys(endpoint) if key.startswith("key:")])


def test_timeout(caller: Any, executor: Any) -> None:
    executor.gate.clear()
    state = caller.submit("a")
    began = time.monotonic()
    assert not caller.wait(state, timeout=0.1)
    assert 0.1 <= time.monotonic() - began < 5
    executor.gate.set()
    assert caller.wait(state)


def test_many_threads_wait_on_one_client(caller: Any) -> None:
    done: list[bytes | None] = []
    errors: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for i in range(30):
                state = caller.submit(f"t{k}-{i}")
                assert caller.wait(state)
                done.append(state.value)
                caller.release(state)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(50)
    assert errors == []
    assert sorted(done) == sorted(f"t{k}-{i}".encode() for k in range(8) for i in range(30))


@pytest.mark.parametrize("kind", ["normal", "pubsub"])
def test_killed_connections(caller: Any, executor: Any, valkey: Server, kind: str) -> None:
    for i in range(5):
        executor.gate.clear()
        states = [caller.submit(f"k{i}-{j}") for j in range(20)]
        valkey.admin("CLIENT", "KILL", "TYPE", kind)
        executor.gate.set()
        assert caller.wait(*states)
        assert {state.status for state in states} == {"finished"}


def test_forgotten_scripts(caller: Any, valkey: Server) -> None:
    for i in range(5):
        states = [caller.submit(f"k{i}-{j}") for j in range(20)]
        valkey.admin("SCRIPT", "FLUSH")
        assert caller.wait(*states)


def test_lost_push_is_asked_for(caller: Any, executor: Any) -> None:
    caller.session.heart.lease = 1.0
    on_message = caller.session.on_message
    lost = []

    def lossy(channel: bytes, data: bytes) -> None:
        if msgpack.unpackb(data, raw=True)[0] == b"s" and len(lost) < 2:
            lost.append(data)
        else:
            on_message(channel, data)

    caller.session.on_message = lossy
    first = caller.submit("a")
    wait_until(lambda: len(lost) == 1)
    second = caller.submit("b")
    assert caller.wait(first, second)
    assert len(lost) == 2


def test_server_that_forgot_everything(
    caller: Any, endpoint: Endpoint, executor: Any, valkey: Server
) -> None:
    """Everybody registers anew and brings what it has; what is unfinished is submitted again."""
    finished = caller.submit("done")
    assert caller.wait(finished)
    executor.gate.clear()
    states = [caller.submit(f"k{i}") for i in range(10)]
    wait_until(lambda: record(endpoint, "k9"))
    valkey.forget(endpoint.namespace)
    executor.gate.set()
    for session in (caller.session, executor.session, executor.worker.session):
        session.heart.lease = 1.0
        session.heart.at = 0.0
    executor.worker._kick()
    caller.driver._kick()
    executor.driver._kick()
    assert caller.wait(*states)
    assert {state.status for state in states} == {"finished"}
    assert finished.status == "finished"
    wait_until(lambda: record(endpoint, "done").get(f"refs:{caller.session.ordinal}") == "1")
    assert record(endpoint, "k3")[f"refs:{caller.session.ordinal}"] == "1"


def test_what_only_the_server_had_is_computed_again(
    caller: Any, endpoint: Endpoint, executor: Any, valkey: Server
) -> None:
    """A value that is too long to be pushed, and that nobody has read yet, is nowhere else."""
    long, short = caller.submit("long", b"v" * 2000), caller.submit("short")
    assert caller.wait(long, short)
    assert long.value is None
    valkey.forget(endpoint.namespace)
    for session in (caller.session, executor.session, executor.worker.session):
        session.heart.at = 0.0
    executor.worker._kick()
    caller.driver._kick()
    executor.driver._kick()
    wait_until(lambda: record(endpoint, "long").get("nbytes") == "2000")
    wait_until(lambda: long.status == "finished")
    assert record(endpoint, "short")["nbytes"] == "5"


@pytest.mark.parametrize("how", ["call", "heartbeat"])
def test_a_server_that_missed_writes_frees_nothing_for_a_while(
    caller: Any, endpoint: Endpoint, executor: Any, how: str
) -> None:
    """As a replica that took over: it knows everybody, and less of each lane than was answered."""
    state = caller.submit("a")
    assert caller.wait(state)
    session = caller.session
    assert caller.driver.wait(lambda: not session.lane.unanswered, 10, replies=True)
    incarnation = session.incarnation
    wire = endpoint.open()
    wire.call("HINCRBY", f"{endpoint.prefix}caller:{session.ordinal}", "n", -1)
    with session.lock:
        if how == "call":
            session.lane.enqueue(calls.ledger([("a", 1)]))
        else:
            session.heart.beat()
        caller.driver.push_out()
    wait_until(lambda: session.incarnation != incarnation and session.ready, what="it registers anew")
    assert wire.call("HGET", f"{endpoint.prefix}meta", "recovering") is not None
    wire.close()


def test_restart_cancels(caller: Any, new_caller: Any, executor: Any) -> None:
    executor.gate.clear()
    mine = caller.submit("a")
    other = new_caller()
    reply = other.driver.call(calls.restart())
    assert int(reply[2]) == 2
    assert caller.wait(mine)
    assert mine.status == "cancelled"
    assert "restarted" in str(mine.cache)
    executor.gate.set()
    caller.release(mine)
    assert caller.session.generation == 2
    again = caller.submit("a")
    assert again is not mine
    assert caller.wait(again)
    assert again.status == "finished"


def test_heartbeats_agree(caller: Any) -> None:
    beats: list[Beat] = []
    caller.session.on_beat = beats.append
    caller.session.heart.lease = 0.25
    states = [caller.submit(f"k{i}") for i in range(50)]
    assert caller.wait(*states)
    caller.release(*states[::2])
    seen = len(beats)
    wait_until(lambda: len(beats) > seen + 5)
    assert all(beat.agree for beat in beats)


def test_counts_that_disagree_are_said_anew(caller: Any, endpoint: Endpoint) -> None:
    a, b = caller.submit("a"), caller.submit("b")
    assert caller.wait(a, b)
    wire = endpoint.open()
    field = f"refs:{caller.session.ordinal}"
    wire.call("HDEL", f"{endpoint.prefix}key:a", field)
    wire.call("SREM", f"{endpoint.prefix}holds:{caller.session.ordinal}", "a")
    wire.close()
    caller.session.heart.lease = 0.25
    caller.session.heart.at = 0.0
    caller.driver._kick()
    wait_until(lambda: record(endpoint, "a").get(field) == "1", what="the count is there again")
    assert record(endpoint, "b")[field] == "1"


def test_close_releases_everything(new_caller: Any, executor: Any, endpoint: Endpoint) -> None:
    caller = new_caller()
    states = [caller.submit(f"k{i}") for i in range(700)]
    assert caller.wait(*states)
    caller.close()
    wait_until(lambda: not [key for key in keys(endpoint) if key.startswith(("key:", "holds:"))])
    assert states[0].status == "cancelled"
    with pytest.raises(ClientClosed):
        caller.submit("x")


def test_close_wakes_who_waits(new_caller: Any, executor: Any) -> None:
    executor.gate.clear()
    caller = new_caller()
    states = [caller.submit(f"k{i}") for i in range(3)]
    outcomes: list[Any] = []

    def wait(state: Any) -> None:
        try:
            outcomes.append((caller.wait(state), state.status))
        except ClientClosed:
            outcomes.append("closed")

    threads = [threading.Thread(target=wait, args=(state,)) for state in states]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(caller.driver._role.parked) == 2)
    caller.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert len(outcomes) == 3
    assert set(outcomes) <= {"closed", (True, "cancelled")}


def test_interrupt_in_a_wait(caller: Any, executor: Any) -> None:
    executor.gate.clear()
    state = caller.submit("a")
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        caller.wait(state)
    timer.join()
    executor.gate.set()
    assert caller.wait(state)
    assert caller.wait(caller.submit("b"))


def test_ctrl_c_between_noting_a_call_as_sent_and_sending_it(
    caller: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who waits, after something came: the next reply is not taken for that call's."""
    real = Links.transmit
    asked: list[Any] = []
    replies: list[Any] = []

    def struck(self: Links) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and not asked and sys._getframe(1).f_code is ThreadDriver._take.__code__:
            asked.append(self.session.lane.enqueue(calls.states(["a"]), replies.append, replies.append))
            self.session.lane.outgoing.clear()
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(Links, "transmit", struck)
    with pytest.raises(KeyboardInterrupt):
        while True:
            caller.wait(caller.submit(f"k{time.monotonic()}"))
    state = caller.submit("a")
    assert caller.wait(state)
    wait_until(lambda: replies, what="the call is sent")
    (found,) = parse_states(replies[0])
    assert found.name == "a"


def test_ctrl_c_twice(caller: Any, executor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one comes while the first one's wait gives up the reader's role."""
    executor.gate.clear()
    state = caller.submit("a")
    driver = caller.driver
    real = ThreadDriver._leave
    strikes = []

    def struck(self: ThreadDriver, waiter: Any) -> None:
        if self is driver and threading.current_thread() is threading.main_thread() and not strikes:
            strikes.append(waiter)
            raise KeyboardInterrupt
        real(self, waiter)

    monkeypatch.setattr(ThreadDriver, "_leave", struck)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        caller.wait(state)
    timer.join()
    assert strikes
    executor.gate.set()
    wait_until(lambda: driver._role.holder is None, 5, "the role is free")
    wait_until(lambda: state.status == "finished", 5, "the background thread receives")
    assert caller.wait(caller.submit("b"))


def test_fork(caller: Any) -> None:
    state = caller.submit("a")
    assert caller.wait(state)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            caller.release(state)
            try:
                caller.submit("b")
            except ForkedClientError:
                os.write(writing, b"forked")
            caller.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    assert os.read(reading, 100) == b"forked"
    os.close(reading)
    other = caller.submit("b")
    assert caller.wait(other)
    assert record_of(caller, "a") == {f"refs:{caller.session.ordinal}": "1"}


def record_of(caller: Any, name: str) -> dict[str, str]:
    fields = record(caller.driver.endpoint, name)
    return {field: value for field, value in fields.items() if field.startswith("refs:")}


def test_no_server(endpoint: Endpoint, tmp_path: Any) -> None:
    from redist.errors import ConnectionLost
    from redist.store.connect import endpoint as endpoint_of

    nowhere = endpoint_of(f"unix://{tmp_path}/nothing.sock")
    driver = ThreadDriver(Session(nowhere, "client", "c"), nowhere)
    with pytest.raises(ConnectionLost):
        driver.start(1.0)
    assert driver.closed


@pytest.mark.parametrize("kind", ["client", "executor"])
def test_the_log_tells_once_that_the_server_is_away_and_once_that_it_is_back(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    caplog.set_level("INFO", "redist.session")
    with EmbeddedServer(bind="127.0.0.1") as server:
        point = connect.endpoint(server.url)
        driver = ThreadDriver(Session(point, "client", "c"), point)
        driver.links._level = Links(Session(point, kind, "c"), point, list)._level
        driver.start()
        try:
            server.stop()
            wait_until(lambda: driver.links._pause >= 0.3)
            server.start()
            assert driver.wait(lambda: driver.links.up and driver.session.ready, 10)
        finally:
            driver.close()
    told = [record.getMessage() for record in caplog.records if point.url in record.getMessage()]
    assert len(told) == (2 if kind == "client" else 0)
    if told:
        assert told[0].endswith("trying again until it answers")
        assert told[1] == f"connected to {point.url} again"
