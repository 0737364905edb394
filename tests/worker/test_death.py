"""Worker and executor processes: what happens when they die or end."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from memory.memory_helpers import Bytes
from redist import errors
from redist.memory.broker_client import BrokerClient
from worker.harness import ROOT, alive, until

pytestmark = pytest.mark.timeout(60)


# --- death ----------------------------------------------------------------------------------------------------------


def test_an_executor_that_dies_is_replaced_and_its_task_runs_again(start, client, tmp_path):
    start()
    marker = str(tmp_path / "died")

    def die_once(path):
        import os
        import signal

        if not os.path.exists(path):
            open(path, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    assert client.result(client.submit(die_once, marker)) == "alive"


def test_a_task_that_kills_its_process_ends_in_killed_worker(start, client):
    start()

    def die():
        import ctypes

        held = b"x" * (32 << 20)
        assert held
        ctypes.string_at(0)

    with pytest.raises(errors.KilledWorker, match="SIGSEGV") as info:
        client.result(client.submit(die, key="deadly"), timeout=40)
    assert "deadly" in str(info.value)
    # No executor lived until the first heartbeat.
    (peak,) = re.findall(r"at most it had (\d+) MiB", str(info.value))
    assert int(peak) > 32
    assert client.result(client.submit(lambda: "fine")) == "fine"


def test_killing_an_executor_from_outside_names_signal_and_memory(start, client):
    start("--lease", "1")

    def sleep():
        import time

        time.sleep(1000)

    client.submit(sleep, key="sleeper")
    seen = set()
    while True:
        state = until(lambda: client.state_of("sleeper", "processing", "erred"))
        if state.state == "erred":
            break
        ordinals = client.ordinals("executors")
        pid = next((client.pid(o) for o in ordinals.values()), 0)
        if pid and pid not in seen:
            until(lambda pid=pid: client.sampled(pid) or not alive(pid))
            seen.add(pid)
            os.kill(pid, signal.SIGKILL)
    text = state.value.decode(errors="replace")
    assert "KilledWorker" in text
    assert "SIGKILL" in text
    assert "lack of memory" not in text  # the kernel would have counted it
    assert "MiB" in text
    assert len(seen) == 4


def test_a_killed_worker_takes_all_its_processes_along(start, client):
    worker = start("--lease", "1", executors=2)

    def hold_the_gil():
        import ctypes

        ctypes.PyDLL(None).sleep(1000)

    client.submit(hold_the_gil, key="holder")
    until(lambda: client.state_of("holder", "processing"))
    pids = worker.descendants()
    assert len(pids) == 3
    worker.kill()
    until(lambda: not any(map(alive, pids)))


def test_a_worker_restarted_takes_over_payloads_and_ordinal(start, client, tmp_path):
    worker = start(name="same")
    a = client.submit(lambda: b"z" * 50_000)
    (before,) = client.wait(a)
    ordinal = client.ordinals("workers")["same"]
    worker.kill()
    start(name="same")
    assert client.ordinals("workers") == {"same": ordinal}
    (after,) = client.wait(a)
    assert after.where == before.where
    assert client.result(a) == b"z" * 50_000
    assert len(os.listdir(tmp_path / "segments")) == 1


def test_the_fork_server_is_replaced_when_it_dies(start, client):
    worker = start()
    import psutil

    (server,) = psutil.Process(worker.pid).children()
    server.kill()
    assert client.result(client.submit(lambda: "again"), timeout=30) == "again"


def test_executors_are_killed_on_demand(start, client):
    import msgpack

    from redist.store import calls

    start()
    before = client.ordinals("executors")
    (worker,) = client.ordinals("workers").values()
    client.call(calls.send([worker], msgpack.packb(["kill", *before.values()])))
    until(lambda: (now := client.ordinals("executors")) and not set(now.values()) & set(before.values()))
    assert client.result(client.submit(lambda: "new")) == "new"


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(start, client, tmp_path, signum):
    worker = start(executors=2)
    client.wait(client.submit(lambda: b"p" * 100_000))
    pids = worker.descendants()
    worker.process.send_signal(signum)
    assert worker.process.wait(20) == 0
    until(lambda: not any(map(alive, pids)))
    assert client.ordinals("workers") == {}
    assert client.ordinals("executors") == {}
    assert os.listdir(tmp_path / "segments") == []


def test_the_end_waits_for_tasks_and_hands_back_the_rest(start, client, tmp_path):
    worker = start()
    started = str(tmp_path / "started")

    def slow(path):
        import time

        open(path, "w").close()
        time.sleep(0.5)
        return "done"

    first = client.submit(slow, started)
    second = client.submit(lambda: "second")
    until(lambda: os.path.exists(started))
    assert worker.stop() == 0
    assert client.result(first) == "done"
    assert client.state(second).state.split(" ")[0] in ("queued", "memory")
    start(name="w2")
    assert client.result(second) == "second"


def test_a_task_that_does_not_end_is_handed_back(start, client, tmp_path):
    worker = start("--grace", "0.2")
    started = str(tmp_path / "started")

    def endless(path):
        import os
        import time

        if os.path.exists(path):
            return "second run"
        open(path, "w").close()
        return time.sleep(1000)

    key = client.submit(endless, started)
    until(lambda: os.path.exists(started))
    begun = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - begun < 10
    start(name="w2")
    assert client.result(key) == "second run"


def test_ctrl_c_in_a_terminal_does_not_reach_executors(start, client):
    worker = start(executors=2)
    pids = worker.descendants()
    groups = {os.getpgid(pid) for pid in pids}
    assert os.getpgid(worker.pid) not in groups
    executors = [client.pid(ordinal) for ordinal in client.ordinals("executors").values()]
    for pid in executors:
        os.kill(pid, signal.SIGINT)
    assert client.result(client.submit(lambda: "unharmed")) == "unharmed"
    assert all(map(alive, executors))


def test_it_ends_when_the_process_that_started_it_is_gone(endpoint, client, tmp_path):
    script = (
        "import os, subprocess, sys\n"
        "r, w = os.pipe()\n"
        "p = subprocess.Popen([sys.executable, '-m', 'redist_worker', *sys.argv[1:], '--die-with-parent', str(r)],"
        " pass_fds=[r], start_new_session=True)\n"
        "print(p.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}"}
    parent = subprocess.Popen(
        [sys.executable, "-c", script, endpoint.url, "--namespace", endpoint.namespace, "--name", "w",
         "--segments", str(tmp_path / "segments")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env,
    )  # fmt: skip
    pid = int(parent.stdout.readline())
    until(lambda: client.ordinals("executors"))
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    until(lambda: not alive(pid))
    assert client.ordinals("workers") == {}


def test_it_waits_for_a_server_and_says_what_is_wrong(tmp_path):
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}"}

    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "redist_worker", *args],
            env=env,
            capture_output=True,
            text=True,
            timeout=30,
        )

    gone = run(f"unix://{tmp_path}/no.sock", "--connect-timeout", "0.3")
    assert gone.returncode == 69
    assert "no.sock" in gone.stderr
    assert run("redis://localhost", "--threads", "0").returncode == 2
    assert "--memory-limit" in run("--help").stdout
    assert run("redis://localhost", "--memory-limit", "much").returncode == 2
    assert run("redis://localhost", "--resources", "GPU").returncode == 2


def test_a_worker_that_was_silent_too_long_registers_anew(start, client):
    start("--lease", "1", name="other", executors=1)
    silent = start("--lease", "1", name="silent")
    pids = [silent.pid, *silent.descendants()]
    before = client.ordinals("executors")
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: "silent" not in client.ordinals("workers"))
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # the worker may have ended its executor already
                os.kill(pid, signal.SIGCONT)
    until(lambda: "silent" in client.ordinals("workers"))
    until(lambda: client.ordinals("executors").get("silent-0", 0) not in (0, before["silent-0"]))
    names = {client.result(client.submit(where(), workers="silent")) for _ in range(3)}
    assert names == {"silent"}


def where():
    def name():
        from redist_worker.local import get_worker

        return get_worker().name

    return name


def test_the_last_worker_leaves_nothing_of_a_dead_one_that_nobody_needs(start, client, tmp_path):
    first, last = start(name="first"), start(name="last")
    keys = [client.submit(lambda: b"z" * 50_000, key=f"k{i}") for i in range(4)]
    for key in keys:
        client.wait(key)
    first.kill()
    client.release(*keys)
    until(
        lambda: (
            not client.command("EXISTS", f"{client.endpoint.prefix}has:{client.ordinals('workers')['first']}")
        )
    )
    assert len(os.listdir(tmp_path / "segments")) == 2
    assert last.stop() == 0
    assert os.listdir(tmp_path / "segments") == []


def test_the_last_worker_leaves_what_a_successor_of_a_dead_one_needs(start, client, tmp_path):
    worker, last = start(name="same"), start(name="last")
    key = client.submit(lambda: b"z" * 50_000, workers="same")
    client.wait(key)
    worker.kill()
    assert last.stop() == 0
    assert len(os.listdir(tmp_path / "segments")) == 1
    start(name="same")
    assert client.result(key) == b"z" * 50_000


# --- what an executor left ------------------------------------------------------------------------------------------


def writes(size, marker):
    """Return a task that is killed once: its result is written then, and the server has not heard of it."""

    def write():
        from redist_worker.local import get_worker

        if not os.path.exists(marker):
            open(marker, "w").close()
            get_worker()._runner._turns._before_hand_in = lambda: os.kill(os.getpid(), signal.SIGKILL)
        return os.urandom(size)

    return write


def stores_as_a_client(endpoint, marker):
    """Return a task that is killed once: a client of its own has written a value then, and has not told of it."""
    url, namespace = endpoint.url, endpoint.namespace

    def store():
        from types import SimpleNamespace

        from redist import Client
        from redist_worker.local import get_worker

        if not os.path.exists(marker):
            open(marker, "w").close()
            Client(url, namespace=namespace, name="in-a-task", heartbeat_interval=0.4)
            value = SimpleNamespace(nbytes=50_000, type="x", contains=(), chunks=lambda: [bytes(50_000)])
            get_worker()._tasks._broker.put([("scattered", 10**6, value)])
            os.kill(os.getpid(), signal.SIGKILL)

    return store


def files_of(client):
    """Return how many payloads the only worker has, and of how many the server knows."""
    (ordinal,) = client.ordinals("workers").values()
    with BrokerClient(client.field(f"caller:{ordinal}", "socket")) as broker:
        files = broker.stat().files
    return files, client.command("HLEN", f"{client.endpoint.prefix}has:{ordinal}")


@pytest.mark.parametrize("size", [8_000, 50_000, 8 << 20])
def test_what_an_executor_had_not_told_of_goes_soon(start, client, tmp_path, size):
    """Not after the minute for which what a client wrote may be on its way."""
    worker = start()
    told = client.submit(lambda: b"t" * 50_000, key="told")  # by the same executor
    client.wait(told)
    (ordinal,) = client.ordinals("workers").values()
    with BrokerClient(client.field(f"caller:{ordinal}", "socket")) as broker:
        broker.put([("of-a-client", 10**6, Bytes(b"c" * size))])
    key = client.submit(writes(size, str(tmp_path / "died")), key="untold")
    assert len(client.result(key)) == size
    assert "was killed by SIGKILL" in worker.text()
    until(lambda: files_of(client) == (3, 2))
    assert client.result(told) == b"t" * 50_000
    client.release(told, key)
    until(lambda: files_of(client) == (1, 0))


def test_what_an_executor_had_told_of_stays(start, client):
    worker = start()
    keys = [client.submit(lambda i=i: bytes([i]) * 50_000, key=f"k{i}") for i in range(5)]
    client.wait(*keys)
    (executor,) = client.ordinals("executors").values()
    os.kill(client.pid(executor), signal.SIGKILL)
    until(lambda: (now := client.ordinals("executors").values()) and executor not in now)
    assert [client.result(key)[0] for key in keys] == [0, 1, 2, 3, 4]
    assert "untold" not in worker.text()


def test_what_a_client_in_a_task_wrote_stays_until_that_is_gone(start, client, tmp_path):
    """It has a lane of its own: the server may yet hear of the value."""
    worker = start("--lease", "1")
    client.submit(stores_as_a_client(client.endpoint, str(tmp_path / "died")), key="k")
    until(lambda: "was killed by SIGKILL" in worker.text())

    def gone():
        files, counted = files_of(client), "in-a-task" in client.ordinals("clients")
        assert files == (1, 0) or not counted
        return not counted

    until(gone)
    until(lambda: files_of(client) == (0, 0))


def test_what_a_killed_client_had_not_told_of_goes_with_its_lease(start, client):
    start("--lease", "1")
    (ordinal,) = client.ordinals("workers").values()
    told = client.submit(lambda: b"t" * 50_000, key="told")
    client.wait(told)
    code = (
        "import sys; from types import SimpleNamespace\n"
        "from redist import Client; from redist.memory.broker_client import BrokerClient\n"
        "url, namespace, socket = sys.argv[1:]\n"
        "client = Client(url, namespace=namespace, name='killed', heartbeat_interval=0.4)\n"
        "large, small = (SimpleNamespace(nbytes=n, type='x', contains=(), chunks=lambda n=n: [bytes(n)])\n"
        "                for n in (50_000, 5_000))\n"
        "BrokerClient(socket).put([('large', 10**6, large), ('small', 10**6 + 1, small)])\n"
        "print('written', flush=True); sys.stdin.read()\n"
    )
    args = [client.endpoint.url, client.endpoint.namespace, client.field(f"caller:{ordinal}", "socket")]
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}"}
    with subprocess.Popen(
        [sys.executable, "-c", code, *args], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
    ) as writer:
        assert writer.stdout.readline() == b"written\n"
        assert files_of(client) == (3, 1)
        writer.kill()

    def gone():
        files, counted = files_of(client), "killed" in client.ordinals("clients")
        assert files == (3, 1) or not counted
        return not counted

    until(gone)
    until(lambda: files_of(client) == (1, 1))
    assert client.result(told) == b"t" * 50_000
