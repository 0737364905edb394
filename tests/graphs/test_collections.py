"""Collections: delayed, arrays, bags, dataframes; computed, persisted, shared."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
from dask import delayed

from redist import Client, Future, LocalCluster, futures_of, wait
from redist.errors import ClientClosed
from servers import wait_until


def inc(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def test_delayed(client: Client) -> None:
    x, y = delayed(inc)(1), delayed(inc)(2)
    future = client.compute(delayed(add)(x, y))
    assert isinstance(future, Future)
    assert future.result() == 5
    several = client.compute([x, 3, y])
    assert several[1] == 3
    assert client.gather(several) == [2, 3, 3]
    assert client.compute({"a": x, "b": [y]}).result() == {"a": 2, "b": [3]}
    assert client.compute((x, y), sync=True) == [2, 3]
    assert client.compute(x, sync=True) == 2
    assert client.compute([x], optimize_graph=False, sync=True) == [2]
    assert client.compute(7) == 7
    assert client.compute([]) == []


def test_delayed_with_futures(client: Client) -> None:
    future = client.submit(inc, 1)
    assert client.compute(delayed(add)(future, 1), sync=True) == 3
    assert delayed(sum)([future, future]).compute() == 4
    assert delayed(dict)(a=future).compute() == {"a": 2}
    del future


def test_array(client: Client) -> None:
    x = da.arange(1000, chunks=100)
    assert client.compute(x.sum(), sync=True) == 499500
    assert np.array_equal(x.compute(), np.arange(1000))
    y = (x.reshape(10, 100) + 1).T
    assert np.array_equal(y.compute(), (np.arange(1000).reshape(10, 100) + 1).T)
    assert np.allclose(y.mean(axis=0).compute(), y.compute().mean(axis=0))
    a, b = dask.compute(x.min(), x.max())
    assert (a, b) == (0, 999)


def test_array_of_numpy(client: Client) -> None:
    big = np.arange(200_000.0)
    x = da.from_array(big, chunks=20_000)
    assert (x + big.sum()).sum().compute() == pytest.approx(big.sum() * 200_001)
    shifted = x.map_blocks(lambda block, other: block + other[0], big)
    assert np.array_equal(shifted.compute(), big)


def test_persist(client: Client, keys: Callable[[], list[str]]) -> None:
    x = da.ones(1000, chunks=100) + 1
    y = client.persist(x)
    assert type(y) is type(x)
    assert y.__dask_keys__() == x.__dask_keys__()
    assert len(futures_of(y)) == 10
    assert wait(y).not_done == set()
    assert all(future.status == "finished" for future in futures_of(y))
    assert y.sum().compute() == 2000
    assert (y + y).max().compute() == 4
    a, b = client.persist([x, delayed(inc)(1)])
    assert b.compute() == 2
    assert {future.key for future in futures_of(a)} == {future.key for future in futures_of(y)}
    (c,) = dask.persist(y * 2)
    assert len(futures_of(c)) == 10
    assert float(c.sum().compute()) == 4000
    assert client.persist([]) == []
    with pytest.raises(TypeError, match="collections"):
        client.persist(1)
    del a, b, c, y
    gc.collect()
    wait_until(lambda: not keys())


def test_persisted_delayed(client: Client) -> None:
    x = client.persist(delayed(inc)(1))
    (future,) = futures_of(x)
    assert future.result() == 2
    assert delayed(add)(x, x).compute() == 4
    y = dask.persist(delayed(inc)(x))[0]
    assert y.compute() == 3
    assert client.compute(x).result() == 2
    del future


def test_memory_returns(client: Client, keys: Callable[[], list[str]]) -> None:
    x = da.random.random((2000, 500), chunks=(100, 500))
    y = client.persist(x - x.mean(axis=0))
    wait(y)
    wait_until(lambda: client.usage().nbytes < 10_000_000, what="only the result is left")
    assert client.usage().nbytes > 7_900_000
    del y
    gc.collect()
    wait_until(lambda: client.usage().nbytes == 0 and not keys())


def test_a_persisted_collection_outlives_its_workers() -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        x = client.persist(da.ones(400_000, chunks=50_000) + 1, optimize_graph=False)
        y = client.persist(x + 1)
        wait(y)
        del x
        gc.collect()
        # Their successors take the chunks over, or compute them again.
        for worker in list(cluster.workers.values()):
            os.kill(worker.pid, signal.SIGKILL)
        assert y.sum().compute() == 1_200_000
        del y


def test_dataframe(client: Client) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    frame = pd.DataFrame({"a": range(1000), "b": [1, 2] * 500})
    df = dd.from_pandas(frame, npartitions=4)
    assert df.a.sum().compute() == 499500
    expected = frame.groupby("b").a.sum()
    assert df.groupby("b").a.sum().compute().to_dict() == expected.to_dict()
    persisted = df[df.b == 2].persist()
    assert len(futures_of(persisted)) == 4
    assert len(persisted) == 500
    pd.testing.assert_frame_equal(persisted.compute(), frame[frame.b == 2])
    assert client.compute(persisted.a.max()).result() == 999
    from_futures = dd.from_delayed([delayed(future) for future in futures_of(persisted)], meta=frame.iloc[:0])
    assert len(from_futures) == 500
    shuffled = df.shuffle("b").persist()
    assert len(shuffled) == 1000
    del persisted, from_futures, shuffled
    gc.collect()


def test_bag(client: Client) -> None:
    import dask.bag as db

    bag = db.from_sequence(range(100), npartitions=5)
    assert bag.map(inc).filter(lambda x: x % 2 == 0).sum().compute() == sum(range(2, 101, 2))
    assert sorted(bag.frequencies().compute())[0] == (0, 1)
    persisted = bag.map(inc).persist()
    assert persisted.count().compute() == 100
    del persisted


def test_normalize_collection(client: Client) -> None:
    x = delayed(inc)(1)
    y = delayed(inc)(x)
    z = delayed(inc)(y)
    future = client.compute(y)
    assert client.normalize_collection(x) is x
    normal = client.normalize_collection(z)
    assert len(normal.__dask_graph__()) == 2
    assert [type(node) for node in normal.__dask_graph__().values()].count(Future) == 1
    assert normal.compute() == 4
    del future, normal


def test_publish(new_client: Callable[..., Client]) -> None:
    first, second = new_client(), new_client(set_as_default=False)
    x = first.persist(da.ones(100, chunks=10) + 1)
    first.publish_dataset(x=x, lazy=da.ones(10, chunks=5))
    del x
    gc.collect()
    y = second.get_dataset("x")
    assert isinstance(y, da.Array)
    assert {future.client for future in futures_of(y)} == {second}
    assert second.compute(y.sum(), sync=True) == 200
    # With one client current and Futures of the other inside.
    assert first.compute((y + 1).sum(), sync=True) == 300
    assert second.get_dataset("lazy").sum().compute() == 10
    del y
    gc.collect()
    assert first.get_dataset("x").sum().compute() == 200
    first.unpublish_dataset("x")
    second.unpublish_dataset("lazy")


def test_publish_dataframe(new_client: Callable[..., Client]) -> None:
    pd = pytest.importorskip("pandas")
    dd = pytest.importorskip("dask.dataframe")
    first, second = new_client(), new_client(set_as_default=False)
    df = first.persist(dd.from_pandas(pd.DataFrame({"a": range(100)}), npartitions=3))
    first.publish_dataset(df=df)
    del df
    gc.collect()
    again = second.get_dataset("df")
    assert second.compute(again.a.sum(), sync=True) == 4950
    second.unpublish_dataset("df")
    del again
    gc.collect()


def test_cancel_a_collection(client: Client) -> None:
    x = client.persist(da.ones(10, chunks=5))
    futures = futures_of(x)
    client.cancel(x)
    assert all(future.cancelled() for future in futures)


def test_in_a_task(client: Client) -> None:
    def nested(n: int) -> Any:
        import dask.array

        from redist import get_client

        x = dask.array.arange(n, chunks=2)
        future = get_client().compute(x.sum())
        return int(x.sum().compute()), int(future.result())

    assert client.submit(nested, 10).result() == (45, 45)


def test_a_closed_client(new_client: Callable[..., Client]) -> None:
    client = new_client()
    client.close()
    with pytest.raises(ClientClosed):
        client.compute(delayed(inc)(1))
