"""Small payloads in arenas: written by processes of the host, kept by their worker, copied by readers."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_helpers import TOKEN, Bytes, Loop, forked, store

from redist.errors import SegmentCorrupt, SegmentError, SegmentGone, SegmentsFull, TransferError
from redist.memory import arena, arena_files, arena_writer, arenas, broker_client, index
from redist.memory.arena import ARENA_SIZE, arena_path, number_in
from redist.memory.arena_writer import ArenaWriter, Small
from redist.memory.broker import Broker
from redist.memory.broker_client import BrokerClient
from redist.memory.broker_messages import ARENA, STORED
from redist.memory.data_client import DataClient
from redist.memory.data_server import DataServer
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header
from redist.memory.index import Index
from redist.memory.payloads import let_go, list_payloads, open_payload, read_small
from redist.memory.receive import Received, SegmentSink
from redist.protocol.payload import dumps, loads
from servers import wait_until

SIZE = 8192


def value(name: str, attempt: int, size: int = SIZE) -> bytes:
    """What is stored under a name: no two keys have a byte pattern in common."""
    return random.Random(f"{name} {attempt}").randbytes(size)


def put_small(directory: SegmentDirectory, *keys: tuple[str, int]) -> None:
    for name, attempt in keys:
        data = memoryview(value(name, attempt))
        assert directory.put_small(Header(name, attempt, SIZE, "bytes", ("inner",)), data)


def read(directory: SegmentDirectory | str, name: str, attempt: int) -> bytes:
    path = directory if isinstance(directory, str) else directory.path
    return bytes(open_payload(path, name, attempt).view)


def read_together(segments: str, keys: list[tuple[str, int]]) -> list[bytes | None]:
    return [None if place is None else place[0][place[1] : place[2]] for place in read_small(segments, keys)]


def files_in(directory: SegmentDirectory) -> list[int]:
    """The arenas of a directory."""
    return sorted(number for name in os.listdir(directory.path) if (number := number_in(name)) is not None)


def taken(directory: SegmentDirectory) -> int:
    """Bytes of memory that the arenas of a directory take, by the file system."""
    return sum(os.stat(arena_path(directory.path, number)).st_blocks * 512 for number in files_in(directory))


def in_index(directory: SegmentDirectory) -> int:
    return len(Index(directory.path).entries())


@pytest.fixture
def broker(directory: SegmentDirectory, loop: Loop) -> Iterator[Broker]:
    made = Broker(directory)
    loop.run(made.start())
    yield made
    loop.run(made.close())


@pytest.fixture
def client(broker: Broker) -> Iterator[BrokerClient]:
    with BrokerClient(broker.address, timeout=10) as made:
        yield made


def test_simple(directory: SegmentDirectory, client: BrokerClient) -> None:
    keys = [(f"k{number}", number) for number in range(300)]
    client.put([(*key, Bytes(value(*key), contains=("a", "b"), pieces=3)) for key in keys])
    client.put([("large", 1, Bytes(b"x" * 100_000)), ("small", 2, Bytes(value("small", 2)))])
    assert client.stat().files == len(directory.files) == 302
    assert all(read(directory, *key) == value(*key) for key in [*keys, ("small", 2)])
    mapping = open_payload(directory.path, "k7", 7)
    assert mapping.header() == directory.header("k7", 7) == Header("k7", 7, SIZE, "bytes", ("a", "b"))
    assert mapping.view.readonly
    assert len(directory.headers()) == 302
    assert len(list_payloads(directory.path)) == 301
    assert directory.newest == 299
    client.drop([("large", 1)])
    wait_until(lambda: len(directory.files) == 301)
    assert len(files_in(directory)) == 3
    assert directory.space.used == 3 * ARENA_SIZE
    client.drop([*keys[:200], ("small", 2)])
    wait_until(lambda: len(directory.files) == 100)
    assert [read(directory, *key) for key in keys[200:]] == [value(*key) for key in keys[200:]]
    for key in keys[:200]:
        with pytest.raises(SegmentGone, match=directory.path):
            read(directory, *key)
    client.drop(keys[200:])
    client.close()
    wait_until(lambda: not directory.space.used)
    assert files_in(directory) == []
    assert in_index(directory) == directory.total == 0


def test_a_payload_is_a_stream_in_the_file(directory: SegmentDirectory, client: BrokerClient) -> None:
    array = np.arange(1000.0)
    client.put([("first", 1, Bytes(value("first", 1, 5001))), ("a", 1, dumps(array, inline_limit=0))])
    wait_until(lambda: len(directory.files) == 2)
    mapping = open_payload(directory.path, "a", 1)
    assert (loads(mapping.view) == array).all()
    found = Index(directory.path).find(*index.hash_of(index.digest_of("a"), 1))
    assert found is not None
    start = (found.place >> 32) + arena.RECORD_HEAD
    assert start % 64 == 0
    with pa.OSFile(arena_path(directory.path, found.arena)) as file:
        file.seek(start)
        assert (pa.ipc.open_stream(file).read_all().column(0).to_numpy() == array).all()


@pytest.mark.parametrize(("size", "small"), [(4096, False), (4097, True), (36_000, True), (36_865, False)])
def test_which_go_into_arenas(
    directory: SegmentDirectory, client: BrokerClient, size: int, small: bool
) -> None:
    client.put([("k", 1, Bytes(value("k", 1, size)))])
    assert client.stat().files == 1
    assert read(directory, "k", 1) == value("k", 1, size)
    assert os.path.exists(directory.path_of("k", 1)) == (not small)


def test_idle_arenas_give_back_what_they_do_not_need(
    directory: SegmentDirectory, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.put([("a", 1, Bytes(value("a", 1)))])
    wait_until(lambda: directory.has("a", 1))
    directory.reap()
    assert directory.space.used == ARENA_SIZE
    monkeypatch.setattr(directory.arenas, "idle", 0.0)
    directory.reap()
    assert directory.space.used == taken(directory) == 12_288
    client.put([("b", 2, Bytes(value("b", 2)))])  # in the next one
    wait_until(lambda: directory.has("b", 2))
    assert len(files_in(directory)) == 2
    client.drop([("a", 1), ("b", 2)])
    wait_until(lambda: not directory.files)
    directory.reap()
    assert directory.space.used == 0
    assert files_in(directory) == []


def test_memory_returns_page_by_page(directory: SegmentDirectory) -> None:
    keys = [(f"k{number}", number) for number in range(100)]
    put_small(directory, *keys)
    before = taken(directory)
    open_payload(directory.path, *keys[0])  # a reader keeps the arena open
    directory.drop_all(keys[10:90])
    assert before - taken(directory) >= 79 * SIZE
    assert directory.space.used == ARENA_SIZE - (before - taken(directory))
    assert [read(directory, *key) for key in keys[:10] + keys[90:]] == [
        value(*key) for key in keys[:10] + keys[90:]
    ]
    for key in random.Random(1).sample(keys[:10] + keys[90:], 20):
        directory.drop(*key)
    assert directory.space.used - (ARENA_SIZE - before) <= 2 * 4096
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == 0
    assert files_in(directory) == []


def test_the_same_payload_once_more(directory: SegmentDirectory) -> None:
    put_small(directory, ("k", 1), ("other", 1), ("k", 1))
    assert len(directory.files) == in_index(directory) == 2
    assert directory.total == sum(directory.files.values())
    assert read(directory, "k", 1) == value("k", 1)
    directory.drop("k", 1)
    with pytest.raises(SegmentGone):
        read(directory, "k", 1)
    directory.drop("other", 1)
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == in_index(directory) == 0


def test_what_is_dropped_before_it_is_told_of_is_not_taken_in(
    directory: SegmentDirectory, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = broker_client._Connection.send

    def send(self: object, items: list[object]) -> None:
        if items[0] == STORED:
            directory.drop("a", 1)
        real(self, items)

    monkeypatch.setattr(broker_client._Connection, "send", send)
    client.put([("a", 1, Bytes(value("a", 1))), ("b", 1, Bytes(value("b", 1)))])
    assert client.stat().files == 1
    assert list(directory.files) == [("b", 1)]
    assert in_index(directory) == 1


def test_no_space_for_an_arena(parent: str, loop: Loop) -> None:
    directory = SegmentDirectory.create(parent, limit=100_000)
    broker = Broker(directory)
    loop.run(broker.start())
    with BrokerClient(broker.address, timeout=10) as client:
        keys = [(f"k{number}", 1) for number in range(8)]
        client.put([(*key, Bytes(value(*key))) for key in keys])  # a file each
        assert client.stat().used == 8 * 12_288
        assert all(read(directory, *key) == value(*key) for key in keys)
        with pytest.raises(SegmentsFull, match="largest"):
            client.put([("more", 1, Bytes(value("more", 1)))])
        client.drop(keys)
    loop.run(broker.close())
    assert directory.space.used == 0
    with pytest.raises(SegmentsFull):
        directory.arenas.grant(None, directory.largest)
    directory.close()


def test_space_that_idle_arenas_have_reserved_goes_to_others(parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=2 << 20)
    put_small(directory, ("a", 1))
    store(directory, "large", 1, bytes(1_500_000))
    assert directory.space.used == directory.files["large", 1] + taken(directory)
    directory.close()


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a tmpfs needs root")
def test_a_full_file_system(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=2M", "redist-test", str(tmp_path)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        directory = SegmentDirectory.create(str(tmp_path / "segments"))
        keys = [(f"k{number}", number) for number in range(50)]
        put_small(directory, *keys)
        (tmp_path / "filler").write_bytes(bytes(1_400_000))
        with pytest.raises(SegmentsFull):
            for number in range(100):
                name = f"more{number}"
                data = memoryview(value(name, 1))
                if not directory.put_small(Header(name, 1, SIZE, "bytes"), data):
                    raise SegmentsFull("no arena")
                keys.append((name, 1))
        assert 50 < len(keys) < 130
        assert all(read(directory, *key) == value(*key) for key in keys)
        assert in_index(directory) == len(keys)
        os.unlink(tmp_path / "filler")
        put_small(directory, ("after", 1))
        directory.drop_all([*keys, ("after", 1)])
        directory.arenas.seal_idle(0.0)
        assert directory.space.used == 0
        directory.close()
        del directory
    finally:
        let_go()
        subprocess.run(["umount", str(tmp_path)], check=True)


# --- processes that die -----------------------------------------------------------------------------------------------


def test_writers_killed_at_every_step(
    directory: SegmentDirectory, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payload is told of and there, or no trace of it is left."""
    files = {arena.__file__, arena_writer.__file__, broker_client.__file__, index.__file__}
    keys = [("x", 1), ("y", 2)]

    def work() -> None:
        mine = BrokerClient(broker.address, timeout=10)
        mine.put([(*key, Bytes(value(*key))) for key in keys])
        mine.stat()

    step = died = 0
    while died == step:
        step += 1
        child = forked(work, kill_at=step, files=files)
        died += os.waitpid(child, 0)[1] == signal.SIGKILL
        wait_until(lambda: not broker.peers and not directory.arenas.open)
        there = set(directory.files)
        assert there in (set(), set(keys)), step
        assert in_index(directory) == len(there)
        assert all(read(directory, *key) == value(*key) for key in there)
        directory.drop_all(keys)
        assert directory.space.used == 0, step
        assert files_in(directory) == []
    assert step > 100
    assert there == set(keys)


