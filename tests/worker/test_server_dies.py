"""The server under living workers: killed, and back with its memory or with none."""

import os
import signal
import socket
import time

import pytest

from redist.errors import SegmentGone, TransferError
from redist.memory.data_client import DataClient
from redist.store.connect import endpoint as make_endpoint
from redist.store.server import EmbeddedServer
from worker.harness import Client, WorkerProcess, alive, until

pytestmark = pytest.mark.timeout(60)


@pytest.mark.parametrize("persistent", [True, False])
def test_workers_go_on_when_the_server_is_back(tmp_path, persistent):
    server = EmbeddedServer(tmp_path / "server", persistent=persistent)
    server.start()
    endpoint = make_endpoint(server.url)
    worker = WorkerProcess(endpoint, str(tmp_path))
    try:
        client = Client(endpoint)
        until(lambda: client.ordinals("executors"))
        pids = worker.descendants()
        assert client.result(client.submit(lambda: 1)) == 1
        held = client.submit(lambda: b"h" * 100_000)
        client.wait(held)
        client.driver.close()

        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()

        client = Client(endpoint)
        until(lambda: client.ordinals("executors"), 30)
        assert client.result(client.submit(lambda: 2), timeout=30) == 2
        assert worker.process.poll() is None
        client.close()
    finally:
        code = worker.stop()
        server.stop()
    assert code == 0, worker.text()
    until(lambda: not any(map(alive, pids)))
    worker.log.close()


def test_a_worker_takes_the_new_token_of_a_server_that_lost_its_memory(tmp_path):
    server = EmbeddedServer(tmp_path / "server", persistent=False)
    server.start()
    endpoint = make_endpoint(server.url)
    worker = WorkerProcess(endpoint, str(tmp_path))
    try:
        assert isinstance(ask_data_server(endpoint), SegmentGone)
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server.start()
        assert isinstance(ask_data_server(endpoint), SegmentGone)
    finally:
        worker.stop()
        server.stop()
    worker.log.close()


def ask_data_server(endpoint):
    """Return what the data server of the only worker answers who knows the server's token, once it knows it as well."""
    client = Client(endpoint)
    (ordinal,) = until(lambda: client.ordinals("workers").values(), 30)
    address = client.field(f"caller:{ordinal}", "address")
    remote = DataClient(client.session.secret)
    try:
        return until(lambda: understood(remote.get(address, [("nothing", 1)])[0]))
    finally:
        remote.close()
        client.driver.close()


def understood(outcome):
    return None if isinstance(outcome, TransferError) and "token" in str(outcome) else outcome


def test_a_worker_without_its_server_can_be_stopped(tmp_path):
    server = EmbeddedServer(tmp_path / "server", persistent=False)
    server.start()
    endpoint = make_endpoint(server.url)
    worker = WorkerProcess(endpoint, str(tmp_path))
    client = Client(endpoint)
    until(lambda: client.ordinals("executors"))
    pids = worker.descendants()
    client.close()
    server.stop()
    assert worker.stop() == 0, worker.text()
    until(lambda: not any(map(alive, pids)))
    assert os.listdir(tmp_path / "segments") == []
    worker.log.close()


def test_a_worker_that_waits_for_its_server_can_be_stopped(tmp_path):
    worker = WorkerProcess(make_endpoint(f"unix://{tmp_path}/no.sock"), str(tmp_path))
    until(lambda: worker.descendants())
    until(lambda: catches(worker.pid, signal.SIGTERM))
    worker.process.send_signal(signal.SIGTERM)
    assert worker.process.wait(10) == 0, worker.text()
    worker.log.close()


def test_a_worker_whose_server_does_not_answer_can_be_stopped(tmp_path):
    with socket.socket() as listener:  # takes connections and says nothing
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        worker = WorkerProcess(make_endpoint(address), str(tmp_path))
        until(lambda: catches(worker.pid, signal.SIGTERM))
        connection, _ = listener.accept()
        begun = time.monotonic()
        assert worker.stop() == 0, worker.text()
        assert time.monotonic() - begun < 0.9
        connection.close()
    worker.log.close()


def test_a_worker_whose_server_hangs_can_be_stopped(tmp_path):
    server = EmbeddedServer(tmp_path / "server", persistent=False)
    server.start()
    endpoint = make_endpoint(server.url)
    worker = WorkerProcess(endpoint, str(tmp_path), "--grace", "0")
    client = Client(endpoint)
    until(lambda: client.ordinals("executors"))
    assert client.result(client.submit(lambda: 1)) == 1
    client.close()
    pids = worker.descendants()
    os.kill(server.pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert worker.stop() == 0, worker.text()
    took = time.monotonic() - begun
    os.kill(server.pid, signal.SIGCONT)
    server.stop()
    assert took < 4.0
    until(lambda: not any(map(alive, pids)))
    worker.log.close()


def catches(pid, signum):
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (signum - 1) & 1)
    return False
