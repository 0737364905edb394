"""A whole cluster does its work on every kind of server."""

from __future__ import annotations

import pytest

from redist.cluster import LocalCluster
from servers import Server


@pytest.mark.parametrize("kind", ["valkey", "redis7", "cluster3", "sentinel", "acl_server"])
def test_work(request: pytest.FixtureRequest, kind: str, namespace: str) -> None:
    server: Server = request.getfixturevalue(kind)
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, address=server.url, namespace=namespace)
    with cluster, cluster.get_client() as client:
        squares = client.map(lambda x: x * x, range(20))
        assert client.submit(sum, squares).result(timeout=20) == sum(x * x for x in range(20))
        (large,) = client.scatter([bytes(100_000)])
        assert client.submit(len, large).result(timeout=20) == 100_000
