"""Annotations and the options of a call: where tasks of a graph run, how often, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import pytest
from dask import delayed

from redist import Client, futures_of, get_worker, wait
from servers import wait_until


def here(*args: Any) -> str:
    return get_worker().name


def flaky(path: str, times: int) -> int:
    """Fail so many times."""
    for i in range(times):
        try:
            Path(path, f"failed-{i}").touch(exist_ok=False)
        except FileExistsError:
            continue
        raise ValueError(f"for the {i + 1}. time")
    return times


def noted(path: str, name: str, gate: str = "") -> None:
    import time

    while gate and not Path(gate).exists():
        time.sleep(0.002)
    with open(path, "a") as file:
        file.write(name)


@pytest.fixture(scope="module")
def names(cluster: Any) -> list[str]:
    with Client(cluster) as client:
        return sorted(worker["name"] for worker in client.scheduler_info()["workers"].values())


def test_workers(client: Client, names: list[str]) -> None:
    for name in names:
        future = client.compute([delayed(here, pure=False)(i) for i in range(5)], workers=[name])
        assert client.gather(future) == [name] * 5
        x = delayed(here)(delayed(here)(name))
        assert client.get(dict(x.__dask_graph__()), x.key, workers=name, allow_other_workers=True) in names
        persisted = client.persist(da.ones(100_000, chunks=20_000), workers=name)
        wait(persisted)
        assert {len(found) for found in client.has_what(name).values()} == {5}
        del persisted


def test_annotations(client: Client, names: list[str]) -> None:
    with dask.annotate(workers=names[0]):
        x = delayed(here, pure=False)()
    with dask.annotate(workers=[names[1]]):
        y = delayed(here, pure=False)()
    z = delayed(list)([x, y])
    assert client.compute(z, optimize_graph=False).result() == [names[0], names[1]]
    # What a call says holds where no annotation does.
    assert client.compute([x, y], workers=names[0], sync=True) == [names[0], names[1]]
    with dask.annotate(workers=names[1]):
        assert client.compute(delayed(here, pure=False)(), sync=True) == names[1]


def test_annotations_of_a_dict(client: Client, names: list[str]) -> None:
    with dask.annotate(workers=lambda key: names[int(key[-1])]):
        assert client.get({"x-0": (here,), "x-1": (here,)}, ["x-0", "x-1"]) == names


def test_retries(client: Client, tmp_path: Path) -> None:
    def task(name: str, times: int) -> Any:
        (tmp_path / name).mkdir()
        return delayed(flaky)(str(tmp_path / name), times)

    assert client.compute(task("a", 2), retries=2, sync=True) == 2
    with pytest.raises(ValueError, match=r"2\. time"):
        client.compute(task("b", 2), retries=1, sync=True)
    with dask.annotate(retries=2):
        x = task("c", 2)
    assert client.compute(x, optimize_graph=False, sync=True) == 2
    assert client.persist(task("d", 1), retries=1).compute() == 1


def test_resources(new_client: Callable[..., Client]) -> None:
    from redist import LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=2, resources={"GPU": 1}) as cluster,
        Client(cluster) as client,
    ):
        with dask.annotate(resources={"GPU": 1}):
            x = [delayed(here, pure=False)() for _ in range(4)]
        assert set(client.compute(x, sync=True)) == {"local-0"}
        future = client.compute(delayed(here)(), resources={"TPU": 1})
        with pytest.raises(TimeoutError):
            future.result(timeout=0.3)
        del future


def test_priority(client: Client, tmp_path: Path) -> None:
    gate, path = str(tmp_path / "gate"), str(tmp_path / "order")
    blocking = client.compute([delayed(noted, pure=False)(path, "", gate) for _ in range(2)])
    wait_until(lambda: sum(map(len, client.processing().values())) == 2)
    workers = {"workers": sorted(client.scheduler_info()["workers"])[:1]}
    low = client.compute(delayed(noted)(path, "l"), priority=-1, **workers)
    normal = client.compute(delayed(noted)(path, "n"), **workers)
    with dask.annotate(priority=10):
        high = client.compute(delayed(noted)(path, "h"), **workers)
    Path(gate).touch()
    wait([*blocking, low, normal, high])
    assert Path(path).read_text() == "hnl"


def test_options_are_checked_at_the_call(client: Client) -> None:
    with pytest.raises(ValueError, match="retries"):
        client.compute(delayed(here)(), retries=-1)
    assert futures_of(client.compute(1)) == []