def test_torn_values_are_never_seen(directory: SegmentDirectory, broker: Broker) -> None:
    """Two processes write, two read, and the worker drops, all at the same time."""
    names = [f"k{number}" for number in range(60)]

    def write(seed: int) -> None:
        chance = random.Random(seed)
        with BrokerClient(broker.address, timeout=30) as mine:
            for attempt in range(seed, 1200, 2):
                batch = [
                    (chance.choice(names), attempt * 10 + number) for number in range(chance.randrange(1, 6))
                ]
                mine.put([(*key, Bytes(value(*key), pieces=4)) for key in batch])
            mine.stat()

    def look(seed: int, together: bool) -> None:
        chance = random.Random(seed)
        seen = lost = 0
        while not os.path.exists(f"{directory.path}/stop"):
            keys = [entry for entry in os.listdir(directory.path) if entry.startswith("key-")]
            wanted = [
                (name, int(attempt))
                for _, name, attempt in (key.split("-") for key in chance.sample(keys, min(len(keys), 20)))
            ]
            found = read_together(directory.path, wanted) if together else [None] * len(wanted)
            for key, data in zip(wanted, found):
                try:
                    assert (data or read(directory.path, *key)) == value(*key)
                    seen += 1
                except SegmentGone:
                    lost += 1
        print(seen, lost)
        sys.exit(0 if seen > 100 and lost > 10 else 3)

    writers = [forked(lambda seed=seed: write(seed)) for seed in (0, 1)]
    readers = [forked(lambda seed=seed: look(seed, together=seed == 3)) for seed in (2, 3)]
    chance = random.Random(4)
    known: set[tuple[str, int]] = set()
    while writers:
        writers = [pid for pid in writers if os.waitpid(pid, os.WNOHANG)[0] == 0]
        for name, attempt in set(directory.files) - known:
            known.add((name, attempt))
            Path(f"{directory.path}/key-{name}-{attempt}").touch()
        keys = list(directory.files)
        gone = chance.sample(keys, len(keys) // 3)
        if chance.random() < 0.3:
            directory.arenas.seal_idle(0.0)
        directory.drop_all(gone)
        for name, attempt in gone[::2]:  # the others are still looked for
            Path(f"{directory.path}/key-{name}-{attempt}").unlink(missing_ok=True)
    assert all(read(directory, *key) == value(*key) for key in directory.files)
    Path(f"{directory.path}/stop").touch()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers] == [0, 0]
    assert len(known) > 2000
    assert in_index(directory) == len(directory.files)
    directory.drop_all(list(directory.files))
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == 0
    assert files_in(directory) == []


