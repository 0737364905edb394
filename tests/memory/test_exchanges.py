"""Several data servers are asked at the same time."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from memory_helpers import TOKEN, Loop, store
from test_transfer import Worker, _received, certificate  # noqa: F401

from redist.errors import RedistError, SegmentGone, TransferError
from redist.memory import data_server
from redist.memory.data_client import DataClient
from redist.memory.directory import SegmentDirectory
from redist.memory.exchanges import Exchange
from redist.memory.frames import error_fields, pack_frame
from redist.memory.hello import check_client, new_nonce, server_hello, server_proof
from redist.memory.receive import FrameReceiver, PrivateSink, Received


@pytest.fixture
def workers(parent: str, loop: Loop) -> Iterator[list[Worker]]:
    directories = [SegmentDirectory.create(parent, limit=64 << 20) for _ in range(3)]
    made = [Worker(directory, loop) for directory in directories]
    yield made
    for worker in made:
        worker.close()
        worker.directory.close()


def values(workers: list[Worker], sizes: list[int]) -> tuple[list[tuple[str, int, list[str]]], list[bytes]]:
    """Store values on the workers in turn; return what is to be asked for, and what is to come."""
    wanted, expected = [], []
    for i, size in enumerate(sizes):
        worker = workers[i % len(workers)]
        expected.append(os.urandom(size))
        store(worker.directory, f"k{i}", i, expected[-1])
        wanted.append((f"k{i}", i, [worker.address]))
    return wanted, expected


SIZES = [10_000, 3_000_000, 100_000, 5_000, 0, 300_000, 40_000] * 3


def test_of_all_sizes(workers: list[Worker]) -> None:
    wanted, expected = values(workers, SIZES)
    came: list[str] = []
    client = DataClient(TOKEN, timeout=10)
    for _ in range(3):  # on new connections, and on those that were used before
        sink = PrivateSink(lambda received: came.append(received.header.name))
        assert [_received(outcome) for outcome in client.fetch(wanted, sink)] == expected
    assert sorted(came) == sorted([name for name, _, _ in wanted] * 3)
    client.close()


def test_each_works_while_the_others_do(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody sends anything before all were asked."""
    together = threading.Barrier(len(workers))
    open_payload = data_server.open_payload

    def waiting(*args: Any, **options: Any) -> Any:
        together.wait(10)
        return open_payload(*args, **options)

    monkeypatch.setattr(data_server, "open_payload", waiting)
    wanted, expected = values(workers, [50_000] * len(workers))
    client = DataClient(TOKEN, timeout=20)
    assert [_received(outcome) for outcome in client.fetch(wanted)] == expected
    client.close()


def test_over_tls(parent: str, loop: Loop, certificate: tuple[str, str]) -> None:  # noqa: F811
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    directories = [SegmentDirectory.create(parent, limit=64 << 20) for _ in range(2)]
    workers = [Worker(directory, loop, tls=context) for directory in directories]
    wanted, expected = values(workers, SIZES)
    client = DataClient(TOKEN, tls=ssl.create_default_context(cafile=cert), timeout=10)
    for _ in range(3):
        assert [_received(outcome) for outcome in client.fetch(wanted)] == expected
    client.close()
    for worker in workers:
        worker.close()
        worker.directory.close()


def test_several_records_of_tls_come_in_a_turn(certificate: tuple[str, str]) -> None:  # noqa: F811
    """Each receive brings one, and is shorter than what it asked for, though more are there."""
    key, cert = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    here, there = socket.socketpair()
    sent = threading.Event()

    def send() -> None:
        with context.wrap_socket(there, server_side=True) as sender:
            sender.sendall(pack_frame(["x" * 40_000]))
            sent.set()
            sender.recv(1)  # nothing, when the other has closed

    sending = threading.Thread(target=send)
    sending.start()
    with ssl.create_default_context(cafile=cert).wrap_socket(here, server_hostname="127.0.0.1") as sock:
        exchange = Exchange(sock, b"", FrameReceiver(bytearray(1 << 20)))
        assert sent.wait(10)
        sock.setblocking(False)
        exchange.step()
        assert exchange.done
        assert exchange.error is None
    sending.join(10)


def test_requests_that_no_socket_buffer_holds(workers: list[Worker]) -> None:
    """Answers are read while requests are still being sent."""
    names = [f"{i:04}" + "x" * 5_000 for i in range(900)]
    wanted = [(name, 1, [worker.address]) for worker in workers for name in names]
    client = DataClient(TOKEN, timeout=10)
    outcomes = client.fetch(wanted)
    assert all(isinstance(outcome, SegmentGone) for outcome in outcomes)
    client.close()


