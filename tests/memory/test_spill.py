"""Payloads that lie on disk: written, found, moved back, adopted, removed."""

from __future__ import annotations

import ctypes
import fcntl
import gc
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from memory_helpers import store

from redist.errors import DiskFull, SegmentError, SegmentGone, SegmentsFull
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import file_name, find_header, spilled_path
from redist.memory.locks import dead_directories, remove_dead, spilled_by
from redist.memory.moving import Mover
from redist.memory.reader import open_segment
from redist.memory.spill import SpillDirectory, sweep_abandoned

SIZES = (1, 4072, 4096, 5000, (1 << 20) + 17, 40 << 20)


@pytest.fixture
def spilling(directory: SegmentDirectory, tmp_path: Path) -> Iterator[SegmentDirectory]:
    """A living worker's directory that spills into the test's own directory."""
    directory.spill.configure(str(tmp_path / "spill"), 0)
    yield directory
    for name, attempt in list(directory.files):
        directory.drop(name, attempt)
    directory.reap()
    assert directory.spill.files == {}
    assert directory.spill.used == 0
    left = [name for name in os.listdir(directory.spill.path or tmp_path) if "." in name]
    assert left == []
    directory.close()
    assert not os.path.exists(directory.spill.path or tmp_path / "nothing")


def on_disk(directory: SegmentDirectory) -> dict[str, int]:
    """Return the sizes of the payloads on disk."""
    path = directory.spill.path
    return {name: os.stat(f"{path}/{name}").st_size for name in os.listdir(path) if "." in name}


