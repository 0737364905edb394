"""Which scheduler Dask uses when none is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import pytest
from dask import delayed

from redist import Client, LocalCluster


def worker() -> str:
    try:
        from redist import get_worker

        return get_worker().name
    except ValueError:
        return "here"


def where(**options: Any) -> str:
    return delayed(worker, pure=False)().compute(**options)[:5]  # type: ignore[no-any-return]


def test_the_current_client(new_client: Callable[..., Client]) -> None:
    assert where() == "here"
    client = new_client()
    assert where() == "local"
    assert where(scheduler="sync") == "here"
    assert where(scheduler=client) == "local"
    with dask.config.set(scheduler="threads"):
        assert where() == "here"
    assert where() == "local"
    assert dask.compute(delayed(worker)())[0][:5] == "local"
    second = new_client(set_as_default=False)
    with second.as_current():
        assert where() == "local"
    client.close()
    assert where() == "here"
    with second.as_current():
        assert where() == "local"
    second.close()
    assert dask.config.get("scheduler", None) is None


def test_the_setting_is_given_back(cluster: LocalCluster) -> None:
    with dask.config.set(scheduler="sync"):
        with Client(cluster):
            assert where() == "local"
        assert dask.config.get("scheduler") == "sync"
        assert where() == "here"
    with Client(cluster):
        dask.config.set(scheduler="sync")
        assert where() == "here"
    assert dask.config.get("scheduler") == "sync"
    dask.config.set(scheduler=None)


def test_several_clients(cluster: LocalCluster) -> None:
    first, second = Client(cluster), Client(cluster)
    first.close()
    assert where() == "local"
    second.close()
    assert where() == "here"


def test_shuffles_go_through_tasks(cluster: LocalCluster) -> None:
    """And not through files, which a worker on another host would not find."""
    from dask.utils import get_default_shuffle_method

    before = get_default_shuffle_method()
    with Client(cluster, set_as_default=False) as client:
        assert get_default_shuffle_method() == before
        with client.as_current():
            assert get_default_shuffle_method() == "tasks"
    with dask.config.set({"dataframe.shuffle.method": "disk"}), Client(cluster):
        assert get_default_shuffle_method() == "disk"
    with Client(cluster):
        assert get_default_shuffle_method() == "tasks"
    assert get_default_shuffle_method() == before
    assert dask.config.get("dataframe.shuffle.method") is None


def test_persist(client: Client) -> None:
    from redist import Future, futures_of

    x = da.ones(4, chunks=2).persist()
    assert [type(future) for future in futures_of(x)] == [Future, Future]
    del x


@pytest.mark.parametrize("before", [True, False])
def test_dask_that_is_imported_later(cluster: LocalCluster, before: bool) -> None:
    code = f"""
import sys
from redist import Client
{"import dask" if before else ""}
client = Client({cluster.scheduler_address!r})
assert ("dask" in sys.modules) is {before}
import dask
from dask import delayed
from redist import get_worker
print(delayed(lambda: __import__("redist").get_worker().name)().compute())
client.close()
print(dask.config.get("scheduler", None))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    name, setting = done.stdout.split()
    assert name.startswith("local")
    assert setting == "None"


def test_the_configuration_travels(client: Client) -> None:
    import pickle

    config = pickle.loads(pickle.dumps(dask.config.config))
    assert config["scheduler"] is dask.config.get("scheduler")
    assert "current client" in repr(config["scheduler"])
