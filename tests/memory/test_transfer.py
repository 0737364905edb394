from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_helpers import TOKEN, Bytes, Loop, store

from redist.errors import RedistError, SegmentCorrupt, SegmentGone, SegmentsFull, TransferError
from redist.loading import load_received
from redist.memory.broker import Broker
from redist.memory.data_client import DataClient
from redist.memory.data_messages import send_all
from redist.memory.data_server import DataServer, ip_towards
from redist.memory.directory import SegmentDirectory
from redist.memory.fetcher import Fetcher
from redist.memory.frames import pack_frame
from redist.memory.headers import Header, footprint
from redist.memory.hello import VERSION
from redist.memory.holders import HolderPlan, split_address
from redist.memory.reader import open_segment
from redist.memory.receive import MOST_SHARED, FrameReceiver, PrivateSink, Received, SegmentSink
from redist.protocol import dumps
from servers import wait_until


class Worker:
    """A directory with a data server."""

    def __init__(self, directory: SegmentDirectory, loop: Loop, **options) -> None:
        self.directory = directory
        self.loop = loop
        self.committed: list[tuple[str, int, int]] = []
        self.dropped: list[tuple[str, int]] = []
        self.server = DataServer(
            directory,
            TOKEN,
            on_committed=lambda *args: self.committed.append(args),
            on_dropped=lambda *args: self.dropped.append(args),
            **options,
        )
        self.address = loop.run(self.server.start())

    def close(self) -> None:
        self.loop.run(self.server.close())


@pytest.fixture
def worker(directory: SegmentDirectory, loop: Loop) -> Iterator[Worker]:
    made = Worker(directory, loop)
    yield made
    made.close()


@pytest.fixture
def receiver(parent: str) -> Iterator[SegmentDirectory]:
    made = SegmentDirectory.create(parent, limit=64 << 20)
    yield made
    made.close()


@pytest.fixture
def client() -> Iterator[DataClient]:
    made = DataClient(TOKEN, timeout=10)
    yield made
    made.close()


def _received(outcome: object) -> bytes:
    assert isinstance(outcome, Received), outcome
    assert outcome.view is not None
    return bytes(outcome.view)


def test_simple(worker: Worker, client: DataClient) -> None:
    data = os.urandom(3_000_000)
    store(worker.directory, "x", 1, data, contains=("inner",))
    store(worker.directory, "empty", 2, b"")
    one, gone, old, empty = client.get(worker.address, [("x", 1), ("gone", 1), ("x", 2), ("empty", 2)])
    assert _received(one) == data
    assert isinstance(one, Received)
    assert one.header == Header("x", 1, len(data), "bytes", ("inner",))
    assert isinstance(gone, SegmentGone)
    assert isinstance(old, SegmentGone)
    assert "'x' attempt 2" in str(old)
    assert worker.directory.path not in str(old)
    assert _received(empty) == b""
    assert client.get(worker.address, []) == []


def test_many_small_ones_share_memory_of_bounded_size(worker: Worker, client: DataClient) -> None:
    sizes = [40_000, 66_000, 0, 5_000, 130_000, 700_000, 200_000, 1_000] * 8
    datas = [os.urandom(size) for size in sizes]
    for i, data in enumerate(datas):
        store(worker.directory, f"k{i}", 1, data)
    wanted = [(f"k{i}", 1) for i in range(len(datas))]
    wanted[30:30] = [("gone", 1)]
    arrived: list[str] = []
    sink = PrivateSink(lambda received: arrived.append(received.header.name))
    outcomes = client.get(worker.address, wanted, sink)
    assert isinstance(outcomes.pop(30), SegmentGone)
    assert [_received(outcome) for outcome in outcomes] == datas
    assert arrived == [f"k{i}" for i in range(len(datas))]
    blocks: dict[int, int] = {}
    for outcome in outcomes:
        assert isinstance(outcome, Received)
        assert outcome.view is not None
        assert outcome.view.readonly == (len(outcome.view) <= MOST_SHARED)
        whole = memoryview(outcome.view.obj)
        assert whole.nbytes <= (2 << 20 if len(outcome.view) < 300_000 else len(outcome.view) + 64)
        blocks[id(outcome.view.obj)] = whole.nbytes
    assert len(blocks) < len(datas) / 2
    # One that is asked for alone holds nothing else.
    (alone,) = client.get(worker.address, [("k1", 1)])
    assert isinstance(alone, Received)
    assert alone.view is not None
    assert memoryview(alone.view.obj).nbytes == 66_000


