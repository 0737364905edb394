"""Taking back what an executor does not come to, by the worker, while a task holds the GIL."""

import asyncio
import ctypes
import time

import pytest

from redist import Client, LocalCluster
from redist.store.replies import HandOut
from redist_worker.marks import Marks
from redist_worker.tails import Tails
from redist_worker.threads import TaskThread, take_next, take_tail
from redist_worker.tokens import Tokens, token_pipes


@pytest.fixture
def tokens():
    ((reading, writing),) = token_pipes(1)
    tokens = Tokens(reading, writing)
    yield tokens
    tokens.close()


def batch(thread, attempts):
    thread.queue.extend(HandOut(1, attempt, f"x{attempt}", "f", b"", [], 0) for attempt in attempts)
    thread.tokens.put(list(attempts))


def test_a_task_is_started_or_taken(tokens):
    thread = TaskThread(tokens=tokens)
    batch(thread, range(1, 6))
    assert take_next(thread).attempt == 1
    assert [task.attempt for task in take_tail(thread)] == [2, 3, 4, 5]
    assert take_next(thread) is None
    assert tokens.take_all() == []


def test_what_the_worker_took_is_left_by_everybody(tokens):
    thread = TaskThread(tokens=tokens)
    batch(thread, range(1, 6))
    assert take_next(thread).attempt == 1
    assert Tokens(tokens.reading).take_all() == [2, 3, 4, 5]
    assert take_next(thread) is None
    assert take_tail(thread) == []
    assert [task.attempt for task in thread.queue] == [2, 3, 4, 5]


def test_a_batch_is_taken_only_when_its_thread_does_not_go_on(tokens, tmp_path):
    marks = Marks(str(tmp_path / "marks"))
    taken = []

    async def look():
        tails = Tails([Tokens(tokens.reading)], marks, taken.append)
        tokens.put(list(range(1, 40)))
        for attempt in range(1, 31):
            marks.set(0, attempt)
            tokens.take_one()
            await asyncio.sleep(0.01)
        assert taken == []
        await asyncio.sleep(0.2)
        tails._loop.remove_reader(tokens.reading)

    asyncio.run(look())
    marks.close()
    assert taken == [list(range(31, 40))]


def work(i, stuck):
    if i == stuck:
        ctypes.PyDLL(None).sleep(2)  # holds the GIL
    return i


@pytest.mark.timeout(60)
def test_quick_tasks_do_not_wait_for_one_that_holds_the_gil():
    with LocalCluster(n_workers=1, threads_per_worker=1, executors_per_worker=2) as cluster:
        with Client(cluster) as client:
            client.gather(client.map(work, range(2000), [-1] * 2000, pure=False))
            for number in (401, 431, 461, 491):  # somewhere in a batch
                futures = client.map(work, range(2000), [number] * 2000, pure=False)
                stuck, others = futures[number], futures[number + 1 :]
                begun = time.monotonic()
                assert client.gather(others) == list(range(number + 1, 2000))
                assert time.monotonic() - begun < 1.8
                assert stuck.result() == number
