"""The setting ``inline-limit``: who writes a value goes by its own, and everybody can read it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from redist import Client, LocalCluster, config, wait
from redist.inlining import inline_limit
from servers import keys_of, wait_until


def total(array: np.ndarray) -> int:  # type: ignore[type-arg]
    return int(array.sum())


def test_simple() -> None:
    with (
        config.set({"inline-limit": "32 KiB"}),
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        computed = [client.submit(np.arange, n) for n in (3_000, 5_000)]  # 24 and 40 kB
        scattered = client.scatter([np.arange(3_001), np.arange(5_001), "x" * 20_000], hash=False)
        wait(computed)
        with config.set({"inline-limit": "4 KiB"}), Client(cluster, set_as_default=False) as other:
            scattered += other.scatter([np.arange(3_002), "y" * 20_000], hash=False)
            kept = [len(holders) for holders in client.who_has([*computed, *scattered]).values()]
            assert kept == [0, 1, 0, 1, 0, 1, 1]
            for found in (
                client.gather(computed),
                other.gather([other.submit(np.copy, f) for f in computed]),
            ):
                assert [len(array) for array in found] == [3_000, 5_000]
            sums = [client.submit(total, f) for f in (*computed, *scattered[:2])]
            assert client.gather(sums) == [n * (n - 1) // 2 for n in (3_000, 5_000, 3_001, 5_001)]
            assert (
                client.submit(len, "z" * 20_000).result() == 20_000
            )  # an argument that is a value of its own
            del found, sums, computed, scattered
        wait_until(lambda: not keys_of(cluster), what="every key is gone")


def test_workers_have_their_own(cluster: LocalCluster, new_client: Callable[..., Client]) -> None:
    with config.set({"inline-limit": "64 KiB"}):
        client = new_client()
        assert client.who_has(client.scatter({"mine": "x" * 50_000})) == {"mine": ()}
        theirs = client.submit(np.arange, 5_000, key="theirs")
        wait(theirs)
        ((_, holders),) = client.who_has(theirs).items()
        assert len(holders) == 1


def test_asynchronous(cluster: LocalCluster) -> None:
    async def main() -> None:
        with config.set({"inline-limit": "16 KiB"}):
            async with Client(cluster, asynchronous=True) as client:
                future = await client.scatter(bytes(10_000))
                assert await client.who_has([future]) == {future.key: ()}
                assert await client.submit(len, future) == 10_000

    asyncio.run(main())


@pytest.mark.parametrize(
    ("given", "taken"),
    [("4 KiB", 4096), (10_000, 10_000), ("64KiB", 65536), (0, 4096), ("1 MB", 65536), ("much", 4096)],
)
def test_what_can_be_set(given: object, taken: int) -> None:
    with config.set({"inline-limit": given}):
        if given in (0, "1 MB", "much"):
            with pytest.warns(UserWarning, match="inline-limit"):
                assert inline_limit() == taken
        else:
            assert inline_limit() == taken
