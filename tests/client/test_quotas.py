"""Quotas of clients and of the namespace, with real workers."""

from __future__ import annotations

import asyncio
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from redist import Client, LocalCluster, config, get_client, wait
from redist.diagnostics.doctor import examine
from redist.errors import QuotaExceeded, RedistError
from servers import wait_until

MB = 1_000_000


@pytest.fixture
def namespace_quota(cluster: LocalCluster) -> Iterator[None]:
    with config.set({"quota.namespace": "3 MB"}):
        yield
    with config.set({"quota.namespace": 0}), Client(cluster, set_as_default=False):
        pass


def files(client: Client) -> int:
    return sum(len(keys) for keys in client.has_what().values())


def array(megabytes: float) -> Any:
    return np.zeros(int(megabytes * MB), np.uint8)


def test_a_clients_quota(new_client: Callable[..., Client]) -> None:
    client = new_client(quota="2 MB")
    first = client.scatter(array(1), hash=False)
    with pytest.raises(
        QuotaExceeded, match=r"this client may hold 1\.9 MiB and holds .*1\.4 MiB more"
    ) as caught:
        client.scatter(array(1.5))
    assert caught.value.limit == 2 * MB
    assert caught.value.holders[0][0] == first.key
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.holders, str(copy)) == (caught.value.holders, str(caught.value))
    result = client.submit(array, 1.2)  # its size is not known before
    wait(result)
    for call in (
        lambda: client.scatter(array(0.5)),
        lambda: client.submit(abs, -1).result(10),
        lambda: client.submit(len, array(0.3)).result(10),
        lambda: client.publish_dataset(5, name="five"),
        lambda: client.gather(client.map(abs, range(3))),
    ):
        with pytest.raises(QuotaExceeded):
            call()
    assert files(client) == 2
    del first
    wait_until(lambda: files(client) == 1)
    assert client.submit(abs, -1).result(10) == 1
    other = new_client(set_as_default=False)  # has none
    assert other.scatter(array(3)).result().nbytes == 3 * MB


