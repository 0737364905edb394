"""Whether a payload is whole is said by who owns its file; one that only moves, or that cannot be opened now, is."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest
from memory_helpers import store

from redist.errors import SegmentCorrupt, SegmentGone
from redist.memory.arena import arena_path, number_in
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header, spilled_path
from redist.memory.moving import Mover
from redist.memory.verifying import flaw
from redist.memory.writer import SegmentWriter


def arena_of(directory: SegmentDirectory) -> str:
    (number,) = [n for entry in os.listdir(directory.path) if (n := number_in(entry)) is not None]
    return arena_path(directory.path, number)


def put_small(directory: SegmentDirectory, name: str) -> None:
    directory.arenas.idle = 0.0
    assert directory.put_small(Header(name, 1, 5000, "bytes"), memoryview(bytes(5000)))


def test_simple(directory: SegmentDirectory) -> None:
    path = store(directory, "large", 1, bytes(100_000))
    put_small(directory, "small")
    assert flaw(directory, "large", 1) is flaw(directory, "small", 1) is None
    os.truncate(path, 50_000)
    assert isinstance(flaw(directory, "large", 1), SegmentCorrupt)
    os.unlink(path)
    gone = flaw(directory, "large", 1)
    assert isinstance(gone, SegmentGone)
    assert path in str(gone)
    os.truncate(arena_of(directory), 4096)
    assert isinstance(flaw(directory, "small", 1), SegmentCorrupt)
    arena = arena_of(directory)
    os.unlink(arena)
    gone = flaw(directory, "small", 1)
    assert isinstance(gone, SegmentGone)
    assert arena in str(gone)
    assert isinstance(flaw(directory, "large", 2), SegmentGone)


def test_on_disk(directory: SegmentDirectory, tmp_path: Path) -> None:
    directory.spill.configure(str(tmp_path), 0)
    path = store(directory, "large", 1, bytes(100_000))
    assert Mover(directory).move_out("large", 1)
    assert flaw(directory, "large", 1) is None
    os.truncate(spilled_path(path), 50_000)
    assert isinstance(flaw(directory, "large", 1), SegmentCorrupt)
    os.unlink(spilled_path(path))
    assert isinstance(flaw(directory, "large", 1), SegmentGone)


def test_one_that_moves_is_whole(directory: SegmentDirectory, tmp_path: Path) -> None:
    directory.spill.configure(str(tmp_path), 0)
    store(directory, "large", 1, bytes(100_000))
    done = threading.Event()
    moves = []

    def move() -> None:
        mover = Mover(directory)
        while not done.is_set():
            moves.append(mover.move_out("large", 1) and mover.move_in("large", 1))

    thread = threading.Thread(target=move)
    thread.start()
    try:
        while sum(map(bool, moves)) < 50:
            assert flaw(directory, "large", 1) is None
    finally:
        done.set()
        thread.join()


def test_one_that_was_written_and_not_told_of_is_whole(directory: SegmentDirectory) -> None:
    header = Header("x", 1, 5000)
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    with SegmentWriter(grant, header) as segment:
        segment.write([bytes(5000)])
        segment.publish(directory.path_of("x", 1))
    assert flaw(directory, "x", 1) is None
    assert directory.add("x", 1, reserved, 1)
    assert flaw(directory, "x", 1) is None


@pytest.mark.parametrize("small", [False, True])
def test_where_no_more_files_can_be_opened_nothing_is_said(directory: SegmentDirectory, small: bool) -> None:
    if small:
        put_small(directory, "x")
    else:
        store(directory, "x", 1, bytes(100_000))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        found = flaw(directory, "x", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found is None
