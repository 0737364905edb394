"""Garbage is collected less often while very many values are made, and as before afterwards."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from redist.collecting import seldom_collected


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    assert gc.get_threshold() == before
    gc.set_threshold(*before)


def test_few(thresholds: tuple[int, int, int]) -> None:
    with seldom_collected(10):
        assert gc.get_threshold() == thresholds


def test_many(thresholds: tuple[int, int, int]) -> None:
    with pytest.raises(KeyError), seldom_collected(10_000):
        assert gc.get_threshold()[0] > thresholds[0]
        assert gc.isenabled()
        raise KeyError


def test_several_at_the_same_time(thresholds: tuple[int, int, int]) -> None:
    first, second = seldom_collected(10_000), seldom_collected(10_000)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_threshold()[0] > thresholds[0]
    second.__exit__(None, None, None)
    assert gc.get_threshold() == thresholds
    threads = [threading.Thread(target=lambda: [_once() for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _once() -> None:
    with seldom_collected(10_000):
        pass


def test_what_the_user_sets_meanwhile_stays(thresholds: tuple[int, int, int]) -> None:
    with seldom_collected(10_000):
        gc.set_threshold(123, 4, 5)
    assert gc.get_threshold() == (123, 4, 5)
    gc.set_threshold(0)
    with seldom_collected(10_000):
        assert gc.get_threshold()[0] == 0
    assert gc.get_threshold()[0] == 0
    gc.set_threshold(*thresholds)
