"""What tasks need besides their dependencies, a function and an eligibility class, comes again wherever it was lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from faults.rig import PATIENCE
from redist import Client
from redist.errors import ServerFull
from servers import full, wait_until

pytestmark = pytest.mark.timeout(120)


def made() -> tuple[Callable[..., Any], ...]:
    """Return functions that travel by value."""

    def where(seconds: float, _: int) -> str:
        import time

        from redist import get_worker

        time.sleep(seconds)
        return str(get_worker().name).partition("-")[0]

    def double(x: int) -> int:
        return 2 * x

    def triple(x: int) -> int:
        return 3 * x

    return where, double, triple


where, double, triple = made()


def two_workers(rig: Any) -> Client:
    # They outlive the silence of a server that is started again.
    rig.worker("a", lease=5.0)
    rig.worker("b", lease=5.0)
    rig.ready(2)
    client: Client = rig.client()
    return client


def for_a(client: Client, count: int) -> list[Any]:
    """Keep the worker a busy with the first task, so that the others wait in its queue."""
    return [client.submit(where, 0.05 if i else 1.0, i, workers=["a"], pure=False) for i in range(count)]


def test_class_after_a_loss_of_memory(own_server: Any) -> None:
    rig, server = own_server(False)
    client = two_workers(rig)
    futures = for_a(client, 6)
    wait_until(lambda: len(rig.names()) == 6)
    server.stop()
    server.start()
    assert client.gather(futures) == ["a"] * 6


def test_class_after_a_lease_that_ran_out(own_server: Any) -> None:
    rig, _ = own_server(False)
    client = two_workers(rig)
    futures = for_a(client, 8)
    wait_until(lambda: len(rig.names()) == 8)
    session = client.session
    with (
        session.lock
    ):  # it sleeps, and somebody else's heartbeat finds that its lease is over and that nobody listens
        client._driver.links.lost_push()
        client._driver.links.lost_command()
        rig.command("ZADD", f"{rig.endpoint.prefix}leases", "1", str(session.ordinal))
        wait_until(lambda: str(session.ordinal) not in rig.hash("clients"), PATIENCE)
    assert client.gather(futures) == ["a"] * 8


def test_class_after_a_refusal(own_server: Any) -> None:
    rig, _ = own_server(False)
    client = two_workers(rig)
    assert client.submit(where, 0, 0).result() in ("a", "b")
    with full(rig.command), pytest.raises(ServerFull):
        client.submit(where, 0, 1, workers=["a"], pure=False).result()
    assert client.gather(for_a(client, 6)) == ["a"] * 6


def test_class_after_a_restart(own_server: Any) -> None:
    rig, _ = own_server(False)
    client = two_workers(rig)
    assert client.gather(for_a(client, 2)) == ["a"] * 2
    client.restart()
    assert client.gather(for_a(client, 6)) == ["a"] * 6


def test_function_of_collected_tasks_after_a_loss_of_memory(own_server: Any) -> None:
    rig, server = own_server(False)
    client = two_workers(rig)
    assert client.gather([client.submit(double, 1), client.submit(triple, 1)]) == [2, 3]
    server.stop()
    futures = [client.submit(f, i, pure=False) for f in (double, triple) for i in range(10)]
    assert client.session.collected
    server.start()
    assert client.gather(futures) == [f * i for f in (2, 3) for i in range(10)]
