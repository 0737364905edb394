"""`gather_from_workers` and `scatter_to_workers`: values by key."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from redist import Client, LocalCluster, wait
from redist.errors import NoWorkers
from redist.utils_comm import gather_from_workers, scatter_to_workers
from servers import wait_until


class Broken:
    def __reduce__(self) -> Any:
        return _broken, ()


def _broken() -> None:
    raise ArithmeticError("cannot be read")


def test_gather_from_workers(client: Client, new_client: Callable[..., Client]) -> None:
    large, small = client.scatter({"large": np.arange(50_000), "small": 5}).values()
    who_has = {**client.who_has([large, small]), "unknown": ("tcp://nowhere:1",), ("t", 1): ()}
    for reader in (client, new_client(set_as_default=False)):
        values, missing, failed, lost = gather_from_workers(who_has, reader)
        assert list(values) == ["large", "small"]
        assert values["large"].sum() == np.arange(50_000).sum()
        assert values["small"] == 5
        assert (missing, failed, lost) == (["unknown", ("t", 1)], [], ["tcp://nowhere:1"])
    assert gather_from_workers({}) == ({}, [], [], [])


def test_what_cannot_be_read(client: Client) -> None:
    fine, broken = client.submit(abs, -1), client.submit(Broken, pure=False)
    wrong = client.submit(divmod, 1, 0)
    wait([fine, broken, wrong])
    values, missing, failed, _ = gather_from_workers(client.who_has([fine, broken, wrong]))
    assert (values, missing, failed) == ({fine.key: 1}, [wrong.key], [broken.key])


def test_scatter_to_workers(client: Client, keys: Callable[[], list[str]]) -> None:
    workers = list(client.nthreads())
    data = {f"array-{i}": np.full(10_000, i) for i in range(4)} | {"small": 1}
    futures, who_has, nbytes = scatter_to_workers(workers, data)
    assert list(futures) == list(data)
    assert [list(who_has[key]) for key in data] == [[w] for w in sorted(workers) * 2] + [[]]
    assert all(nbytes[key] >= 80_000 for key in list(data)[:4])
    values, *_ = gather_from_workers(who_has)
    assert [int(values[key].max()) for key in list(data)[:4]] == [0, 1, 2, 3]
    del futures, values
    wait_until(lambda: not keys(), what="the Futures kept it")
    with pytest.raises(NoWorkers):
        client.gather(scatter_to_workers(["tcp://nowhere:1"], {"x": np.arange(10_000)})[0])
    for wrong in ([1, 2], "x"):
        with pytest.raises(TypeError, match="data is a mapping"):
            scatter_to_workers(workers, wrong)  # type: ignore[arg-type]
    for wrong in ("x", []):
        with pytest.raises(TypeError, match="workers is a collection"):
            scatter_to_workers(wrong, {})


def test_asynchronously(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client, Client(cluster, asynchronous=True) as other:
            workers = list(await client.nthreads())
            futures, who_has, _ = await scatter_to_workers(workers, {"a": np.ones(9_000), "b": 2}, client)
            for reader in (client, other):
                values, missing, failed, lost = await gather_from_workers({**who_has, "c": ()}, reader)
                assert (values["a"].sum(), values["b"]) == (9_000, 2)
                assert (missing, failed, lost) == (["c"], [], [])
            assert (await futures["a"]).shape == (9_000,)

    asyncio.run(main())