def test_a_connection_that_ends_gives_the_arena_back(
    directory: SegmentDirectory, broker: Broker, loop: Loop
) -> None:
    with BrokerClient(broker.address, timeout=10) as mine:
        mine.put([("a", 1, Bytes(value("a", 1)))])
        assert mine.stat().files == 1
        assert directory.arenas.open == 1
    wait_until(lambda: directory.space.used == 12_288)
    assert taken(directory) == 12_288
    assert not directory.arenas.open


def test_a_writer_goes_on_where_its_connection_was_closed(
    directory: SegmentDirectory, broker: Broker, client: BrokerClient, loop: Loop
) -> None:
    client.put([("a", 1, Bytes(value("a", 1)))])
    assert client.stat().files == 1
    loop.loop.call_soon_threadsafe(broker.disconnect, os.getpid())
    wait_until(lambda: not directory.arenas.open)
    client.put([("b", 2, Bytes(value("b", 2)))])
    assert client.stat().files == 2


def test_an_arena_that_is_being_written_is_sealed_later(
    directory: SegmentDirectory, broker: Broker, client: BrokerClient
) -> None:
    client.put([("a", 1, Bytes(value("a", 1)))])
    assert client.stat().files == 1
    writer = client._small._writer
    assert writer is not None
    arena_writer.fcntl.flock(writer._fd, arena_writer.fcntl.LOCK_EX)
    directory.arenas.seal_idle(0.0)
    assert directory.arenas.open == 1
    client.drop([("a", 1)])
    wait_until(lambda: not directory.files)
    arena_writer.fcntl.flock(writer._fd, arena_writer.fcntl.LOCK_UN)
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == 0


