"""Private memory for payloads of other hosts: kept, used again, and given back."""

from __future__ import annotations

import gc
import mmap
import os
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from redist.memory import private
from redist.memory.private import BLOCK, PrivateMemory
from servers import wait_until

MIB = 1 << 20


@pytest.fixture
def memory() -> Iterator[PrivateMemory]:
    memory = PrivateMemory()
    yield memory
    memory.let_go()


def address(view: memoryview) -> int:
    return np.frombuffer(view, np.uint8).ctypes.data


def test_memory_that_nothing_views_is_used_again(memory: PrivateMemory) -> None:
    view = memory.take(10 * MIB)
    assert (len(view), view.format, view.readonly) == (10 * MIB, "B", False)
    where = address(view)
    assert memory.kept == 0
    del view
    assert memory.kept == 10 * MIB
    again = memory.take(10 * MIB - 1000)
    assert (address(again), len(again), memory.kept) == (where, 10 * MIB - 1000, 0)


def test_an_array_keeps_its_memory(memory: PrivateMemory) -> None:
    """Whatever views it, and however far from it: another payload never comes there."""
    view = memory.take(BLOCK)
    view[:8] = b"12345678"
    array = np.frombuffer(view[:64].toreadonly(), "u1")[4:8]
    del view
    gc.collect()
    assert memory.kept == 0
    other = memory.take(BLOCK)
    other[:] = bytes(BLOCK)
    assert bytes(array) == b"5678"
    del array
    assert memory.kept == BLOCK


def test_what_is_left_over_is_little(memory: PrivateMemory) -> None:
    view = memory.take(16 * MIB)
    del view
    small = memory.take(14 * MIB)
    assert memory.kept == 16 * MIB, "two of sixteen MiB would be idle"
    del small
    least = memory.take(14 * MIB)
    assert memory.kept == 16 * MIB, "of both the smaller one is used"
    del least


def test_so_much_is_kept_and_no_more(memory: PrivateMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_MOST", 5 * BLOCK)
    views = [memory.take(BLOCK) for _ in range(9)]
    del views
    assert memory.kept == 5 * BLOCK


def test_nobody_keeps_much_of_a_small_machine(memory: PrivateMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "memory_of_machine", lambda: 3 * BLOCK * 32)
    views = [memory.take(BLOCK) for _ in range(9)]
    del views
    assert memory.kept == 3 * BLOCK


def test_what_is_idle_goes_back(monkeypatch: pytest.MonkeyPatch, memory: PrivateMemory) -> None:
    """And so does the thread that sees to it; what comes back later is not kept, and what is taken later is."""
    monkeypatch.setattr(private, "_IDLE", 0.02)
    view, late = memory.take(BLOCK), memory.take(BLOCK)
    mapping = weakref.ref(next(iter(memory._lent.values())).memory)
    del view
    wait_until(lambda: memory.kept == 0 and memory._thread is None)
    assert mapping() is None
    del late
    assert memory.kept == 0
    monkeypatch.setattr(private, "_IDLE", 60.0)
    view = memory.take(BLOCK)
    del view
    assert memory.kept == BLOCK


def test_memory_that_comes_back_while_another_is_taken(memory: PrivateMemory) -> None:
    """The collector may run at any line, in the thread that has the lock."""
    view = memory.take(BLOCK)
    with memory._mutex:
        del view
    assert memory.kept == BLOCK
    assert memory._lent == {}


def test_many_threads(memory: PrivateMemory) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    failed: list[int] = []

    def use(number: int) -> None:
        rng = random.Random(seed + number)
        held: list[tuple[int, memoryview]] = []
        for turn in range(200):
            view = memory.take(rng.choice([BLOCK, 2 * MIB + 4096, 3 * MIB]))
            mark = number * 1000 + turn
            view[:4] = view[-4:] = mark.to_bytes(4, "big")
            held.append((mark, view))
            del view
            while len(held) > rng.randrange(1, 6):
                mark, view = held.pop(rng.randrange(len(held)))
                if bytes(view[:4]) != mark.to_bytes(4, "big") or view[:4] != view[-4:]:
                    failed.append(mark)
                del view

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert memory._lent == {}


def test_a_forked_child_has_its_own(memory: PrivateMemory) -> None:
    free, view = memory.take(BLOCK), memory.take(BLOCK)
    view[:6] = b"parent"
    del free
    pid = os.fork()
    if not pid:
        status = 1
        try:
            memory.forked()
            ok = bytes(view[:6]) == b"parent" and memory.kept == 0
            view[:6] = b"child!"
            del view
            other = memory.take(BLOCK)
            del other
            status = 0 if ok and memory.kept == BLOCK else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert bytes(view[:6]) == b"parent"
    assert memory.kept == BLOCK


def test_a_program_ends_with_memory_that_is_lent_and_kept() -> None:
    code = (
        "from redist.memory.private import allocate, private_memory as m\n"
        "a = allocate(1 << 21); b = allocate(1 << 21); del b; assert m.kept == 1 << 21"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_room_for_it(memory: PrivateMemory) -> None:
    with pytest.raises((OSError, OverflowError, ValueError, MemoryError)):
        memory.take(1 << 62)
    assert memory._lent == {}


def test_small_pages_where_huge_ones_take_long(
    memory: PrivateMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anonymous memory of the size of a huge page: one that was touched is there whole."""
    monkeypatch.setattr(private, "_SLOW", 1e6)
    before = anonymous_huge_pages()
    views = [memory.take(4 * BLOCK)]
    if anonymous_huge_pages() == before:
        pytest.skip("the kernel gives no huge pages to private memory")
    monkeypatch.setattr(private, "_SLOW", -1.0)
    before = anonymous_huge_pages()
    views.append(memory.take(4 * BLOCK))  # the first is found to take long
    assert anonymous_huge_pages() <= before + BLOCK
    before = anonymous_huge_pages()
    for _ in range(4):
        views.append(memory.take(BLOCK))
        views[-1][:: mmap.PAGESIZE] = bytes(BLOCK // mmap.PAGESIZE)
    assert anonymous_huge_pages() == before
    memory._no_huge_before = 0.0  # a while later
    views.append(memory.take(BLOCK))
    assert anonymous_huge_pages() > before


def anonymous_huge_pages() -> int:
    """Bytes that this process has."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return int(rollup.partition("AnonHugePages:")[2].split()[0]) << 10
