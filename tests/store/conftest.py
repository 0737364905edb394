"""A namespace that is looked through after every call, and empty after every test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import servers
from store.kit import Caller, World


@pytest.fixture
def world(store: Any) -> Iterator[World]:
    """A namespace on fakeredis, Valkey and Redis 7; every numbered call is sent twice."""
    world = World(store)
    yield world
    world.end()


@pytest.fixture
def client(world: World) -> Caller:
    return world.client()


@pytest.fixture
def worker(world: World) -> Caller:
    return world.worker("w")


@pytest.fixture
def x(world: World, worker: Caller) -> Caller:
    return world.executor(worker)


@pytest.fixture(params=["valkey", "redis7"])
def big(request: pytest.FixtureRequest, namespace: str) -> Iterator[World]:
    """A namespace for much."""
    server: servers.Server = request.getfixturevalue(request.param)
    store = servers.WireStore(server.endpoint(namespace), request.param)
    world = World(store, checking=False, repeating=False)
    yield world
    world.draining = True
    world.drain()
    world.end()
    store.close()
    server.forget(namespace)