def test_what_could_not_be_told(
    directory: SegmentDirectory, client: BrokerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send(self: object, items: list[object]) -> None:
        if items[0] == STORED:
            raise error
        real(self, items)

    real = broker_client._Connection.send
    for error in (TransferError("gone"), KeyboardInterrupt()):
        monkeypatch.setattr(broker_client._Connection, "send", send)
        with pytest.raises(type(error)):
            client.put([("a", 1, Bytes(value("a", 1)))])
        monkeypatch.undo()
        assert client.stat().files == 0
        assert directory.space.used == in_index(directory) == 0


def test_a_payload_of_another_size_than_it_says(directory: SegmentDirectory, client: BrokerClient) -> None:
    lying = Bytes(value("a", 1))
    lying.nbytes -= 1
    with pytest.raises(SegmentError, match=r"'a' announced 8191 bytes, gave 8192"):
        client.put([("b", 1, Bytes(value("b", 1))), ("a", 1, lying)])
    assert client.stat().files == in_index(directory) == 0


@pytest.mark.parametrize(
    "told",
    [
        lambda number: [STORED, 0, number, 0, "a", 1, 100],
        lambda number: [STORED, 0, number + 1, 64, "a", 1, 100],
        lambda number: [STORED, 0, number, 64, "a", 1, 2 << 20],
        lambda number: [STORED, 0, number, 64, "a", 1, 0],
        lambda number: [STORED, 0, number, 64, "a", 1],
        lambda number: [STORED, 0, "1", 64, "a", 1, 100],
        lambda number: [STORED, 0],
    ],
)
def test_a_lying_writer_loses_its_connection(
    directory: SegmentDirectory, broker: Broker, client: BrokerClient, told: object
) -> None:
    connection, (_, number) = client._ask(ARENA, (1,), 10)
    connection.send(told(number))  # type: ignore[operator]
    wait_until(lambda: not broker.peers and not directory.space.used)
    assert directory.files == {}


def test_records_that_are_not_there_are_not_taken_in(
    directory: SegmentDirectory, client: BrokerClient
) -> None:
    connection, (_, number) = client._ask(ARENA, (1,), 10)
    connection.send([STORED, 0, number, 64, "a", 1, 9000, "b", 1, 9000])
    assert client.stat().files == 0


def test_a_forked_child_writes_into_an_arena_of_its_own(
    directory: SegmentDirectory, client: BrokerClient
) -> None:
    client.put([("a", 1, Bytes(value("a", 1)))])
    child = forked(lambda: (client.put([("b", 2, Bytes(value("b", 2)))]), client.stat()))
    assert os.waitpid(child, 0)[1] == 0
    client.put([("c", 3, Bytes(value("c", 3)))])
    assert client.stat().files == 3
    assert len(files_in(directory)) == 2
    assert all(read(directory, *key) == value(*key) for key in directory.files)


def test_the_index_is_held_for_long(directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arenas, "_PATIENCE", 0.01)
    monkeypatch.setattr(arenas, "_PAUSE", 0.01)
    put_small(directory, ("a", 1), ("b", 1))
    other = Index(directory.path, writable=True)
    assert other.lock()
    directory.drop("a", 1)
    assert list(directory.files) == [("b", 1)]
    assert in_index(directory) == 2
    put_key = ("b", 1)
    assert read(directory, *put_key) == value(*put_key)
    other.unlock()
    wait_until(lambda: directory.reap() or in_index(directory) == 1)
    directory.drop("b", 1)
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == 0


# --- a successor ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_successor_finds_what_was_there(parent: str, index_lost: bool) -> None:
    path = os.path.join(parent, "dead")

    def die() -> None:
        directory = SegmentDirectory.create(parent, limit=64 << 20)
        os.symlink(directory.path, path)
        keys = [(f"k{number}", number) for number in range(300)]
        put_small(directory, *keys)
        directory.drop_all(keys[20:290])
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(die), 0)
    path, link = os.path.realpath(path), path
    os.unlink(link)
    if index_lost:
        os.truncate(os.path.join(path, index.INDEX_FILE), 100)
    open(os.path.join(path, "index.new-1234"), "w").close()
    directory = SegmentDirectory.adopt(path, limit=64 << 20)
    there = [(f"k{number}", number) for number in (*range(20), *range(290, 300))]
    # without the index, what lay on a page with something that lives is found too
    assert set(there) <= set(directory.files)
    assert len(directory.files) <= (33 if index_lost else 30)
    assert all(read(directory, *key) == value(*key) for key in directory.files)
    assert directory.header("k7", 7) == Header("k7", 7, SIZE, "bytes", ("inner",))
    assert directory.space.used == taken(directory) < 40 * SIZE
    assert 0 <= directory.age("k7", 7) < 60
    put_small(directory, ("new", 400))
    directory.drop_all(list(directory.files))
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == 0
    assert sorted(os.listdir(path)) == ["id", "index", "lock", "space", "touched"]
    directory.close()