@pytest.mark.parametrize("size", [1_000, 200_000])
def test_a_copy_of_a_large_one_is_the_memory_that_it_came_into(
    worker: Worker, client: DataClient, size: int
) -> None:
    for name in ("x", "y"):
        store(worker.directory, name, 1, b"".join(dumps(np.arange(size), inline_limit=0).chunks()))
    first, second = client.get(worker.address, [("x", 1), ("y", 1)])
    assert isinstance(first, Received)
    assert isinstance(second, Received)
    array = load_received(first, writable=True)
    there = np.frombuffer(first.view, np.uint8)  # type: ignore[arg-type]
    assert np.shares_memory(array, there) == (size > 100_000)
    assert load_received(first).flags.writeable is False
    array[:] = -1
    assert load_received(second)[-1] == size - 1


def test_pieces_that_the_socket_takes_in_parts() -> None:
    pieces = [os.urandom(n) for n in (0, 5, 100_000, 0, 3_000_000, 1, 0)]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(10)
        got = bytearray()

        def read() -> None:
            while part := theirs.recv(70_000):
                got.extend(part)

        reader = threading.Thread(target=read)
        reader.start()
        send_all(ours, list(pieces))
        send_all(ours, [])
        ours.close()
        reader.join(10)
    assert got == b"".join(pieces)


def test_into_segments(worker: Worker, client: DataClient, receiver: SegmentDirectory) -> None:
    sizes = [0, 10, 70_000, 200_000, 5_000_000] * 4
    for index, size in enumerate(sizes):
        store(worker.directory, f"k{index}", index, bytes([index]) * size, contains=("c",))
    wanted = [(f"k{index}", index) for index in range(len(sizes))]
    assert all(
        isinstance(outcome, Received) for outcome in client.get(worker.address, wanted, SegmentSink(receiver))
    )
    for index, size in enumerate(sizes):
        mapping = open_segment(receiver.path_of(f"k{index}", index))
        assert bytes(mapping.view) == bytes([index]) * size
        assert mapping.header().contains == ("c",)
    assert receiver.total == receiver.space.used == worker.directory.total


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_what_is_on_its_way_here_counts_as_granted(receiver: SegmentDirectory, end: str) -> None:
    directory, broker = receiver, Broker(receiver)
    header = Header("x", 1, 5_000_000)
    target = SegmentSink(directory).start(header)
    assert broker.granted == directory.space.used == footprint(header.file_size)
    if target.view is None:
        target.write(memoryview(bytes(header.nbytes)))
    getattr(target, end)()
    assert broker.granted == 0
    assert directory.space.used == (footprint(header.file_size) if end == "finish" else 0)


def test_receiver_without_space_gets_the_others(worker: Worker, client: DataClient, parent: str) -> None:
    small = SegmentDirectory.create(parent, limit=50_000)
    store(worker.directory, "large", 1, bytes(1_000_000))
    store(worker.directory, "small", 2, bytes(10_000))
    large, fits = client.get(worker.address, [("large", 1), ("small", 2)], SegmentSink(small))
    assert isinstance(large, SegmentsFull)
    assert isinstance(fits, Received)
    assert small.space.used == small.total == 12_288
    small.close()


def test_damaged_file_is_refused_alone(worker: Worker, client: DataClient) -> None:
    os.truncate(store(worker.directory, "bad", 1, bytes(1000)), 900)
    store(worker.directory, "good", 1, b"good")
    bad, good = client.get(worker.address, [("bad", 1), ("good", 1)])
    assert isinstance(bad, SegmentCorrupt)
    assert _received(good) == b"good"


@pytest.mark.parametrize("name", ["../../../../etc/passwd", "/etc/passwd", "id", "lock", "..", "\0"])
def test_requests_never_leave_the_directory(worker: Worker, client: DataClient, name: str) -> None:
    (outcome,) = client.get(worker.address, [(name, 1)])
    assert isinstance(outcome, SegmentGone)


def test_put_and_drop(worker: Worker, client: DataClient) -> None:
    data = os.urandom(2_000_000)
    assert client.put(
        worker.address, [("x", 1, Bytes(data, pieces=100)), ("y", 2, Bytes(b"", contains=("x",)))]
    ) == [
        None,
        None,
    ]
    assert bytes(open_segment(worker.directory.path_of("x", 1)).view) == data
    worker.loop.settle()
    assert [item[:2] for item in worker.committed] == [("x", 1), ("y", 2)]
    full = client.put(worker.address, [("z", 3, Bytes(bytes(40 << 20))), ("w", 3, Bytes(bytes(40 << 20)))])
    assert [type(error) for error in full] == [SegmentsFull, SegmentsFull]
    assert worker.directory.space.used == worker.directory.total
    client.drop(worker.address, [("x", 1)])
    worker.loop.settle()
    assert worker.dropped == [("x", 1)]
    assert set(worker.directory.files) == {("y", 2)}


