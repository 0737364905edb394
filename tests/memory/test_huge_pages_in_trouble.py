"""Huge pages where something goes wrong: interrupts, no memory, no address space, readers that stay, forks."""

from __future__ import annotations

import errno
import gc
import itertools
import os
import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import numpy as np
import pytest
from memory_helpers import Bytes, Loop, forked, store

from redist.errors import SegmentsFull
from redist.memory import collapser, holes, huge_pages, kept
from redist.memory.broker import Broker
from redist.memory.broker_client import BrokerClient
from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header
from redist.memory.kept import keeper
from redist.memory.reader import open_segment
from redist.memory.writer import SegmentWriter
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


# --- memory that nobody counts --------------------------------------------------------------------------------------------


def test_an_error_holds_no_memory(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its traceback refers to the mapping, and a shell keeps the last one."""
    fds = []

    def full(fd: int, offset: int, length: int) -> None:
        fds.append(os.dup(fd))
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SegmentsFull) as caught:
        SegmentWriter(directory.grants.new_path(), Header("x", 1, SIZE, "bytes"))
    assert blocks(fds[0]) == 0
    assert caught.value


@pytest.mark.parametrize("recycled", [False, True])
def test_an_interrupt_holds_no_memory(kernel: None, directory: SegmentDirectory, recycled: bool) -> None:
    header = Header("x", 1, SIZE, "bytes")
    if recycled:
        store(directory, "x", 1, DATA)
        directory.drop("x", 1)
    ((path, reserved),) = directory.grants.grant([header.file_size], 1)
    assert os.path.exists(path) is recycled
    with pytest.raises(KeyboardInterrupt), SegmentWriter(path, header) as segment:
        view = segment.view
        assert view is not None
        fd = os.dup(segment._kept.fd)
        raise KeyboardInterrupt
    assert blocks(fd) == 0
    directory.grants.cancel(path, reserved)
    assert not directory.space.used


def test_a_published_payload_survives_an_interrupt_of_its_writer(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = Header("x", 1, SIZE, "bytes")
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    path = directory.path_of("x", 1)
    rename = os.rename

    def interrupted(source: str, target: str) -> None:
        rename(source, target)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), SegmentWriter(grant, header) as segment:
        segment.write([DATA])
        monkeypatch.setattr(os, "rename", interrupted)
        segment.publish(path)
    monkeypatch.undo()
    assert directory.add("x", 1, reserved)
    assert bytes(open_segment(path).view) == DATA


def test_a_dropped_payload_that_was_not_told_of(kernel: None, directory: SegmentDirectory) -> None:
    """Its writer has kept a mapping, and may write nothing more."""
    header = Header("x", 1, SIZE, "bytes")
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    path = directory.path_of("x", 1)
    with SegmentWriter(grant, header) as segment:
        segment.write([DATA])
        segment.publish(path)
    fd = os.open(path, os.O_RDONLY)
    directory.drop("x", 1)
    assert not directory.add("x", 1, reserved)
    assert blocks(fd) == 0
    assert not directory.space.used


def test_a_put_that_fails_keeps_nothing(kernel: None, directory: SegmentDirectory, loop: Loop) -> None:
    class Fails(Bytes):
        def chunks(self) -> Iterator[bytes]:
            yield self.data[: 4 * MIB]
            raise KeyboardInterrupt

    broker = Broker(directory)
    loop.run(broker.start())
    keeper.look()
    before = len(keeper._files)
    with BrokerClient(broker.address) as client, pytest.raises(KeyboardInterrupt):
        client.put([("x", 1, Bytes(DATA)), ("y", 1, Fails(DATA))])
    assert len(keeper._files) == before
    wait_until(lambda: not broker.granted and directory.space.used == 0)
    loop.run(broker.close())


def test_advice_that_is_ignored(directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulator may know it as a hint only: then there are holes, and writing there could be SIGBUS."""
    asked = []

    def ignore(address: int, length: int) -> int:
        asked.append(length)
        return 0

    monkeypatch.setattr(huge_pages, "_collapse", ignore)
    monkeypatch.setattr(huge_pages, "_extent", lambda: 2 * MIB)
    monkeypatch.setattr(huge_pages, "_SLOW", 10.0)
    monkeypatch.setattr(collapser, "_SETTLES", 1e6)
    for attempt in (1, 2):
        header = Header("x", attempt, SIZE, "bytes")
        ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
        with SegmentWriter(grant, header) as segment:
            assert segment.view is None
        directory.grants.cancel(grant, reserved)
    assert len(asked) == 1


def test_a_slow_kernel_is_asked_seldom_for_files_of_two_pages(
    slow: None, patient: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of such a file has its page before anybody knows how long that took."""
    collapse = huge_pages._collapse
    asked = []

    def count(address: int, length: int) -> int:
        asked.append(length)
        return collapse(address, length)

    monkeypatch.setattr(huge_pages, "_collapse", count)
    for attempt in range(1, 5):
        store(directory, "x", attempt, DATA)
    assert sum(asked) <= 4 * MIB


# --- no address space -----------------------------------------------------------------------------------------------------


def test_a_payload_needs_no_address_space(directory: SegmentDirectory) -> None:
    """It is written without a mapping where there is none for it; also into a recycled file that somebody else wrote."""
    code = os.waitstatus_to_exitcode(os.waitpid(forked(lambda: _write_without(directory)), 0)[1])
    assert code == 0


def _write_without(directory: SegmentDirectory) -> None:
    with open("/proc/self/statm") as file:
        taken = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + SIZE - MIB, resource.RLIM_INFINITY))
    path = f"{directory.path}/written"
    for _ in ("new", "recycled"):
        with SegmentWriter(path, Header("x", 1, SIZE, "bytes")) as segment:
            assert segment.view is None
            segment.write([DATA])
            segment.publish(path)
    os.unlink(path)


# --- interrupts -----------------------------------------------------------------------------------------------------------


def taken() -> tuple[int, int]:
    """Bytes of address space that files of ours, and what lies beside them, take; and how many of ours are open."""
    size = files = 0
    with open("/proc/self/maps") as file:
        for line in file:
            start, end = (int(number, 16) for number in line.split()[0].split("-"))
            beside = (
                " ---p " in line and MIB <= end - start < 32 * MIB
            )  # those of threads are smaller, or larger
            size += (end - start) * (beside or "/redist-test-" in line)
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            files += "/redist-test-" in os.readlink(f"/proc/self/fd/{name}")
    return size, files


def interrupter(at: int) -> Any:
    """A trace function that interrupts before the line number `at` of those that make and map files."""
    files = huge_pages.__file__, kept.__file__
    spared = "keep", "look", "__del__"  # with a mutex, which an interrupt before its end would not free
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in files or frame.f_code.co_name in spared:
            return None
        if event == "line" and next(lines) == at:
            raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_at_any_line_leaves_nothing(kernel: None, directory: SegmentDirectory) -> None:
    def write() -> None:
        header = Header("x", 1, SIZE, "bytes")
        path = directory.grants.new_path()
        huge_pages._not_before.clear()
        try:
            with SegmentWriter(path, header) as segment:
                segment.write([DATA])
        finally:
            sys.settrace(before)
            if os.path.exists(path):
                directory.grants.cancel(path, 0)

    before = sys.gettrace()
    write()
    gc.collect()
    size, files = taken()
    for at in itertools.count(1):
        done = False
        sys.settrace(interrupter(at))
        with suppress(KeyboardInterrupt):
            write()
            done = True
        now = taken()
        assert now[0] <= size, at
        assert now[1] <= files, at
        if done:
            break
    assert at > 50


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
