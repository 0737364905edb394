"""Large files are mapped once a process, while each array has a lock of its own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import os
import sys
from types import FrameType

import numpy as np
import pytest
from memory_helpers import store

from redist.errors import SegmentError, SegmentGone
from redist.memory.directory import SegmentDirectory
from redist.memory.locks import remove_file
from redist.memory.mappings import mappings
from redist.memory.reader import open_segment

MIB = 1 << 20


def array(path: str) -> np.ndarray:
    return np.frombuffer(open_segment(path).view, "u1")


def address(of: np.ndarray) -> int:
    return of.__array_interface__["data"][0]


def is_read(path: str) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def test_one_mapping_serves_all_readers(directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, b"a" * (2 * MIB))
    one, two = array(path), array(path)
    assert address(one) == address(two)
    assert not one.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        one.flags.writeable = True
    del one
    assert is_read(path)
    part = two[5:10]
    del two
    assert is_read(path)
    del part
    assert not is_read(path)
    assert bytes(array(path)[:3]) == b"aaa"


def test_a_recycled_file_is_mapped_already(directory: SegmentDirectory) -> None:
    addresses = set()
    for attempt in range(1, 5):
        data = array(store(directory, "x", attempt, bytes([attempt]) * (2 * MIB)))
        assert (data == attempt).all()
        addresses.add(address(data))
        del data
        directory.drop("x", attempt)
    assert len(addresses) == 1


def test_dropped_while_it_is_read(directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, b"a" * (2 * MIB))
    data = array(path)
    directory.drop("x", 1)
    assert directory.lingering
    with pytest.raises(SegmentGone):
        open_segment(path)
    directory.reap()
    assert directory.lingering
    assert bytes(data) == b"a" * (2 * MIB)
    del data
    gc.collect()
    directory.reap()
    assert not directory.lingering


def test_what_is_gone_is_let_go(directory: SegmentDirectory) -> None:
    for attempt in (1, 2, 3):
        array(store(directory, "x", attempt, b"a" * (2 * MIB)))
        directory.drop("x", attempt, recycle=False)
    directory.trim()
    mappings.look()
    assert not any(each.gone for each in mappings._mapped.values())
    assert directory.space.used == 0


def test_at_most_so_many(directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redist.memory.mappings._MOST", 3)
    held = [array(store(directory, f"x{n}", 1, bytes([n]) * MIB)) for n in range(8)]
    assert len(mappings._mapped) <= 3
    assert [data[0] for data in held] == list(range(8))
    assert all(is_read(directory.path_of(f"x{n}", 1)) for n in range(8))


def test_a_forked_child_keeps_the_lock(directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, b"a" * (2 * MIB))
    data = array(path)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0 if data[-1] == ord("a") and array(path)[0] == ord("a") else 1)
    os.close(reading)
    del data
    assert is_read(path)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not is_read(path)


def test_descriptors_go_with_the_arrays(directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, b"a" * (2 * MIB))
    array(path)
    before = len(os.listdir("/proc/self/fd"))
    held = [array(path) for _ in range(10)]
    assert len(os.listdir("/proc/self/fd")) == before + 10
    del held
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_removed_file_gives_its_memory_back_unless_it_is_read(parent: str) -> None:
    path = os.path.join(parent, "file")
    for reads in (False, True):
        with open(path, "wb") as file:
            file.write(b"x" * (2 * MIB))
        kept = os.open(path, os.O_RDONLY)  # as a mapping keeps it
        if reads:
            fcntl.flock(kept, fcntl.LOCK_SH)
        remove_file(path)
        assert not os.path.exists(path)
        assert bool(os.fstat(kept).st_blocks) is reads
        os.close(kept)


@pytest.mark.parametrize("size", [MIB, 5 * MIB])
def test_every_kind_of_array_keeps_the_lock(directory: SegmentDirectory, size: int) -> None:
    path = store(directory, "x", 1, b"a" * size)
    kinds = [
        lambda view: np.frombuffer(view, "u1"),
        lambda view: np.ndarray(view.nbytes, "u1", view),
        lambda view: np.ndarray(view.nbytes, "u1", view)[1:].view("i1").reshape(1, -1),
        lambda view: np.asarray(view),
        lambda view: memoryview(view)[5:9],
        lambda view: np.asarray(memoryview(np.asarray(view))[5:9]),
    ]
    for kind in kinds:
        value = kind(open_segment(path).view)
        gc.collect()
        assert is_read(path)
        del value
        assert not is_read(path)


def test_a_mapping_that_fails_closes_its_descriptor_once(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(directory, "x", 1, b"a" * (2 * MIB))

    def fails(*args: object, **named: object) -> None:
        raise OSError(errno.ENOMEM, "no address space")

    with monkeypatch.context() as patched:
        patched.setattr("redist.memory.mappings.map_file", fails)
        with pytest.raises(SegmentError, match="address space") as caught:
            open_segment(path)
    others = [os.open(path, os.O_RDONLY) for _ in range(4)]  # they get the numbers that are free now
    del caught
    gc.collect()
    for fd in others:
        os.close(fd)  # raises if somebody else has closed it


def test_an_idle_reader_does_not_hold_the_memory_of_a_removed_directory(parent: str) -> None:
    made = SegmentDirectory.create(parent, limit=64 * MIB)
    store(made, "x", 1, b"a" * (2 * MIB))
    made.drop("x", 1)
    path = store(made, "y", 1, b"a" * (2 * MIB))  # into the same file, of which a mapping is kept
    inode = os.stat(path).st_ino
    held = array(path)
    made.close()
    assert held[-1] == ord("a")
    assert inode in open_inodes()
    del held
    assert inode not in open_inodes()


def test_an_interrupt_while_an_array_dies_leaves_no_lock(
    directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store(directory, "x", 1, b"a" * (2 * MIB))
    held = array(path)

    def interrupt(frame: FrameType, event: str, arg: object) -> None:
        if frame.f_code.co_name == "__del__":
            raise KeyboardInterrupt

    ignored: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: ignored.append(repr(error.exc_value)))
    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        del held
    finally:
        sys.settrace(before)
    assert ignored == ["KeyboardInterrupt()"]
    assert not is_read(path)


def open_inodes() -> set[int]:
    """Return the inodes of the files that this process has open."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(os.fstat(int(name)).st_ino)
    return found
