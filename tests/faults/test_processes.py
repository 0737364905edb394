"""Processes that are killed, stopped, forked and interrupted in the middle of a running graph."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from functools import partial
from typing import Any

import cloudpickle
import pytest

from faults import programs
from faults.rig import PATIENCE, Rig, crash, line, progress
from redist.errors import CancelledError, ClientClosed, DataLost, ForkedClientError
from servers import wait_until

pytestmark = pytest.mark.timeout(90)

# Workers do not find this folder.
cloudpickle.register_pickle_by_value(programs)


@pytest.fixture
def seed() -> int:
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    return seed


# --- kill -9 --------------------------------------------------------------------------------------------------------


def test_client_is_killed(rig: Rig) -> None:
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    victim = rig.program("holder", "1.0")
    word, ordinal = line(victim)
    assert word == "ready"
    result = programs.graph(client, 150, rig.counts, 0.002)
    progress(rig, 20)
    victim.kill()
    assert result.result(PATIENCE) == sum(range(150))
    wait_until(lambda: ordinal not in rig.hash("clients"), PATIENCE, "the client is gone")
    wait_until(lambda: rig.names() == [result.key], PATIENCE, "its keys are gone")
    rig.finish()


def test_executors_are_killed(rig: Rig, seed: int) -> None:
    rng = random.Random(seed)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    result = programs.graph(client, 200, rig.counts, 0.005)
    for count in sorted(rng.sample(range(10, 180), 3)):
        progress(rig, count)
        pids = rig.executor_pids()
        if pids:
            os.kill(rng.choice(pids), signal.SIGKILL)
    assert result.result(PATIENCE) == sum(range(200))
    del result
    rig.finish()


@pytest.mark.parametrize("again", [True, False])
def test_worker_is_killed(rig: Rig, again: bool) -> None:
    rig.worker("w1")
    victim = rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    big = client.map(programs.large, range(30), pure=False)
    result = programs.graph(client, 150, rig.counts, 0.005)
    whole = client.submit(programs.total, big, pure=False)
    progress(rig, 20)
    victim.kill()
    if again:
        rig.worker("w2")
    assert result.result(PATIENCE) == sum(range(150))
    assert whole.result(PATIENCE) == 30 * 50_000
    assert client.submit(programs.total, big, pure=False).result(PATIENCE) == 30 * 50_000
    assert [len(value) for value in client.gather(big)] == [50_000] * 30
    del big, result, whole
    rig.finish()


def test_server_is_killed(own_server: Any) -> None:
    rig, server = own_server(True)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    big = client.map(programs.large, range(20), pure=False)
    result = programs.graph(client, 200, rig.counts, 0.002)
    for count in (20, 150):
        progress(rig, count)
        crash(server)
    assert result.result(PATIENCE) == sum(range(200))
    assert client.submit(programs.total, big, pure=False).result(PATIENCE) == 20 * 50_000
    del big, result
    rig.finish()


def test_server_comes_back_with_nothing(own_server: Any) -> None:
    """Who holds a Future brings its task again; what nobody brings is lost, and nobody waits for ever."""
    rig, server = own_server(False)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    big = client.map(programs.large, range(10), pure=False)
    client.gather(big)
    done = client.map(programs.leaf, range(10), counts="", pure=False)
    client.gather(done)
    leaves = client.map(programs.leaf, range(100), counts=rig.counts, pause=0.01, pure=False)
    held = client.submit(programs.total, leaves, pure=False)
    loose = programs.graph(client, 60, "", 0.01)
    progress(rig, 10)
    crash(server)
    assert held.result(PATIENCE) == sum(range(100))
    try:
        assert loose.result(PATIENCE) == sum(range(60))
    except (DataLost, CancelledError) as error:
        print(f"lost, as it may be: {error}")
    assert client.submit(programs.total, done, pure=False).result(PATIENCE) == 45
    assert client.submit(programs.total, big, pure=False).result(PATIENCE) == 10 * 50_000
    del big, done, leaves, held, loose
    rig.finish()


# --- connections ----------------------------------------------------------------------------------------------------


def test_everybody_is_cut_off(own_server: Any) -> None:
    rig, _ = own_server(False)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    result = programs.graph(client, 200, rig.counts, 0.002)
    for count in (10, 50, 100, 150, 190):
        progress(rig, count)
        for kind in ("normal", "pubsub"):
            rig.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    assert result.result(PATIENCE) == sum(range(200))
    del result
    rig.finish()


def test_client_is_stopped_for_longer_than_its_lease(rig: Rig) -> None:
    rig.worker("w1")
    rig.ready(1)
    sleeper = rig.program("holder", "1.0")
    _, ordinal = line(sleeper)
    incarnation = rig.hash(f"caller:{ordinal}")["inc"]
    held = len(rig.names())
    os.kill(sleeper.pid, signal.SIGSTOP)
    seen = int(rig.hash(f"caller:{ordinal}")["seen"])
    # The worker's heartbeats sweep; the lease has passed when they counted so far.
    worker = next(iter(rig.hash("workers")))
    wait_until(lambda: int(rig.hash(f"caller:{worker}")["seen"]) > seen + 3000, PATIENCE)
    assert ordinal in rig.hash("clients")
    assert len(rig.names()) == held
    os.kill(sleeper.pid, signal.SIGCONT)
    wait_until(lambda: int(rig.hash(f"caller:{ordinal}")["seen"]) > seen + 3000, PATIENCE, "it beats again")
    assert rig.hash(f"caller:{ordinal}")["inc"] == incarnation
    rig.healthy()
    sleeper.kill()
    rig.finish()


# --- one process ----------------------------------------------------------------------------------------------------


def test_fork(rig: Rig) -> None:
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    future = client.submit(programs.leaf, 1, "", pure=False)
    many = client.map(programs.leaf, range(50), counts="", pause=0.002, pure=False)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b""
        for call in (
            lambda: client.submit(programs.leaf, 2, ""),
            future.result,
            partial(client.gather, many),
        ):
            try:
                call()
            except ForkedClientError:
                said += b"forked "
            except BaseException as error:
                said += repr(error).encode()
        os.write(writing, said)
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reading, 1000) == b"forked forked forked "
    os.close(reading)
    os.close(writing)
    assert future.result(PATIENCE) == 1
    assert client.gather(many) == list(range(50))
    del future, many
    rig.finish()


def test_interpreter_ends_with_living_futures(rig: Rig) -> None:
    rig.worker("w1")
    rig.ready(1)
    leaver = rig.program("leaver")
    _, ordinal = line(leaver)
    assert leaver.wait(PATIENCE) == 0
    assert ordinal not in rig.hash("clients")
    wait_until(lambda: not rig.names(), PATIENCE, "its keys are gone")
    rig.finish()


def test_ctrl_c_in_a_wait(rig: Rig) -> None:
    rig.worker("w1")
    rig.ready(1)
    program = rig.program("interrupted")
    line(program)
    wait_until(lambda: any("processing" in rig.hash(f"key:{name}").get("state", "") for name in rig.names()))
    program.send_signal(signal.SIGINT)
    assert line(program) == ["interrupted"]
    assert line(program) == ["7", "8"]
    assert program.wait(PATIENCE) == 0
    rig.finish()


def test_ctrl_c_in_an_event_loop(rig: Rig) -> None:
    rig.worker("w1")
    rig.ready(1)
    program = rig.program("interrupted_loop")
    _, ordinal = line(program)
    wait_until(lambda: any("processing" in rig.hash(f"key:{name}").get("state", "") for name in rig.names()))
    program.send_signal(signal.SIGINT)
    assert line(program) == ["interrupted"]
    assert ordinal not in rig.hash("clients")
    assert line(program) == ["8"]
    assert program.wait(PATIENCE) == 0
    rig.finish()


@pytest.mark.parametrize("storm", ["storm", "storm_loop", "storm_in_loop"])
def test_ctrl_c_at_any_moment(rig: Rig, seed: int, storm: str) -> None:
    rig.worker("w1")
    rig.ready(1)
    program = rig.program(storm, str(seed))
    line(program)
    word, strikes = line(program)
    assert word == "struck"
    assert int(strikes) > 20
    # A Ctrl-C inside `__del__`, or between a count and its Future, loses that Future's release; a heartbeat brings it.
    assert line(program) == ["left", "0"]
    assert program.wait(PATIENCE) == 0
    rig.finish()


def test_close_during_work(rig: Rig) -> None:
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    outcomes: list[Any] = []

    def wait(future: Any) -> None:
        try:
            outcomes.append(future.result())
        except (ClientClosed, CancelledError) as error:
            outcomes.append(type(error))

    def submit() -> None:
        with contextlib.suppress(ClientClosed, CancelledError):
            while True:
                client.submit(programs.leaf, 1, "", pure=False)

    futures = client.map(programs.leaf, range(4), counts="", pause=1000.0, pure=False)
    threads = [threading.Thread(target=wait, args=(future,)) for future in futures]
    threads.append(threading.Thread(target=submit))
    for thread in threads:
        thread.start()
    wait_until(lambda: len(rig.names()) > 10, PATIENCE, "there is work")
    client.close()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(outcomes) == 4
    assert set(outcomes) <= {ClientClosed, CancelledError} or all(issubclass(o, Exception) for o in outcomes)
    del futures
    for pid in rig.executor_pids():
        os.kill(pid, signal.SIGKILL)  # it still sleeps
    rig.finish()


def test_many_threads_on_one_client(rig: Rig) -> None:
    rig.worker("w1", threads=2)
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    errors: list[BaseException] = []

    def work(k: int) -> None:
        try:
            for i in range(15):
                futures = client.map(programs.leaf, range(k, k + 10), counts="", pure=i % 2 == 0)
                assert client.submit(programs.total, futures, pure=False).result(PATIENCE) == sum(
                    range(k, k + 10)
                )
                assert client.gather(futures) == list(range(k, k + 10))
                assert client.scatter([k, i])[0].result(PATIENCE) == k
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.1, deadline - time.monotonic()))
        assert not thread.is_alive()
    assert errors == []
    rig.finish()


def test_futures_that_a_task_made_and_returned(rig: Rig) -> None:
    """What a task still collects leaves before the result that contains it."""
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    for _ in range(5):
        made = client.submit(programs.family, 40, pure=False).result(PATIENCE)
        assert client.gather(made) == list(range(40))
    del made
    rig.finish()
