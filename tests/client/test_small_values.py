"""Values too large to be inline and too small for a file each: many of them share one."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from redist import Client, LocalCluster
from redist.diagnostics.doctor import examine
from redist.memory.headers import is_file_name
from redist.memory.space import Space
from servers import wait_until


def values(count: int) -> list[np.ndarray[Any, Any]]:
    return [np.full(1024, number, "f8") for number in range(count)]


def directories(client: Client) -> list[str]:
    return [worker["local_directory"] for worker in client.scheduler_info()["workers"].values()]


def listed(client: Client) -> tuple[int, int]:
    """How many payload files, and how many arenas, there are."""
    names = [name for path in directories(client) for name in os.listdir(path)]
    return sum(map(is_file_name, names)), sum(name.startswith("arena-") for name in names)


def used(client: Client) -> int:
    spaces = [Space(os.path.join(path, "space")) for path in directories(client)]
    try:
        return sum(space.used for space in spaces)
    finally:
        for space in spaces:
            space.close()


def make(number: int) -> np.ndarray[Any, Any]:
    return np.full(1024, number, "f8")


def total(*parts: Any) -> float:
    return float(sum(part.sum() for part in parts))


def check(found: list[Any], count: int) -> None:
    assert len(found) == count
    assert all((one == other).all() for one, other in zip(found, values(count)))


def test_they_share_files_and_leave_nothing(cluster: LocalCluster, client: Client) -> None:
    futures = client.scatter(values(1000), hash=False)
    results = client.map(make, range(300), pure=False)
    check(client.gather(futures), 1000)
    check(client.gather(results), 300)
    check([future.result() for future in futures[:20]], 20)
    assert listed(client)[0] == 0
    assert 8 <= listed(client)[1] <= 30
    assert client.submit(total, futures[1], *results[2:10]).result(10) == 1024.0 * 45
    assert not examine(cluster.endpoint).violations
    del futures, results
    wait_until(lambda: used(client) == 0 and listed(client) == (0, 0), 30)


def test_what_is_read_is_read_only_or_a_copy(client: Client) -> None:
    (future,) = client.scatter(values(1))
    assert not future.result().flags.writeable
    for options in ({"copy": True}, {"writable": True}):
        value = future.result(**options)
        value += 1
        assert value.sum() == 1024
    assert future.result().sum() == 0


def test_a_client_that_cannot_map_anything(
    cluster: LocalCluster, new_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another host: all goes through the data servers of the workers, and into their arenas."""
    monkeypatch.setattr("redist.peers.same_host", lambda segments, hostid: False)
    client = new_client()
    futures = client.scatter(values(300), hash=False)
    assert listed(client)[0] == 0
    check(client.gather(futures), 300)
    assert client.submit(total, *futures[:10]).result(10) == 1024.0 * 45
    check(client.gather(client.map(make, range(100), pure=False)), 100)


def test_a_client_that_ends_takes_back_what_it_did_not_make_known(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("redist.scattering.commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.scatter(values(300), hash=False)
    monkeypatch.undo()
    wait_until(lambda: used(client) == 0 and listed(client) == (0, 0), 30)
