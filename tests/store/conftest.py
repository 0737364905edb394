"""A namespace that is looked through after every call, and empty after every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from store.kit import World


@pytest.fixture
def world(store: Any) -> Iterator[World]:
    """A namespace on fakeredis, Valkey and Redis 7; every numbered call is sent twice."""
    world = World(store)
    yield world
    world.end()
