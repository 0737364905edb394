"""Large values are written into new files by several threads, which make the memory first."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from memory_helpers import store

from redist.errors import SegmentError, SegmentsFull
from redist.memory import huge_pages, new_pages, pieces
from redist.memory.directory import SegmentDirectory
from redist.memory.grants import GRANT_FILE
from redist.memory.headers import Header
from redist.memory.kept import keeper
from redist.memory.locks import remove_tree, try_lock
from redist.memory.new_pages import LEAST_SHARED, write_shared
from redist.memory.pieces import Pieces, helpers
from redist.memory.reader import open_segment
from redist.memory.writer import SegmentWriter

MIB = 1 << 20
DATA = np.random.default_rng(0).integers(0, 256, 20 * MIB + 12_345, np.uint8).tobytes()


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four, wherever this runs."""
    monkeypatch.setattr(pieces, "cores", lambda: 4)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """No huge pages."""
    monkeypatch.setattr(huge_pages, "are_given", lambda: False)


@pytest.fixture
def helpers_first(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The thread that writes waits until a helper has filled something; gets the sizes of what helpers filled."""
    filled: list[int] = []
    began = threading.Event()
    populate = new_pages.populate

    def noted(view: memoryview, at: int, length: int) -> bool:
        filled.append(length)
        began.set()
        return populate(view, at, length)

    pwrite = os.pwrite

    def waiting(fd: int, data: memoryview, at: int) -> int:
        if len(data) == 2 * MIB:
            assert began.wait(10)
        return pwrite(fd, data, at)

    monkeypatch.setattr(new_pages, "populate", noted)
    monkeypatch.setattr(os, "pwrite", waiting)
    yield filled
    assert not [thread for thread in threading.enumerate() if thread.name == "redist-memory"]


def mapped(path: str) -> bool:
    return path in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("before", [0, 1, 4096, 5_000])
@pytest.mark.parametrize("size", [LEAST_SHARED, 20 * MIB + 12_345])
def test_all_of_it_arrives(parent: str, helpers_first: list[int], before: int, size: int) -> None:
    fd = os.open(f"{parent}/file", os.O_RDWR | os.O_CREAT, 0o600)
    os.write(fd, b"x" * before)
    write_shared(fd, memoryview(DATA)[:size], before, before + size + 10)
    assert os.pread(fd, before + size + 20, 0) == b"x" * before + DATA[:size] + bytes(10)
    assert sum(helpers_first) >= 2 * MIB
    os.close(fd)


def test_a_payload(small: None, helpers_first: list[int], directory: SegmentDirectory) -> None:
    path = store(directory, "x", 1, DATA)
    view = open_segment(path).view
    assert bytes(view) == DATA
    assert helpers_first
    assert os.stat(path).st_blocks * 512 == directory.files["x", 1]


def test_in_several_chunks(small: None, helpers_first: list[int], directory: SegmentDirectory) -> None:
    header = Header("x", 1, len(DATA), "bytes", ())
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    cuts = [0, 100, 9 * MIB + 33, 9 * MIB + 50, len(DATA)]
    with SegmentWriter(grant, header) as writer:
        writer.write(memoryview(DATA)[begin:end] for begin, end in itertools.pairwise(cuts))
        writer.publish(directory.path_of("x", 1))
    assert directory.add("x", 1, reserved, 1)
    assert bytes(open_segment(directory.path_of("x", 1)).view) == DATA
    assert helpers_first


@pytest.mark.parametrize("trouble", ["no memory", "no mapping", "no thread"])
def test_without_help(small: None, directory: SegmentDirectory, trouble: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        if trouble == "no memory":
            patched.setattr(new_pages, "populate", lambda *args: False)
        elif trouble == "no mapping":
            patched.setattr(new_pages.mmap, "mmap", raising(OSError(errno.ENOMEM, "no")))
        else:
            patched.setattr(threading.Thread, "start", raising(RuntimeError("can't start new thread")))
        path = store(directory, "x", 1, DATA)
    assert bytes(open_segment(path).view) == DATA


def test_advice_that_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As by an emulator of processors: to fill what there may be no memory for may be SIGBUS."""
    page = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
    if not huge_pages.populate(page, 0, len(page)):
        pytest.skip("the kernel makes no memory ahead")
    monkeypatch.setattr(huge_pages, "_heeds", cache(huge_pages._heeds.__wrapped__))
    monkeypatch.setattr(huge_pages._libc(), "madvise", lambda *args: 0)
    assert not huge_pages.populate(page, 0, len(page))


def raising(error: BaseException) -> Callable[..., None]:
    def function(*args: object, **options: object) -> None:
        raise error

    return function


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_fails(
    small: None, directory: SegmentDirectory, error: BaseException
) -> None:
    before = threading.active_count()
    header = Header("x", 1, len(DATA), "bytes", ())
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    expected = SegmentsFull if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.MonkeyPatch.context() as patched, pytest.raises(expected) as caught:
        patched.setattr(os, "pwrite", raising(error))
        with SegmentWriter(grant, header) as writer:
            writer.write([DATA])
    assert threading.active_count() == before
    assert not mapped(grant)  # though the traceback refers to what was mapped
    assert caught.traceback
    assert not [name for name in os.listdir(directory.path) if name.startswith(GRANT_FILE)]
    directory.grants.cancel(grant, reserved)


def test_its_memory_stays_while_helpers_fill_it(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker was killed, and another one clears up: to write where no memory is any more may be SIGBUS."""
    os.mkdir(f"{parent}/dead")
    fd = os.open(f"{parent}/dead/grant", os.O_RDWR | os.O_CREAT, 0o600)
    removed = threading.Event()
    took: list[int] = []

    def populate(view: memoryview, at: int, length: int) -> bool:
        done = huge_pages.populate(view, at, length)
        if not took:
            remove_tree(f"{parent}/dead")
            took.append(os.fstat(fd).st_blocks * 512)
            removed.set()
        return done

    pwrite = os.pwrite

    def waiting(fd: int, data: memoryview, at: int) -> int:
        assert removed.wait(10)
        return pwrite(fd, data, at)

    monkeypatch.setattr(new_pages, "populate", populate)
    monkeypatch.setattr(os, "pwrite", waiting)
    write_shared(fd, memoryview(DATA)[: 8 * MIB], 0, 8 * MIB)
    assert took[0] >= 2 * MIB
    with open(f"/proc/self/fd/{fd}", "rb") as reader:
        assert try_lock(reader.fileno())  # it is not locked any more
    os.close(fd)


def test_full_and_its_directory_gone(small: None, parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkdir(f"{parent}/dead")

    def full(fd: int, data: memoryview, at: int) -> int:
        remove_tree(f"{parent}/dead")
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "pwrite", full)
    with (
        pytest.raises(SegmentError, match="cannot be written: full"),
        SegmentWriter(f"{parent}/dead/grant", Header("x", 1, len(DATA), "bytes", ())) as writer,
    ):
        writer.write([DATA])


def test_an_interrupt_while_helpers_are_made(
    small: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do no more than what they have begun, in a file that is gone."""
    start, stop = threading.Thread.start, Pieces.stop
    stopped = threading.Event()
    filled: list[int] = []

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    def noted(pieces: Pieces) -> tuple[int, int]:
        left = stop(pieces)
        stopped.set()
        return left

    def populate(view: memoryview, at: int, length: int) -> bool:
        filled.append(length)
        return stopped.wait(2) and huge_pages.populate(view, at, length)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    monkeypatch.setattr(Pieces, "stop", noted)
    monkeypatch.setattr(new_pages, "populate", populate)
    header = Header("x", 1, len(DATA), "bytes", ())
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    with pytest.raises(KeyboardInterrupt) as caught, SegmentWriter(grant, header) as writer:
        writer.write([DATA])
    assert not [thread for thread in threading.enumerate() if thread.name == "redist-memory"]
    assert len(filled) <= 1
    assert not mapped(grant)  # though the traceback refers to what was mapped
    assert caught.traceback
    directory.grants.cancel(grant, reserved)


def test_a_full_file_system_is_noticed_by_helpers(
    small: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they could not do is tried again by who can say why it does not work."""
    pwrite = os.pwrite
    last = 20 * MIB

    def full(fd: int, data: memoryview, at: int) -> int:
        if at + len(data) > last:
            raise OSError(errno.ENOSPC, "full")
        return pwrite(fd, data, at)

    monkeypatch.setattr(new_pages, "populate", lambda view, at, length: at + length <= last)
    monkeypatch.setattr(os, "pwrite", full)
    header = Header("x", 1, len(DATA), "bytes", ())
    ((grant, reserved),) = directory.grants.grant([header.file_size], 1)
    with pytest.raises(SegmentsFull), SegmentWriter(grant, header) as writer:
        writer.write([DATA])
    directory.grants.cancel(grant, reserved)


# --- huge pages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_A_CALL", 2 * MIB)


@pytest.mark.usefixtures("asked_anew", "patient", "one_at_a_time")
class TestHugePages:
    def test_several_threads_make_them(
        self, kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collapse = huge_pages._collapse
        threads: set[int] = set()
        several = threading.Event()

        def noted(address: int, length: int) -> int:
            threads.add(threading.get_ident())
            if len(threads) > 1:
                several.set()
            elif threading.active_count() > before:
                assert several.wait(10)
            return collapse(address, length)

        before = threading.active_count()
        monkeypatch.setattr(huge_pages, "_collapse", noted)
        path = store(directory, "x", 1, DATA)
        assert len(threads) > 1
        assert bytes(open_segment(path).view) == DATA
        assert os.stat(path).st_blocks * 512 == directory.files["x", 1]

    def test_there_are_no_more(
        self, kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        collapse = huge_pages._collapse
        made: list[int] = []

        def some(address: int, length: int) -> int:
            made.append(length)
            return errno.ENOMEM if sum(made) > 12 * MIB else collapse(address, length)

        monkeypatch.setattr(huge_pages, "_collapse", some)
        path = store(directory, "x", 1, DATA)
        assert 12 * MIB < sum(made) < 20 * MIB
        assert bytes(open_segment(path).view) == DATA
        assert os.stat(path).st_blocks * 512 == directory.files["x", 1]

    def test_it_takes_too_long(
        self, kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Noticed after the first ones; then all is written into small pages."""
        collapse = huge_pages._collapse
        made: list[int] = []

        def some(address: int, length: int) -> int:
            made.append(length)
            if sum(made) > 8 * MIB:
                monkeypatch.setattr(huge_pages, "_SLOW", 0.0)
                monkeypatch.setattr(huge_pages, "_SLACK", 0.0)
            return collapse(address, length)

        monkeypatch.setattr(huge_pages, "_collapse", some)
        data = DATA * 3
        path = store(directory, "x", 1, data)
        assert sum(made) < 20 * MIB
        assert huge_pages._not_before
        assert bytes(open_segment(path).view) == data
        assert not mapped(f"{directory.path}/{GRANT_FILE}")
        keeper.look()


# --- pieces --------------------------------------------------------------------------------------------------------------


def test_each_piece_is_taken_once() -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chosen = random.Random(seed)
    for _ in range(50):
        begin, size, step = chosen.randrange(100), chosen.randrange(5_000), chosen.randrange(1, 300)
        shared = Pieces(begin, begin + size, step)
        taken: list[tuple[int, int]] = []

        def work(shared: Pieces = shared, taken: list[tuple[int, int]] = taken) -> None:
            while (piece := shared.back()) is not None:
                taken.append(piece)

        with helpers(shared, work, 3):
            while (piece := shared.front()) is not None:
                taken.append(piece)
        covered = sorted(taken)
        assert sum(length for _, length in covered) == size
        at = begin
        for start, length in covered:
            assert start == at
            at += length


def test_nobody_takes_any_more() -> None:
    shared = Pieces(0, 100, 10)
    assert shared.front() == (0, 10)
    assert shared.back() == (90, 10)
    assert shared.stop() == (10, 80)
    assert shared.front() is None
    assert shared.back() is None


def test_no_helpers_on_one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "cores", lambda: 1)
    with helpers(Pieces(0, 10, 1), lambda: pytest.fail("called"), 3):
        pass
