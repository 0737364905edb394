"""Huge pages where something goes wrong: interrupts, no memory, no address space, readers that stay, forks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from memory_helpers import forked, store

from redist.memory import collapser, holes, huge_pages
from redist.memory.directory import SegmentDirectory
from redist.memory.kept import keeper
from redist.memory.reader import open_segment
from servers import wait_until

MIB = 1 << 20
SIZE = 5 * MIB + 12_345
DATA = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()

pytestmark = pytest.mark.usefixtures("asked_anew")


def blocks(fd: int) -> int:
    """Return what memory an open file takes, and close it."""
    try:
        return os.fstat(fd).st_blocks
    finally:
        os.close(fd)


# --- readers that stay ----------------------------------------------------------------------------------------------------


def test_a_reader_of_a_removed_directory_keeps_its_bytes(
    slow: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file without a path is not one without a reader."""
    there, go = threading.Event(), threading.Event()
    collapse = huge_pages.collapse

    def late(view: memoryview, at: int, length: int) -> bool:
        there.set()
        go.wait(20)
        return collapse(view, at, length)

    monkeypatch.setattr(huge_pages, "collapse", late)
    monkeypatch.setattr(collapser, "_SETTLES", 0.0)
    path = store(directory, "x", 1, DATA)
    view = open_segment(path).view
    assert there.wait(10)
    directory.close()
    assert not os.path.exists(path)
    go.set()
    wait_until(lambda: not directory._collapser._runs)
    assert bytes(view) == DATA


def test_memory_goes_back_behind_the_path(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who replaces the pages of a file sees that it is gone, however late its memory goes."""
    path = f"{parent}/file"
    with open(path, "wb") as file:
        file.write(DATA)
    punch, had_path = holes.punch, []

    def look(fd: int) -> bool:
        had_path.append(os.path.exists(path))
        return punch(fd)

    monkeypatch.setattr(holes, "punch", look)
    fd = os.open(path, os.O_RDONLY)
    holes.give_back(path)
    assert had_path == [False]
    assert blocks(fd) == 0


# --- the thread -----------------------------------------------------------------------------------------------------------


def test_a_forked_child_keeps_no_waiting_file(slow: None, patient: None, directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, DATA)
    keeper._files.popitem()[1].close()
    inode = os.stat(path).st_ino
    assert directory._collapser._waiting

    def look() -> None:
        fds = [int(name) for name in os.listdir("/proc/self/fd")]
        for fd in fds:
            try:
                assert os.fstat(fd).st_ino != inode
            except OSError:  # of the list itself
                continue

    assert os.waitstatus_to_exitcode(os.waitpid(forked(look), 0)[1]) == 0


def test_no_thread_no_waiting_files(
    slow: None, patient: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", full)
        store(directory, "x", 1, DATA)
    assert not directory._collapser._waiting
    assert not directory._collapser._runs
    store(directory, "y", 1, DATA)
    assert directory._collapser._runs


def test_the_thread_outlives_a_lack_of_memory(
    slow: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []

    def collapse(view: memoryview, at: int, length: int) -> bool:
        looked.append(at)
        if len(looked) == 1:
            raise MemoryError
        return True

    monkeypatch.setattr(huge_pages, "collapse", collapse)
    monkeypatch.setattr(collapser, "_SETTLES", 0.0)
    store(directory, "x", 1, DATA)
    wait_until(lambda: len(looked) == 1)
    store(directory, "y", 1, DATA)
    wait_until(lambda: len(looked) == 2)