def test_simple(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    datas = [random.Random(size).randbytes(size) for size in SIZES]
    paths = [store(spilling, f"x{i}", i, data, contains=("inner",)) for i, data in enumerate(datas)]
    used = spilling.space.used
    for i, path in enumerate(paths):
        header = find_header(path)
        freed = mover.move_out(f"x{i}", i)
        used -= freed
        assert freed >= SIZES[i]
        assert spilling.space.used == spilling.total == used
        assert not os.path.exists(path)
        assert find_header(path) == header
        assert open_segment(path).path == spilled_path(path)
        assert bytes(open_segment(path).view) == datas[i]
        assert spilling.has(f"x{i}", i)
    assert used == 0
    assert sum(on_disk(spilling).values()) <= spilling.spill.used == mover.moved_out
    assert [header.name for header in spilling.headers()] == [f"x{i}" for i in range(len(SIZES))]
    mapped = open_segment(paths[-1])
    for i, path in enumerate(paths):
        assert mover.move_in(f"x{i}", i) >= SIZES[i]
        assert open_segment(path).path == path
        assert bytes(open_segment(path).view) == datas[i]
    assert bytes(mapped.view) == datas[-1]
    assert on_disk(spilling) == {}
    spilling.tidy()
    assert spilling.spill.used == (40 << 20) + 4096  # for what is still mapped
    del mapped
    spilling.tidy()
    assert spilling.spill.used == 0
    assert spilling.space.used == spilling.total == mover.moved_in == mover.moved_out


def test_a_payload_that_was_found_on_disk_keeps_nothing_of_who_read_it(spilling: SegmentDirectory) -> None:
    """By the frames in a traceback, until the collector runs."""

    class Held:
        pass

    def read() -> weakref.ref[Held]:
        held = Held()
        open_segment(path)
        return weakref.ref(held)

    path = store(spilling, "x", 1, bytes(100_000))
    Mover(spilling).move_out("x", 1)
    gc.disable()
    try:
        assert read()() is None
    finally:
        gc.enable()


def test_an_error_says_that_arrays_keep_values_from_the_disk(spilling: SegmentDirectory) -> None:
    for i in range(3):
        store(spilling, f"k{i}", 1, bytes(16 << 20))
    mapped = [open_segment(spilling.path_of(f"k{i}", 1)) for i in range(2)]
    mover = Mover(spilling)
    assert mover.make_room(64 << 20) < 17 << 20
    with pytest.raises(SegmentsFull) as full:
        spilling.grants.grant([60 << 20])
    assert "32.01 MiB kept from the disk by arrays that view them" in str(full.value)
    del mapped
    assert mover.make_room(32 << 20) >= 32 << 20
    assert spilling.space.standing().viewed == 0
    ((path, reserved),) = spilling.grants.grant([60 << 20])
    spilling.grants.cancel(path, reserved)


def test_what_is_mapped_stays_in_memory(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    path = store(spilling, "x", 1, b"a" * 5000)
    mapping = open_segment(path)
    assert mover.move_out("x", 1) == 0
    assert os.path.exists(path)
    assert spilling.spill.path == ""  # nothing was written for it
    del mapping
    assert mover.move_out("x", 1) == 8192


def test_dropped_where_it_lies(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    path = store(spilling, "x", 1, b"a" * 5000)
    mover.move_out("x", 1)
    mapping = open_segment(path)
    spilling.drop("x", 1)
    assert on_disk(spilling) == {}
    spilling.reap()
    assert spilling.spill.used == 8192
    assert bytes(mapping.view) == b"a" * 5000
    with pytest.raises(SegmentGone) as caught:
        open_segment(path)
    assert path in str(caught.value)
    assert mover.move_in("x", 1) == 0
    del mapping
    assert spilling.space.used == 0


def test_the_coldest_go_first(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    paths = [store(spilling, f"x{i}", i, bytes(100_000)) for i in range(6)]
    assert len({file_name(f"x{i}", i)[:3] for i in range(6)}) == 6
    open_segment(paths[0])
    open_segment(paths[2])
    assert mover.make_room(350_000) >= 350_000
    assert {copy for copy, size in spilling.files.items() if size} == {("x0", 0), ("x2", 2)}


def test_what_is_read_again_is_hot(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    paths = [store(spilling, f"x{i}", i, bytes(100_000)) for i in range(3)]
    mover.make_room(1 << 30)
    assert mover.hot() == []
    open_segment(paths[1])
    assert mover.hot() == []
    assert mover.hot() == []
    open_segment(paths[1])
    open_segment(paths[2])
    assert mover.hot() == [("x1", 1)]


def test_the_disk_is_full(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    spilling.spill.limit = 250_000
    for i in range(4):
        store(spilling, f"x{i}", i, bytes(100_000))
    assert mover.make_room(1 << 30) == 2 * 102400
    with pytest.raises(DiskFull, match=r"200.00 KiB are spilled of at most 244.14 KiB"):
        mover.make_room(1)
    assert spilling.total == 2 * 102400
    assert len(on_disk(spilling)) == 2


def test_what_comes_back_counts_as_being_written(
    spilling: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = Mover(spilling)
    store(spilling, "x", 1, bytes(100_000))
    mover.make_room(1)
    read_into, seen = spilling.spill.read_into, []

    def look(*args: Any) -> int:
        seen.append((spilling.grants.own, spilling.space.used, spilling.total))
        return read_into(*args)

    monkeypatch.setattr(spilling.spill, "read_into", look)
    assert mover.move_in("x", 1) == 102400
    assert seen == [(102400, 102400, 0)]
    assert spilling.grants.own == 0


def cached(path: str) -> int:
    """Return how many pages of a file lie in the page cache."""
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    pages = (ctypes.c_ubyte * -(-len(mapping) // mmap.PAGESIZE))()
    start = ctypes.c_char.from_buffer(mapping)
    assert ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapping)), pages) == 0
    return sum(page & 1 for page in pages)


def test_the_disk_is_written_and_read_past_the_page_cache(spilling: SegmentDirectory, tmp_path: Path) -> None:
    try:
        os.close(os.open(tmp_path / "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no direct writes")
    mover = Mover(spilling)
    path = store(spilling, "x", 1, os.urandom(4 << 20))
    mover.make_room(1)
    assert cached(spilled_path(path)) == 0
    with open(tmp_path / "back", "wb") as back:
        spilling.spill.read_into(os.path.basename(path), back.fileno())
    assert cached(str(tmp_path / "back")) > 1000  # what is written as usual is there
    assert cached(spilled_path(path)) == 0


def emptied(path: str) -> None:
    os.truncate(path, 0)


def a_pipe(path: str) -> None:
    os.unlink(path)
    os.mkfifo(path)


@pytest.mark.parametrize("damage", [os.unlink, emptied, a_pipe])
@pytest.mark.parametrize("spilled", [False, True])
def test_a_damaged_file_keeps_no_other_from_being_moved(
    spilling: SegmentDirectory, damage: Callable[[str], None], spilled: bool
) -> None:
    mover = Mover(spilling)
    path = store(spilling, "x", 1, bytes(100_000))
    store(spilling, "y", 2, bytes(100_000))
    if spilled:
        mover.make_room(1 << 30)
        damage(os.path.join(spilling.spill.path, os.path.basename(path)))
        assert mover.move_in("x", 1) == 0
        assert mover.move_in("y", 2) == 102400
    else:
        damage(path)
        assert mover.make_room(1 << 30) == 102400
        assert len(on_disk(spilling)) == 1
    assert spilling.space.used == 102400


def test_a_spill_directory_that_cannot_be_made(spilling: SegmentDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spilling.spill.configure(str(tmp_path / "file" / "below"), 0)
    path = store(spilling, "x", 1, bytes(5000))
    with pytest.raises(DiskFull, match="nothing can be spilled"):
        Mover(spilling).make_room(1)
    assert os.path.exists(path)
    spilling.spill.configure(str(tmp_path / "spill"), 0)


_WORKER = textwrap.dedent("""
    import sys, time
    sys.path.insert(0, sys.argv[2])
    from memory_helpers import store
    from redist.memory.directory import SegmentDirectory
    from redist.memory.moving import Mover
    directory = SegmentDirectory.create(sys.argv[1], limit=1 << 30, owner="namespace alice")
    directory.spill.configure(sys.argv[3], 0)
    for i in range(3):
        store(directory, f"x{i}", i, bytes([i]) * 9000)
    mover = Mover(directory)
    mover.move_out("x0", 0)
    mover.move_out("x1", 1)
    last = open(directory.path_of("x2", 2))
    size = last.seek(0, 2)
    file = directory.path_of("x2", 2).rpartition("/")[2]
    directory.spill.publish(directory.spill.write(last.fileno(), size, file), file, size)
    directory.spill.write(last.fileno(), size, "b" * 32 + ".1")
    open(directory.spill.path + "/" + "c" * 32 + ".1", "w").write("damaged")
    print(directory.path, flush=True)
    time.sleep(60)
""")


def _dead_worker(parent: str, tmp_path: Path) -> str:
    child = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            _WORKER,
            parent,
            os.path.dirname(__file__),
            str(tmp_path / "spill"),
        ],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    path = child.stdout.readline().decode().strip()
    with pytest.raises(SegmentError):
        SegmentDirectory.adopt(path)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    return path


def test_adopts_what_a_dead_worker_spilled(parent: str, tmp_path: Path) -> None:
    path = _dead_worker(parent, tmp_path)
    directory = SegmentDirectory.adopt(path, limit=1 << 30)
    assert directory.files == {("x0", 0): 0, ("x1", 1): 0, ("x2", 2): 12288}
    assert directory.newest == 2
    assert len(on_disk(directory)) == 2
    assert sum(on_disk(directory).values()) <= directory.spill.used == 2 * 12288
    assert sorted(os.listdir(directory.spill.path)) == sorted([*on_disk(directory), "lock", "segments"])
    for i in range(3):
        assert bytes(open_segment(directory.path_of(f"x{i}", i)).view) == bytes([i]) * 9000
    spilled = directory.spill.path
    directory.close()
    assert not os.path.exists(spilled)
    assert os.listdir(parent) == []


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_worker_that_died_while_it_made_its_spill_directory(
    spilling: SegmentDirectory, tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "spill" / os.path.basename(spilling.path)
    path.mkdir(parents=True)
    if steps > 1:
        (path / "lock").touch()
    if steps > 2:
        (path / "segments").symlink_to(spilling.path)
    store(spilling, "x", 1, b"x" * 9000)
    assert Mover(spilling).move_out("x", 1) == 12288
    assert spilled_by(spilling.path) == str(path)
    assert bytes(open_segment(spilling.path_of("x", 1)).view) == b"x" * 9000


def test_a_dead_workers_spill_directory_goes_with_its_segments(parent: str, tmp_path: Path) -> None:
    path = _dead_worker(parent, tmp_path)
    spilled = spilled_by(path)
    assert os.listdir(spilled)
    assert [dead.path for dead in dead_directories(parent)] == [path]
    assert remove_dead(path)
    assert not os.path.exists(spilled)
    assert os.listdir(parent) == []


def test_a_spill_directory_that_is_locked_keeps_its_segments(parent: str, tmp_path: Path) -> None:
    path = _dead_worker(parent, tmp_path)
    with open(os.path.join(spilled_by(path), "lock")) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not remove_dead(path)
        assert os.listdir(spilled_by(path))
    assert remove_dead(path)
    assert os.listdir(tmp_path / "spill") == os.listdir(parent) == []


def test_spill_directories_without_segments_are_swept(parent: str, tmp_path: Path) -> None:
    path = _dead_worker(parent, tmp_path)
    spilled = spilled_by(path)
    assert sweep_abandoned(str(tmp_path / "spill"), 0) == []
    subprocess.run(["rm", "-r", path], check=True)  # as when the machine was started anew
    assert sweep_abandoned(str(tmp_path / "spill")) == []
    assert sweep_abandoned(str(tmp_path / "spill"), 0) == [spilled]
    assert not os.path.exists(spilled)


def test_a_spill_directory_without_rights_is_not_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("redist.memory.spill.os.scandir", refuse)
    assert sweep_abandoned("/somebody/elses", 0) == []


def test_a_foreign_link_is_not_followed(directory: SegmentDirectory, parent: str, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    os.symlink(tmp_path, f"{directory.path}/spill")
    directory.close(remove=False)
    assert remove_dead(directory.path)
    assert (tmp_path / "precious").exists()


_READER = textwrap.dedent("""
    import random, sys, zlib
    from redist.errors import SegmentGone
    from redist.memory.reader import open_segment
    from redist.memory.headers import path_of
    seed, directory, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    rng = random.Random(seed)
    kept = []
    print("ready", flush=True)
    reads = places = 0
    while reads < 1500 or not places:
        reads += 1
        i = rng.randrange(count)
        mapping = open_segment(path_of(directory, f"x{i}", i), writable=rng.random() < 0.1)
        places += "/spill/" in mapping.path
        view = mapping.view
        length = len(view)
        for at in (0, rng.randrange(length), length - 1):
            assert view[at] == (i + at // 4096) % 251, (i, at, view[at])
        if rng.random() < 0.05:
            assert all(view[at] == (i + at // 4096) % 251 for at in range(0, length, 4096))
        if rng.random() < 0.3:
            kept.append((i, mapping))
        if len(kept) > 5:
            i, mapping = kept.pop(rng.randrange(len(kept)))
            assert all(mapping.view[at] == (i + at // 4096) % 251 for at in range(0, len(mapping.view), 4096))
    print(places, flush=True)
""")


@pytest.mark.parametrize("seed", range(3))
def test_readers_never_see_wrong_bytes(spilling: SegmentDirectory, seed: int) -> None:
    rng = random.Random(seed)
    count = 8
    for i in range(count):
        size = rng.randrange(1, 1 << 20)
        pattern = b"".join(bytes([(i + page) % 251]) * 4096 for page in range(-(-size // 4096)))[:size]
        store(spilling, f"x{i}", i, pattern)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, str(seed * 100 + n), spilling.path, str(count)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    mover = Mover(spilling)
    stop = threading.Event()

    def move() -> None:
        while not stop.is_set():
            i = rng.randrange(count)
            if spilling.files[f"x{i}", i]:
                mover.move_out(f"x{i}", i)
            else:
                mover.move_in(f"x{i}", i)

    thread = threading.Thread(target=move)
    thread.start()
    try:
        outputs = [reader.communicate(timeout=60)[0].split() for reader in readers]
    finally:
        stop.set()
        thread.join()
    assert [reader.returncode for reader in readers] == [0, 0, 0]
    assert all(int(output[1]) > 0 for output in outputs), outputs
    assert mover.moved_out > 0
    assert mover.moved_in > 0


def test_why_nothing_goes_to_disk_is_told_though_something_there_is_freed(
    directory: SegmentDirectory, tmp_path: Path
) -> None:
    """As when what vanished with the directory is dropped: that makes no room, since none is short."""
    (tmp_path / "spill").mkdir()
    spill = SpillDirectory(directory.path, str(tmp_path / "spill"))
    path = store(directory, "x", 1, bytes(10_000))
    with open(path, "rb") as source:
        spill.publish(spill.write(source.fileno(), 5_000, "first"), "first", 5_000)
        shutil.rmtree(spill.path)
        Path(spill.path).write_text("")
        with pytest.raises(DiskFull, match="nothing can be spilled"):
            spill.write(source.fileno(), 5_000, "second")
    before = spill.trouble
    spill.forget("first")
    assert spill.trouble == before
    assert "nothing can be spilled" in before
    spill.close(remove=False)
