"""The looks at what is left see what there is."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile

import pytest

from leftovers import Servers, host, leaves_nothing
from redist import LocalCluster
from redist.memory.directory import SegmentDirectory
from redist.session.session import Session
from redist.session.thread_driver import ThreadDriver
from redist.store import calls
from servers import Server, running


def test_a_redis_key(valkey: Server, namespace: str) -> None:
    where = valkey.endpoint(namespace)
    leaves_nothing(where)
    valkey.admin("SADD", f"{where.prefix}deps:x", "y")
    with pytest.raises(pytest.fail.Exception, match="deps:x"):
        leaves_nothing(where, patience=0.05)
    valkey.forget(namespace)


def test_a_client_that_stays(valkey: Server, namespace: str) -> None:
    where = valkey.endpoint(namespace)
    driver = ThreadDriver(Session(where, "client", "stays", {"pid": str(os.getpid())}), where)
    driver.start()
    with pytest.raises(pytest.fail.Exception, match="client stays"):
        leaves_nothing(where, patience=0.05)
    driver.close()
    leaves_nothing(where)


def test_who_was_killed_is_swept(valkey: Server, namespace: str) -> None:
    where = valkey.endpoint(namespace)
    driver = ThreadDriver(Session(where, "client", "killed", {"pid": "0"}), where)
    driver.start()
    driver.call(calls.commit([calls.Value("x", 1, 0, 0, 3, "int", b"abc")]))
    driver.close(timeout=0.0)
    leaves_nothing(where)


def test_a_server_is_looked_at_before_it_stops() -> None:
    with running() as server:
        looks = Servers(patience=0.05)
        where = server.endpoint()
        looks._running.add(server.embedded)
        server.admin("SADD", f"{where.prefix}deps:x", "y")
        looks._look_before_the_end(server.embedded)
        server.forget(where.namespace)
    assert looks.found


def test_the_host() -> None:
    before = host.traces()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    file = tempfile.NamedTemporaryFile()  # noqa: SIM115
    listener = socket.socket()
    directory = SegmentDirectory.create(owner=f"unix://{host.directory}/x default\tw")
    with pytest.raises(pytest.fail.Exception) as caught:
        host.leaves_nothing(before, patience=0.05)
    for what in (f"process {process.pid}", file.name, f"descriptor {listener.fileno()}", directory.path):
        assert what in str(caught.value)
    process.communicate(b"\n")
    file.close()
    listener.close()
    directory.close()
    host.leaves_nothing(before)


def test_a_cluster_leaves_nothing_on_the_host() -> None:
    before = host.traces()
    with LocalCluster(n_workers=1, threads_per_worker=1):
        assert len(host.traces().keys() - before) >= 6
    host.leaves_nothing(before)
