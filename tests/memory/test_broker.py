from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from memory_helpers import Bytes, Loop, store

from redist.errors import RedistError, SegmentError, SegmentGone, SegmentsFull, TransferError
from redist.memory.broker import Broker
from redist.memory.broker_client import BrokerClient
from redist.memory.directory import SegmentDirectory
from redist.memory.frames import pack_frame
from redist.memory.headers import Header
from redist.memory.reader import open_segment
from redist.memory.writer import SegmentWriter
from servers import wait_until


class Worker:
    """A broker in a loop of its own, with what it told its worker."""

    def __init__(self, directory: SegmentDirectory, loop: Loop) -> None:
        self.committed: list[tuple[str, int, int]] = []
        self.dropped: list[tuple[str, int]] = []
        self.gone: list[int] = []
        self.room: list[int] = []
        self.directory = directory
        self.loop = loop
        self.fetched = asyncio.Event()
        self.broker = Broker(
            directory,
            fetch=self.fetch,
            on_committed=lambda *args: self.committed.append(args),
            on_dropped=lambda *args: self.dropped.append(args),
            on_gone=self.gone.append,
        )
        self.address = loop.run(self.broker.start())

    async def fetch(self, wanted) -> list[RedistError | None]:
        if wanted[0][0] == "slow":
            await self.fetched.wait()
        return [None if addresses else SegmentGone(name) for name, _, addresses in wanted]


@pytest.fixture
def worker(directory: SegmentDirectory, loop: Loop) -> Iterator[Worker]:
    made = Worker(directory, loop)
    yield made
    loop.run(made.broker.close())
    assert made.broker.granted == 0
    assert not os.path.exists(made.address)


@pytest.fixture
def client(worker: Worker) -> Iterator[BrokerClient]:
    with BrokerClient(worker.address, timeout=10) as made:
        yield made


