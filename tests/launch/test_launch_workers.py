from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Server, alive, fresh_namespace, wait_until

SCRIPT = Path(__file__).parent.parent.parent / "scripts" / "launch_workers.py"


class Script:
    """The script, running."""

    def __init__(self, folder: Path, *args: str, **environment: str) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(SCRIPT), *args],
                stderr=log,
                stdout=log,
                env={**os.environ, **environment},
            )

    def said(self, pattern: str) -> list[str]:
        return re.findall(pattern, self.log.read_text())

    def end(self, signum: int | None = signal.SIGTERM) -> int:
        if signum is not None:
            self.process.send_signal(signum)
        return self.process.wait(30)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[type[Script]]:
    started: list[Script] = []

    class One(Script):
        def __init__(self, *args: str, **environment: str) -> None:
            super().__init__(tmp_path, *args, **environment)
            started.append(self)

    yield One
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


class Seen:
    """What has registered in a namespace."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.namespace = fresh_namespace()
        self.args = (server.url, "--namespace", self.namespace)
        self.wire = server.endpoint(self.namespace).open()
        self.prefix = f"redist:{{{self.namespace}}}:"

    def pids(self) -> dict[str, int]:
        flat = self.wire.call("HGETALL", f"{self.prefix}workers")
        return {
            name.decode(): int(self.wire.call("HGET", f"{self.prefix}caller:{ordinal.decode()}", "pid") or 0)
            for ordinal, name in zip(flat[::2], flat[1::2])
        }

    def executors(self) -> int:
        return self.wire.call("HLEN", f"{self.prefix}executors")


@pytest.fixture
def seen(valkey: Server) -> Iterator[Seen]:
    seen = Seen(valkey)
    yield seen
    seen.wire.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_n_workers_until_a_signal(script: type[Script], seen: Seen, signum: signal.Signals) -> None:
    running = script(*seen.args, "--workers", "2", "--executors", "1", "--name", "w", "--grace", "0")
    wait_until(lambda: seen.executors() == 2, 30)
    pids = seen.pids()
    assert set(pids) == {"w-0", "w-1"}
    assert running.end(signum) == 0, running.log.read_text()
    assert not [pid for pid in pids.values() if alive(pid)]
    assert seen.pids() == {}
    assert len(running.said(r"INFO worker w-\d \(pid \d+\) started\n")) == 2
    assert running.said(f"{signum.name}: stopping")
    assert running.said("all workers have ended")


def test_a_dead_worker_is_started_again(script: type[Script], seen: Seen) -> None:
    running = script(*seen.args, "--name", "one", "--executors", "1", "--grace", "0")
    wait_until(lambda: seen.executors() == 1, 30)
    before = seen.pids()["one"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: seen.pids().get("one") not in (before, None, 0), 30)
    assert running.said(
        rf"WARNING worker one \(pid {before}\) was ended by SIGKILL after \d+\.\d s; starts again in 0 s"
    )
    assert running.end() == 0


def test_reload_replaces_workers(script: type[Script], seen: Seen) -> None:
    running = script(*seen.args, "--name", "one", "--executors", "1", "--grace", "0")
    wait_until(lambda: seen.executors() == 1, 30)
    before = seen.pids()["one"]
    running.process.send_signal(signal.SIGHUP)
    wait_until(lambda: seen.pids().get("one") not in (before, None, 0), 30)
    assert not alive(before)
    assert running.end() == 0


def test_workers_end_with_the_script(script: type[Script], seen: Seen) -> None:
    running = script(*seen.args, "--name", "one", "--executors", "1", "--grace", "0")
    wait_until(lambda: seen.executors() == 1, 30)
    pid = seen.pids()["one"]
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not alive(pid))


def test_systemd_is_told(script: type[Script], seen: Seen, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(20)
        running = script(
            *seen.args, "--executors", "1", "--grace", "0", NOTIFY_SOCKET=str(tmp_path / "notify")
        )
        assert sock.recv(100) == b"READY=1"
        wait_until(lambda: seen.executors() == 1, 30)
        running.process.send_signal(signal.SIGTERM)
        assert sock.recv(100) == b"STOPPING=1"
        assert running.end(None) == 0


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["http://h"], 2, "unknown scheme"),
        (["redis://h", "--workers", "0"], 2, "--workers"),
        (["redis://h", "--memory-limit", "much"], 2, "is no amount of memory"),
        (["redis://h", "--workers", "2", "--port", "7000"], 2, "--port is for one worker"),
        ([], 2, "Missing argument 'URL', and REDIST_ADDRESS is not set either"),
    ],
)
def test_refused(script: type[Script], args: list[str], code: int, text: str) -> None:
    running = script(*args)
    assert running.end(None) == code
    assert running.said(text)


def pretended(body: str, *args: str) -> list[str]:
    """Return the command line of the script with workers that are little programs."""
    code = (
        "import runpy, sys; from redist.launch import WorkerSettings\n"
        f"WorkerSettings.command = lambda *_: [sys.executable, '-S', '-c', {body!r}]\n"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    return [sys.executable, "-c", code, str(SCRIPT), "redis://127.0.0.1:1", "--executors", "1", *args]


def test_unreachable_server() -> None:
    """Workers say so after a minute; these at once."""
    command = pretended("raise SystemExit(69)", "--workers", "2", "--once")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 69, ended.stderr
    assert ended.stderr.count("ended with exit code 69") == 2
    assert "no worker is left" in ended.stderr


def test_a_worker_that_has_to_be_killed(tmp_path: Path) -> None:
    """The script would wait for some seconds before it kills; this worker does not let it wait."""
    ready = tmp_path / "ready"
    body = (
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "while True: signal.pause()"
    )
    process = subprocess.Popen(pretended(body, "--grace", "0"), stderr=subprocess.PIPE, text=True)
    wait_until(ready.exists, 30)
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 1, log
    assert "SIGTERM: stopping" in log


def test_an_environment_without_redist() -> None:
    ended = subprocess.run(
        [sys.executable, "-E", "-S", str(SCRIPT)], capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert "No module named" in line
    assert "pip install redist" in line
