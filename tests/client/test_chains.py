"""Chains of quick tasks, which executors take whole: every way in which a link can end."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

import numpy as np
import pytest

from redist import Client, Future, wait
from redist.errors import CancelledError, KilledWorker

LENGTH = 300


def add(a: int, b: int = 1) -> int:
    return a + b


def failing(a: int) -> int:
    raise ValueError(f"at {a}")


def grown(a: int) -> np.ndarray:
    return np.full(100_000, a)


def first(a: np.ndarray) -> int:
    return int(a[0])


def wrapped(a: int) -> list[Future[int]]:
    from redist import get_client

    return [get_client().submit(add, a, pure=False)]


def unwrapped(futures: list[Future[int]]) -> int:
    return futures[0].result()


def gone(a: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return a


def chain(client: Client, start: object, length: int = LENGTH) -> list[Future[int]]:
    futures = [client.submit(add, start, pure=False)]
    for _ in range(length - 1):
        futures.append(client.submit(add, futures[-1], pure=False))
    return futures


def test_a_chain(client: Client) -> None:
    for _ in range(3):
        futures = chain(client, 0)
        assert futures[-1].result(timeout=30) == LENGTH
        assert client.gather(futures) == list(range(1, LENGTH + 1))


def test_what_came_before_goes_when_nobody_refers_to_it(client: Client) -> None:
    future = client.submit(add, 0, pure=False)
    for _ in range(LENGTH):
        future = client.submit(add, future, pure=False)
    assert future.result(timeout=30) == LENGTH + 1


def test_two_chains_and_what_joins_them(client: Client) -> None:
    a, b = chain(client, 0, 50)[-1], chain(client, 1000, 50)[-1]
    assert client.submit(add, a, b, pure=False).result(timeout=30) == 1100


def test_an_error_in_the_middle(client: Client) -> None:
    before = chain(client, 0, 30)
    after = chain(client, client.submit(failing, before[-1], pure=False), 30)
    with pytest.raises(ValueError, match="at 30"):
        after[-1].result(timeout=30)
    assert {future.status for future in after} == {"error"}
    assert before[-1].result() == 30


def test_a_large_value_in_the_middle(client: Client) -> None:
    large = client.submit(grown, chain(client, 0, 30)[-1], pure=False)
    assert chain(client, client.submit(first, large, pure=False), 30)[-1].result(timeout=30) == 60


def test_futures_in_the_middle(client: Client) -> None:
    inside = client.submit(wrapped, chain(client, 0, 30)[-1], pure=False)
    assert chain(client, client.submit(unwrapped, inside, pure=False), 30)[-1].result(timeout=30) == 61


def test_cancelling_in_the_middle(client: Client) -> None:
    futures = chain(client, 0)
    futures[LENGTH // 2].cancel()
    assert futures[LENGTH // 4].result(timeout=30) == LENGTH // 4 + 1
    with suppress(CancelledError):  # where it came in time
        wait(futures[-1:], timeout=30)
    assert futures[-1].status in ("cancelled", "finished")


@pytest.mark.timeout(120)
def test_a_death_in_the_middle(client: Client) -> None:
    killed = client.submit(gone, chain(client, 0, 30)[-1], pure=False)
    with pytest.raises(KilledWorker):
        chain(client, killed, 30)[-1].result(timeout=90)
    assert chain(client, 0, 30)[-1].result(timeout=30) == 30