def test_a_successor_leaves_out_what_is_damaged(parent: str, caplog: pytest.LogCaptureFixture) -> None:
    directory = SegmentDirectory.create(parent, limit=64 << 20)
    put_small(directory, ("a", 1), ("b", 2), ("c", 3))
    (number,) = files_in(directory)
    found = directory.arenas.index.find(*index.hash_of(index.digest_of("b"), 2))
    assert found is not None
    with open(arena_path(directory.path, number), "r+b") as file:
        file.seek((found.place >> 32) + 20)
        file.write(b"damage")
    directory.close(remove=False)
    directory = SegmentDirectory.adopt(directory.path, limit=64 << 20)
    assert set(directory.files) == {("a", 1), ("c", 3)}
    assert "damaged" in caplog.text
    assert in_index(directory) == 2
    with pytest.raises(SegmentGone):
        read(directory, "b", 2)
    directory.close()


def test_who_outlives_its_worker_writes_no_more(parent: str, loop: Loop) -> None:
    directory = SegmentDirectory.create(parent, limit=64 << 20)
    broker = Broker(directory)
    loop.run(broker.start())
    with BrokerClient(broker.address, timeout=10) as client:
        client.put([("a", 1, Bytes(value("a", 1)))])
        assert client.stat().files == 1
        directory.close(remove=False)  # as if it were killed: no word to anybody
        successor = SegmentDirectory.adopt(directory.path, limit=64 << 20)
        assert list(successor.files) == [("a", 1)]
        writer = client._small._writer
        assert writer is not None
        assert writer.append([Small("b", 2, 5000, Header("b", 2, 5000).footer(), [bytes(5000)])]) == []
        assert successor.space.used == taken(successor) == 12_288
    directory.arenas = successor.arenas  # what the old broker hears of ends there
    loop.run(broker.close())
    successor.close()