def test_the_worker_ends_between_grant_and_write(
    worker: Worker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its directory goes with it: nothing is wrong with the value, which another worker can take."""
    reserve, path = client._reserve, worker.directory.path

    def and_end(*args: Any) -> Any:
        grants = reserve(*args)
        os.rename(path, f"{path}-gone")
        return grants

    monkeypatch.setattr(client, "_reserve", and_end)
    try:
        with pytest.raises(TransferError, match="the worker ended"):
            client.put([("x", 1, Bytes(b"a" * 100_000))])
    finally:
        os.rename(f"{path}-gone", path)
    wait_until(lambda: client.stat().granted == 0)


def test_nothing_more_is_granted_before_the_worker_ends(worker: Worker, client: BrokerClient) -> None:
    """What was granted is waited for; who has an arena does not go on to write it."""
    client.put([("small", 1, Bytes(b"s" * 8000))])
    (grant,) = client.reserve([Header("large", 2, 100_000)])
    future = asyncio.run_coroutine_threadsafe(worker.broker.grant_no_more(10.0), worker.loop.loop)
    wait_until(lambda: worker.broker._refusing and not worker.directory.arenas.open)
    for name, size in (("small", 8000), ("large", 100_000)):
        with pytest.raises(TransferError, match="about to end"):
            client.put([(name, 3, Bytes(b"x" * size))])
    assert not future.done()
    with SegmentWriter(grant.path, grant.header) as writer:
        writer.write([bytes(100_000)])
        writer.publish(grant.final_path)
    client.commit([grant])
    future.result(10)
    assert sorted(worker.directory.files) == [("large", 2), ("small", 1)]


def test_it_ends_though_somebody_does_not_write(worker: Worker, client: BrokerClient) -> None:
    client.reserve([Header("large", 2, 100_000)])
    worker.loop.run(worker.broker.grant_no_more(0.05))


def test_simple(worker: Worker, client: BrokerClient) -> None:
    client.put([("x", 1, Bytes(b"hello", contains=("y",))), ("y", 2, Bytes(b"a" * 100_000, pieces=7))])
    assert bytes(open_segment(worker.directory.path_of("x", 1)).view) == b"hello"
    assert open_segment(worker.directory.path_of("y", 2)).header().nbytes == 100_000
    stat = client.stat()
    assert (stat.files, stat.nbytes, stat.granted) == (2, 4096 + 102_400, 0)
    assert stat.used == stat.nbytes
    assert [item[:2] for item in worker.committed] == [("x", 1), ("y", 2)]
    client.drop([("x", 1)])
    assert client.stat().files == 1
    assert worker.dropped == [("x", 1)]


def test_socket_is_owner_only(worker: Worker) -> None:
    assert os.stat(worker.address).st_mode & 0o777 == 0o600
    assert len(worker.address) < 108


def test_it_tells_of_processes_whose_last_connection_went(worker: Worker) -> None:
    first, second = (BrokerClient(worker.address, timeout=10) for _ in range(2))
    for each in (first, second):
        each.stat()
    first.close()
    with BrokerClient(worker.address, timeout=10) as third:
        third.stat()
    assert worker.gone == []
    second.close()
    wait_until(lambda: worker.gone == [os.getpid()])


def test_it_does_not_tell_of_those_that_may_count_otherwise(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another container the process has another pid."""
    monkeypatch.setattr("redist.memory.broker.is_near", lambda pid: False)
    with BrokerClient(worker.address, timeout=10) as first:
        first.stat()
    wait_until(lambda: worker.broker.peers == 0)
    assert worker.gone == []


def test_reservations_return(worker: Worker, client: BrokerClient) -> None:
    grants = client.reserve([Header("x", 1, 1 << 20), Header("y", 2, 1 << 20)])
    assert client.stat().granted >= 2 << 20
    client.abort(grants[:1])
    assert client.stat().granted < 2 << 20
    with SegmentWriter(grants[1].path, grants[1].header) as writer:
        writer.write([bytes(1 << 20)])
        # as if it died half-way: the connection closes
        client.close()
        worker.loop.settle()
        assert not os.path.exists(grants[1].path)
    assert worker.broker.granted == worker.directory.space.used == 0


def test_full_is_an_error_and_all_or_nothing(worker: Worker, client: BrokerClient) -> None:
    with pytest.raises(SegmentsFull, match=r"64\.00 MiB"):
        client.reserve([Header("x", 1, 60 << 20), Header("y", 2, 60 << 20)])
    assert client.stat().used == 0
    client.abort(client.reserve([Header("x", 1, 60 << 20)]))


def test_room_is_made(directory: SegmentDirectory, loop: Loop) -> None:
    store(directory, "old", 1, bytes(40 << 20))
    asked = []

    async def make_room(need: int) -> bool:
        asked.append(need)
        await asyncio.sleep(0.01)
        return directory.drop("old", 1)

    broker = Broker(directory, make_room=make_room)
    address = loop.run(broker.start())
    with BrokerClient(address) as client:
        client.put([("new", 2, Bytes(bytes(50 << 20)))])
        assert client.stat().files == 1
        with pytest.raises(SegmentsFull, match="it waited, and nothing got free"):
            client.reserve([Header("newer", 3, 50 << 20)])
        with pytest.raises(SegmentsFull):
            client.reserve([Header("never", 3, 500 << 20)])
        with pytest.raises(SegmentError, match="fetches nothing"):
            client.fetch([("x", 1, [])])
    assert len(asked) == 2
    assert all(
        need % 4096 == 0 for need in asked
    )  # as much as is reserved: else it would ask again and again
    loop.run(broker.close())


def test_arenas_wait_for_room_as_well(directory: SegmentDirectory, loop: Loop) -> None:
    gate = asyncio.Event()
    for i in range(3):
        store(directory, f"old{i}", 1, bytes(21 << 20))

    async def make_room(need: int) -> bool:
        await gate.wait()
        return directory.drop("old0", 1, recycle=False)

    broker = Broker(directory, make_room=make_room)
    with BrokerClient(loop.run(broker.start())) as client:
        loop.loop.call_later(0.05, gate.set)
        client.put([("small", 2, Bytes(bytes(8192)))])
        assert client.stat().files == 3
    loop.run(broker.close())


def test_failed_write_leaves_nothing(worker: Worker, client: BrokerClient) -> None:
    short = Bytes(b"abc")
    short.nbytes = 5
    with pytest.raises(SegmentError, match="announced 5"):
        client.put([("whole", 1, Bytes(b"abc")), ("short", 2, short)])
    stat = client.stat()
    assert (stat.files, stat.used, stat.granted) == (0, 0, 0)
    assert not os.path.exists(worker.directory.path_of("whole", 1))


def test_evicted_before_it_was_recorded(worker: Worker, client: BrokerClient) -> None:
    (grant,) = client.reserve([Header("x", 1, 3)])
    with SegmentWriter(grant.path, grant.header) as writer:
        writer.write([b"abc"])
        writer.publish(grant.final_path)
    assert worker.directory.drop("x", 1)
    client.commit([grant])
    assert client.stat().used == 0
    assert worker.committed == []


_WRITER = textwrap.dedent("""
    import os, signal, sys
    from redist.memory.broker_client import BrokerClient
    from redist.memory.headers import Header
    from redist.memory.writer import SegmentWriter
    client = BrokerClient(sys.argv[1])
    one, two, three = client.reserve([Header("one", 1, 5000), Header("two", 2, 5000), Header("three", 3, 5000)])
    for grant in (one, two):
        writer = SegmentWriter(grant.path, grant.header)
        writer.write([b"x" * 5000])
        writer.publish(grant.final_path)
    client.commit([one])
    writer = SegmentWriter(three.path, three.header)
    writer.write([b"x" * 100])
    if sys.argv[2] == "fork" and os.fork() == 0:
        print("child", flush=True)
        sys.stdin.read()
        os._exit(0)
    print("ready", flush=True)
    signal.pause()
""")


@pytest.mark.parametrize("way", ["die", "fork"])
def test_killed_writer(worker: Worker, client: BrokerClient, way: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _WRITER, worker.address, way],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdin is not None
    for _ in range(2 if way == "fork" else 1):
        assert child.stdout.readline()
    assert client.stat().granted == 2 * 8192
    child.send_signal(signal.SIGKILL)
    child.wait()
    worker.loop.settle()
    stat = client.stat()
    assert (stat.files, stat.used, stat.granted) == (1, 8192, 0)
    assert bytes(open_segment(worker.directory.path_of("one", 1)).view) == b"x" * 5000
    assert not os.path.exists(worker.directory.path_of("two", 2))
    assert not [entry for entry in os.listdir(worker.directory.path) if entry.startswith("grant")]
    child.stdin.close()
    child.stdout.close()


def test_disconnect_by_pid(worker: Worker, client: BrokerClient) -> None:
    (grant,) = client.reserve([Header("x", 1, 5000)])

    async def disconnect() -> None:
        worker.broker.disconnect(os.getpid())

    worker.loop.run(disconnect())
    assert worker.broker.peers == 0
    assert worker.broker.granted == 0
    # the broken connection is replaced
    assert client.stat().used == 0
    with pytest.raises(TransferError):
        client.commit([grant])


def test_fetch(worker: Worker, client: BrokerClient) -> None:
    one, two = client.fetch([("x", 1, ["tcp://a:1"]), ("y", 2, [])])
    assert one is None
    assert isinstance(two, SegmentGone)


def test_slow_fetch_holds_nobody_up(worker: Worker, client: BrokerClient) -> None:
    with pytest.raises(TransferError, match="did not answer within"):
        client.fetch([("slow", 1, ["tcp://a:1"])], timeout=0.05)
    done = []
    thread = threading.Thread(target=lambda: done.append(client.fetch([("slow", 1, ["tcp://a:1"])])))
    thread.start()
    client.put([("x", 1, Bytes(b"abc"))])
    assert client.stat().files == 1
    assert not done
    worker.loop.loop.call_soon_threadsafe(worker.fetched.set)
    thread.join(10)
    assert done == [[None]]
    # the late answer to the first request is set aside
    assert client.stat().files == 1


def full_until(directory: SegmentDirectory, gate: asyncio.Event) -> Broker:
    """Return a broker that can make room once `gate` is set."""
    store(directory, "old", 1, bytes(40 << 20))

    async def make_room(need: int) -> bool:
        await gate.wait()
        return directory.drop("old", 1)

    return Broker(directory, make_room=make_room)


def test_given_up_reservation_returns(directory: SegmentDirectory, loop: Loop) -> None:
    gate = asyncio.Event()
    broker = full_until(directory, gate)
    with BrokerClient(loop.run(broker.start()), timeout=0.05) as client:
        with pytest.raises(TransferError, match="did not answer within"):
            client.reserve([Header("x", 1, 60 << 20)])
        loop.loop.call_soon_threadsafe(gate.set)
        loop.settle()
        client.timeout = 10
        client.stat()
        assert client.stat().granted == 0
    loop.run(broker.close())


def test_many_threads(worker: Worker, client: BrokerClient) -> None:
    def work(number: int) -> None:
        for index in range(30):
            client.put([(f"k{number}", index, Bytes(b"x" * 500))])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Commits are one-way, and each thread may have a connection of its own.
    wait_until(lambda: client.stat().files == 180, 10, "every file is committed")
    assert len(worker.committed) == 180
    assert worker.broker.peers <= 6


def test_forked_child_has_connections_of_its_own(worker: Worker, client: BrokerClient) -> None:
    grants = client.reserve([Header("x", 1, 500)])
    child = os.fork()
    if child == 0:
        try:
            client.put([("child", 1, Bytes(b"abc"))])
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert client.stat().granted == 4096
    client.abort(grants)
    assert client.stat().files == 1


def test_foreign_peer_loses_only_its_connection(worker: Worker, client: BrokerClient, caplog) -> None:
    frames = [
        b"GET / HTTP/1.1\r\n\r\n",
        pack_frame([99, 1]),
        pack_frame([1]),
        pack_frame([1, 1, "x"]),
        pack_frame([1, 1, "x", -1, 5]),
        pack_frame([1, 1, "x", 1, "5"]),
        pack_frame([2, 0, [1]]),
        pack_frame([4, 1, ["x", 1]]),
        pack_frame([4, 1, ["x", 1, [5]]]),
    ]
    for frame in frames:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(worker.address)
            sock.settimeout(5)
            sock.sendall(frame)
            assert sock.recv(100) == b""
    assert client.stat().used == 0
    assert caplog.text.count("closing the local connection") == len(frames)


def test_no_worker(parent: str) -> None:
    client = BrokerClient(os.path.join(parent, "nothing"))
    with pytest.raises(TransferError, match="cannot be reached"):
        client.stat()
    client.close()
    with pytest.raises(TransferError, match="closed"):
        client.stat()


def test_worker_goes_away(directory: SegmentDirectory, loop: Loop) -> None:
    broker = Broker(directory)
    address = loop.run(broker.start())
    client = BrokerClient(address)
    (grant,) = client.reserve([Header("x", 1, 500)])
    loop.run(broker.close())
    with pytest.raises(TransferError):
        client.commit([grant])
        client.stat()
    again = Broker(directory)
    assert loop.run(again.start()) == address
    assert client.stat().files == 0
    client.close()
    loop.run(again.close())


def test_a_socket_lies_in_its_directory_however_long_that_is(parent: str, loop: Loop) -> None:
    """So it goes with the directory, also where its worker was killed."""
    directory = SegmentDirectory.create(os.path.join(parent, "x" * 120))
    broker = Broker(directory)
    address = loop.run(broker.start())
    assert os.path.dirname(address) == directory.path
    assert os.stat(address).st_mode & 0o777 == 0o600
    with BrokerClient(address) as client:
        assert client.stat().files == 0
    loop.run(broker.close())
    assert not os.path.exists(address)
    directory.close()
    with pytest.raises(TransferError, match="cannot be reached"):
        BrokerClient(address).stat()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["RESERVE", "COMMIT"])
