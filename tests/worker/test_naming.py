"""Two living workers never share a name; a dead one's is free at once where its death can be seen."""

import contextlib
import os
import signal
import socket
import time

import pytest

from worker.harness import until

LONG = "300"  # a lease that does not run out


def test_the_second_of_a_name_is_refused(start, client):
    first = start(name="same")
    second = start(name="same", ready=False)
    assert second.process.wait(20) == 78
    said = second.text()
    assert f"a living worker has the name 'same': process {first.pid} on {socket.gethostname()}" in said
    assert "Give this one another name" in said
    assert "Traceback" not in said
    assert list(client.ordinals("workers")) == ["same"]
    second.process.returncode = 0  # as it should be, for the teardown


def test_a_dead_worker_gives_its_name_up_at_once(start, client):
    start("--lease", LONG, name="same").kill()
    (ordinal,) = client.ordinals("workers").values()
    start("--lease", LONG, name="same")
    assert client.ordinals("workers") == {"same": ordinal}


def test_so_does_one_whose_directory_is_elsewhere(start, client, tmp_path):
    start("--lease", LONG, name="same").kill()
    (tmp_path / "segments").rename(tmp_path / "moved")
    again = start("--lease", LONG, name="same")
    assert "is registered" not in again.text()
    moved = {"same": again.pid}
    until(lambda: {n: client.pid(o) for n, o in client.ordinals("workers").items()} == moved)
    assert client.result(client.submit(lambda: "here")) == "here"


def held(gate):
    """Return a task that writes down its process, and ends when the gate is opened."""

    def hold():
        with open(f"{gate}-ran", "a") as file:
            file.write(f"{os.getpid()}\n")
        while not os.path.exists(gate):
            time.sleep(0.01)
        return "held"

    return hold


@pytest.mark.parametrize("moved", [False, True])
def test_executors_of_a_dead_worker_get_nothing_from_the_next_one_of_its_name_on(
    start, client, tmp_path, moved
):
    """Not from the end of its lease on: what they had runs again at once, and nothing is given to them."""
    gate = tmp_path / "gate"
    first = start("--lease", LONG, name="same", executors=2)
    kept = client.submit(lambda: b"k" * 50_000, key="kept")
    client.wait(kept)
    dead = set(client.ordinals("executors").values())
    task = client.submit(held(str(gate)), key="held")
    ran = tmp_path / "gate-ran"
    until(lambda: ran.exists() and ran.read_text().endswith("\n"))
    first.kill()
    if moved:
        (tmp_path / "segments").rename(tmp_path / "moved")
    elsewhere = str(tmp_path / "elsewhere")
    second = start("--lease", LONG, "--segments", elsewhere, name="same", executors=2)
    until(lambda: not dead & set(client.ordinals("executors").values()))
    until(lambda: len(ran.read_text().split()) == 2, message=second.text())
    others = [client.submit(lambda i=i: i, key=f"other-{i}") for i in range(4)]
    gate.touch()
    assert client.result(task) == "held"
    assert [client.result(other) for other in others] == [0, 1, 2, 3]
    executors = [client.pid(o) for o in client.ordinals("executors").values()]
    assert int(ran.read_text().split()[1]) in executors
    assert "deaths" not in client.fields("key:held")
    # Its lease lasts, and with it its copies: another may take its directory over.
    assert client.state(kept).state == "memory"


def test_a_worker_that_lives_keeps_its_executors(start, client, tmp_path):
    """Its directory is out of sight; its process says that it lives."""
    first = start("--lease", LONG, name="same")
    (ordinal,) = client.ordinals("workers").values()
    client.command("HSET", f"{client.endpoint.prefix}caller:{ordinal}", "segments", str(tmp_path / "nowhere"))
    second = start("--segments", str(tmp_path / "elsewhere"), name="same", ready=False)
    assert second.process.wait(20) == 78
    assert f"a living worker has the name 'same': process {first.pid}" in second.text()
    second.process.returncode = 0
    assert client.result(client.submit(lambda: "lives")) == "lives"


def test_one_of_which_nothing_can_be_seen_is_not_ended(start, client, tmp_path):
    """As in another container: that no such process is here says nothing. Its lease is waited for."""
    first = start("--lease", "3", name="same")
    caller = f"{client.endpoint.prefix}caller:{client.ordinals('workers')['same']}"
    client.command("HSET", caller, "segments", str(tmp_path / "nowhere"), "process", "0123456789abcdef.77")
    (executor,) = client.ordinals("executors").values()
    first.kill()
    second = start("--segments", str(tmp_path / "elsewhere"), name="same", ready=False)
    until(lambda: "If it stays silent until its lease ends" in second.text())
    assert executor in client.ordinals("executors").values()
    until(lambda: [client.pid(o) for o in client.ordinals("workers").values()] == [second.pid])


class Elsewhere:
    """What a worker of another host has said to the server."""

    def __init__(self, client, lease):
        self.client = client
        self.prefix = client.endpoint.prefix
        self.ordinal = client.command("HINCRBY", f"{self.prefix}meta", "ordinal", 1)
        client.command("HSET", f"{self.prefix}workers", self.ordinal, "same")
        client.command(
            "HSET", f"{self.prefix}caller:{self.ordinal}", "kind", "worker", "name", "same", "inc", "i",
            "host", "far", "pid", "77", "lease", str(int(lease * 1000)),
        )  # fmt: skip
        self.beat()
        client.command("ZADD", f"{self.prefix}leases", int((time.time() + lease) * 1000), self.ordinal)

    def beat(self):
        self.client.command(
            "HSET", f"{self.prefix}caller:{self.ordinal}", "seen", str(int(time.time() * 1000))
        )


def test_one_of_another_host_is_waited_for(start, client):
    Elsewhere(client, lease=2.0)
    worker = start(name="same")
    assert "a worker named same is registered: process 77 on far." in worker.text()
    until(lambda: [client.pid(o) for o in client.ordinals("workers").values()] == [worker.pid])


def test_one_of_another_host_that_speaks_lives(start, client):
    far = Elsewhere(client, lease=300.0)
    worker = start(name="same", ready=False)
    until(lambda: "is registered" in worker.text())
    far.beat()
    assert worker.process.wait(20) == 78
    assert "a living worker has the name 'same': process 77 on far" in worker.text()
    worker.process.returncode = 0


def test_one_that_waits_for_a_name_can_be_stopped(start, client):
    Elsewhere(client, lease=300.0)
    worker = start(name="same", ready=False)
    until(lambda: "is registered" in worker.text())
    assert worker.stop() == 0


def test_of_two_at_one_moment_one_is_refused(start, client):
    pair = [start(name="same", ready=False) for _ in range(2)]
    until(lambda: any(worker.process.poll() is not None for worker in pair))
    (refused,) = [worker for worker in pair if worker.process.poll() is not None]
    assert refused.process.returncode == 78
    assert "a living worker has the name 'same'" in refused.text()
    until(lambda: list(client.ordinals("workers")) == ["same"])
    refused.process.returncode = 0


def test_one_that_was_believed_dead_ends_when_its_name_has_gone(start, client):
    start("--lease", "1", name="other")
    paused = start("--lease", "1", name="same")
    pids = [paused.pid, *paused.descendants()]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: "same" not in client.ordinals("workers"))
        Elsewhere(client, lease=300.0)
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    assert paused.process.wait(20) == 78
    assert "a living worker has the name 'same': process 77 on far" in paused.text()
    assert "Traceback" not in paused.text()
    paused.process.returncode = 0
