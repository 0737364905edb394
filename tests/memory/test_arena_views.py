"""Values that view their arena: it keeps its bytes for as long, and what it would give back lingers."""

from __future__ import annotations

import mmap
import os
import random
import resource
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
from memory_helpers import forked

from redist.memory.arena import ARENA_SIZE, arena_path, number_in
from redist.memory.arena_views import view_arena
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import PAGE, Header
from redist.memory.index import Index, digest_of, hash_of
from redist.memory.moving import Mover
from redist.memory.payloads import read_small
from servers import wait_until

SIZE = 8192
COUNT = 110
#: nearly an arena
NAMES = [f"k{i}" for i in range(COUNT)]


@cache
def value(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


def put(directory: SegmentDirectory, *names: str) -> None:
    for name in names:
        assert directory.put_small(Header(name, 1, SIZE, "bytes"), memoryview(value(name)))


def view(segments: str, *names: str) -> list[memoryview | None]:
    """The bytes of small payloads, those that are mapped not copied."""
    places = read_small(segments, [(name, 1) for name in names])
    return [None if place is None else memoryview(place[0])[place[1] : place[2]] for place in places]


def is_mapped(data: memoryview | None) -> bool:
    return data is not None and isinstance(data.obj, mmap.mmap)


def arenas_in(path: str) -> list[int]:
    return [number for name in os.listdir(path) if (number := number_in(name)) is not None]


def blocks(directory: SegmentDirectory) -> int:
    return sum(
        os.stat(arena_path(directory.path, number)).st_blocks * 512 for number in arenas_in(directory.path)
    )


@pytest.fixture
def full(directory: SegmentDirectory) -> SegmentDirectory:
    """A directory with one arena, sealed."""
    put(directory, *NAMES)
    directory.arenas.seal_idle(0.0)
    assert len(arenas_in(directory.path)) == 1
    return directory


def test_they_are_not_copied(full: SegmentDirectory) -> None:
    views = view(full.path, *NAMES)
    assert all(map(is_mapped, views))
    assert all(data is not None and data.readonly for data in views)
    assert views == [value(name) for name in NAMES]
    again = view(full.path, *NAMES[:50])
    assert {id(data.obj) for data in [*views, *again] if data is not None} == {id(views[0] and views[0].obj)}
    assert full.lingering == 0


def test_what_is_dropped_lingers_until_the_last_view_goes(full: SegmentDirectory) -> None:
    used = full.space.used
    views = view(full.path, *NAMES)
    full.drop_all([(name, 1) for name in NAMES[:40]])
    assert full.space.used == used == blocks(full)
    assert 40 * SIZE <= full.lingering < 40 * (SIZE + PAGE)
    assert full.space.used - full.total - full.lingering < 4 * PAGE
    assert view(full.path, *NAMES)[:40] == [None] * 40
    full.drop_all([(name, 1) for name in NAMES[40:]])
    assert full.total == 0
    assert full.space.used == full.lingering == used
    assert len(arenas_in(full.path)) == 1
    assert views == [value(name) for name in NAMES]
    last = views[7]
    views.clear()
    assert full.due
    full.reap()
    assert full.space.used == full.lingering == used <= ARENA_SIZE
    assert last == value(NAMES[7])
    del last
    full.reap()
    assert not full.due
    assert full.space.used == full.lingering == 0
    assert arenas_in(full.path) == []


def test_pages_go_back_when_the_last_view_goes(full: SegmentDirectory) -> None:
    views = view(full.path, *NAMES)
    full.drop_all([(name, 1) for name in NAMES[::2]])
    full.drop_all([(name, 1) for name in NAMES[1:60]])
    assert views == [value(name) for name in NAMES]
    views.clear()
    full.reap()
    assert full.lingering == 0
    assert full.space.used == blocks(full) < full.total + 2 * 25 * PAGE
    stay = NAMES[61::2]
    assert view(full.path, *stay) == [value(name) for name in stay]
    assert full.space.used == blocks(full)  # no hole was filled by the look


def test_memory_that_is_short_takes_what_nobody_views_any_more(full: SegmentDirectory) -> None:
    views = view(full.path, *NAMES)
    full.drop_all([(name, 1) for name in NAMES])
    views.clear()
    free = full.space.free()
    assert full.grants.reserve(free + ARENA_SIZE // 2)
    full.space.release(free + ARENA_SIZE // 2)
    assert arenas_in(full.path) == []


def test_few_of_an_arena_are_copied(full: SegmentDirectory) -> None:
    views = view(full.path, *NAMES[:20])
    assert views == [value(name) for name in NAMES[:20]]
    assert not any(map(is_mapped, views))
    full.drop_all([(name, 1) for name in NAMES])
    assert full.space.used == 0


def test_an_arena_that_is_being_written_is_copied(directory: SegmentDirectory) -> None:
    put(directory, *NAMES[:60])
    views = view(directory.path, *NAMES[:60])
    assert not any(map(is_mapped, views))
    put(directory, *NAMES[60:])
    views += view(directory.path, *NAMES[60:])
    assert views == [value(name) for name in NAMES]
    assert len(arenas_in(directory.path)) == 1
    directory.drop_all(list(directory.files))
    directory.arenas.seal_idle(0.0)


def test_what_is_viewed_does_not_go_to_disk(full: SegmentDirectory, tmp_path: Path) -> None:
    full.spill.configure(str(tmp_path / "spill"), 0)
    mover = Mover(full)
    (number,) = arenas_in(full.path)
    views = view(full.path, *NAMES)
    assert mover.make_room(1 << 20) == 0
    assert views == [value(name) for name in NAMES]
    views.clear()
    assert mover.make_room(1 << 20) > 0
    assert arenas_in(full.path) == []
    views = view(full.path, *NAMES)
    assert not any(map(is_mapped, views))
    assert views == [value(name) for name in NAMES]
    assert mover.move_arena_in(number)
    views = view(full.path, *NAMES)
    assert all(map(is_mapped, views))
    assert views == [value(name) for name in NAMES]


def test_one_that_is_given_back_just_now_is_copied(full: SegmentDirectory) -> None:
    (number,) = arenas_in(full.path)
    path = arena_path(full.path, number)
    hold = f"import fcntl,sys; f=open({path!r},'r+b'); fcntl.flock(f,fcntl.LOCK_EX); print(1,flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        views = view(full.path, *NAMES)
        assert not any(map(is_mapped, views))
        assert views == [value(name) for name in NAMES]
        other.stdin.close()
    assert all(map(is_mapped, view(full.path, *NAMES)))


def test_views_outlive_the_worker(parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=64 << 20)
    put(directory, *NAMES)
    directory.arenas.seal_idle(0.0)
    views = view(directory.path, *NAMES)
    assert all(map(is_mapped, views))
    directory.close()
    assert os.listdir(parent) == []
    assert views == [value(name) for name in NAMES]


def test_a_successor_keeps_what_is_viewed(parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=64 << 20)
    put(directory, *NAMES, *(f"gone{i}" for i in range(COUNT)))
    directory.arenas.seal_idle(0.0)
    views = view(directory.path, *NAMES)
    others = view(directory.path, *(f"gone{i}" for i in range(COUNT)))
    assert any(map(is_mapped, views))
    assert any(map(is_mapped, others))
    directory.drop_all([(f"gone{i}", 1) for i in range(COUNT)])
    directory.drop_all([(name, 1) for name in NAMES[:20]])
    path = directory.path
    directory.close(remove=False)
    began = time.monotonic()
    adopted = SegmentDirectory.adopt(path, limit=64 << 20)
    assert time.monotonic() - began < 1.0  # it waits so long for one who writes
    assert len(adopted.files) == COUNT - 20
    assert blocks(adopted) <= adopted.space.used <= 2 * ARENA_SIZE
    assert views == [value(name) for name in NAMES]
    assert others == [value(f"gone{i}") for i in range(COUNT)]
    others.clear()
    views.clear()
    adopted.reap()
    assert adopted.lingering == 0
    assert adopted.space.used == blocks(adopted) < adopted.total + 8 * PAGE
    adopted.drop_all(list(adopted.files))
    assert adopted.space.used == 0
    adopted.close()


def test_a_forked_child_keeps_its_views(full: SegmentDirectory) -> None:
    views = view(full.path, *NAMES)
    stop = f"{full.path}/stop"

    def child() -> None:
        wait_until(lambda: os.path.exists(stop))
        assert views == [value(name) for name in NAMES]

    pid = forked(child)
    views.clear()
    full.drop_all([(name, 1) for name in NAMES])
    full.reap()
    assert full.lingering == full.space.used > 0
    Path(stop).touch()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    full.reap()
    assert full.space.used == 0


def test_a_process_with_few_files_left_copies(
    full: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4, 4))
    views = view(full.path, *NAMES)
    assert not any(map(is_mapped, views))
    assert views == [value(name) for name in NAMES]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert all(map(is_mapped, view(full.path, *NAMES)))


@pytest.mark.parametrize("offset", range(0, 56, 4))
def test_one_that_is_damaged_is_left_out(full: SegmentDirectory, offset: int) -> None:
    found = full.arenas.index.find(*hash_of(digest_of("k7"), 1))
    assert found is not None
    with open(arena_path(full.path, found.arena), "r+b") as file:
        at = (found.place >> 32) + offset
        file.seek(at)
        word = file.read(4)
        file.seek(at)
        file.write(bytes(byte ^ 0x55 for byte in word))
    views = view(full.path, *NAMES)
    assert [name for name, data in zip(NAMES, views, strict=True) if not is_mapped(data)] == ["k7"]
    assert views[7] is None


def test_an_index_that_points_beyond_the_end(full: SegmentDirectory) -> None:
    found = full.arenas.index.find(*hash_of(digest_of("k7"), 1))
    assert found is not None
    length = found.place & 0xFFFFFFFF
    places = [
        ARENA_SIZE << 32 | length,
        (ARENA_SIZE - 64) << 32 | length,
        found.place + (8 << 32),
        64 << 32 | 64,
    ]
    for place in [*places, 2**64 - 1]:
        writable = Index(full.path, writable=True)
        writable._table.words[found.at + 3] = place
        views = view(full.path, *NAMES)
        assert [name for name, data in zip(NAMES, views, strict=True) if data is None] == ["k7"]
    writable._table.words[found.at + 3] = found.place
    assert view(full.path, *NAMES) == [value(name) for name in NAMES]


def test_one_that_is_not_there(directory: SegmentDirectory) -> None:
    assert view_arena(directory.path, 77) is None
