"""What the tests of workers with little memory share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from redist import Client, LocalCluster, config
from servers import keys_of, wait_until

__all__ = ["MB", "metrics", "small", "worker"]

MB = 1_000_000


@contextmanager
def small(
    tmp_path: Path, limit: str = "128MB", settings: dict[str, Any] | None = None, **options: Any
) -> Iterator[Client]:
    """A cluster of one small worker and its client; afterwards nothing is left of either, in memory and on disk."""
    spill = tmp_path / "spill"
    options = {"n_workers": 1, "threads_per_worker": 1, "spill_dir": spill, **options}
    settings = {"ready": 0, **(settings or {})}  # nothing takes memory but values
    with config.set({f"worker.memory.{name}": value for name, value in settings.items()}):
        cluster = LocalCluster(memory_limit=limit, **options)
    with cluster, Client(cluster) as client:
        yield client
        client.close()
        wait_until(lambda: not keys_of(cluster), what="every key is gone")
    assert not spill.exists() or os.listdir(spill) == []


def worker(client: Client) -> dict[str, Any]:
    (found,) = client.scheduler_info()["workers"].values()
    return dict(found)


def files_in(path: str) -> int:
    """Return the bytes that all files in a directory take, whatever they are for."""
    found = 0
    for name in os.listdir(path):
        with suppress(FileNotFoundError):  # it goes just now
            found += os.lstat(f"{path}/{name}").st_blocks * 512
    return found


def metrics(client: Client) -> dict[str, Any]:
    return dict(worker(client)["metrics"])