def test_a_removed_directory(parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=64 << 20)
    put_small(directory, ("a", 1))
    assert read(directory, "a", 1) == value("a", 1)
    (number,) = files_in(directory)
    with open(arena_path(directory.path, number), "rb") as kept:
        directory.close()
        assert os.fstat(kept.fileno()).st_blocks == 0
    with pytest.raises(SegmentGone, match=directory.path):
        open_payload(directory.path, "a", 1)
    with pytest.raises(SegmentGone, match=directory.path):
        open_payload(directory.path, "a", 1)
    with pytest.raises(SegmentGone, match="arena"):
        ArenaWriter(directory.path, number, directory.arenas)  # type: ignore[arg-type]


# --- other hosts ------------------------------------------------------------------------------------------------------


def test_other_hosts(directory: SegmentDirectory, parent: str, loop: Loop) -> None:
    keys = [(f"k{number}", number) for number in range(300)]
    put_small(directory, *keys)
    server = DataServer(directory, TOKEN)
    address = loop.run(server.start())
    receiver = SegmentDirectory.create(parent, limit=64 << 20)
    client = DataClient(TOKEN, timeout=10)
    wanted = [(*key, [address]) for key in [*keys, ("gone", 1)]]
    *outcomes, gone = client.fetch(wanted, SegmentSink(receiver))
    assert all(isinstance(outcome, Received) for outcome in outcomes)
    assert isinstance(gone, SegmentGone)
    assert directory.path not in str(gone)
    assert all(read(receiver, *key) == value(*key) for key in keys)
    assert receiver.headers() == directory.headers()
    assert len(files_in(receiver)) == 3
    put = [(f"p{number}", number, Bytes(value(f"p{number}", number))) for number in range(10)]
    assert client.put(address, put) == [None] * 10
    assert all(read(directory, *item[:2]) == item[2].data for item in put)
    client.drop(address, [item[:2] for item in put])
    assert len(directory.files) == 300
    client.close()
    loop.run(server.close())
    receiver.close()
    directory.drop_all(list(directory.files))
    directory.arenas.seal_idle(0.0)


