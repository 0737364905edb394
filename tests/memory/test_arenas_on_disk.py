"""Arenas that lie on disk: moved as a whole, read in either place, punched, moved back, adopted."""

from __future__ import annotations

import mmap
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from memory_helpers import forked, killer

from redist.errors import DiskFull, SegmentCorrupt, SegmentGone
from redist.memory import arena_files, index, moving, spill
from redist.memory.arena import ARENA_SIZE, file_of, number_in
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header
from redist.memory.index import Index
from redist.memory.moving import Mover
from redist.memory.payloads import list_payloads, open_payload, read_small
from servers import wait_until

SIZE = 8192


@cache
def value(name: str, size: int = SIZE) -> bytes:
    return random.Random(name).randbytes(size)


def put(directory: SegmentDirectory, *names: str, size: int = SIZE) -> None:
    for name in names:
        assert directory.put_small(Header(name, 1, size, "bytes"), memoryview(value(name, size)))


def read(segments: str, name: str) -> bytes:
    return bytes(open_payload(segments, name, 1).view)


def blocks(path: str) -> dict[int, int]:
    """Return the bytes that the arenas in a directory take, by the file system."""
    if not path:
        return {}
    numbers = {entry.path: number_in(entry.name) for entry in os.scandir(path)}
    return {number: os.stat(at).st_blocks * 512 for at, number in numbers.items() if number is not None}


def sealed(directory: SegmentDirectory) -> list[int]:
    directory.arenas.seal_idle(0.0)
    return [number for _, number in directory.arenas.files.movable(spilled=False)]


@pytest.fixture
def spilling(directory: SegmentDirectory, tmp_path: Path) -> Iterator[SegmentDirectory]:
    """A living worker's directory that spills into the test's own directory."""
    directory.spill.configure(str(tmp_path / "spill"), 0)
    yield directory
    directory.drop_all(list(directory.files))
    directory.arenas.seal_idle(0.0)
    directory.reap()
    assert directory.spill.files == {}
    assert directory.spill.used == directory.total == 0
    assert blocks(directory.spill.path) == blocks(directory.path) == {}
    assert Index(directory.path).entries() == []


