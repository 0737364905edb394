"""One proxy for all tests of faults, and namespaces with real processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.rig import Rig
from faults.transport import Proxy
from leftovers import host
from redist.store.connect import endpoint as make_endpoint
from redist.store.server import EmbeddedServer
from servers import Server, fresh_namespace


@pytest.fixture(scope="session")
def proxy(valkey: Server) -> Iterator[Proxy]:
    yield from host.keep(running(valkey.url.removeprefix("unix://")))


@contextmanager
def running(server: str) -> Iterator[Proxy]:
    directory = tempfile.mkdtemp(prefix="redist-")
    proxy = Proxy(server, directory)
    yield proxy
    proxy.close()
    shutil.rmtree(directory)


@pytest.fixture
def rig(valkey: Server, namespace: str, tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(valkey.endpoint(namespace), tmp_path)
    yield rig
    rig.clear()


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Callable[..., tuple[Rig, EmbeddedServer]]]:
    started: list[tuple[Rig, EmbeddedServer]] = []

    def make(persistent: bool) -> tuple[Rig, EmbeddedServer]:
        server = EmbeddedServer(tmp_path / "server" if persistent else None, persistent=persistent)
        server.start()
        rig = Rig(make_endpoint(server.url, fresh_namespace()), tmp_path)
        started.append((rig, server))
        return rig, server

    yield make
    for rig, server in started:
        rig.clear()
        server.stop()
