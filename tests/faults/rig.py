"""A namespace with real processes in it, which tests kill, stop and start again."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from redist import Client
from redist.diagnostics.doctor import examine
from redist.store.connect import Endpoint
from redist.store.server import EmbeddedServer
from servers import alive, wait_until
from worker.harness import WorkerProcess

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0


def _started(worker: WorkerProcess) -> bool:
    return worker.process.poll() is not None or f"worker {worker.name} at " in worker.text()


class Rig:
    """A namespace, workers with short leases, and clients; and the check that nothing is left of them."""

    def __init__(self, endpoint: Endpoint, folder: Path) -> None:
        self.endpoint = endpoint
        self.folder = folder
        self.workers: list[WorkerProcess] = []
        self.clients: list[Client] = []
        self.programs: list[subprocess.Popen[str]] = []
        self.pids: set[int] = set()
        self.counts = str(folder / "counts")

    def worker(self, name: str, *, executors: int = 1, threads: int = 1, lease: float = 1.0) -> WorkerProcess:
        args = [
            "--lease",
            str(lease),
            "--executors",
            str(executors),
            "--threads",
            str(threads),
            "--grace",
            "0",
        ]
        worker = WorkerProcess(self.endpoint, str(self.folder), *args, name=name)
        self.workers.append(worker)
        self.pids.add(worker.pid)
        return worker

    def client(self, **options: Any) -> Client:
        options = {"heartbeat_interval": 0.2, "timeout": PATIENCE, **options}
        client = Client(self.endpoint, **options)
        self.clients.append(client)
        return client

    def ready(self, count: int, timeout: float = PATIENCE) -> None:
        """Wait until so many executors are registered."""
        wait_until(lambda: len(self.hash("executors")) >= count, timeout, f"{count} executors")
        for worker in self.workers:
            self.pids.update(worker.descendants())

    def program(self, name: str, *args: str) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'workers'}:{ROOT / 'tests'}"}
        process = subprocess.Popen(
            [sys.executable, "-m", "faults.programs", name, self.endpoint.url, *args],
            env=env, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        self.programs.append(process)
        self.pids.add(process.pid)
        return process

    def command(self, *args: str) -> Any:
        wire = self.endpoint.open(PATIENCE, retry=True)
        try:
            return wire.call(*args)
        finally:
            wire.close()

    def hash(self, key: str) -> dict[str, str]:
        flat = self.command("HGETALL", self.endpoint.prefix + key)
        return {k.decode(): v.decode(errors="replace") for k, v in zip(flat[::2], flat[1::2])}

    def names(self) -> list[str]:
        prefix = f"{self.endpoint.prefix}key:"
        return sorted(k.decode()[len(prefix) :] for k in self.command("KEYS", f"{prefix}*"))

    def executor_pids(self) -> list[int]:
        pids = []
        for ordinal in self.hash("executors"):
            with contextlib.suppress(KeyError):
                pids.append(int(self.hash(f"caller:{ordinal}")["pid"]))
        return [pid for pid in pids if alive(pid)]

    def healthy(self) -> None:
        """The invariants hold, as soon as what is on its way has arrived."""
        report = examine(self.endpoint)
        assert not report.violations, "\n".join(map(str, report.violations))

    def finish(self) -> None:
        """All leave; nothing is left."""
        self.healthy()
        for client in self.clients:
            client.close()
        wait_until(lambda: not self.names(), PATIENCE, "every key is gone")
        self.healthy()
        for worker in self.workers:
            # one that has just been started again would end by the signal itself
            wait_until(partial(_started, worker), PATIENCE, f"{worker.name} has started, or ended")
            self.pids.update(worker.descendants())
            code = worker.stop()
            assert code in (0, -9), worker.text()
        wait_until(lambda: not any(map(alive, self.pids)), PATIENCE, "every process is gone")
        segments = self.folder / "segments"
        killed = any(worker.process.returncode == -9 for worker in self.workers)
        if segments.exists() and not killed:
            assert os.listdir(segments) == []

    def clear(self) -> None:
        for process in self.programs:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        for client in self.clients:
            client.close(timeout=1.0)
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
            worker.log.close()


def line(process: subprocess.Popen[str], timeout: float = PATIENCE) -> list[str]:
    """Return the words of the program's next line."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], timeout)[0], "the program says nothing"
    return process.stdout.readline().split()


def crash(server: EmbeddedServer) -> None:
    """Kill the server, and start it again at its address."""
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    server.start()


def progress(rig: Rig, count: int) -> None:
    """Wait until so many tasks ran."""

    def ran() -> bool:
        with contextlib.suppress(FileNotFoundError):
            return Path(rig.counts).read_text().count("\n") >= count
        return False

    wait_until(ran, PATIENCE, f"{count} tasks ran")
