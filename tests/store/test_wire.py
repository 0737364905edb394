from __future__ import annotations

import os
import socket
import threading
import time

import hiredis
import pytest

from redist.errors import ConnectionLost, ProtocolError
from redist.store.wire import Wire, pack_command
from servers import Server


@pytest.fixture
def pair() -> tuple[Wire, socket.socket]:
    """A wire, and the server's end of it."""
    ours, theirs = socket.socketpair()
    wire = Wire(ours, peer="test", timeout=5)
    yield wire, theirs
    wire.close()
    theirs.close()


def test_call(valkey: Server) -> None:
    wire = valkey.endpoint().open()
    assert wire.call("ECHO", b"\x00\xff") == b"\x00\xff"
    assert wire.call("INCRBY", "number-of-test_call", 3) == 3
    wire.call("DEL", "number-of-test_call")
    with pytest.raises(hiredis.ReplyError, match="unknown command"):
        wire.call("NONSENSE")
    assert wire.call("PING") == b"PONG"
    wire.close()


def test_pipelining(valkey: Server) -> None:
    wire = valkey.endpoint().open()
    wire.send(b"".join(pack_command(("ECHO", str(i))) for i in range(5000)) + pack_command(("NONSENSE",)))
    replies: list[object] = []
    while len(replies) < 5001:
        assert wire.receive(10)
        replies += wire.replies()
    assert replies[:5000] == [str(i).encode() for i in range(5000)]
    assert isinstance(replies[-1], hiredis.ReplyError)
    assert wire.receive_ready() == 0
    assert list(wire.replies()) == []
    wire.close()


def test_large_values(valkey: Server) -> None:
    wire = valkey.endpoint().open()
    value = os.urandom(5_000_000)
    assert wire.call("ECHO", value) == value
    wire.close()


def test_receive_waits_no_longer_than_told(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    started = time.monotonic()
    assert wire.receive(0) is False
    assert wire.receive(0.02) is False
    assert 0.02 <= time.monotonic() - started < 2
    theirs.sendall(b"+O")
    assert wire.receive(None) is True
    assert list(wire.replies()) == []
    theirs.sendall(b"K\r\n:1\r\n-ERR no\r\n*2\r\n$-1\r\n$1\r\na\r\n")
    assert wire.receive(1) is True
    ok, one, error, items = wire.replies()
    assert (ok, one, items) == (b"OK", 1, [None, b"a"])
    assert isinstance(error, hiredis.ReplyError)
    assert str(error) == "ERR no"


def test_try_send_does_not_block(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    data = memoryview(bytes(1_000_000))
    sent = total = wire.try_send(data)
    while sent:
        sent = wire.try_send(data)
        total += sent
    assert total < 10_000_000
    received = 0
    while received < total:
        received += len(theirs.recv(1_000_000))
    assert wire.try_send(data) > 0


def test_send_waits_for_a_slow_server(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    data = os.urandom(3_000_000)
    got = bytearray()

    def read() -> None:
        while len(got) < len(data):
            got.extend(theirs.recv(65536))

    thread = threading.Thread(target=read)
    thread.start()
    wire.send(data)
    thread.join()
    assert got == data


def test_replies_before_the_end_are_not_lost(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.sendall(b"+OK\r\n")
    theirs.close()
    assert wire.receive(1)
    assert list(wire.replies()) == [b"OK"]
    with pytest.raises(ConnectionLost, match="lost the connection to test: the server closed it"):
        wire.receive(1)
    assert wire.closed
    assert wire.fileno() == -1
    for use in (lambda: wire.send(b"x"), lambda: wire.try_send(b"x"), wire.receive, wire.receive_ready):
        with pytest.raises(ConnectionLost, match="it is closed"):
            use()


def test_sending_to_a_dead_server(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.close()
    with pytest.raises(ConnectionLost):
        wire.send(bytes(10_000_000))
    assert wire.closed


def test_what_is_no_redis(pair: tuple[Wire, socket.socket]) -> None:
    wire, theirs = pair
    theirs.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    assert wire.receive(1)
    with pytest.raises(ProtocolError, match="not a Redis reply"):
        list(wire.replies())
    assert wire.closed


def test_call_times_out(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    wire.timeout = 0.05
    with pytest.raises(ConnectionLost, match=r"did not answer within 0\.05 s"):
        wire.call("PING")
    assert wire.closed


def test_close_wakes_a_reader(pair: tuple[Wire, socket.socket]) -> None:
    wire, _ = pair
    errors: list[Exception] = []
    begun = threading.Event()

    def read() -> None:
        begun.set()
        try:
            wire.receive(None)
        except ConnectionLost as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    begun.wait()
    wire.close()
    thread.join(5)
    assert len(errors) == 1
    wire.close()


def test_a_forked_child_leaves_the_connection_alone(valkey: Server) -> None:
    wire = valkey.endpoint().open()
    pid = os.fork()
    if pid == 0:
        wire.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert wire.call("PING") == b"PONG"
    wire.close()


def test_writers_and_a_reader_in_threads(valkey: Server) -> None:
    wire = valkey.endpoint().open()
    lock = threading.Lock()

    def write(name: int) -> None:
        for i in range(300):
            with lock:
                wire.send(pack_command(("ECHO", f"{name}.{i}")))

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    replies: list[object] = []
    while len(replies) < 1200:
        assert wire.receive(10)
        replies += wire.replies()
    for thread in threads:
        thread.join()
    for name in range(4):
        mine = [reply for reply in replies if reply.startswith(b"%d." % name)]
        assert mine == [b"%d.%d" % (name, i) for i in range(300)]
    wire.close()


def test_an_interrupted_call_takes_its_reply_along(valkey: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Wire, timeout: float | None = None) -> bool:
        monkeypatch.undo()
        raise KeyboardInterrupt

    wire = valkey.endpoint("x").open()
    monkeypatch.setattr(Wire, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wire.call("ECHO", "1")
    with pytest.raises(ConnectionLost):
        wire.call("ECHO", "2")
