"""Workers with little memory and small payloads, which share arenas: arenas go to disk as larger payloads do."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Client
from redist.diagnostics.doctor import examine
from redist.memory.arena import number_in
from servers import wait_until
from worker.little_memory import MB, files_in, metrics, small, worker

pytestmark = pytest.mark.timeout(180)

LIMIT = 80 * MB  # executors have 35 of their own
WORDS = 1024


def make(i: int) -> Any:
    return np.arange(i, i + WORDS, dtype=np.int64)


def check(array: Any) -> int:
    assert array.shape == (WORDS,)
    assert (np.diff(array) == 1).all()
    return int(array[0])


def check_all(arrays: list[Any]) -> int:
    return sum(check(array) for array in arrays)


def arenas(path: str) -> int:
    """Return the bytes that the arenas in a directory take."""
    try:
        numbers = [name for name in os.listdir(path) if number_in(name) is not None]
        return sum(os.stat(f"{path}/{name}").st_blocks * 512 for name in numbers)
    except FileNotFoundError:  # one goes just now
        return arenas(path) if os.path.exists(path) else 0


def on_disk(client: Client) -> int:
    return arenas(f"{worker(client)['local_directory']}/spill")


def in_memory(client: Client) -> int:
    return arenas(worker(client)["local_directory"])


def test_five_times_the_limit(tmp_path: Path) -> None:
    count, made = 5 * LIMIT // (8 * WORDS), 2000
    with small(tmp_path, limit=str(LIMIT)) as client:
        futures = client.scatter([make(i) for i in range(count - made)], hash=False)
        futures += client.map(make, range(count - made, count), pure=False)
        groups = [futures[at : at + 100] for at in range(0, count, 100)]
        sums = client.map(check_all, groups, pure=False)
        assert sum(client.gather(sums)) == sum(range(count))
        assert on_disk(client) > 3 * LIMIT
        wait_until(lambda: in_memory(client) < 0.7 * LIMIT, 30, what="the rest has gone to disk")
        chance = random.Random(5)
        for i in chance.sample(range(count), 200):
            assert check(futures[i].result()) == i
        assert examine(client.cluster.endpoint).healthy
        del groups, sums
        del futures[: count // 2]
        wait_until(lambda: on_disk(client) + in_memory(client) < 3 * LIMIT, 30, what="half of it is gone")
        for at in chance.sample(range(len(futures)), 200):
            assert check(futures[at].result()) == count // 2 + at
        del futures
        wait_until(lambda: not on_disk(client) + in_memory(client), 30, what="the payloads are gone")
        wait_until(lambda: metrics(client)["spilled"] == metrics(client)["managed"] == 0)


def test_a_client_scatters_more_than_fits(tmp_path: Path) -> None:
    count = 3 * LIMIT // (8 * WORDS)
    with small(tmp_path, limit=str(LIMIT)) as client:
        futures = client.scatter([make(i) for i in range(count)], hash=False)
        assert on_disk(client) > LIMIT
        assert [check(array) for array in client.gather(futures)] == list(range(count))
        # they share files, however short memory was
        directory = worker(client)["local_directory"]
        assert not [name for name in os.listdir(directory) if name.partition(".")[2].isdigit()]


def test_a_worker_killed_while_it_spills(tmp_path: Path) -> None:
    count, made = 2 * LIMIT // (8 * WORDS), 1000
    with small(tmp_path, limit=str(LIMIT)) as client:
        first = client.scatter([make(i) for i in range(count)], hash=False)
        more = client.map(make, range(made), pure=False)
        wait_until(lambda: on_disk(client) > LIMIT, 30)
        before = worker(client)
        os.kill(before["pid"], signal.SIGKILL)
        wait_until(lambda: worker(client)["pid"] != before["pid"], 30)
        # nothing could make these again
        assert [check(array) for array in client.gather(first)] == list(range(count))
        assert [check(array) for array in client.gather(more)] == list(range(made))
        assert worker(client)["local_directory"] == before["local_directory"]


def test_what_the_worker_says_is_so(tmp_path: Path) -> None:
    """Also of pages that are half free, of the index, and of what is on disk."""
    with small(tmp_path, limit="600MB", settings={"target": 0.2}) as client:
        directory = worker(client)["local_directory"]

        def agrees() -> bool:
            use = client.memory().total
            there = files_in(directory)
            return (
                abs(use.memory - use.unmanaged - there) <= 0.02 * there
                and abs(use.spilled - on_disk(client)) <= 0.02 * use.spilled
            )

        futures = client.scatter([make(i) for i in range(20_000)], hash=False)
        wait_until(lambda: on_disk(client) > 20 * MB, 20)
        wait_until(agrees, 20, what="memory is as the worker says")
        use = client.memory().total
        assert use.overhead > 2 * MB  # the index alone has 65,536 slots of 32 bytes
        assert use.memory == sum(
            getattr(use, name)
            for name in ("managed", "unmanaged", "lingering", "pooled", "granted", "overhead")
        )
        del futures[::2]
        wait_until(lambda: client.memory().total.managed < 0.7 * use.managed, 20)
        wait_until(agrees, 20, what="memory is as the worker says, with holes")
        del futures
        wait_until(lambda: client.memory().total.memory - client.memory().total.unmanaged < MB, 20)