def test_an_interrupt_surfaces_and_leaves_nothing(
    worker: Worker, client: BrokerClient, monkeypatch: pytest.MonkeyPatch, kind: str, when: str
) -> None:
    client.put([("first", 1, Bytes(b"1"))])
    (connection,) = client._idle
    real = connection._socket

    class Interrupted:
        armed = True

        def send(self, frame: memoryview, flags: int) -> int:
            if self.armed and frame[4:] in frames[kind](frame[4:]):
                type(self).armed = False
                real.sendall(frame if when == "after" else frame[:5])
                raise KeyboardInterrupt
            return real.send(frame, flags)

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    number = {"RESERVE": 1, "COMMIT": 2}[kind]
    frames = {kind: lambda body: [body] if body[1] == number else []}
    connection._socket = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        client.put([("x", 1, Bytes(b"x" * 100_000))])
    assert not Interrupted.armed
    deadline = time.monotonic() + 5
    while worker.broker.granted or len(worker.directory.files) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not os.path.exists(worker.directory.path_of("x", 1))
    client.put([("x", 2, Bytes(b"x"))])
    stat = client.stat()
    assert (stat.files, stat.granted, stat.used) == (2, 0, 8192)


def test_a_small_payload_after_its_connection_broke(worker: Worker, client: BrokerClient) -> None:
    client.put([("x", 1, Bytes(b"x" * 9000))])
    wait_until(lambda: ("x", 1) in worker.directory.files)
    (peer,) = worker.broker._peers
    worker.loop.loop.call_soon_threadsafe(peer.abort)  # as when the worker was started again
    wait_until(lambda: not worker.broker._peers)
    # its socket is closed right after that
    wait_until(lambda: not any(connection.alive for connection in list(client._all)))
    client.put([("y", 1, Bytes(b"y" * 9000))])
    wait_until(lambda: ("y", 1) in worker.directory.files)
    client._idle[0].hang_up()  # as after an interrupt
    client.put([("z", 1, Bytes(b"z" * 9000))])
    wait_until(lambda: ("z", 1) in worker.directory.files)
    client.close()
    wait_until(lambda: not worker.directory.arenas.open)
