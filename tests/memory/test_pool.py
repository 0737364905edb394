"""Files of dropped payloads are written again; nobody ever sees another payload's bytes, and memory goes back."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from memory_helpers import Bytes, Loop, store

from redist.errors import SegmentError, SegmentGone, SegmentsFull
from redist.memory import copying, holes, index, lingering, pieces, pool
from redist.memory.broker import Broker
from redist.memory.broker_client import BrokerClient
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header, read_header
from redist.memory.kept import keeper
from redist.memory.locks import remove_file
from redist.memory.reader import open_segment
from redist.memory.writer import SegmentWriter

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    """No mapping of another test is there, or stays."""
    yield
    keeper.look()


def put(directory: SegmentDirectory, name: str, attempt: int, data: bytes, writer: int = 1) -> int:
    """Put a payload into a directory; return the inode of its file."""
    return os.stat(store(directory, name, attempt, data, writer=writer)).st_ino


def taken(directory: SegmentDirectory) -> int:
    """Bytes of memory that all payload files of a directory take, by the file system."""
    return sum(
        os.stat(entry.path).st_blocks * 512
        for entry in os.scandir(directory.path)
        if entry.name not in ("id", "index", "lock", "space", "socket", "touched")
    )


def test_the_next_payload_of_the_size_gets_the_file(directory: SegmentDirectory) -> None:
    inode = put(directory, "x", 1, b"a" * (4 * MIB))
    assert directory.drop("x", 1)
    assert directory.pool.total == directory.space.used > 4 * MIB
    assert put(directory, "y", 2, b"b" * (4 * MIB - 100_000)) == inode
    assert directory.pool.total == 0
    path = directory.path_of("y", 2)
    assert bytes(open_segment(path).view) == b"b" * (4 * MIB - 100_000)
    assert read_header(path) == Header("y", 2, 4 * MIB - 100_000, "bytes")
    assert directory.space.used == directory.total == directory.files["y", 2]
    assert taken(directory) == directory.space.used


def test_a_small_recycled_file_is_as_large_as_its_payload(directory: SegmentDirectory) -> None:
    inode = put(directory, "x", 1, b"a" * 400_000)
    directory.drop("x", 1)
    assert put(directory, "y", 2, b"b" * 350_000) == inode
    assert os.stat(directory.path_of("y", 2)).st_size < 351_000
    assert directory.space.used == directory.total == taken(directory)


def cut_off(path: str) -> None:
    os.truncate(path, 4096)


def a_pipe(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [cut_off, a_pipe])
def test_no_file_that_was_damaged(directory: SegmentDirectory, damage: Callable[[str], None]) -> None:
    put(directory, "x", 1, b"a" * MIB)
    damage(directory.path_of("x", 1))
    directory.drop("x", 1)
    assert directory.pool.take(directory.pool.total, 0) is None
    put(directory, "y", 2, b"b" * MIB)
    assert bytes(open_segment(directory.path_of("y", 2)).view) == b"b" * MIB
    directory.trim(1 << 40)
    assert directory.space.used == directory.total == taken(directory)


@pytest.mark.parametrize("nbytes", [5 * MIB, 3 * MIB, 100_000])
def test_no_file_that_is_too_small_or_wastes_much(directory: SegmentDirectory, nbytes: int) -> None:
    put(directory, "x", 1, b"a" * (4 * MIB))
    directory.drop("x", 1)
    put(directory, "y", 2, b"b" * nbytes)
    assert directory.pool.total > 4 * MIB


def test_writers_get_their_own_files_back(directory: SegmentDirectory) -> None:
    inodes = {writer: put(directory, f"x{writer}", 1, b"a" * (2 * MIB), writer) for writer in (7, 8, 9)}
    for writer in inodes:
        directory.drop(f"x{writer}", 1)
    for writer in (8, 9, 7):
        assert put(directory, f"y{writer}", 2, b"b" * (2 * MIB), writer) == inodes[writer]


def test_a_mapped_payload_is_pooled_when_nobody_maps_it(directory: SegmentDirectory) -> None:
    inode = put(directory, "x", 1, b"a" * (2 * MIB))
    array = np.frombuffer(open_segment(directory.path_of("x", 1)).view, "u1")
    directory.drop("x", 1)
    with pytest.raises(SegmentGone):
        open_segment(directory.path_of("x", 1))
    assert directory.lingering
    assert put(directory, "y", 2, b"b" * (2 * MIB)) != inode
    assert bytes(array) == b"a" * (2 * MIB)
    del array
    assert put(directory, "z", 3, b"c" * (2 * MIB)) == inode
    assert not directory.lingering


def test_a_file_that_somebody_reads_is_not_written(directory: SegmentDirectory) -> None:
    """A reader that was about to look whether the path is there still holds the lock: the writer leaves it the file."""
    inode = put(directory, "x", 1, b"a" * (2 * MIB))
    slow = open_segment(directory.path_of("x", 1))
    header = Header("y", 2, 2 * MIB, "bytes")
    grant = directory.grants.new_path()
    os.rename(directory.path_of("x", 1), grant)
    with SegmentWriter(grant, header) as segment:
        segment.write([b"b" * (2 * MIB)])
        segment.publish(directory.path_of("y", 2))
    assert os.stat(directory.path_of("y", 2)).st_ino != inode
    assert bytes(slow.view) == b"a" * (2 * MIB)
    assert bytes(open_segment(directory.path_of("y", 2)).view) == b"b" * (2 * MIB)


def test_memory_goes_back_though_its_writer_keeps_a_mapping(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in (1, 2):  # the second one is written through a mapping, which stays
        put(directory, "x", attempt, bytes([attempt]) * (4 * MIB))
        if attempt == 2:
            file = os.open(directory.path_of("x", attempt), os.O_RDONLY)
        directory.drop("x", attempt)
    assert os.fstat(file).st_blocks * 512 >= 4 * MIB
    assert directory.reap() == 0
    monkeypatch.setattr(pool, "IDLE", 0.0)
    assert directory.reap() >= 4 * MIB
    assert os.fstat(file).st_blocks == 0
    assert os.fstat(file).st_nlink == 0
    os.close(file)
    assert directory.space.used == 0
    keeper.look()
    assert not keeper._files


def test_the_pool_makes_room(directory: SegmentDirectory) -> None:
    """The directory's limit is 64 MiB."""
    put(directory, "x", 1, b"a" * (12 * MIB))
    put(directory, "y", 1, b"a" * (40 * MIB))
    directory.drop("x", 1)
    assert directory.pool.total > 12 * MIB
    put(directory, "z", 2, b"b" * (20 * MIB))
    assert directory.pool.total == 0
    with pytest.raises(SegmentsFull, match=r"20\.00 MiB"):
        put(directory, "no", 3, b"c" * (20 * MIB))
    assert directory.space.used == directory.total