def test_put_that_breaks_off(worker: Worker, client: DataClient) -> None:
    class Breaks(Bytes):
        def chunks(self):
            yield b"x" * 100_000
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        client.put(worker.address, [("x", 1, Breaks(bytes(1_000_000)))])
    short = Bytes(bytes(1000))
    short.nbytes = 2000
    with pytest.raises(TransferError, match="announced 2000"):
        client.put(worker.address, [("x", 1, short)])
    deadline = time.monotonic() + 5
    while worker.directory.space.used and time.monotonic() < deadline:
        time.sleep(0.01)
    assert worker.directory.space.used == 0
    assert len(os.listdir(worker.directory.path)) == 5


def _nothing_is_left(worker: Worker) -> None:
    wait_until(lambda: not worker.directory.files and worker.directory.total == 0, what="all was dropped")
    worker.loop.settle()
    assert not worker.committed


@pytest.mark.parametrize("size", [1_000_000, 1000])
def test_put_of_which_the_client_does_not_hear(
    worker: Worker, client: DataClient, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """It would put it again elsewhere, or not at all: nobody would drop what is here."""
    taken, gone = threading.Event(), threading.Event()
    start = SegmentSink.start

    def slow(sink: SegmentSink, header: Header) -> Any:
        target = start(sink, header)
        finish = target.finish

        def finish_late() -> Received | None:
            try:
                return finish()
            finally:
                taken.set()
                assert gone.wait(10)

        monkeypatch.setattr(type(target), "finish", lambda _: finish_late())
        return target

    monkeypatch.setattr(SegmentSink, "start", slow)
    impatient = DataClient(TOKEN, timeout=0.5)
    with pytest.raises(TransferError, match="in time"):
        impatient.put(worker.address, [("x", 1, Bytes(bytes(size)))])
    assert taken.wait(10)
    assert worker.directory.files
    gone.set()
    _nothing_is_left(worker)


def test_put_of_two_that_breaks_off_in_the_second(worker: Worker, client: DataClient) -> None:
    class Breaks(Bytes):
        def chunks(self) -> Iterator[bytes]:
            yield b"x" * 100_000
            wait_until(lambda: worker.directory.files, what="the first is there")
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        client.put(worker.address, [("x", 1, Bytes(bytes(100_000))), ("y", 2, Breaks(bytes(1_000_000)))])
    _nothing_is_left(worker)


# --- who is let in ----------------------------------------------------------------------------------------------------


def test_wrong_token(worker: Worker, caplog) -> None:
    store(worker.directory, "x", 1, b"secret")
    stranger = DataClient("wrong")
    (outcome,) = stranger.get(worker.address, [("x", 1)])
    assert isinstance(outcome, TransferError)
    assert "token" in str(outcome)
    with pytest.raises(TransferError, match="token"):
        stranger.put(worker.address, [("y", 1, Bytes(b"abc"))])
    with pytest.raises(TransferError, match="token"):
        stranger.drop(worker.address, [("x", 1)])
    assert set(worker.directory.files) == {("x", 1)}
    assert "token of the namespace is wrong" in caplog.text
    with pytest.raises(ValueError, match="token"):
        DataServer(worker.directory, "")


def test_server_that_does_not_know_the_token() -> None:
    listening = socket.create_server(("127.0.0.1", 0))

    def serve(*frames: bytes) -> None:
        accepted, _ = listening.accept()
        with accepted:
            accepted.sendall(frames[0])
            accepted.recv(4096)
            for frame in frames[1:]:
                accepted.sendall(frame)
                accepted.settimeout(2)
                accepted.recv(100)

    address = f"tcp://127.0.0.1:{listening.getsockname()[1]}"
    client = DataClient(TOKEN, timeout=2)
    for frames, text in (
        (
            (pack_frame(["redist-data", VERSION, b"n" * 16]), pack_frame([b"p" * 32])),
            "does not know the token",
        ),
        ((pack_frame(["redist-data", VERSION, b"n" * 16]), pack_frame(["p"])), "does not know the token"),
        ((pack_frame(["redist-data", 99, b"n" * 16]),), "version 99"),
        ((pack_frame(["else"]),), "not a data server"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n",), "not redist's protocol"),
        ((b"\0\0\0\x03abc",), "not msgpack"),
    ):
        thread = threading.Thread(target=serve, args=frames)
        thread.start()
        (outcome,) = client.get(address, [("x", 1)])
        assert isinstance(outcome, TransferError | SegmentCorrupt)
        assert text in str(outcome)
        thread.join()
    listening.close()
    client.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_garbage_to_the_server(worker: Worker, garbage: list[bytes]) -> None:
    host, port = split_address(worker.address)
    with socket.create_connection((host, port), 5) as sock:
        try:
            for data in garbage:
                sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
        except OSError:
            pass
    assert worker.directory.space.used == worker.directory.total


def test_wrong_requests_of_a_friend(worker: Worker) -> None:
    store(worker.directory, "x", 1, b"data")
    for request in (
        [9],
        [1, "x"],
        [1, 5, 5],
        [1, "x", -1],
        [1, "x", "1"],
        [2, 5],
        [2, ["x", 1, -1, "t", []]],
        [3, "x"],
        ["get", "x", 1],
        [1, "x", 1 << 60, b""],
    ):
        connection = DataClient(TOKEN, timeout=5)._open(worker.address)
        with pytest.raises(ConnectionError):
            connection.exchange([pack_frame(request)], FrameReceiver(connection.scratch))
        connection.close()
    with DataClientOf(worker) as client:
        assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"


class DataClientOf:
    def __init__(self, worker: Worker) -> None:
        self.client = DataClient(TOKEN)

    def __enter__(self) -> DataClient:
        return self.client

    def __exit__(self, *error: object) -> None:
        self.client.close()


def test_silent_strangers_hold_nobody_up(worker: Worker, client: DataClient, monkeypatch) -> None:
    monkeypatch.setattr("redist.memory.data_server._HELLO_SECONDS", 0.2)
    store(worker.directory, "x", 1, b"data")
    assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"
    host, port = split_address(worker.address)
    strangers = [socket.create_connection((host, port)) for _ in range(4)]
    start = time.monotonic()
    assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"
    assert time.monotonic() - start < 0.15
    for stranger in strangers:
        stranger.settimeout(5)
        while stranger.recv(100):
            pass
        stranger.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    if not shutil.which("openssl"):
        pytest.skip("openssl is needed to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    key, cert = str(directory / "key.pem"), str(directory / "cert.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", key, "-out", cert], check=True, capture_output=True)
    return key, cert


def test_tls(directory: SegmentDirectory, loop: Loop, certificate: tuple[str, str]) -> None:
    key, cert = certificate
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(cert, key)
    client_context = ssl.create_default_context(cafile=cert)
    worker = Worker(directory, loop, tls=server_context)
    data = os.urandom(2_000_000)
    store(directory, "x", 1, data)
    client = DataClient(TOKEN, tls=client_context, timeout=10)
    for _ in range(2):
        (outcome,) = client.get(worker.address, [("x", 1)])
        assert _received(outcome) == data
    assert client.put(worker.address, [("y", 1, Bytes(data))]) == [None]
    assert bytes(open_segment(directory.path_of("y", 1)).view) == data
    distrusting = DataClient(TOKEN, tls=ssl.create_default_context(), timeout=10)
    (refused,) = distrusting.get(worker.address, [("x", 1)])
    assert isinstance(refused, TransferError)
    assert "TLS" in str(refused)
    assert worker.address.startswith("tls://")
    (refused,) = DataClient(TOKEN, timeout=2).get(worker.address, [("x", 1)])
    assert isinstance(refused, TransferError)
    assert "wants TLS: set tls.ca-file" in str(refused)
    (refused,) = client.get(worker.address.replace("tls:", "tcp:"), [("x", 1)])
    assert isinstance(refused, TransferError)
    assert "does not use TLS" in str(refused)

    client.close()
    worker.close()


# --- holders and waiters ----------------------------------------------------------------------------------------------

_HOLDER = textwrap.dedent("""
    import asyncio, os, sys
    sys.path.insert(0, sys.argv[2])
    from memory_helpers import TOKEN, store
    from redist.memory.data_server import DataServer
    from redist.memory.directory import SegmentDirectory
    from redist.memory import data_server
    directory = SegmentDirectory.create(sys.argv[1])
    for index in range(4):
        store(directory, f"k{index}", index, bytes([index]) * 8_000_000)
    class Dies(bytes):
        pass
    sent = 0
    send_all = data_server.send_all
    def dying(sock, pieces):
        global sent
        sent += sum(map(len, pieces))
        if sent > 14_000_000:
            os._exit(9)
        send_all(sock, pieces)
    data_server.send_all = dying
    async def main():
        print(await DataServer(directory, TOKEN).start(), flush=True)
        await asyncio.sleep(60)
    asyncio.run(main())
""")


def test_holder_that_dies_half_way(
    worker: Worker, client: DataClient, parent: str, receiver: SegmentDirectory
) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _HOLDER, parent, os.path.dirname(__file__)]
    dying = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert dying.stdout is not None
    address = dying.stdout.readline().strip()
    for index in range(3):
        store(worker.directory, f"k{index}", index, bytes([index]) * 8_000_000)
    wanted = [(f"k{index}", index, [address, worker.address]) for index in range(4)]
    outcomes = client.fetch(wanted, SegmentSink(receiver))
    assert dying.wait(10) == 9
    dying.stdout.close()
    for index in range(3):
        assert isinstance(outcomes[index], Received)
        assert bytes(open_segment(receiver.path_of(f"k{index}", index)).view) == bytes([index]) * 8_000_000
    assert isinstance(outcomes[3], SegmentGone)
    assert worker.server.sent == 16_000_000
    assert receiver.space.used == receiver.total
    assert len(os.listdir(receiver.path)) == 4 + 4
    for path in Path(parent).iterdir():
        if str(path) not in (receiver.path, worker.directory.path):
            shutil.rmtree(path)


def test_holder_killed_between_two_requests(
    directory: SegmentDirectory, loop: Loop, client: DataClient
) -> None:
    store(directory, "x", 1, b"data")
    worker = Worker(directory, loop)
    port = split_address(worker.address)[1]
    assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"
    worker.close()
    again = DataServer(directory, TOKEN)
    assert loop.run(again.start("127.0.0.1", port)) == worker.address
    # the idle connection is dead: a new one is made
    assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"
    assert client.put(worker.address, [("y", 1, Bytes(b"abc"))]) == [None]
    loop.run(again.close())
    assert isinstance(client.get(worker.address, [("x", 1)])[0], TransferError)


def test_plan_of_holders() -> None:
    plan = HolderPlan([("a", 1, ["one", "two"]), ("b", 1, ["one", "two"]), ("c", 1, []), ("d", 1, ["one"])])
    assert plan.groups() == {"one": [0, 1, 3]}
    assert plan.payloads([0, 1]) == [("a", 1), ("b", 1)]
    arrived = Received(Header("a", 1, 0), None)
    broken = TransferError("broken")
    plan.record([0, 1, 3], [arrived, broken, broken])
    assert plan.groups() == {"two": [1]}
    plan.record([1], [SegmentGone("gone")])
    assert plan.groups() == {}
    outcomes = plan.outcomes()
    assert outcomes[0] is arrived
    assert [type(outcome) for outcome in outcomes[1:]] == [SegmentGone, TransferError, TransferError]
    many = HolderPlan([(f"k{index}", index, ["one"]) for index in range(2500)])
    assert len(many.groups()["one"]) == 1000


@pytest.mark.parametrize(
    "address", ["", "tcp://", "tcp://host", "tcp://host:x", "tcp://host:0", "tcp://:5", "x:99999"]
)
def test_wrong_addresses(client: DataClient, address: str) -> None:
    with pytest.raises(TransferError, match="no address"):
        split_address(address)
    (outcome,) = client.get(address, [("x", 1)])
    assert isinstance(outcome, TransferError)


def test_addresses() -> None:
    assert split_address("tcp://host:5") == ("host", 5)
    assert split_address("tcp://[::1]:5") == ("::1", 5)
    assert ip_towards("127.0.0.1") == "127.0.0.1"


def test_one_transfer_for_many_waiters(
    worker: Worker, receiver: SegmentDirectory, client: DataClient
) -> None:
    store(worker.directory, "x", 1, bytes(5_000_000))
    fetched = []

    async def main() -> None:
        fetcher = Fetcher(receiver, client, on_fetched=lambda *args: fetched.append(args))
        wanted = [("x", 1, [worker.address]), ("gone", 1, [worker.address]), ("nobody", 1, [])]
        impatient = asyncio.ensure_future(fetcher.fetch(wanted))
        await asyncio.sleep(0)
        waiters = [asyncio.ensure_future(fetcher.fetch(wanted)) for _ in range(5)]
        await asyncio.sleep(0)
        impatient.cancel()
        answers: list[list[RedistError | None]] = await asyncio.gather(*waiters)
        for here, gone, nobody in answers:
            assert here is None
            assert isinstance(gone, SegmentGone)
            assert isinstance(nobody, TransferError)
        assert await fetcher.fetch(wanted[:1]) == [None]
        await fetcher.close()

    asyncio.run(main())
    assert worker.server.sent == 5_000_000
    assert fetched == [("x", 1, 5_000_000)]
    assert receiver.has("x", 1)


def test_burst_keeps_within_the_limit(worker: Worker, parent: str, client: DataClient) -> None:
    small = SegmentDirectory.create(parent, limit=3 << 20)
    wanted = [(f"k{index}", index, [worker.address]) for index in range(6)]
    for name, attempt, _ in wanted:
        store(worker.directory, name, attempt, bytes(1_000_000))

    async def make_room(need: int) -> bool:
        assert small.space.used <= 3 << 20
        for key in list(small.files):
            small.drop(*key)
        return True

    async def main() -> None:
        poor = Fetcher(small, client)
        outcomes = await poor.fetch(wanted)
        assert outcomes.count(None) == 3
        assert sum(isinstance(outcome, SegmentsFull) for outcome in outcomes) == 3

        async def nothing_gets_free(need: int) -> bool:
            return False

        patient = Fetcher(small, client, make_room=nothing_gets_free)
        (outcome,) = await patient.fetch([next(item for item in wanted if not small.has(*item[:2]))])
        assert isinstance(outcome, SegmentsFull)
        assert "it waited, and nothing got free" in str(outcome)
        await patient.close()
        rich = Fetcher(small, client, make_room=make_room)
        assert await rich.fetch([item for item in wanted if not small.has(*item[:2])]) == [None] * 3
        await poor.close()
        await rich.close()

    asyncio.run(main())
    small.close()


def test_a_source_serves_a_bounded_number(directory: SegmentDirectory, loop: Loop) -> None:
    worker = Worker(directory, loop, transfers=2)
    store(directory, "x", 1, bytes(2_000_000))
    clients = [DataClient(TOKEN) for _ in range(6)]
    outcomes: list[object] = []
    threads = [
        threading.Thread(
            target=lambda client=client: outcomes.extend(client.get(worker.address, [("x", 1)] * 3))
        )
        for client in clients
    ]
    for thread in threads:
        thread.start()
    seen = 0
    while any(thread.is_alive() for thread in threads):
        names = [thread.name for thread in threading.enumerate()]
        seen = max(seen, sum(name.startswith("redist-data_") for name in names))
        time.sleep(0.001)
    assert len(outcomes) == 18
    assert all(isinstance(outcome, Received) for outcome in outcomes)
    assert seen <= 2
    for client in clients:
        client.close()
    worker.close()


def test_a_burst_asks_a_source_for_a_bounded_number_at_a_time(
    worker: Worker, receiver: SegmentDirectory, client: DataClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"k{i}" for i in range(6)]
    for name in names:
        store(worker.directory, name, 1, bytes(100_000))
    inside: set[int] = set()
    third = threading.Event()
    get = client.get

    def counted(*args: Any) -> Any:
        inside.add(threading.get_ident())
        try:
            if len(inside) > 2:
                third.set()
            third.wait(0.2)  # for it to come
            return get(*args)
        finally:
            inside.discard(threading.get_ident())

    monkeypatch.setattr(client, "get", counted)

    async def main() -> None:
        fetcher = Fetcher(receiver, client, threads=6, a_source=2)
        wanted = [[(name, 1, [worker.address])] for name in names]
        assert await asyncio.gather(*map(fetcher.fetch, wanted)) == [[None]] * 6
        await fetcher.close()

    asyncio.run(main())
    assert not third.is_set()


def test_client_in_a_forked_child(worker: Worker, client: DataClient) -> None:
    store(worker.directory, "x", 1, b"data")
    assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if _received(client.get(worker.address, [("x", 1)])[0]) == b"data" else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert _received(client.get(worker.address, [("x", 1)])[0]) == b"data"


def test_port_that_is_taken(worker: Worker, directory: SegmentDirectory, loop: Loop) -> None:
    with pytest.raises(TransferError, match="cannot listen"):
        loop.run(DataServer(directory, TOKEN).start("127.0.0.1", split_address(worker.address)[1]))
    assert signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN
