from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from redist import get_worker
from redist.client import Client
from redist.cluster import LocalCluster
from redist.errors import ConnectionLost, NotOffered, RedistError, SegmentError
from redist.launch import Launcher, WorkerProcess, log_level
from redist.sizing import shape
from redist.store.connect import endpoint
from redist.waiting import wait
from servers import Server, alive, wait_until


def members(cluster: LocalCluster, kind: str = "workers") -> set[str]:
    wire = cluster.endpoint.open()
    flat = wire.call("HGETALL", f"{cluster.endpoint.prefix}{kind}")
    wire.close()
    return {name.decode() for name in flat[1::2]}


def traces(cluster: LocalCluster) -> list[Path]:
    """Return the directories that a cluster has made."""
    wire = cluster.endpoint.open()
    prefix = cluster.endpoint.prefix
    ordinals = wire.call("HKEYS", f"{prefix}workers")
    segments = [
        Path(wire.call("HGET", f"{prefix}caller:{o.decode()}", "segments").decode()) for o in ordinals
    ]
    wire.close()
    found = [*segments, *([Path(cluster.server._private)] if cluster.server else [])]
    assert all(path.is_dir() for path in found)
    return found


def left(paths: list[Path]) -> list[Path]:
    return [path for path in paths if path.exists()]


def descendants(pid: int) -> list[int]:
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@pytest.fixture(scope="module")
def cluster() -> LocalCluster:
    """A cluster of two workers, for tests that leave it as it was."""
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


def test_simple() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        assert cluster.status == "running"
        assert list(cluster.workers) == ["local-0", "local-1"]
        assert members(cluster) == {"local-0", "local-1"}
        assert len(members(cluster, "executors")) == 2
        pids = [cluster.server.pid, *(worker.pid for worker in cluster.workers.values())]
        pids += [child for worker in cluster.workers.values() for child in descendants(worker.pid)]
        assert len(pids) >= 5
        paths = traces(cluster)
        assert len(paths) == 3
    assert cluster.status == "closed"
    wait_until(lambda: not [pid for pid in pids if alive(pid)], what=f"{pids} end")
    assert left(paths) == []
    cluster.close()
    with pytest.raises(RuntimeError, match="is closed"):
        cluster.scale(3)


def test_what_it_shows(cluster: LocalCluster) -> None:
    text = repr(cluster)
    assert "workers=2, threads=2" in text
    assert "unix://" in text
    html = cluster._repr_html_()
    assert "local-1" in html
    assert "<b>LocalCluster</b>" in html
    assert endpoint(cluster.scheduler_address).namespace == cluster.endpoint.namespace == "default"


def test_another_process_can_use_it(cluster: LocalCluster) -> None:
    wire = endpoint(cluster.scheduler_address).open()
    assert wire.call("HLEN", "redist:{default}:workers") == 2
    wire.close()


def test_processes_have_sessions_of_their_own(cluster: LocalCluster) -> None:
    for pid in [cluster.server.pid, *(worker.pid for worker in cluster.workers.values())]:
        assert os.getsid(pid) != os.getsid(0)