def test_it_holds_no_more_than_a_part_of_the_file_system(parent: str) -> None:
    """Others have the same: what one keeps for a while another waits for."""
    directory = SegmentDirectory.create(parent, limit=1 << 60)
    try:
        stat = os.statvfs(parent)
        assert directory.pool.cap <= stat.f_blocks * stat.f_frsize // 4
    finally:
        directory.close()


def test_the_pool_is_capped(directory: SegmentDirectory) -> None:
    assert directory.pool.cap == 16 * MIB
    for attempt in range(4):
        put(directory, "x", attempt, b"a" * (5 * MIB))
    for attempt in range(4):
        directory.drop("x", attempt)
    assert directory.pool.total > 16 * MIB  # until somebody trims it who may wait for the kernel
    directory.trim()
    assert directory.pool.total <= 16 * MIB
    assert directory.space.used == directory.pool.total == taken(directory)


def test_much_is_not_given_back_where_an_event_loop_waits(directory: SegmentDirectory) -> None:
    directory.grants.at_once = MIB
    put(directory, "rest", 1, b"a" * (50 * MIB))
    put(directory, "x", 1, b"a" * (8 * MIB))
    directory.drop("x", 1)
    with pytest.raises(SegmentsFull):
        directory.grants.grant([7 * MIB // 2, 7 * MIB // 2])
    assert directory.pool.total > 8 * MIB
    directory.trim(6 * MIB)  # as a worker does in a thread, before it asks again
    assert directory.pool.total == 0
    for path, reserved in directory.grants.grant([7 * MIB // 2, 7 * MIB // 2]):
        directory.grants.cancel(path, reserved)
    directory.drop("rest", 1, recycle=False)
    assert taken(directory) == directory.space.used == directory.pool.total > 50 * MIB
    ((path, reserved),) = directory.grants.grant([1000])
    directory.grants.cancel(path, reserved)
    directory.trim()
    assert taken(directory) == directory.space.used == 0


def test_what_was_written_of_a_cancelled_grant_is_for_nobody(directory: SegmentDirectory) -> None:
    directory.grants.at_once = MIB
    ((path, reserved),) = directory.grants.grant([4 * MIB])
    with open(path, "wb") as writer:
        writer.write(bytes(4 * MIB))
        directory.grants.cancel(path, reserved)
        assert directory.pool.total == directory.space.used == reserved
        ((other, again),) = directory.grants.grant([4 * MIB])
        assert not os.path.exists(other)  # a new file: the other's writer may write on
        directory.grants.cancel(other, again)
    directory.reap()
    assert taken(directory) == directory.space.used == 0


def test_unused_files_go_a_part_at_a_time(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for at in range(6):
        put(directory, f"x{at}", 1, b"a" * (2 * MIB))
    for at in range(6):
        directory.drop(f"x{at}", 1)
    monkeypatch.setattr(pool, "IDLE", 0.0)
    monkeypatch.setattr(pool, "_A_CALL", 4 * MIB)
    before = directory.pool.total
    assert 4 * MIB <= directory.trim() < 5 * MIB
    assert directory.trim(7 * MIB) > 7 * MIB  # what is needed goes at once
    assert taken(directory) == directory.space.used == directory.pool.total < before // 2
    directory.trim()
    assert directory.pool.total == 0


def test_all_or_none_returns_files_to_the_pool(directory: SegmentDirectory) -> None:
    put(directory, "x", 1, b"a" * (4 * MIB))
    directory.drop("x", 1)
    pooled = directory.pool.total
    with pytest.raises(SegmentsFull):
        directory.grants.grant([4 * MIB, 100 * MIB], 1)
    assert directory.pool.total in (0, pooled)
    assert directory.space.used == directory.pool.total


def test_a_cancelled_grant_gives_back_what_the_file_took(directory: SegmentDirectory) -> None:
    put(directory, "x", 1, b"a" * (5 * MIB))
    directory.drop("x", 1)
    ((path, reserved),) = directory.grants.grant([4 * MIB + 500_000], 1)
    assert reserved > 5 * MIB
    directory.grants.cancel(path, reserved)
    assert directory.space.used == 0 == taken(directory)


def test_adoption_removes_what_was_pooled(directory: SegmentDirectory) -> None:
    put(directory, "x", 1, b"a" * (2 * MIB))
    put(directory, "y", 1, b"b" * (2 * MIB))
    directory.drop("x", 1)
    path = directory.path
    directory.close(remove=False)
    adopted = SegmentDirectory.adopt(path, limit=64 * MIB)
    assert set(adopted.files) == {("y", 1)}
    assert adopted.space.used == adopted.total == taken(adopted)
    adopted.close()


def test_adoption_gives_back_what_a_client_keeps_mapped(parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=64 * MIB)
    for attempt in (1, 2):
        put(directory, "x", attempt, b"a" * (4 * MIB))
        directory.drop("x", attempt)
    (mine,) = keeper._files.values()  # as a client that outlives the worker
    path = directory.path
    directory.close(remove=False)
    assert os.fstat(mine.fd).st_blocks
    adopted = SegmentDirectory.adopt(path, limit=64 * MIB)
    assert os.fstat(mine.fd).st_blocks == 0
    adopted.close()


def test_adoption_leaves_what_was_dropped_to_its_readers(parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=64 * MIB)
    put(directory, "x", 1, b"a" * (4 * MIB))
    view = open_segment(directory.path_of("x", 1)).view
    directory.drop("x", 1)
    path = directory.path
    directory.close(remove=False)
    adopted = SegmentDirectory.adopt(path, limit=64 * MIB)
    assert bytes(view) == b"a" * (4 * MIB)
    adopted.close()


@pytest.mark.parametrize("what", ["grant", "payload", "arena index"])
def test_adoption_while_clients_remove_their_files(
    parent: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    directory = SegmentDirectory.create(parent, limit=64 * MIB)
    path = directory.path
    file = {
        "grant": directory.grants.new_path(),
        "payload": directory.path_of("x", 1),
        "arena index": f"{path}/{index.MAKING}1234",
    }[what]
    directory.close(remove=False)

    def scandir(at: str, real: Callable[[str], Any] = os.scandir) -> Any:
        entries = list(real(at))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(file)
        return entries

    def listdir(at: str, real: Callable[[str], list[str]] = os.listdir) -> list[str]:
        return [*real(at), *([os.path.basename(file)] if what == "arena index" else [])]

    with open(file, "wb"):
        pass
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scandir)
        patched.setattr(os, "listdir", listdir)
        adopted = SegmentDirectory.adopt(path, limit=64 * MIB)
    assert adopted.files == {}
    adopted.close()


def test_an_adoption_that_fails_lets_go_of_the_lock(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = SegmentDirectory.create(parent, limit=64 * MIB)
    directory.close(remove=False)
    with monkeypatch.context() as patched:
        patched.setattr(SegmentDirectory, "_take_spilled", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            SegmentDirectory.adopt(directory.path)
    SegmentDirectory.adopt(directory.path).close()


def test_files_go_though_no_more_can_be_opened(directory: SegmentDirectory) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for at in range(3):
        put(directory, f"x{at}", 1, b"a" * (2 * MIB))
    directory.drop("x0", 1)
    put(directory, "small", 1, b"a" * 50_000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (5, limits[1]))
    try:
        directory.drop("x1", 1)
        directory.drop("small", 1)
        directory.trim(64 * MIB)
        remove_file(directory.path_of("x2", 1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    directory.drop("x2", 1)
    assert directory.files == {}
    assert taken(directory) == directory.space.used == 0


def test_dropped_while_it_is_recorded(directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    header = Header("x", 1, 2 * MIB, "bytes")
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    with SegmentWriter(grant, header) as segment:
        segment.write([b"a" * (2 * MIB)])
        segment.publish(directory.path_of("x", 1))
    dropping = threading.Thread(target=directory.drop, args=("x", 1))

    def footprint(size: int) -> int:
        dropping.start()  # in another thread, as a fetch and the event loop are
        dropping.join(0.2)
        return -(-size // 4096) * 4096

    with monkeypatch.context() as patched:
        patched.setattr("redist.memory.directory.footprint", footprint)
        directory.add("x", 1, reserved)
    dropping.join()
    assert not os.path.exists(directory.path_of("x", 1))
    assert directory.files == {}
    assert directory.total == 0
    assert directory.space.used == directory.pool.total


def test_a_small_one_that_comes_while_it_is_dropped(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"a" * 9000

    def has(*key: object, real: Callable[..., bool] = directory.arenas.has) -> bool:
        before = real(*key)
        if not came:
            came.append(1)
            directory.put_small(Header("x", 1, len(data), "bytes"), memoryview(data))
        return before

    came: list[int] = []
    put(directory, "other", 1, b"a" * 50_000)
    monkeypatch.setattr(directory.arenas, "has", has)
    directory.drop("x", 1)
    directory.arenas.seal_idle(0.0)
    assert directory.arenas.total == 0
    assert directory.space.used == directory.total == directory.files["other", 1]


def test_a_file_that_is_published_while_its_directory_goes_keeps_its_bytes(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"a" * (2 * MIB)
    header = Header("x", 1, len(data), "bytes")
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    path = directory.path_of("x", 1)
    segment = SegmentWriter(grant, header)
    segment.write([data[:MIB]])

    def punch(fd: int, real: Callable[[int], bool] = holes.punch) -> bool:
        done = real(fd)
        segment.write([data[MIB:]])
        with contextlib.suppress(SegmentError):
            segment.publish(path)
        return done

    monkeypatch.setattr("redist.memory.locks.punch", punch)
    remove_file(grant)
    with pytest.raises(SegmentGone):
        assert bytes(open_segment(path).view) == data
    segment.discard()
    directory.space.release(reserved)


def test_large_values_are_copied_by_several_threads(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "cores", lambda: 4)
    monkeypatch.setattr(copying, "LEAST_SHARED", MIB)
    monkeypatch.setattr(copying, "_PIECE", MIB // 4)
    data = np.random.default_rng(3).bytes(8 * MIB + 12_345)
    for attempt in (1, 2):
        put(directory, "x", attempt, data)
        assert bytes(open_segment(directory.path_of("x", attempt)).view) == data
        directory.drop("x", attempt)


def test_many_that_are_still_mapped_do_not_slow_grants_down(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []

    def try_lock(fd: int, real: Callable[[int], bool] = lingering.try_lock) -> bool:
        looks.append(fd)
        return real(fd)

    held = []
    for at in range(200):
        put(directory, f"x{at}", 1, b"a" * 50_000)
        held.append(open_segment(directory.path_of(f"x{at}", 1)))
        directory.drop(f"x{at}", 1)
    monkeypatch.setattr(lingering, "try_lock", try_lock)
    for _ in range(200):
        directory.grants.cancel(*directory.grants.grant([50_000])[0])
    assert len(looks) < 200 * 100
    held.clear()
    # what nobody maps any more is there all the same when it is needed
    free = directory.space.free()
    directory.grants.cancel(*directory.grants.grant([free + MIB])[0])
    assert directory.lingering == 0


def test_an_interrupt_just_after_a_file_was_kept(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    put(directory, "x", 1, b"a" * (2 * MIB))
    directory.drop("x", 1)
    header = Header("x", 2, 2 * MIB, "bytes")
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(keeper, "look", interrupted)
        with SegmentWriter(grant, header) as segment:
            segment.write([b"b" * (2 * MIB)])
            segment.publish(directory.path_of("x", 2))
    assert directory.add("x", 2, reserved)
    directory.drop("x", 2)
    for attempt in (3, 4):
        put(directory, "x", attempt, b"c" * (2 * MIB))
        assert bytes(open_segment(directory.path_of("x", attempt)).view) == b"c" * (2 * MIB)
        directory.drop("x", attempt)


def test_a_forked_child_keeps_nothing(directory: SegmentDirectory) -> None:
    for attempt in (1, 2):
        put(directory, "x", attempt, b"a" * (2 * MIB))
        directory.drop("x", attempt)
    assert keeper._files
    child = os.fork()
    if child == 0:
        os._exit(len(keeper._files))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert put(directory, "x", 3, b"a" * (2 * MIB))


def test_readers_never_see_another_payload(directory: SegmentDirectory) -> None:
    """Readers in other processes map whatever is there, while files are written again and again: seed 11."""
    code = textwrap.dedent("""
        import sys, random
        import numpy as np
        from redist.errors import SegmentGone
        from redist.memory.headers import path_of
        from redist.memory.reader import open_segment
        segments, seed = sys.argv[1], int(sys.argv[2])
        chosen = random.Random(seed)
        held, seen = [], 0
        print("ready", flush=True)
        while not sys.stdin.closed:
            for attempt in range(1, 400):
                try:
                    mapping = open_segment(path_of(segments, "x", attempt))
                except SegmentGone:
                    continue
                held.append((attempt, np.frombuffer(mapping.view, "u1")))
                del mapping
                seen += 1
                for want, array in held:
                    if (array[[0, -1, len(array) // 2]] != want % 251).any():
                        print(f"attempt {want} reads {array[:3]}")
                        sys.exit(1)
                if len(held) > chosen.randrange(6):
                    held.pop(chosen.randrange(len(held)))
                if attempt == 399:
                    print(seen)
                    sys.exit(0)
    """)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", code, directory.path, str(seed)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for seed in (11, 12)
    ]  # fmt: skip
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        recycled = 0
        inodes: set[int] = set()
        for attempt in range(1, 400):
            inode = put(directory, "x", attempt, bytes([attempt % 251]) * (MIB + 4096 * (attempt % 7)))
            recycled += inode in inodes
            inodes.add(inode)
            if attempt > 3:
                directory.drop("x", attempt - 3)
            directory.reap()
        assert recycled > 50
        for reader in readers:
            out, _ = reader.communicate(timeout=60)
            assert reader.returncode == 0, out
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()


def test_through_the_broker(directory: SegmentDirectory, loop: Loop) -> None:
    broker = Broker(directory)
    address = loop.run(broker.start())
    inodes = set()
    with BrokerClient(address) as client:
        for attempt in range(1, 6):
            client.put([("x", attempt, Bytes(bytes([attempt]) * (3 * MIB)))])
            path = directory.path_of("x", attempt)
            assert bytes(open_segment(path).view) == bytes([attempt]) * (3 * MIB)
            inodes.add(os.stat(path).st_ino)
            client.drop([("x", attempt)])
            client.stat()
    assert len(inodes) == 1
    loop.run(broker.close())


def test_many_threads_write_at_once(directory: SegmentDirectory, loop: Loop) -> None:
    broker = Broker(directory)
    address = loop.run(broker.start())
    failed: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            for attempt in range(1, 12):
                data = bytes([thread * 16 + attempt]) * (MIB + thread * 1000)
                client.put([(f"x{thread}", attempt, Bytes(data))])
                view = open_segment(directory.path_of(f"x{thread}", attempt)).view
                assert bytes(view) == data
                client.drop([(f"x{thread}", attempt)])
        except BaseException as error:
            failed.append(error)
            raise

    with BrokerClient(address) as client:
        threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        client.stat()
    assert not failed
    loop.run(broker.close())


def test_a_large_value_is_copied_where_no_thread_can_be_started(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(directory, "a", 1, bytes(MIB))
    directory.drop("a", 1)
    monkeypatch.setattr(pieces, "cores", lambda: 4)
    monkeypatch.setattr(copying, "LEAST_SHARED", 1 << 16)

    def fails(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    data = os.urandom(MIB)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fails)
        path = store(directory, "a", 2, data)
    assert bytes(open_segment(path).view) == data
