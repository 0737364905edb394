"""A cluster for each module of these tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redist import Client, LocalCluster
from servers import keys_of


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, resources={"GPU": 1}) as cluster:
        yield cluster


@pytest.fixture
def client(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster) as client:
        yield client


@pytest.fixture
def keys(cluster: LocalCluster) -> Callable[[], list[str]]:
    return lambda: keys_of(cluster)


class Gate:
    """What a task waits for: `held` is called in the task, `open` in the test."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> None:
        self.path.touch()

    @property
    def entered(self) -> bool:
        """Whether a task is waiting, or has waited."""
        return self.path.with_suffix(".entered").exists()

    def task(self) -> Callable[[], Any]:
        """Return a function that comes back when the gate is open."""
        gate, entered = str(self.path), str(self.path.with_suffix(".entered"))

        def held() -> None:
            import os
            import time

            open(entered, "w").close()
            while not os.path.exists(gate):
                time.sleep(0.002)

        return held


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()
