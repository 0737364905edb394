"""Fixtures of the tests of redist.memory: everything lies in one shared-memory directory, which is empty afterwards."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(__file__))

from memory_helpers import Loop

from kernel import gives_huge_pages
from redist.memory import collapser, huge_pages
from redist.memory.directory import SegmentDirectory
from redist.memory.kept import keeper


@pytest.fixture
def parent() -> Iterator[str]:
    """A private place for segment directories, in shared memory where there is some."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = tempfile.mkdtemp(prefix="redist-test-", dir=base)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def directory(parent: str) -> Iterator[SegmentDirectory]:
    """The directory of a living worker; its teardown checks that nothing stays reserved."""
    made = SegmentDirectory.create(parent, limit=64 << 20)
    yield made
    if made._lock_fd >= 0:
        for name, attempt in list(made.files):
            made.drop(name, attempt)
        made.reap()
        assert made.space.used == made.lingering + made.pool.total
        made.close()
    assert os.listdir(parent) == []


@pytest.fixture
def loop() -> Iterator[Loop]:
    """An event loop in a thread."""
    made = Loop()
    yield made
    made.close()


# --- huge pages -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def kernel(parent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives huge pages, and is given the time for it."""
    if not gives_huge_pages(parent):
        pytest.skip("this kernel gives no huge pages: Linux 6.1, and tmpfs without `deny`")
    monkeypatch.setattr(huge_pages, "_SLOW", 10.0)


@pytest.fixture
def asked_anew() -> Iterator[None]:
    """Nobody has asked the kernel for huge pages, and been refused, before."""
    huge_pages._not_before.clear()
    yield
    huge_pages._not_before.clear()
    keeper.look()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody replaces pages in the background."""
    monkeypatch.setattr(collapser, "_SETTLES", 1e6)


@pytest.fixture
def slow(kernel: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that takes longer for huge pages than a writer waits."""
    monkeypatch.setattr(huge_pages, "_SLOW", 0.0)
    monkeypatch.setattr(huge_pages, "_SLACK", 0.0)
