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

from redist.memory.directory import SegmentDirectory


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