def test_no_space_for_what_comes_from_another_host(
    directory: SegmentDirectory, parent: str, loop: Loop
) -> None:
    keys = [(f"k{number}", number) for number in range(10)]
    put_small(directory, *keys)
    server = DataServer(directory, TOKEN)
    address = loop.run(server.start())
    receiver = SegmentDirectory.create(parent, limit=50_000)
    client = DataClient(TOKEN, timeout=10)
    sink = SegmentSink(receiver)
    outcomes = client.fetch([(*key, [address]) for key in keys], sink)
    assert [type(outcome) for outcome in outcomes] == [Received] * 4 + [SegmentsFull] * 6
    assert len(sink.refused) == 6
    assert receiver.space.used == 4 * 12_288
    client.close()
    loop.run(server.close())
    receiver.close()
    directory.drop_all(keys)
    directory.arenas.seal_idle(0.0)


# --- damage -----------------------------------------------------------------------------------------------------------


def named(error: type[Exception], name: str, call: Callable[..., Any], *args: Any) -> Any:
    """Return what `call` does, None if it raises `error`, which is to say `name`."""
    try:
        return call(*args)
    except error as raised:
        if name not in str(raised):
            raise AssertionError(f"{raised} does not name {name}") from raised
        return None


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_lying_record_is_a_typed_error(data: st.DataObject) -> None:
    payload = value("key", 3, 5000)
    header = Header("key", 3, 5000, "bytes", ("inner",))
    digest = index.digest_of("key")
    record = bytearray(
        arena.record_head(9, digest, 3, 5000, len(header.footer())) + payload + header.footer()
    )
    part = data.draw(st.sampled_from(["head", "tail", "cut", "noise"]))
    if part == "cut":
        del record[data.draw(st.integers(0, len(record) - 1)) :]
    elif part == "noise":
        record = bytearray(data.draw(st.binary(max_size=200)))
    else:
        places = (
            st.integers(0, 55)
            if part == "head"
            else st.integers(len(record) - len(header.footer()), len(record) - 1)
        )
        for _ in range(data.draw(st.integers(1, 4))):
            record[data.draw(places)] ^= data.draw(st.integers(1, 255))
    whole = bytes(record)
    intact = whole == arena.record_head(9, digest, 3, 5000, len(header.footer())) + payload + header.footer()
    nbytes = named(SegmentCorrupt, "", arena.check_record, whole, 9, digest, 3)
    assert nbytes == 5000 if intact or part == "tail" else nbytes is None
    assert arena.payload_size(b"ab" + whole, 2, 2 + len(whole), 9, digest, 3) == (
        -1 if nbytes is None else nbytes
    )
    found = named(SegmentCorrupt, "FILE", arena.header_at, whole, 0, len(whole), 9, "FILE")
    assert found == (header if intact else None)
    assert len(list(arena.walk(whole, 9, 0))) <= 1
    assert len(list(arena.scan(bytes(64) + whole, 9))) <= 1


