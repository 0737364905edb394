from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from redist.launch import Launcher, WorkerProcess, WorkerSettings, import_path
from redist.memory.machine import cores
from servers import alive, wait_until

BODY = """
import os, pathlib, signal, sys
folder = pathlib.Path({folder!r})
name = sys.argv[1]
(folder / name).write_text(str(os.getpid()))
{body}
"""


class Pretended(WorkerSettings):
    """Settings of workers that are little programs."""

    def __init__(self, folder: Path, body: str) -> None:
        super().__init__("unix:///nowhere")
        self.code = BODY.format(folder=str(folder), body=body)

    def command(self, name: str, parent_fd: int) -> list[str]:
        return [sys.executable, "-S", "-c", self.code, name, str(parent_fd)]


SLEEP = "import time; time.sleep(100)"
UNTIL_PARENT_IS_GONE = "os.read(int(sys.argv[2]), 1)"


class Running:
    """A launcher with a thread that watches."""

    def __init__(self, folder: Path, body: str, **options: object) -> None:
        self.folder = folder
        self.events: list[tuple[str, str]] = []
        self.launcher = Launcher(Pretended(folder, body), report=self._report, **options)
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _report(self, worker: WorkerProcess, text: str) -> None:
        self.events.append((worker.name, text))

    def _watch(self) -> None:
        while self.launcher.watch():
            pass

    def pid(self, name: str) -> int:
        """Return the process that has begun under a name."""
        file = self.folder / name
        return int(wait_until(lambda: file.exists() and file.read_text()))

    def close(self) -> bool:
        clean = self.launcher.close(1)
        self.thread.join(5)
        assert not self.thread.is_alive()
        return clean


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Running]]:
    running: list[Running] = []
    yield running
    for one in running:
        one.close()


def test_simple(tmp_path: Path, started: list[Running]) -> None:
    running = Running(tmp_path, SLEEP)
    started.append(running)
    running.launcher.add(["a", "b"])
    pids = [running.pid("a"), running.pid("b")]
    workers = running.launcher.workers
    assert [worker.pid for worker in workers.values()] == pids
    assert all(worker.running and worker.status is None for worker in workers.values())
    assert all(os.getsid(pid) == pid for pid in pids)
    with pytest.raises(ValueError, match="'a' already"):
        running.launcher.add(["a"])
    running.launcher.remove(["a", "unknown"])
    assert list(running.launcher.workers) == ["b"]
    assert not alive(pids[0])
    assert alive(pids[1])
    assert running.close() is False  # ended by the signal
    assert not alive(pids[1])
    assert running.close() is True
    with pytest.raises(RuntimeError, match="the launcher is closed"):
        running.launcher.add(["late"])
    assert running.launcher.watch() is False
    assert running.events == [("a", "started"), ("b", "started")]


def test_a_dead_worker_is_started_again(tmp_path: Path, started: list[Running]) -> None:
    running = Running(tmp_path, SLEEP)
    started.append(running)
    running.launcher.add(["a"])
    pids = []
    for restarts in range(3):
        pid = running.pid("a")
        pids.append(pid)
        assert running.launcher.workers["a"].restarts == restarts
        (tmp_path / "a").unlink()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: running.launcher.workers["a"].restarts > restarts)  # noqa: B023
    assert len(set(pids)) == 3
    assert running.launcher.workers["a"].status == -signal.SIGKILL
    deaths = [text for _, text in running.events if text.startswith("was ended by SIGKILL after")]
    assert [text.rpartition("in ")[2] for text in deaths] == ["0 s", "0.2 s", "0.4 s"]
    assert [text for _, text in running.events].count("started again") == 3


def test_a_dead_worker_is_left_where_told_so(tmp_path: Path, started: list[Running]) -> None:
    running = Running(tmp_path, "sys.exit(3)", restart=False)
    started.append(running)
    running.launcher.add(["a"])
    worker = running.launcher.workers["a"]
    wait_until(lambda: worker.hopeless)
    assert (worker.status, worker.restarts, worker.describe_end()) == (3, 0, "ended with exit code 3")


@pytest.mark.parametrize("code", [2, 78])
def test_a_hopeless_worker_is_not_started_again(tmp_path: Path, started: list[Running], code: int) -> None:
    running = Running(tmp_path, f"sys.exit({code})")
    started.append(running)
    running.launcher.add(["a"])
    wait_until(lambda: running.launcher.workers["a"].hopeless)
    assert running.launcher.workers["a"].restarts == 0


def test_without_descriptors_of_processes(
    tmp_path: Path, started: list[Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    running = Running(tmp_path, SLEEP)
    started.append(running)
    running.launcher.add(["a"])
    os.kill(running.pid("a"), signal.SIGKILL)
    wait_until(lambda: running.launcher.workers["a"].restarts == 1)


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path, started: list[Running]) -> None:
    running = Running(
        tmp_path, f"signal.signal(signal.SIGTERM, signal.SIG_IGN); (folder / 'deaf').touch(); {SLEEP}"
    )
    started.append(running)
    running.launcher.add(["a"])
    pid = running.pid("a")
    wait_until((tmp_path / "deaf").exists)
    began = time.monotonic()
    assert running.launcher.close(0.2) is False
    assert time.monotonic() - began < 5
    assert not alive(pid)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        launcher = Launcher(Pretended(tmp_path, UNTIL_PARENT_IS_GONE))
        launcher.add(["a"])
        time.sleep(100)
        os._exit(0)
    pid = int(wait_until(lambda: (tmp_path / "a").exists() and (tmp_path / "a").read_text()))
    assert alive(pid)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    wait_until(lambda: not alive(pid))


def test_a_forked_child_has_no_part_in_it(tmp_path: Path, started: list[Running]) -> None:
    running = Running(tmp_path, UNTIL_PARENT_IS_GONE)
    started.append(running)
    running.launcher.add(["a"])
    pid = running.pid("a")
    child = os.fork()
    if child == 0:
        running.launcher.close()
        del running
        time.sleep(100)
        os._exit(0)
    try:
        assert alive(pid)
        assert running.launcher.workers["a"].pid == pid
        # The child does not keep the pipe open on which the worker waits.
        os.close(running.launcher._alive)
        running.launcher._alive = -1
        wait_until(lambda: not alive(pid))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_the_command_line() -> None:
    settings = WorkerSettings("redis://h:1", namespace="n", executors=2, resources="GPU=1")
    command = settings.command("w", 7)
    assert command[1:5] == ["-P", "-m", "redist_worker", "redis://h:1"]
    assert {"--namespace=n", "--name=w", "--executors=2", "--resources=GPU=1", "--die-with-parent=7"} <= set(
        command
    )
    assert not [part for part in command if part.startswith("--host")]


def test_the_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/some/where", os.path.join(sys.prefix, "lib", "x")])
    monkeypatch.setenv("PYTHONPATH", "/other:/some/where")
    assert import_path() == os.pathsep.join([str(tmp_path), "/some/where", "/other"])


def test_cores() -> None:
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    def once() -> None:
        running = Running(tmp_path, SLEEP)
        running.launcher.add(["a"])
        running.pid("a")
        running.close()

    once()
    before = len(os.listdir("/proc/self/fd"))
    once()
    assert len(os.listdir("/proc/self/fd")) <= before
