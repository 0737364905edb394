"""Workers as processes on the embedded server."""

import os

import pytest

from worker.harness import Client, WorkerProcess, alive, until


@pytest.fixture
def endpoint(valkey, namespace):
    return valkey.endpoint(namespace)


@pytest.fixture
def client(endpoint):
    client = Client(endpoint)
    yield client
    client.close()


@pytest.fixture
def start(endpoint, client, tmp_path):
    """Start workers; at the end nothing of them may be left."""
    workers, pids = [], set()

    def start(*args, name="w", executors=1, ready=True):
        worker = WorkerProcess(endpoint, str(tmp_path), *args, "--executors", str(executors), name=name)
        workers.append(worker)
        if ready:
            until(
                lambda: (
                    worker.process.poll() is not None
                    or sum(
                        client.pid(o) in worker.descendants() for o in client.ordinals("executors").values()
                    )
                    >= executors
                ),
                message=worker.text(),
            )
            assert worker.process.poll() is None, worker.text()
            pids.update(worker.descendants())
        return worker

    yield start
    failed = []
    for worker in workers:
        pids.update(worker.descendants())
        code = worker.stop()
        if code not in (0, -9):
            failed.append(f"{code}: {worker.text()}")
    until(lambda: not any(map(alive, pids)), message=f"still there: {[p for p in pids if alive(p)]}")
    for worker in workers:
        worker.log.close()
    segments = tmp_path / "segments"
    killed = any(worker.process.returncode == -9 for worker in workers)
    assert killed or not segments.exists() or os.listdir(segments) == []
    assert not failed, failed