def test_workers_find_the_modules_of_this_process(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = next(iter(cluster.workers.values()))
    path = psutil.Process(worker.pid).environ()["PYTHONPATH"].split(os.pathsep)
    assert str(Path(__file__).parent.parent) in path


def test_scale(cluster: LocalCluster) -> None:
    cluster.scale(3)
    assert list(cluster.workers) == ["local-0", "local-1", "local-2"]
    assert members(cluster) == {"local-0", "local-1", "local-2"}
    cluster.scale(2)
    assert list(cluster.workers) == ["local-0", "local-1"]
    wait_until(lambda: members(cluster) == {"local-0", "local-1"})
    with pytest.raises(ValueError, match="-1 workers"):
        cluster.scale(-1)


def test_scale_behind_a_worker_that_retired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose process is still there when the server has forgotten it."""
    died, gone = Launcher._died, threading.Event()

    def late(launcher: Launcher, worker: WorkerProcess, now: float) -> None:
        gone.wait(10)
        died(launcher, worker, now)

    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        monkeypatch.setattr(Launcher, "_died", late)
        retired = next(iter(cluster.workers))
        client.retire_workers(names=[retired])
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 1)
        threading.Timer(0.5, gone.set).start()
        cluster.scale(2)
        assert len(cluster.workers) == 2
        assert retired not in cluster.workers
        assert len(client.scheduler_info()["workers"]) == 2


def test_scale_to_what_is_no_number(cluster: LocalCluster) -> None:
    for given in ("x", 1.5, None, True):
        with pytest.raises(TypeError, match="scale takes how many workers, a whole number from 0, not "):
            cluster.scale(given)
    assert len(cluster.workers) == 2


def test_scale_by_what_workers_have() -> None:
    with LocalCluster(n_workers=0, threads_per_worker=2, memory_limit="100MB") as cluster:
        cluster.scale(cores=3)
        assert len(members(cluster)) == 2
        cluster.scale(memory="250MB")
        assert len(members(cluster)) == 3
        cluster.scale(memory=100_000_000)
        assert len(cluster.workers) == 1
        cluster.scale()
        assert cluster.workers == {}
    with (
        LocalCluster(n_workers=0, threads_per_worker=2, memory_limit=0) as cluster,
        pytest.raises(ValueError, match="no memory_limit"),
    ):
        cluster.scale(memory="1GiB")


def test_wait_for_workers(cluster: LocalCluster) -> None:
    cluster.wait_for_workers(2)
    with pytest.raises(TimeoutError, match="2 of 3 workers are there"):
        cluster.wait_for_workers(3, timeout=0.2)
    with pytest.raises(ValueError, match="n_workers=0"):
        cluster.wait_for_workers(0)


def test_scale_of_an_asynchronous_cluster() -> None:
    async def main() -> None:
        async with LocalCluster(n_workers=1, threads_per_worker=1, asynchronous=True) as cluster:
            cluster.scale(2)
            await cluster.wait_for_workers(2, 30)
            assert len(members(cluster)) == 2

    asyncio.run(main())


def test_a_killed_worker_comes_back(cluster: LocalCluster) -> None:
    worker = cluster.workers["local-1"]
    pid = worker.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: worker.running and worker.pid != pid)
    cluster.wait_ready()
    assert members(cluster) == {"local-0", "local-1"}


def test_nothing_is_left_of_killed_workers() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, restart=False) as cluster:
        paths = traces(cluster)
        pids = [child for worker in cluster.workers.values() for child in descendants(worker.pid)]
        for worker in cluster.workers.values():
            os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda: all(worker.hopeless for worker in cluster.workers.values()))
    wait_until(lambda: not [pid for pid in pids if alive(pid)])
    assert left(paths) == []


@pytest.mark.parametrize("restart", [False, True])
def test_what_a_killed_worker_had_on_disk_goes_with_the_cluster(tmp_path: Path, restart: bool) -> None:
    spilled = tmp_path / "spilled"
    with LocalCluster(
        n_workers=1, threads_per_worker=1, memory_limit="100MB", spill_dir=spilled, restart=restart
    ) as cluster:
        paths = traces(cluster)
        with Client(cluster) as client:
            (directory,) = client.run(lambda: get_worker().local_directory).values()
            paths.append(Path(directory))
            wait(client.map(lambda i: bytes([i]) * 20_000_000, range(8)))
            wait_until(lambda: list(spilled.glob("*/*.*")), what="something is spilled")
            worker = cluster.workers["local-0"]
            os.kill(worker.last_pid, signal.SIGKILL)
            if not restart:
                wait_until(lambda: worker.hopeless)
    assert left(paths) == []
    assert list(spilled.iterdir()) == []


def test_on_a_server_that_runs(valkey: Server, namespace: str) -> None:
    with LocalCluster(n_workers=1, address=valkey.url, namespace=namespace, name="here") as cluster:
        assert cluster.server is None
        assert members(cluster) == {"here-0"}
    wire = valkey.endpoint(namespace).open()
    assert wire.call("HLEN", f"redist:{{{namespace}}}:workers") == 0
    wire.close()


def test_as_a_tenant(acl_server: Server, namespace: str) -> None:
    with LocalCluster(n_workers=1, address=acl_server.url, namespace=namespace) as cluster:
        assert len(members(cluster)) == 1
        command = psutil.Process(next(iter(cluster.workers.values())).pid).cmdline()
        assert "secret" not in " ".join(command)


def test_the_namespace_of_a_client_that_starts_its_own() -> None:
    with Client(n_workers=1, threads_per_worker=1, namespace="other") as client:
        assert client.namespace == client.cluster.endpoint.namespace == "other"
        assert client.submit(abs, -1).result(30) == 1
        with Client(client.cluster, namespace="other", set_as_default=False) as second:
            assert second.namespace == "other"
        for where in (client.cluster, client.cluster.endpoint):
            with pytest.raises(
                ValueError, match="the cluster's namespace is 'other', and its workers serve no other"
            ):
                Client(where, namespace="third", set_as_default=False)
    with pytest.raises(ValueError, match="namespace 'a b'"):
        Client(n_workers=0, namespace="a b")


def test_no_workers() -> None:
    with LocalCluster(n_workers=0) as cluster:
        assert cluster.workers == {}
        cluster.scale(1)
        assert members(cluster) == {"local-0"}


def test_executors_and_resources() -> None:
    with LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        executors_per_worker=2,
        resources={"GPU": 2, "MEM": 1.5},
        memory_limit="200MB",
    ) as cluster:
        assert "threads=4" in repr(cluster)
        assert len(members(cluster, "executors")) == 2
        wire = cluster.endpoint.open()
        prefix = cluster.endpoint.prefix
        ordinal = wire.call("HKEYS", f"{prefix}workers")[0].decode()
        found = wire.call("HMGET", f"{prefix}caller:{ordinal}", "resources", "threads", "memory_limit")
        assert found == [b"GPU=2,MEM=1.5", b"2", b"200000000"]
        wire.close()


def test_data_that_survives(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, directory=tmp_path) as cluster:
        wire = cluster.endpoint.open()
        wire.call("SET", "kept", "1")
        wire.close()
    with LocalCluster(n_workers=0, directory=tmp_path) as cluster:
        wire = cluster.endpoint.open()
        assert wire.call("GET", "kept") == b"1"
        wire.close()


def test_asynchronous() -> None:
    async def run() -> None:
        async with LocalCluster(n_workers=1, asynchronous=True) as cluster:
            assert cluster.status == "running"
            assert members(cluster) == {"local-0"}
        assert cluster.status == "closed"
        cluster = await LocalCluster(n_workers=0, asynchronous=True)
        await cluster.close()
        assert cluster.status == "closed"
        with pytest.raises(TypeError, match="async with"), LocalCluster(n_workers=0, asynchronous=True):
            pass

    asyncio.run(run())


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_workers": -1}, ValueError, "n_workers=-1"),
        ({"n_workers": 1.5}, TypeError, "n_workers=1.5"),
        ({"threads_per_worker": "2"}, TypeError, "threads_per_worker='2'"),
        ({"host": 5}, TypeError, "host is a name"),
        ({"loop": "x"}, TypeError, "loop is an event loop"),
        ({"dashboard_address": object()}, TypeError, "dashboard_address is an address"),
        ({"diagnostics_port": 1.5}, TypeError, "diagnostics_port is an address"),
        ({"asynchronous": "x"}, TypeError, "asynchronous is True, False or None"),
        ({"threads_per_worker": 0}, ValueError, "threads_per_worker=0"),
        ({"address": "redis://h", "directory": "x"}, ValueError, "do not give an address as well"),
        ({"silence_logs": "LOUD"}, ValueError, "'LOUD' is no level of logs; there are: DEBUG, INFO"),
        ({"memory_limit": "much"}, ValueError, "'much' is no amount of memory"),
        ({"memory_limit": -1}, ValueError, "-1 is no amount of memory"),
        ({"memory_limit": [1]}, TypeError, "memory_limit is a number of bytes"),
        ({"maxmemory": "much"}, ValueError, "'much' is no amount of memory"),
        ({"maxmemory": -1}, ValueError, "maxmemory -1"),
        ({"maxmemory": [1]}, TypeError, "maxmemory is a number of bytes"),
        ({"spill_dir": "/nowhere/x"}, SegmentError, "/nowhere/x: there is no directory /nowhere; make it"),
        ({"spill_dir": "/sys/redist"}, SegmentError, "/sys/redist: no spill directory can be made there"),
        ({"address": "nonsense://h"}, ValueError, "unknown scheme"),
        ({"namespace": "a b"}, ValueError, "namespace 'a b': use 1 to 64 letters"),
        ({"n_workers": 0, "address": "redis://127.0.0.1:1"}, ConnectionLost, "nothing answers"),
        (
            {"n_workers": 1, "resources": {"9": 1}},
            RedistError,
            "local-0 ended with exit code 2 at its start",
        ),
    ],
)
def test_refused(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        LocalCluster(**options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"processes": False}, "tasks run in processes of workers, never in this one; to debug"),
        ({"protocol": "tls"}, "tls.ca-file"),
        ({"scheduler_port": 8786}, "redist server --bind"),
        ({"security": True}, "rediss://"),
    ],
)
def test_what_dask_offers_and_is_not_there(options: dict, match: str) -> None:
    with pytest.raises(NotOffered, match=match):
        LocalCluster(n_workers=0, **options)


def test_a_client_has_no_tasks_in_its_own_process() -> None:
    with pytest.raises(NotOffered, match="processes=False: tasks run in processes of workers"):
        Client(processes=False)


def test_arguments_of_dask_that_change_nothing() -> None:
    options = {
        "processes": True,
        "protocol": "tcp",
        "scheduler_port": 0,
        "dashboard_address": ":0",
        "diagnostics_port": None,
    }
    with Client(n_workers=0, security=None, **options) as client:
        assert client.cluster.status == "running"
    with LocalCluster(0, loop=None, security=None, **options) as cluster:
        assert cluster.dashboard_link is None


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (50, "CRITICAL"),
        (99, "CRITICAL"),
        (25, "WARNING"),
        (False, "WARNING"),
        ("warn", "WARNING"),
        (1, "DEBUG"),
    ],
)
def test_levels_of_logs(given: int | str, name: str) -> None:
    assert log_level(given) == name


def test_quiet_workers_start() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1, silence_logs=logging.CRITICAL) as cluster:
        assert members(cluster) == {"local-0"}


def test_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redist.sizing.cores", lambda: 12)
    assert shape(None, None, 1) == (4, 3)
    assert shape(3, None, 1) == (3, 4)
    assert shape(None, 6, 1) == (2, 6)
    assert shape(5, 7, 1) == (5, 7)
    assert shape(0, None, 1) == (0, 1)
    assert shape(None, 2, 3) == (2, 2)
    monkeypatch.setattr("redist.sizing.cores", lambda: 2)
    assert shape(None, None, 1) == (2, 1)


# --- with its owner -------------------------------------------------------------------------------------------------

OWNER = """
import os, sys, time
from redist import get_worker
from redist.client import Client
from redist.cluster import LocalCluster
cluster = LocalCluster(n_workers=2, threads_per_worker=1)
print(cluster.server.pid, *(w.pid for w in cluster.workers.values()))
sys.path[:0] = [{folder!r}, {folder!r} + "/.."]
from test_cluster import traces
print(*traces(cluster), flush=True)
{body}
"""


@pytest.mark.parametrize(
    ("body", "how"),
    [
        ("time.sleep(100)", signal.SIGKILL),
        ("time.sleep(100)", signal.SIGTERM),
        ("time.sleep(100)", signal.SIGINT),
        ("", None),
        ("sys.exit(1)", None),
        ("1 / 0", None),
        ("os._exit(0)", None),
    ],
)
def test_it_goes_with_its_owner(body: str, how: signal.Signals | None) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(body=body, folder=str(Path(__file__).parent))],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pids = [int(pid) for pid in process.stdout.readline().split()]
    paths = [Path(path) for path in process.stdout.readline().split()]
    assert (len(pids), len(paths)) == (3, 3)
    if how is not None:
        process.send_signal(how)
    process.wait(20)
    process.stdout.close()
    wait_until(lambda: not [pid for pid in pids if alive(pid)], 20)
    wait_until(lambda: not left(paths), what=f"{paths} go")


def test_the_limit_of_the_server_may_be_text() -> None:
    with LocalCluster(n_workers=0, maxmemory="64MiB") as cluster, closing(cluster.endpoint.open()) as wire:
        assert wire.call("CONFIG", "GET", "maxmemory")[1] == b"67108864"
