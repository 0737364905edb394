"""Memory is ready ahead of large values: it is cut to size for the next, is the first to go, and leaves nothing behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from memory_helpers import forked, store
from test_huge_pages import huge_bytes

from redist import config
from redist.errors import ConfigurationError, SegmentsFull
from redist.memory import huge_pages, pool, ready
from redist.memory.directory import SegmentDirectory
from redist.memory.limits import MemoryLimits, configured_limits
from redist.memory.reader import open_segment
from servers import wait_until

MIB = 1 << 20
#: What is ready in these tests, in directories of 64 MiB.
READY = 16 * MIB
DATA = np.random.default_rng(0).integers(0, 256, 9 * MIB + 12_345, np.uint8).tobytes()

pytestmark = pytest.mark.usefixtures("asked_anew", "patient", "soon")


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made at once."""
    monkeypatch.setattr(ready, "_AT_FIRST", 0.0)
    monkeypatch.setattr(ready, "_SETTLES", 0.0)
    monkeypatch.setattr(ready, "_QUIET", 0.0)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Whether it is begun, and leave to go on: until then the kernel makes nothing."""
    entered, go_on = threading.Event(), threading.Event()
    make = huge_pages.make

    def slow(view: memoryview, at: int, length: int) -> bool:
        entered.set()
        assert go_on.wait(20)
        return make(view, at, length)

    monkeypatch.setattr(huge_pages, "make", slow)
    return entered, go_on


def make_ready(directory: SegmentDirectory, size: int = READY) -> None:
    directory.grants.ready.keep(size)
    wait_until(lambda: directory.pool.ready)


def idle(directory: SegmentDirectory) -> bool:
    """Whether nothing is being made."""
    return directory.grants.ready._thread is None


def uses_some(directory: SegmentDirectory) -> None:
    """Have a large value take memory where no thread may be started."""
    directory.grants.ready.used(READY)
    assert idle(directory)


def pool_files(directory: SegmentDirectory) -> list[str]:
    return [name for name in os.listdir(directory.path) if name.startswith(pool.POOL_FILE)]


# --- taken --------------------------------------------------------------------------------------------------------------


def test_the_next_large_value_gets_it_and_more_is_made(kernel: None, directory: SegmentDirectory) -> None:
    make_ready(directory)
    assert directory.pool.total == directory.space.used == READY
    inode = os.stat(f"{directory.path}/{pool_files(directory)[0]}").st_ino
    path = store(directory, "x", 1, DATA)
    assert os.stat(path).st_ino == inode
    view = open_segment(path).view
    assert huge_bytes(view) == 8 * MIB
    assert bytes(view) == DATA
    assert directory.files["x", 1] == os.stat(path).st_blocks * 512 < READY
    wait_until(lambda: directory.pool.ready)
    assert directory.space.used == directory.files["x", 1] + READY


@pytest.mark.parametrize("size", [READY // 8 - 4096, READY + 4096], ids=["small", "large"])
def test_it_is_not_for_a_value_of_another_size(size: int, kernel: None, directory: SegmentDirectory) -> None:
    make_ready(directory)
    ((_, reserved),) = directory.grants.grant([size])
    assert directory.pool.ready
    assert directory.space.used == READY + reserved
    directory.space.release(reserved)


def test_a_file_that_was_written_before_is_taken_first(kernel: None, directory: SegmentDirectory) -> None:
    inode = os.stat(store(directory, "x", 1, DATA)).st_ino
    directory.drop("x", 1)
    directory.pool.cap = 64 * MIB
    make_ready(directory)
    assert os.stat(store(directory, "y", 1, DATA)).st_ino == inode
    assert directory.pool.ready


def test_one_file_is_for_one_of_many(kernel: None, directory: SegmentDirectory) -> None:
    make_ready(directory)
    granted = directory.grants.grant([4 * MIB, 4 * MIB])
    assert [os.path.exists(path) for path, _ in granted] == [True, False]
    assert directory.space.used - directory.pool.total == 8 * MIB
    for path, reserved in granted:
        directory.grants.cancel(path, reserved)


def test_it_is_not_made_while_values_are_written(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That takes the processors."""
    looks: list[bool] = []

    def looked(path: str, real: Callable[[str], bool] = ready._is_written) -> bool:
        looks.append(real(path))
        return looks[-1]

    make = huge_pages.make
    made: list[int] = []
    monkeypatch.setattr(huge_pages, "make", lambda *args: bool(made.append(args[1]) or make(*args)))
    monkeypatch.setattr(ready, "_is_written", looked)
    monkeypatch.setattr(ready, "_LOOK", 0.001)
    monkeypatch.setattr(ready, "_PATIENCE", 1e6)
    monkeypatch.setattr(ready, "_QUIET", 1e6)
    directory.grants.ready.keep(READY)
    wait_until(lambda: len(looks) > 20)
    assert all(looks)
    assert not made
    monkeypatch.setattr(ready, "_QUIET", 0.0)
    wait_until(lambda: directory.pool.ready)
    assert made


