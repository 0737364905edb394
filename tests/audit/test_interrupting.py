"""Cancelling by force ends code that runs, and does no harm to what runs beside it."""

from __future__ import annotations

import os
import time
from concurrent.futures import CancelledError
from pathlib import Path

import pytest

from redist import Client, LocalCluster
from servers import wait_until


def linger(directory: str, name: str, seconds: float) -> int:
    Path(directory, f"{name}-{os.getpid()}").touch()
    time.sleep(seconds)
    return os.getpid()


def test_force_interrupts_what_runs(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2) as cluster:
        with Client(cluster) as client:
            victim = client.submit(linger, str(tmp_path), "victim", 60)
            beside = client.submit(linger, str(tmp_path), "beside", 2)
            wait_until(lambda: len(list(tmp_path.iterdir())) == 2)
            (entered,) = tmp_path.glob("victim-*")
            pid = int(entered.name.split("-")[1])
            client.cancel(victim, force=True)
            wait_until(lambda: not Path(f"/proc/{pid}").exists(), 5, "the victim's process is gone")
            with pytest.raises(CancelledError):
                victim.result(5)
            assert beside.result(20) != pid
            wire = cluster.endpoint.open()
            assert wire.call("HGET", f"{cluster.endpoint.prefix}key:{beside.key}", "deaths") is None
            wire.close()
            del victim, beside


def test_without_force_it_runs_on(tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        task = client.submit(linger, str(tmp_path), "task", 0.5)
        wait_until(lambda: any(tmp_path.iterdir()))
        (entered,) = tmp_path.glob("task-*")
        pid = int(entered.name.split("-")[1])
        client.cancel(task)
        assert client.submit(os.getpid).result(20) == pid
