"""Copies that several threads share, and threads that leave the core of who started them."""

from __future__ import annotations

import os
import random
import sys
import threading
from typing import Any

import numpy as np
import pytest

from redist.memory import copying, pieces
from redist.memory.copying import copy_shared
from redist.memory.pieces import Pieces, helpers
from servers import wait_until

MIB = 1 << 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 64 KiB, and helpers wherever there are some."""
    monkeypatch.setattr(pieces, "cores", lambda: 4)
    monkeypatch.setattr(copying, "LEAST_SHARED", 64 << 10)
    monkeypatch.setattr(copying, "_PIECE", 64 << 10)


def test_every_byte_is_copied(small: None) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chosen = random.Random(seed)
    for _ in range(50):
        source = np.random.default_rng(chosen.randrange(1 << 32)).bytes(chosen.randrange(1, 2 * MIB))
        start = chosen.randrange(100)
        target = bytearray(start + len(source) + 7)
        copy_shared(memoryview(target)[start : start + len(source)], memoryview(source))
        assert target == bytes(start) + source + bytes(7)


def test_others_take_a_part(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    by: set[int] = set()
    begun = threading.Event()

    def copyto(to: Any, of: Any, real: Any = np.copyto) -> None:
        by.add(threading.get_ident())
        if len(by) > 1:
            begun.set()
        assert begun.wait(20)
        real(to, of)

    monkeypatch.setattr(np, "copyto", copyto)
    source, target = os.urandom(MIB), bytearray(MIB)
    copy_shared(memoryview(target), memoryview(source))
    assert target == source
    assert len(by) > 1


def test_what_others_do_not_begin_is_copied_at_once(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A helper that gets no processor holds nobody up but with the piece that it has."""
    own = threading.get_ident()
    sizes: list[int] = []
    stopped = threading.Event()

    def copyto(to: Any, of: Any, real: Any = np.copyto) -> None:
        if threading.get_ident() != own:
            assert stopped.wait(20)
        else:
            sizes.append(len(of))
            if len(sizes) == 3:
                stopped.set()
        real(to, of)

    monkeypatch.setattr(np, "copyto", copyto)
    source, target = os.urandom(4 * MIB), bytearray(4 * MIB)
    copy_shared(memoryview(target), memoryview(source))
    assert target == source
    assert sizes[:2] == [64 << 10] * 2
    assert len(sizes) == 3
    assert sizes[2] > 3 * MIB


def test_after_an_interrupt_nobody_writes(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is another value's by then."""
    own = threading.get_ident()
    writing: set[int] = set()
    interrupted = threading.Event()

    def copyto(to: Any, of: Any, real: Any = np.copyto) -> None:
        if threading.get_ident() == own:
            wait_until(lambda: writing)
            interrupted.set()
            raise KeyboardInterrupt
        writing.add(threading.get_ident())
        assert interrupted.wait(20)
        real(to, of)
        writing.discard(threading.get_ident())

    monkeypatch.setattr(np, "copyto", copyto)
    before = threading.active_count()
    source, target = os.urandom(MIB), bytearray(MIB)
    with pytest.raises(KeyboardInterrupt):
        copy_shared(memoryview(target), memoryview(source))
    assert not writing
    assert threading.active_count() == before


@pytest.mark.skipif(sys.platform != "linux", reason="threads cannot choose their cores")
@pytest.mark.skipif(len(pieces._cores()) < 2, reason="there is one core")
def test_a_helper_leaves_the_core_of_its_owner() -> None:
    """And nobody else does."""
    allowed = os.sched_getaffinity(0)
    shared = Pieces(0, 1 << 30, 1)
    cores: list[int] = []
    affinities: list[set[int]] = []
    tried = threading.Event()

    def work() -> None:
        # where the kernel may have put it
        os.sched_setaffinity(0, {shared._core})
        shared.back()
        cores.append(pieces._current_core()())
        affinities.append(os.sched_getaffinity(0))
        tried.set()

    with helpers(shared, work, 1):
        assert tried.wait(20)
        home = shared._core
        shared.front()
        assert os.sched_getaffinity(0) == allowed
    assert affinities == [allowed - {home}]
    assert cores[0] in allowed - {home}


def test_a_helper_stays_where_there_is_no_other_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_cores", lambda: {0})
    monkeypatch.setattr(pieces, "_current_core", lambda: lambda: 0)
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("called"), raising=False)
    shared = Pieces(0, 10, 1)
    thread = threading.Thread(target=shared.back)
    thread.start()
    thread.join()
    assert shared.stop() == (0, 9)
