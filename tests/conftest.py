"""Servers, namespaces and stores that tests ask for (see servers.py), and looks at what they leave (see leftovers.py)."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import servers
from leftovers import host, started
from servers import FakeStore, SentinelServer, Server, Store, WireStore

started.watch()

#: Files of a minute and more: begun first, none of them is alone at the end of a run in several processes.
LONGEST = ("test_calls.py", "test_recovery.py", "test_graphs_after_a_loss.py")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name != "faults" or item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_left_on_the_host_at_the_end() -> Iterator[None]:
    before = host.traces()
    yield
    host.kept.clear()
    host.leaves_nothing(before)


def pytest_collection_finish() -> None:
    """What pytest and the modules hold stays anyway: collections that tests ask for pass over it."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    host.close()


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_on_the_host() -> Iterator[None]:
    before = host.traces()
    yield
    host.leaves_nothing(before)


@pytest.fixture(autouse=True)
def nothing_is_left_in_a_server() -> Iterator[None]:
    started.begin()
    yield
    started.end()


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """The embedded Valkey."""
    yield from host.keep(servers.running("valkey"))


@pytest.fixture(scope="session")
def redis7() -> Iterator[Server]:
    """Debian's redis-server."""
    yield from host.keep(servers.running("redis7"))


@pytest.fixture(scope="session")
def cluster3() -> Iterator[Server]:
    """A Cluster of three nodes."""
    yield from host.keep(servers.running_cluster())


@pytest.fixture
def sentinel() -> Iterator[SentinelServer]:
    """A master, its replica and a Sentinel; the test's own, for tests fail them over."""
    with servers.running_sentinel() as server:
        yield server


@pytest.fixture
def namespace() -> str:
    """A fresh namespace."""
    return servers.fresh_namespace()


@pytest.fixture
def acl_server(valkey: Server, namespace: str) -> Iterator[Server]:
    """The embedded Valkey, seen by a user who has the rights of `redist acl` in `namespace` and no others."""
    from redist.store.acl import acl_line

    valkey.admin(*acl_line("tenant", namespace, password="secret").split(" "))
    yield Server("acl", valkey.url.replace("unix://", "unix://tenant:secret@"), valkey.nodes)
    valkey.admin("ACL", "DELUSER", "tenant")


@pytest.fixture
def fake(namespace: str) -> Iterator[FakeStore]:
    """A store of fakeredis."""
    store = FakeStore(namespace)
    yield store
    store.close()


@pytest.fixture(params=["fake", "valkey", "redis7"])
def store(request: pytest.FixtureRequest, namespace: str) -> Iterator[Store]:
    """A store with an empty namespace: fakeredis, the embedded Valkey, and Redis 7."""
    if request.param == "fake":
        yield request.getfixturevalue("fake")
        return
    server: Server = request.getfixturevalue(request.param)
    store = WireStore(server.endpoint(namespace), request.param)
    yield store
    store.close()
    server.forget(namespace)  # raw keys too; who plays a namespace's part is looked at by its world
