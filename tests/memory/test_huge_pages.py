"""Large files get huge pages where the kernel has some, and are as good without."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from memory_helpers import store

from redist import config
from redist.errors import SegmentsFull
from redist.memory import collapser, huge_pages
from redist.memory.directory import SegmentDirectory
from redist.memory.grants import GRANT_FILE
from redist.memory.headers import Header
from redist.memory.kept import keeper
from redist.memory.reader import open_segment
from redist.memory.writer import SegmentWriter
from servers import wait_until

MIB = 1 << 20
SIZE = 9 * MIB + 12_345
DATA = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()

pytestmark = pytest.mark.usefixtures("asked_anew")


def huge_bytes(view: memoryview) -> int:
    """Bytes of a mapping that are huge pages, once all of it was read."""
    array = np.frombuffer(view, np.uint8)
    int(array[::4096].sum())
    address = array.ctypes.data
    with open("/proc/self/smaps") as file:
        for part in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", file.read()):
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", part)
            if found is not None and int(found[1], 16) <= address < int(found[2], 16):
                return int(re.search(r"ShmemPmdMapped: +(\d+)", part)[1]) * 1024
    raise AssertionError("not mapped")


def mapped(path: str) -> bool:
    with open("/proc/self/maps") as file:
        return path in file.read()


# --- written into huge pages --------------------------------------------------------------------------------------------


def test_a_new_file_has_them(kernel: None, patient: None, directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, DATA)
    view = open_segment(path).view
    assert huge_bytes(view) == 8 * MIB
    assert bytes(view) == DATA
    assert os.stat(path).st_blocks * 512 == directory.files["x", 1]


def test_a_recycled_file_has_them_still(kernel: None, patient: None, directory: SegmentDirectory) -> None:
    inode = os.stat(store(directory, "x", 1, DATA)).st_ino
    directory.drop("x", 1)
    path = store(directory, "y", 2, DATA[::-1])
    assert os.stat(path).st_ino == inode
    view = open_segment(path).view
    assert huge_bytes(view) == 8 * MIB
    assert bytes(view) == DATA[::-1]


def test_their_memory_goes_back(kernel: None, directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, DATA)
    fd = os.open(path, os.O_RDONLY)
    directory.drop("x", 1)
    assert directory.trim(SIZE) >= SIZE
    assert directory.space.used == 0
    assert os.fstat(fd).st_blocks == 0
    os.close(fd)


def test_none_by_the_setting(kernel: None, directory: SegmentDirectory) -> None:
    with config.set({"payloads.huge-pages": False}):
        path = store(directory, "x", 1, DATA)
        assert not directory._collapser._waiting
    assert huge_bytes(open_segment(path).view) == 0


def test_small_files_have_none(kernel: None, directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, DATA[: 3 * MIB])
    assert huge_bytes(open_segment(path).view) == 0


# --- where the kernel has none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOMEM, errno.EAGAIN])
def test_a_kernel_that_refuses_is_asked_seldom(
    error: int, patient: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(address: int, length: int) -> int:
        asked.append(length)
        return error

    monkeypatch.setattr(huge_pages, "_collapse", refuse)
    monkeypatch.setattr(huge_pages, "_extent", lambda: 2 * MIB)
    for i in range(3):
        path = store(directory, f"x{i}", i, DATA)
        assert bytes(open_segment(path).view) == DATA
        assert os.stat(path).st_blocks * 512 == directory.files[f"x{i}", i]
    assert len(asked) == 1
    assert not [name for name in os.listdir(directory.path) if name.startswith(GRANT_FILE)]


def test_the_rest_of_a_file_for_which_there_are_no_more(
    kernel: None, patient: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    collapse = huge_pages._collapse
    calls = []

    def few(address: int, length: int) -> int:
        calls.append(length)
        return collapse(address, length) if len(calls) == 1 else errno.ENOMEM

    monkeypatch.setattr(huge_pages, "_collapse", few)
    path = store(directory, "x", 1, DATA)
    assert len(calls) == 2
    view = open_segment(path).view
    assert huge_bytes(view) == 2 * MIB
    assert bytes(view) == DATA
    assert os.stat(path).st_blocks * 512 == directory.files["x", 1]


def test_a_full_file_system(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(os, "posix_fallocate", full)
    grant = directory.grants.new_path()
    with pytest.raises(SegmentsFull):
        SegmentWriter(grant, Header("x", 1, SIZE, "bytes"))
    assert not os.path.exists(grant)
    assert not mapped(grant)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a tmpfs needs root")
def test_a_tmpfs_that_is_too_small(tmp_path: Path) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=10M", "redist-test", str(tmp_path)]).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        path = f"{tmp_path}/x"
        for size in (24 * MIB, 11 * MIB):
            with pytest.raises(SegmentsFull), SegmentWriter(path, Header("x", 1, size, "bytes")) as segment:
                segment.write([bytes(size)])
            assert os.listdir(tmp_path) == []
        with SegmentWriter(path, Header("x", 1, SIZE, "bytes")) as segment:
            segment.write([DATA])
            segment.publish(f"{path}-done")
        assert bytes(open_segment(f"{path}-done").view) == DATA
        keeper.look()
    finally:
        os.unlink(f"{path}-done")
        keeper.look()
        gc.collect()
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# --- replaced afterwards --------------------------------------------------------------------------------------------------


def test_pages_that_would_take_long_come_later(
    slow: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapser, "_SETTLES", 0.5)
    path = store(directory, "x", 1, DATA)

    def read() -> None:
        view = open_segment(path).view
        before = huge_bytes(view)
        wait_until(lambda: huge_bytes(view) == 8 * MIB)  # of a mapping that was there before
        assert before == 0
        assert bytes(view) == DATA

    read()
    assert os.stat(path).st_blocks * 512 == directory.files["x", 1]
    wait_until(lambda: not directory._collapser._runs)
    directory.drop("x", 1)
    store(directory, "y", 2, DATA)  # the same file: not looked at again
    assert not directory._collapser._waiting


def test_half_of_the_time_at_most(
    slow: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, slept = [0.0], []

    def took_a_second(view: memoryview, at: int, length: int) -> bool:
        now[0] += 1.0
        return True

    monkeypatch.setattr(collapser, "_SETTLES", 0.0)
    monkeypatch.setattr(collapser, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=slept.append))
    monkeypatch.setattr(huge_pages, "collapse", took_a_second)
    store(directory, "x", 1, DATA)
    wait_until(lambda: now[0] == len(slept) == 2)
    assert slept == [1.0, 1.0]


def test_what_goes_meanwhile_takes_no_memory(
    slow: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collapser, "_SETTLES", 0.0)
    collapse = huge_pages.collapse
    fds = []

    def late(view: memoryview, at: int, length: int) -> bool:
        if not fds:
            fds.append(os.open(directory.path_of("x", 1), os.O_RDWR))
            directory.drop("x", 1)
            directory.trim(SIZE)
            os.pwrite(fds[0], b"\0", 0)  # a page that was being looked at when the memory went back
        return collapse(view, at, length)

    monkeypatch.setattr(huge_pages, "collapse", late)
    store(directory, "x", 1, DATA)
    wait_until(lambda: fds and not directory._collapser._runs)
    assert os.fstat(fds[0]).st_blocks == 0
    os.close(fds[0])


def test_a_closed_directory_ends_the_work(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "_extent", lambda: 2 * MIB)
    monkeypatch.setattr(collapser, "_SETTLES", 1e6)
    files = len(os.listdir("/proc/self/fd"))
    path = store(directory, "x", 1, DATA)
    directory._collapser.close()
    assert not directory._collapser._waiting
    directory._collapser.add(path, os.stat(path))
    assert not directory._collapser._waiting
    directory.drop("x", 1)
    directory.trim(SIZE)
    keeper.look()
    assert len(os.listdir("/proc/self/fd")) <= files


# --- mappings -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 4096, 2 * MIB, 2 * MIB + 1, 9 * MIB + 4097])
@pytest.mark.parametrize("populate", [False, True])
def test_a_mapping_lives_as_long_as_a_view(size: int, populate: bool, parent: str) -> None:
    path = f"{parent}/mapped"
    Path(path).write_bytes(DATA[:size])
    fd = os.open(path, os.O_RDWR)
    view = huge_pages.map_file(fd, size, writable=True, populate=populate)
    reading = huge_pages.map_file(fd, size, populate=populate)
    os.close(fd)
    if size >= 2 * MIB and huge_pages._extent():
        assert np.frombuffer(view, np.uint8).ctypes.data % (2 * MIB) == 0
    assert bytes(reading) == DATA[:size]
    assert reading.readonly
    assert not view.readonly
    view[-1] = DATA[size - 1] ^ 1
    assert reading[-1] == DATA[size - 1] ^ 1
    with pytest.raises(TypeError):
        reading[0] = 1
    assert not np.frombuffer(reading, np.uint8).flags.writeable
    part = np.frombuffer(reading, np.uint8)[:3]
    del view, reading
    child = os.fork()
    if not child:
        os._exit(int(bytes(part) != DATA[:3]))
    assert os.waitpid(child, 0)[1] == 0
    assert mapped(path)
    del part
    assert not mapped(path)
    os.unlink(path)


def test_no_address_space(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if not huge_pages._extent():
        pytest.skip("mapped by the standard library here")
    path = f"{parent}/mapped"
    Path(path).write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(PermissionError):
            huge_pages.map_file(fd, SIZE, writable=True)
        with pytest.raises(OSError, match="Cannot allocate"):
            huge_pages.map_file(fd, 1 << 50)
        assert not mapped(path)
    finally:
        os.close(fd)
        os.unlink(path)


def test_a_lock_lives_as_long_as_a_mapping(parent: str) -> None:
    path = f"{parent}/locked"
    Path(path).write_bytes(DATA)
    fd, other = os.open(path, os.O_RDONLY), os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    view = huge_pages.map_file(fd, SIZE)
    os.close(fd)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    del view
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.unlink(path)