@pytest.mark.parametrize("offset", [0, 8, 16, 24, 40, 48])
def test_a_damaged_record_names_key_and_file(directory: SegmentDirectory, offset: int) -> None:
    put_small(directory, ("a", 1), ("b", 2))
    (number,) = files_in(directory)
    path = arena_path(directory.path, number)
    found = directory.arenas.index.find(*index.hash_of(index.digest_of("b"), 2))
    assert found is not None
    with open(path, "r+b") as file:
        file.seek((found.place >> 32) + offset)
        file.write(b"\xff\xfe")
    with pytest.raises(SegmentCorrupt, match=f"{path}: 'b' attempt 2: "):
        read(directory, "b", 2)
    assert read_together(directory.path, [("b", 2), ("a", 1)]) == [None, value("a", 1)]
    assert read(directory, "a", 1) == value("a", 1)
    assert [header.name for header in directory.headers()] == ["a"]
    assert list(directory.files) == [("a", 1)]
    directory.drop("a", 1)
    directory.arenas.seal_idle(0.0)


def test_an_arena_that_somebody_removed(directory: SegmentDirectory) -> None:
    put_small(directory, ("a", 1))
    (number,) = files_in(directory)
    os.unlink(arena_path(directory.path, number))
    let_go()
    assert read_together(directory.path, [("a", 1)]) == [None]
    with pytest.raises(SegmentGone, match=f"{number:x}"):
        read(directory, "a", 1)
    assert directory.headers() == []
    directory.drop("a", 1)
    directory.arenas.seal_idle(0.0)
    assert directory.space.used == 0


def test_many_at_once(directory: SegmentDirectory) -> None:
    assert read_together(directory.path, [("a", 1)]) == [None]  # there is no index yet
    keys = [(f"k{number}", number + 1) for number in range(600)]
    put_small(directory, *keys)
    assert len(files_in(directory)) > 2
    chance = random.Random(5)
    chance.shuffle(keys)
    gone = keys[::7]
    directory.drop_all(gone)
    found = read_together(directory.path, [*keys, ("k1", 3), ("other", 2)])
    assert found == [None if key in gone else value(*key) for key in keys] + [None, None]
    pieces = {id(place[0]) for place in read_small(directory.path, keys) if place is not None}
    assert len(pieces) < len(keys) // 2
    directory.drop_all(list(directory.files))
    directory.arenas.seal_idle(0.0)
    assert read_together(directory.path, keys) == [None] * len(keys)
    assert read_together(f"{directory.path}-none", keys) == [None] * len(keys)


def test_many_of_a_directory_that_was_removed(parent: str) -> None:
    directory = SegmentDirectory.create(parent)
    keys = [(f"k{i}", 1) for i in range(20)]
    put_small(directory, *keys)
    assert None not in read_together(directory.path, keys)
    directory.close()
    assert read_together(directory.path, keys) == [None] * len(keys)
    assert read_together(directory.path, keys) == [None] * len(keys)


def test_a_size_that_is_not_true_any_more(directory: SegmentDirectory) -> None:
    put_small(directory, ("a", 1))
    assert bytes(open_payload(directory.path, "a", 1, nbytes=1 << 20).view) == value("a", 1)
    with pytest.raises(SegmentGone):
        open_payload(directory.path, "a", 2, nbytes=1 << 20)
    directory.drop("a", 1)
    directory.arenas.seal_idle(0.0)


def test_many_directories_are_not_kept_open(parent: str) -> None:
    from redist.memory import payloads

    for number in range(70):
        directory = SegmentDirectory.create(parent, limit=64 << 20)
        put_small(directory, ("a", number))
        assert read(directory, "a", number) == value("a", number)
        directory.close()
    assert len(payloads._indices) <= 64
    assert len(payloads._arenas) <= 64


def test_time_passes(directory: SegmentDirectory) -> None:
    put_small(directory, ("a", 1))
    assert directory.age("nothing", 1) == 0.0
    began = time.time()
    wait_until(lambda: directory.age("a", 1) > 0.05)
    assert time.time() - began > 0.04
    directory.drop("a", 1)
    directory.arenas.seal_idle(0.0)


def test_an_arena_that_cannot_be_written_leaves_no_file(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = sorted(os.listdir(directory.path))
    used = directory.space.used
    with monkeypatch.context() as patched, pytest.raises(SegmentError, match="No space"):
        patched.setattr(arena_files, "arena_head", full)
        directory.arenas.grant(None, list)
    assert sorted(os.listdir(directory.path)) == before
    assert directory.space.used == used