def test_simple(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    names = [f"k{i}" for i in range(300)]
    put(spilling, *names)
    headers = [spilling.header(name, 1) for name in names]
    numbers = sealed(spilling)
    assert len(numbers) == 3
    used = spilling.space.used
    assert spilling.total == 300 * (64 + -(-headers[0].file_size // 64) * 64)
    for number in numbers:
        assert read(spilling.path, names[0]) == value(names[0])  # has its arena open
        freed = mover.move_arena_out(number)
        used -= freed
        assert spilling.space.used == used
        assert [read(spilling.path, name) for name in names] == [value(name) for name in names]
    assert used == spilling.total == 0
    assert blocks(spilling.path) == {}
    assert set(blocks(spilling.spill.path)) == set(numbers)
    assert sum(blocks(spilling.spill.path).values()) == spilling.spill.used == mover.moved_out
    assert spilling.has("k7", 1)
    assert spilling.largest() == []
    assert [spilling.header(name, 1) for name in names] == headers
    assert len(list_payloads(spilling.path)) == 300
    for number in numbers:
        assert mover.move_arena_in(number) > 0
        assert mover.move_arena_in(number) == 0
        assert [read(spilling.path, name) for name in names] == [value(name) for name in names]
    assert mover.moved_in == mover.moved_out == spilling.space.used == sum(blocks(spilling.path).values())
    assert spilling.spill.used == 0
    assert blocks(spilling.spill.path) == {}


def test_what_is_dropped_on_disk_gives_the_disk_back(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    names = [f"k{i}" for i in range(100)]
    put(spilling, *names)
    (number,) = sealed(spilling)
    spilling.drop_all([(name, 1) for name in names[:20]])
    mover.move_arena_out(number)
    before = blocks(spilling.spill.path)[number]
    spilling.drop_all([(name, 1) for name in names[20:60]])
    spilling.tidy()
    assert blocks(spilling.spill.path)[number] <= before - 39 * SIZE
    assert spilling.spill.files[file_of(number)] == spilling.spill.used <= 42 * SIZE
    with pytest.raises(SegmentGone, match=spilling.path):
        read(spilling.path, names[30])
    assert [read(spilling.path, name) for name in names[60:]] == [value(name) for name in names[60:]]
    assert mover.move_arena_in(number) <= 42 * SIZE
    assert [read(spilling.path, name) for name in names[60:]] == [value(name) for name in names[60:]]
    mover.move_arena_out(number)
    spilling.drop_all([(name, 1) for name in names[60:]])
    spilling.tidy()
    assert blocks(spilling.spill.path) == {}


@pytest.mark.parametrize("out", [True, False])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_dropped_while_it_is_copied(
    spilling: SegmentDirectory, monkeypatch: pytest.MonkeyPatch, out: bool, all_of_them: bool
) -> None:
    mover = Mover(spilling)
    names = [f"k{i}" for i in range(100)]
    put(spilling, *names)
    (number,) = sealed(spilling)
    if not out:
        mover.move_arena_out(number)
    gone = names if all_of_them else names[10:90]
    work = "write" if out else "read_into"
    copy = getattr(spill.SpillDirectory, work)

    def slow(*args: object) -> object:
        result = copy(*args)
        spilling.drop_all([(name, 1) for name in gone])
        return result

    monkeypatch.setattr(spill.SpillDirectory, work, slow)
    moved = mover.move_arena_out(number) if out else mover.move_arena_in(number)
    assert bool(moved) == (not all_of_them)
    spilling.tidy()
    assert spilling.space.used == sum(blocks(spilling.path).values())
    assert spilling.spill.used == sum(blocks(spilling.spill.path).values())
    assert spilling.space.used + spilling.spill.used <= (0 if all_of_them else 24 * SIZE)
    for name in [name for name in names if name not in gone]:
        assert read(spilling.path, name) == value(name)
    assert not [name for name in os.listdir(spilling.spill.path) if name.startswith("writing-")]
    assert not [name for name in os.listdir(spilling.path) if name.startswith("grant-")]


def test_truncated_while_it_is_copied(spilling: SegmentDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    mover = Mover(spilling)
    put(spilling, *[f"k{i}" for i in range(100)])
    (number,) = sealed(spilling)
    copy = spill.SpillDirectory._copy

    def slow(*args: object) -> None:
        spilling.drop_all(list(spilling.files))
        copy(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(spill.SpillDirectory, "_copy", slow)
    assert mover.move_arena_out(number) == 0
    assert blocks(spilling.path) == blocks(spilling.spill.path) == {}


def test_the_coldest_go_first_and_what_is_read_again_is_hot(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    names = [f"k{i}" for i in range(500)]
    put(spilling, *names)
    numbers = sealed(spilling)
    assert len(numbers) == 4
    read(spilling.path, names[0])
    mover.make_room(2 * ARENA_SIZE)
    assert set(blocks(spilling.spill.path)) == set(numbers[1:3])
    assert mover.hot() == []
    for _ in range(2):
        assert mover.hot() == []
        read(spilling.path, names[150])
    assert mover.hot() == [numbers[1]]
    assert mover.nbytes(numbers[1]) == spilling.spill.files[file_of(numbers[1])]
    assert mover.bring_back(numbers[1]) > 0
    assert set(blocks(spilling.spill.path)) == {numbers[2]}
    assert mover.nbytes(numbers[1]) == 0


def test_arenas_that_are_written_stay(spilling: SegmentDirectory) -> None:
    put(spilling, "a")
    mover = Mover(spilling)
    assert mover.make_room(1) == 0
    (number,) = sealed(spilling)
    assert mover.make_room(1) == 12288
    assert mover.move_arena_out(number) == 0


def test_the_disk_is_full(spilling: SegmentDirectory) -> None:
    spilling.spill.limit = 2 * ARENA_SIZE + 100_000
    names = [f"k{i}" for i in range(400)]
    put(spilling, *names)
    sealed(spilling)
    mover = Mover(spilling)
    assert mover.make_room(1 << 30) <= spilling.spill.limit
    assert spilling.spill.used <= spilling.spill.limit
    with pytest.raises(DiskFull, match="are spilled of at most"):
        mover.make_room(1)
    assert [read(spilling.path, name) for name in names] == [value(name) for name in names]


def test_no_memory_to_come_back_to(spilling: SegmentDirectory) -> None:
    mover = Mover(spilling)
    put(spilling, *[f"k{i}" for i in range(100)])
    (number,) = sealed(spilling)
    mover.move_arena_out(number)
    spilling.space.reset(0, 4096)
    assert mover.move_arena_in(number) == 0
    assert spilling.space.used == 0
    assert read(spilling.path, "k1") == value("k1")


def test_a_damaged_record_on_disk_names_key_and_file(spilling: SegmentDirectory) -> None:
    put(spilling, "a", "b")
    (number,) = sealed(spilling)
    Mover(spilling).move_arena_out(number)
    found = spilling.arenas.index.find(*index.hash_of(index.digest_of("b"), 1))
    assert found is not None
    with open(f"{spilling.spill.path}/{file_of(number)}", "r+b") as file:
        file.seek((found.place >> 32) + 20)
        file.write(b"damage")
    with pytest.raises(SegmentCorrupt, match=f"{file_of(number)}: 'b' attempt 1"):
        read(spilling.path, "b")
    assert read(spilling.path, "a") == value("a")


@pytest.mark.parametrize("out", [True, False])
def test_readers_hear_of_a_move_between_name_and_bytes(
    spilling: SegmentDirectory, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    put(spilling, "a")
    (number,) = sealed(spilling)
    mover = Mover(spilling)
    if not out:
        mover.move_arena_out(number)
    left = f"{spilling.path if out else spilling.spill.path}/{file_of(number)}"
    with open(left, "rb") as file:

        def noted(_: Index) -> None:
            assert not os.path.exists(left)
            assert value("a") in file.read()

        monkeypatch.setattr(Index, "note_move", noted)
        assert mover.move_arena_out(number) if out else mover.move_arena_in(number)
        file.seek(0)
        assert file.read() == b""


@pytest.mark.parametrize("together", [True, False])
def test_what_was_torn_by_a_move_is_read_again(
    spilling: SegmentDirectory, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    put(spilling, "a", "b")
    (number,) = sealed(spilling)
    mover = Mover(spilling)
    assert read(spilling.path, "a") == value("a")
    pread = os.pread

    def torn(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        if blocks(spilling.path):
            with monkeypatch.context() as undone:
                undone.setattr(os, "pread", pread)
                mover.move_arena_out(number)
            return data[:4096] + bytes(len(data) - 4096)
        return data

    monkeypatch.setattr(os, "pread", torn)
    if together:
        assert read_small(spilling.path, [("a", 1), ("b", 1)]) == [None, None]
        assert [place and place[0][slice(*place[1:])] for place in read_small(spilling.path, [("b", 1)])] == [
            value("b")
        ]
    else:
        assert read(spilling.path, "a") == value("a")
    assert blocks(spilling.path) == {}


# --- at the same time --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_readers_never_see_wrong_bytes(spilling: SegmentDirectory, seed: int) -> None:
    """Two processes read while arenas move to and fro, records are dropped, and the index grows."""
    names = [f"k{i}" for i in range(600)]
    put(spilling, *names)
    numbers = sealed(spilling)
    stay = names[::3]

    def look(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        seen = gone = together = viewed = 0
        while not os.path.exists(f"{spilling.path}/stop"):
            some = chance.sample(names, chance.choice((30, 400)))  # copied, and viewed
            places = read_small(spilling.path, [(name, 1) for name in some])
            name = chance.choice(names)
            try:
                assert read(spilling.path, name) == value(name), name
                seen += 1
            except SegmentGone:
                assert name not in stay, name
                gone += 1
            for name, found in zip(some, places):
                if found is not None:
                    data, start, end = found
                    assert data[start:end] == value(name), name
                    together += 1
                    viewed += isinstance(data, mmap.mmap)
            places.clear()
        sys.exit(0 if seen > 50 and gone > 10 and together > 300 and viewed > 300 else 3)

    readers = [forked(lambda number=number: look(number)) for number in range(2)]
    mover, chance = Mover(spilling), random.Random(seed)
    done = threading.Event()

    def drop() -> None:
        left = [name for name in names if name not in stay]
        chance.shuffle(left)
        while left and not done.wait(0.01):
            spilling.drop_all([(left.pop(), 1)])
        while not done.wait(0.01):
            put(spilling, *[f"new{i}" for i in range(200)])
            spilling.drop_all([(f"new{i}", 1) for i in range(200)])

    dropping = threading.Thread(target=drop)
    dropping.start()
    for _ in range(150):
        number = chance.choice(numbers)
        # while it is viewed, or given back to, it stays where it is
        wait_until(lambda number=number: mover.move_arena_out(number) or mover.move_arena_in(number))
    done.set()
    dropping.join()
    Path(f"{spilling.path}/stop").touch()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in readers] == [0, 0]
    assert [read(spilling.path, name) for name in stay] == [value(name) for name in stay]
    assert sum(blocks(spilling.path).values()) <= spilling.space.used


# --- a successor -------------------------------------------------------------------------------------------------------


def adopt(parent: str) -> SegmentDirectory:
    (name,) = os.listdir(parent)
    return SegmentDirectory.adopt(f"{parent}/{name}", limit=64 << 20)


@pytest.mark.parametrize("index_lost", [False, True])
def test_a_successor_finds_what_was_there(parent: str, tmp_path: Path, index_lost: bool) -> None:
    names = [f"k{i}" for i in range(300)]

    def die() -> None:
        directory = SegmentDirectory.create(parent, limit=64 << 20)
        directory.spill.configure(str(tmp_path), 0)
        put(directory, *names)
        numbers = sealed(directory)
        mover = Mover(directory)
        mover.move_arena_out(numbers[0])
        mover.move_arena_out(numbers[2])
        directory.drop_all([(name, 1) for name in names[10:110]])
        directory.tidy()
        if index_lost:
            os.truncate(f"{directory.path}/{index.INDEX_FILE}", 100)
        os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(forked(die), 0)
    directory = adopt(parent)
    there = names[:10] + names[110:]
    assert {(name, 1) for name in there} <= set(directory.files)
    assert len(directory.files) <= len(there) + (6 if index_lost else 0)
    assert [read(directory.path, name) for name in there] == [value(name) for name in there]
    assert len(directory.headers()) == len(directory.files)
    on_disk = blocks(directory.spill.path)
    assert len(on_disk) == 2
    assert sum(on_disk.values()) == directory.spill.used
    assert sum(blocks(directory.path).values()) == directory.space.used
    mover = Mover(directory)
    assert all(mover.move_arena_in(number) for number in on_disk)
    assert [read(directory.path, name) for name in there] == [value(name) for name in there]
    directory.drop_all(list(directory.files))
    directory.tidy()
    assert directory.space.used == directory.spill.used == directory.total == 0
    directory.close()
    assert os.listdir(parent) == os.listdir(tmp_path) == []


def test_killed_at_every_other_step(parent: str, tmp_path: Path) -> None:
    """Whatever a worker was about when it was killed, its successor has every payload once, and the space it takes."""
    files = {arena_files.__file__, index.__file__, moving.__file__, spill.__file__}
    names = [f"k{i}" for i in range(40)]

    def work() -> None:
        directory = SegmentDirectory.create(parent, limit=64 << 20)
        directory.spill.configure(str(tmp_path), 0)
        put(directory, *names, size=32_000)
        numbers = sealed(directory)
        mover = Mover(directory)
        mover.move_arena_out(numbers[1])  # makes the spill directory
        sys.settrace(killer(step, files))
        mover.move_arena_out(numbers[0])
        mover.move_arena_in(numbers[0])
        mover.move_arena_in(numbers[1])
        directory.close(remove=False)

    died = True
    step, places = -1, 0
    while died:
        step += 2
        died = os.waitpid(forked(work), 0)[1] == signal.SIGKILL
        directory = adopt(parent)
        assert {name for name, _ in directory.files} == set(names), step
        assert [read(directory.path, name) for name in names] == [value(name, 32_000) for name in names]
        places += bool(blocks(directory.spill.path))
        assert sum(blocks(directory.spill.path).values()) == directory.spill.used, step
        assert sum(blocks(directory.path).values()) == directory.space.used, step
        assert not [name for name in os.listdir(directory.path) if name.startswith("grant-")]
        directory.close()
        assert os.listdir(parent) == os.listdir(tmp_path) == []
    assert step > 100
    assert places > 60