def test_a_refusal_among_parts_that_are_on_their_way(
    new_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second part is refused, while the first is known and the third on its way, to be accepted."""
    monkeypatch.setattr("redist.scattering._PART", 40)
    client = new_client(quota="1 MB")
    with pytest.raises(QuotaExceeded):
        client.scatter(
            [np.zeros(size, np.int8) for size in (8192, 30_000, 8192) for _ in range(40)], hash=False
        )
    wait_until(lambda: files(client) == 0)
    assert client.scatter(array(0.9), hash=False).result().nbytes == 0.9 * MB


def test_a_refused_value_keeps_nothing_of_its_caller(new_client: Callable[..., Client]) -> None:
    client = new_client(quota="1 MB")

    class Held:
        pass

    def scatter(value: Any) -> weakref.ref[Held]:
        held = Held()
        with pytest.raises(QuotaExceeded):
            client.scatter(value, hash=False)
        return weakref.ref(held)

    scatter(array(2))
    gc.collect()
    gc.disable()
    try:
        assert scatter(array(2))() is None
        assert scatter([np.zeros(8192, np.int8) for _ in range(300)])() is None
    finally:
        gc.enable()


def test_the_namespaces_quota(namespace_quota: None, new_client: Callable[..., Client]) -> None:
    ada, bob = new_client(name="ada"), new_client(name="bob", set_as_default=False)
    held = ada.scatter(array(2), hash=False)
    with pytest.raises(QuotaExceeded, match=r"this namespace may hold .*the largest holders: 'ada'"):
        bob.scatter(array(1.5))
    theirs = bob.scatter(array(0.9), hash=False)
    assert theirs.result().nbytes == 0.9 * MB
    del held
    wait_until(lambda: files(bob) == 1)
    assert bob.scatter(array(2)).result().nbytes == 2 * MB


def test_the_payload_of_a_refused_commit_goes(
    cluster: LocalCluster, namespace_quota: None, new_client: Callable[..., Client]
) -> None:
    """Two clients write at the same time what only one of them may keep."""
    import redist.scattering as scattering

    ada, bob = new_client(name="ada"), new_client(name="bob", set_as_default=False)
    put, kept = scattering._put, []

    def slow(client: Client, worker: int, batch: Any, *rest: Any) -> None:
        put(client, worker, batch, *rest)
        if client is bob and not kept:
            kept.append(ada.scatter(array(2), hash=False))

    scattering._put = slow
    try:
        with pytest.raises(QuotaExceeded):
            bob.scatter(array(2), hash=False)
    finally:
        scattering._put = put
    assert files(ada) == 1
    wait_until(lambda: ada.scheduler_info() and _payloads(cluster) == 1)


def _payloads(cluster: LocalCluster) -> int:
    import os

    from redist.memory.headers import is_file_name

    wire, prefix = cluster.endpoint.open(), cluster.endpoint.prefix
    try:
        ordinals = wire.call("HKEYS", f"{prefix}workers")
        folders = [wire.call("HGET", f"{prefix}caller:{o.decode()}", "segments") for o in ordinals]
    finally:
        wire.close()
    return sum(is_file_name(name.decode()) for folder in folders for name in os.listdir(folder))


def in_a_task() -> str:
    try:
        get_client().scatter(array(4))
    except QuotaExceeded as error:
        return str(error)
    return ""


def test_inside_a_task(namespace_quota: None, new_client: Callable[..., Client]) -> None:
    assert "this namespace may hold" in new_client().submit(in_a_task, pure=False).result(20)


def test_in_a_loop(cluster: LocalCluster) -> None:
    async def program() -> None:
        async with Client(cluster, asynchronous=True, quota=MB) as client:
            with pytest.raises(QuotaExceeded):
                await client.scatter(array(2))
            large = await client.scatter(array(0.9))
            await client.submit(array, 0.2)
            with pytest.raises(QuotaExceeded):
                await client.submit(abs, -1)
            del large

    asyncio.run(program())


@pytest.mark.parametrize("announced", [False, True])
def test_large_arguments_in_a_loop(cluster: LocalCluster, announced: bool) -> None:
    """`submit` cannot wait there: the tasks tell, and those that need them."""

    async def program() -> None:
        async with Client(cluster, asynchronous=True, quota=MB) as client:
            futures = client.map(len, [array(2), array(3)], pure=False)
            after = client.submit(abs, futures[0])
            keyword = client.submit(dict, x=array(2.5))
            fits = client.submit(len, array(0.5))
            if announced:
                client._settle()
            for future in (*futures, keyword) if announced else (*futures, after, keyword):
                with pytest.raises(QuotaExceeded, match="MiB more is too much"):
                    await asyncio.wait_for(future, 20)
                assert future.status == "error"
            with pytest.raises(RedistError):
                await asyncio.wait_for(after, 20)
            with pytest.raises(QuotaExceeded):
                await asyncio.wait_for(client.gather(futures), 20)
            assert await asyncio.wait_for(fits, 20) == 500_000
            del futures, future, after, keyword, fits
            assert await client.submit(abs, -1) == 1

    asyncio.run(program())


def test_wrong_quotas(cluster: LocalCluster) -> None:
    for wrong, error in (("much", ValueError), (-1, ValueError), ([], TypeError), (True, TypeError)):
        with pytest.raises(error):
            Client(cluster, quota=wrong)


def test_the_doctor_tells(
    namespace_quota: None, cluster: LocalCluster, new_client: Callable[..., Client]
) -> None:
    client = new_client(name="ada", quota="3 MB")
    future = client.scatter(array(2))
    notes = "\n".join(examine(cluster.endpoint).notes)
    assert f"values of {future.nbytes:,} bytes count for the namespace's quota of 3,000,000" in notes
    who = f"client ada (caller:{client.session.ordinal})"
    assert f"{who} made keys with values of {future.nbytes:,} bytes of 3,000,000" in notes