def test_it_is_made_in_the_end_where_values_are_always_written(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "_QUIET", 1e6)
    monkeypatch.setattr(ready, "_PATIENCE", 0.01)
    make_ready(directory)


def test_what_waits_to_be_made_gives_way(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "_QUIET", 1e6)
    monkeypatch.setattr(ready, "_PATIENCE", 1e6)
    directory.grants.ready.keep(READY)
    wait_until(lambda: directory.space.used == READY)
    size = directory.space.limit
    ((_, reserved),) = directory.grants.grant([size])
    assert reserved == directory.space.used == size
    directory.space.release(reserved)
    wait_until(lambda: idle(directory))


def test_values_of_any_worker_of_the_host_count(
    directory: SegmentDirectory, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "_QUIET", 60.0)
    store(directory, "x", 1, DATA)
    other = SegmentDirectory.create(parent, limit=64 * MIB)
    try:
        long_ago = time.time() - 1000
        for each in (directory, other):
            os.utime(each.path, (long_ago, long_ago))
        assert not ready._is_written(other.path)
        store(directory, "x", 2, DATA)
        assert ready._is_written(other.path)
    finally:
        other.close()


# --- given back ---------------------------------------------------------------------------------------------------------


def test_it_is_the_first_to_go_where_memory_is_short(kernel: None, directory: SegmentDirectory) -> None:
    directory.pool.cap = 64 * MIB
    make_ready(directory)
    store(directory, "x", 1, DATA)
    directory.drop("x", 1)
    wait_until(lambda: directory.pool.ready)
    assert directory.trim(1) == READY
    assert not directory.pool.ready
    assert directory.pool.total == directory.space.used > len(DATA)


def test_a_value_that_needs_all_memory_gets_it(kernel: None, directory: SegmentDirectory) -> None:
    make_ready(directory)
    size = directory.space.limit
    ((_, reserved),) = directory.grants.grant([size])
    assert reserved == directory.space.used == size
    assert not directory.pool.ready
    directory.space.release(reserved)
    wait_until(lambda: idle(directory))
    # nor is any made until memory has not been short for a while
    store(directory, "x", 1, DATA)
    wait_until(lambda: idle(directory))
    assert not directory.pool.ready
    assert directory.space.used == directory.files["x", 1]