class Silent:
    """A data server that lets everybody in, and answers nothing."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._greet, daemon=True)
        self._thread.start()
        self.address = "tcp://{}:{}".format(*self._listening.getsockname())

    def _greet(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            self._accepted.append(sock)
            self._let_in(sock)

    def _let_in(self, sock: socket.socket) -> None:
        nonce = new_nonce()
        sock.sendall(pack_frame(server_hello(nonce)))
        hello = FrameReceiver(bytearray(1 << 16))
        while not hello.done:
            hello.buffer_updated(sock.recv_into(hello.get_buffer()))
        sock.sendall(pack_frame(server_proof(nonce, check_client(hello.items, nonce, TOKEN), TOKEN)))

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()
        for sock in self._accepted:
            sock.close()


def test_one_that_is_silent(workers: list[Worker]) -> None:
    """The others are heard meanwhile, and what it was asked for comes from the next holder."""
    silent = Silent()
    try:
        wanted, expected = values(workers, [50_000] * 6)
        wanted[1] = (*wanted[1][:2], [silent.address, *wanted[1][2]])
        wanted.append(("nowhere", 1, [silent.address]))
        came: list[str] = []
        client = DataClient(TOKEN, timeout=0.5)
        outcomes = client.fetch(wanted, PrivateSink(lambda received: came.append(received.header.name)))
        assert [_received(outcome) for outcome in outcomes[:-1]] == expected
        assert came[-1] == "k1"
        assert isinstance(outcomes[-1], TransferError)
        assert "did not answer in time" in str(outcomes[-1])
        client.close()
    finally:
        silent.close()


class Hasty(Silent):
    """One that answers at once, says that it says no more, and does not read on."""

    def _let_in(self, sock: socket.socket) -> None:
        super()._let_in(sock)
        sock.recv(1)
        sock.sendall(pack_frame([error_fields(SegmentGone("no"))]))
        sock.shutdown(socket.SHUT_WR)


def test_one_that_does_not_read(workers: list[Worker]) -> None:
    """What it said counts; it is given up in time though there is always something to be read."""
    hasty = Hasty()
    try:
        client = DataClient(TOKEN, timeout=0.5)
        (outcome,) = client.get(hasty.address, [("x" * (32 << 20), 1)])
        assert isinstance(outcome, SegmentGone)
        client.close()
    finally:
        hasty.close()


def test_one_that_breaks_off(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, expected = values(workers, [50_000, 3_000_000, 50_000, 50_000, 3_000_000, 50_000])
    client = DataClient(TOKEN, timeout=10)
    breaking = workers[1].server
    send = breaking._send_from

    def broken(buffer: memoryview, sock: socket.socket, payloads: list[tuple[str, int]]) -> None:
        send(buffer, sock, payloads[:1])
        raise OSError("gone")

    monkeypatch.setattr(breaking, "_send_from", broken)
    outcomes = client.fetch(wanted)
    assert isinstance(outcomes[4], TransferError)
    assert [_received(outcomes[i]) for i in (0, 1, 2, 3, 5)] == [expected[i] for i in (0, 1, 2, 3, 5)]
    client.close()


def test_what_receiving_raises_ends_all(workers: list[Worker]) -> None:
    """As a Ctrl-C does: no connection is used again that may hold half an answer."""
    wanted, expected = values(workers, [50_000] * 6)

    def interrupt(received: Received) -> None:
        raise KeyboardInterrupt

    client = DataClient(TOKEN, timeout=10)
    with pytest.raises(KeyboardInterrupt):
        client.fetch(wanted, PrivateSink(interrupt))
    assert not any(client._idle.values())
    assert [_received(outcome) for outcome in client.fetch(wanted)] == expected
    client.close()


def test_no_thread_can_be_started(workers: list[Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """As at the system's limit, or in a thread that outlives the program's main one."""
    wanted, expected = values(workers, [50_000] * 3)
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("redist-connect"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    client = DataClient(TOKEN, timeout=10)
    assert [_received(outcome) for outcome in client.fetch(wanted)] == expected
    client.close()


INTERRUPTED = """
import os, sys
from redist.memory.data_client import DataClient

try:
    DataClient("00ff", timeout=300).fetch([(f"k{i}", 1, [address]) for i, address in enumerate(sys.argv[1:])])
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def test_a_program_ends_although_servers_are_silent() -> None:
    """Those who connect to servers that do not say a word are not waited for after a Ctrl-C."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    addresses = ["tcp://{}:{}".format(*server.getsockname()) for server in listening]
    program = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *addresses], stdout=subprocess.PIPE, text=True
    )
    try:
        accepted = [server.accept()[0] for server in listening]  # all of them wait for a hello
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=20)
        assert out == "interrupted\n"
        assert program.returncode == 0
        for sock in accepted:
            sock.close()
    finally:
        program.kill()
        program.wait()
        for server in listening:
            server.close()


def test_nobody_is_there(workers: list[Worker]) -> None:
    wanted, _ = values(workers, [50_000] * 3)
    for worker in workers:
        worker.close()
    client = DataClient(TOKEN, timeout=10)
    outcomes: list[Received | RedistError] = client.fetch(wanted)
    assert all(isinstance(outcome, TransferError) for outcome in outcomes)
    client.close()
