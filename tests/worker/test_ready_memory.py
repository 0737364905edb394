"""A worker has memory ready for a first large value, says so, and gives it back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kernel import gives_huge_pages
from redist import Client, LocalCluster, config
from redist.errors import ConfigurationError
from servers import wait_until
from worker.little_memory import small, worker

MIB = 1 << 20


@pytest.fixture(autouse=True)
def huge_pages_are_given() -> None:
    if not gives_huge_pages():
        pytest.skip("this kernel gives no huge pages: Linux 6.1, and tmpfs without `deny`")


def inodes(client: Client, prefix: str) -> set[int]:
    """The files whose names begin with `prefix` in the worker's directory."""
    path = worker(client)["local_directory"]
    return {os.stat(f"{path}/{name}").st_ino for name in os.listdir(path) if name.startswith(prefix)}


@pytest.mark.parametrize("who", ["client", "task"])
def test_the_first_large_value_is_written_into_it(who: str, tmp_path: Path) -> None:
    with small(tmp_path, limit="2GB", settings={"ready": "32 MiB"}) as client:
        wait_until(lambda: client.memory().total.pooled == 32 * MIB, 30)
        ready = inodes(client, "pool-")
        if who == "client":
            future = client.scatter(np.ones(20 * MIB, np.uint8), hash=False)
        else:
            future = client.submit(np.ones, 20 * MIB, np.uint8)
            future.result()
        assert ready <= inodes(client, "")
        wait_until(lambda: inodes(client, "pool-"), what="more is made ready")
        assert not ready & inodes(client, "pool-")
        assert int(future.result().sum()) == 20 * MIB
        wait_until(lambda: client.memory().total.pooled == 32 * MIB)
        del future


def test_a_small_worker_has_as_little(tmp_path: Path) -> None:
    """The 32nd of its limit that it may have is less than what is worth a large page or two."""
    with small(tmp_path, limit="200MB", settings={"ready": "auto"}) as client:
        client.scatter(np.ones(20 * MIB, np.uint8), hash=False).result()
        assert inodes(client, "pool-") == set()


def test_what_is_no_amount_is_refused_at_the_call(tmp_path: Path) -> None:
    with config.set({"worker.memory.ready": "much"}), pytest.raises(ConfigurationError, match="'much' is no"):
        LocalCluster(n_workers=1)
