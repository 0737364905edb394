"""A short run of the model test; ``python -m tests.store.model`` runs it at length (see docs/model-test.md)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import servers
from store import model

STEPS = int(os.environ.get("REDIST_MODEL_STEPS", "600"))
SEED = int(os.environ.get("REDIST_MODEL_SEED", "20"))


@pytest.fixture(scope="module")
def small_sets() -> Iterator[servers.Server]:
    """A server that scans even small sets and hashes in steps."""
    settings = {"set-max-listpack-entries": 0, "hash-max-listpack-entries": 0}
    with servers.running("valkey", settings=settings) as server:
        yield server


@pytest.mark.timeout(600)
def test_on_valkey(valkey: servers.Server) -> None:
    print(f"seed {SEED}")
    model.run(valkey, STEPS, SEED)


@pytest.mark.timeout(600)
def test_on_redis7(redis7: servers.Server) -> None:
    print(f"seed {SEED + 1000}")
    model.run(redis7, STEPS // 2, SEED + 1000)


@pytest.mark.timeout(600)
def test_in_slices_of_two_items(small_sets: servers.Server) -> None:
    print(f"seed {SEED + 2000}")
    model.run(small_sets, STEPS // 2, SEED + 2000, slice_=2)


@pytest.mark.timeout(600)
def test_events_between_slices(small_sets: servers.Server) -> None:
    print(f"seed {SEED + 3000}")
    model.run(small_sets, STEPS, SEED + 3000, slice_=2, racing=True)