def test_a_value_that_needs_what_is_being_made_gets_it(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and no value has to go to disk for it."""
    entered = threading.Event()
    make = huge_pages.make

    def tells(view: memoryview, at: int, length: int) -> bool:
        entered.set()
        wait_until(lambda: directory.pool.short)
        return make(view, at, length)

    monkeypatch.setattr(huge_pages, "make", tells)
    directory.grants.ready.keep(READY)
    assert entered.wait(20)
    size = directory.space.limit
    ((_, reserved),) = directory.grants.grant([size])
    assert reserved == directory.space.used == size
    assert directory.pool.total == 0
    directory.space.release(reserved)
    wait_until(lambda: idle(directory))
    assert pool_files(directory) == []


def test_who_may_not_wait_has_it_stopped(
    kernel: None, directory: SegmentDirectory, held: tuple[threading.Event, threading.Event]
) -> None:
    """As an event loop, which tries again."""
    entered, go_on = held
    directory.grants.at_once = READY
    directory.grants.ready.keep(READY)
    assert entered.wait(20)
    with pytest.raises(SegmentsFull):
        directory.grants.grant([directory.space.limit])
    assert directory.pool.total == directory.space.used == READY
    go_on.set()
    wait_until(lambda: idle(directory))
    assert not directory.pool.ready
    assert directory.pool.total == directory.space.used == 0


def test_it_goes_when_others_take_the_memory(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers have the same file system, which holds nothing of theirs that could go instead."""
    make_ready(directory)
    assert directory.reap() == 0
    monkeypatch.setattr(directory.space, "available_on_disk", lambda: READY - 4096)
    assert directory.reap() == READY
    assert directory.space.used == directory.pool.total == 0


def test_it_goes_when_nothing_large_comes(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ready(directory)
    assert directory.reap() == 0
    monkeypatch.setattr(pool, "READY", 0.0)
    assert directory.due
    assert directory.reap() == READY
    assert directory.space.used == directory.pool.total == 0
    assert pool_files(directory) == []


def test_a_large_value_keeps_it(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_ready(directory)
    monkeypatch.setattr(pool, "READY", 0.2)
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        ((_, reserved),) = directory.grants.grant([READY + 4096])
        assert directory.reap() == 0
        directory.space.release(reserved)
        time.sleep(0.01)
    wait_until(lambda: directory.reap() == READY)


def test_what_is_used_beside_the_pool_never_seems_more(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By that executors are paused."""
    seen: list[int] = []
    reserve, release = directory.space.reserve, directory.space.release

    def looked(change: Callable[..., None]) -> Callable[..., None]:
        def changed(*args: Any) -> None:
            seen.append(directory.space.used - directory.pool.total)
            change(*args)
            seen.append(directory.space.used - directory.pool.total)

        return changed

    monkeypatch.setattr(directory.space, "reserve", looked(reserve))
    monkeypatch.setattr(directory.space, "release", looked(release))
    make_ready(directory)
    assert directory.trim(1) == READY
    assert len(seen) == 4
    assert max(seen) == 0


# --- not made -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["limit", "machine", "pool"])
@pytest.mark.parametrize("part", [2, 8])
def test_less_or_none_is_made_where_it_would_be_much(
    part: int, why: str, kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pieces of 8 MiB, of which these tests want two."""
    most = 2 * READY // part + 4096
    if why == "limit":
        directory.space.reserve(directory.space.free() - 2 * most)
    elif why == "machine":
        monkeypatch.setattr(ready, "available_memory", lambda: 16 * most)
    else:
        directory.pool.cap = most
    before = directory.space.used
    directory.grants.ready.keep(READY)
    wait_until(lambda: idle(directory))
    assert directory.pool.ready_size == most // (8 * MIB) * 8 * MIB == directory.space.used - before
    directory.space.release(before)


@pytest.mark.parametrize("made", [0, 1])
def test_none_stays_where_the_kernel_has_no_more(
    made: int, kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    make = huge_pages.make

    def fails(view: memoryview, at: int, length: int) -> bool:
        calls.append(at)
        return len(calls) <= made and make(view, at, length)

    monkeypatch.setattr(huge_pages, "make", fails)
    directory.grants.ready.keep(READY)
    wait_until(lambda: idle(directory))
    assert len(calls) == made + 1
    assert directory.space.used == directory.pool.total == 0
    assert pool_files(directory) == []
    store(directory, "x", 1, DATA)  # as if nothing had been tried
    assert idle(directory)  # nor is it tried for each value
    assert len(calls) == made + 1
    monkeypatch.setattr(directory.grants.ready, "_not_before", 0.0)  # a while later
    store(directory, "y", 1, DATA)
    wait_until(lambda: idle(directory))
    assert len(calls) == made + 2


def test_advice_that_is_ignored_makes_none(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huge_pages, "make", lambda *_: True)
    directory.grants.ready.keep(READY)
    wait_until(lambda: idle(directory))
    assert not directory.pool.ready
    assert directory.space.used == 0


def test_without_huge_pages_none_is_made(directory: SegmentDirectory) -> None:
    with config.set({"payloads.huge-pages": False}):
        directory.grants.ready.keep(READY)
    assert idle(directory)
    store(directory, "x", 1, DATA)
    assert idle(directory)


def test_none_is_made_where_the_pool_is_full(kernel: None, directory: SegmentDirectory) -> None:
    """It would be the first to go, and made again for each large value."""
    store(directory, "x", 1, DATA)
    directory.drop("x", 1)
    directory.grants.ready.keep(READY)
    wait_until(lambda: idle(directory))
    assert not directory.pool.ready
    assert directory.pool.total == directory.space.used < READY


def test_others_that_need_memory_meanwhile_stop_it(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = huge_pages.make

    def slow(view: memoryview, at: int, length: int) -> bool:
        if not at:
            directory.space.reserve(directory.space.free() - READY + 4096)
        return make(view, at, length)

    monkeypatch.setattr(huge_pages, "make", slow)
    directory.grants.ready.keep(READY)
    wait_until(lambda: idle(directory))
    assert not directory.pool.ready
    assert directory.pool.total == 0
    directory.space.release(directory.space.used)


# --- ended --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("close", ["close", "forked"])
def test_nothing_is_made_after_the_end(
    close: str, kernel: None, directory: SegmentDirectory, held: tuple[threading.Event, threading.Event]
) -> None:
    entered, go_on = held
    directory.grants.ready.keep(READY)
    assert entered.wait(20)
    assert directory.pool.total == directory.space.used == READY
    if close == "forked":
        child = forked(lambda: uses_some(directory))
        assert os.waitpid(child, 0)[1] == 0
        go_on.set()
        wait_until(lambda: directory.pool.ready)
    else:
        closing = threading.Thread(target=directory.close)
        closing.start()
        go_on.set()
        closing.join(20)
        assert not closing.is_alive()
        assert not os.path.exists(directory.path)
        assert idle(directory)


def test_the_end_comes_as_the_thread_is_started(
    kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[bool] = []
    closing = threading.Thread(target=lambda: closed.append(directory.grants.ready.close() is None))
    start = threading.Thread.start

    def slow(thread: threading.Thread) -> None:
        if thread.name == "redist-ready":
            start(closing)
            closing.join(0.1)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", slow)
    directory.grants.ready.keep(READY)
    closing.join(20)
    assert closed == [True]
    assert idle(directory)


def test_a_successor_removes_it(kernel: None, parent: str) -> None:
    directory = SegmentDirectory.create(parent, limit=64 << 20)
    make_ready(directory)
    directory.close(remove=False)
    adopted = SegmentDirectory.adopt(directory.path, limit=64 << 20)
    try:
        assert pool_files(adopted) == []
        assert adopted.space.used == 0
    finally:
        adopted.close()


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "limit", "size"),
    [
        ("auto", 16 << 30, 256 << 20),
        ("auto", 1 << 30, 32 << 20),
        (0, 1 << 30, 0),
        (False, 1 << 30, 0),
        ("0", 1 << 30, 0),
        ("100 MiB", 1 << 30, 100 << 20),
        (1 << 20, 0, 1 << 20),
    ],
)
def test_how_much(setting: object, limit: int, size: int) -> None:
    with config.set({"worker.memory.ready": setting}):
        assert configured_limits().ready_of(limit) == size


def test_without_a_limit_it_goes_by_the_machine() -> None:
    assert 0 < MemoryLimits().ready_of(0) <= 256 << 20


@pytest.mark.parametrize("setting", ["much", -1, True])
def test_what_is_no_amount_is_refused(setting: object) -> None:
    with (
        config.set({"worker.memory.ready": setting}),
        pytest.raises(
            ConfigurationError, match=r"^worker\.memory\.ready: '.*' is no amount of memory: .*, or auto$"
        ),
    ):
        configured_limits()


@pytest.mark.parametrize("error", [SegmentsFull("full"), MemoryError()], ids=repr)
def test_a_failure_makes_none_until_the_next_large_value(
    error: Exception, kernel: None, directory: SegmentDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(nbytes: int, *_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(directory.space, "reserve", full)
        directory.grants.ready.keep(READY)
        wait_until(lambda: idle(directory))
        assert pool_files(directory) == []
    directory.grants.ready.used(READY)
    wait_until(lambda: directory.pool.ready)
