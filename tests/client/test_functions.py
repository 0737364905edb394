"""Functions on the server: each is there for as long as a task may need it, and no longer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from redist import Client, LocalCluster
from redist.session.submissions import KEPT
from servers import wait_until


def adding(n: int) -> Callable[[int], int]:
    """Return a function that no other call returns."""
    return lambda x: x + n


def known(cluster: LocalCluster) -> int:
    wire = cluster.endpoint.open()
    try:
        return int(wire.call("HLEN", f"{cluster.endpoint.prefix}fns"))
    finally:
        wire.close()


def test_functions_do_not_stay(cluster: LocalCluster, client: Client) -> None:
    first = adding(-1)
    assert client.submit(first, 1).result(10) == 0
    for _ in range(4):
        futures = [client.submit(adding(i), 1, pure=False) for i in range(KEPT)]
        assert client.gather(futures) == [i + 1 for i in range(KEPT)]
        del futures
    gc.collect()
    wait_until(lambda: known(cluster) <= KEPT, what="functions without a task are let go")
    assert len(client.session.submissions.functions) <= KEPT
    # One that was let go comes again with its next task.
    assert client.submit(first, 5).result(10) == 4


def test_functions_of_living_tasks_stay(client: Client, tmp_path: Any) -> None:
    def needs(path: str) -> int:
        with open(path) as file:
            return int(file.read())

    erred = client.submit(needs, str(tmp_path / "number"))
    erred.exception(10)
    client.gather([client.submit(adding(i), 1, pure=False) for i in range(2 * KEPT)])
    (tmp_path / "number").write_text("7")
    erred.retry()
    assert erred.result(10) == 7


def test_functions_of_before_a_restart_go(cluster: LocalCluster, client: Client) -> None:
    client.gather([client.submit(adding(i), 1) for i in range(100)])
    client.restart()
    futures = [client.submit(adding(i), 1, pure=False) for i in range(1000, 1000 + KEPT)]
    assert client.gather(futures) == list(range(1001, 1001 + KEPT))
    wait_until(lambda: known(cluster) == KEPT, what="functions of before the restart are let go")


def test_restrictions_are_let_go_with_functions(cluster: LocalCluster, client: Client) -> None:
    for i in range(KEPT + 10):
        client.submit(adding(0), 1, workers=[f"nobody-{i}"], pure=False)
    wait_until(lambda: known(cluster) <= KEPT + 1)
