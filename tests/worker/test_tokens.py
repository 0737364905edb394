"""Taking back what an executor does not come to, by the worker, while a task holds the GIL."""

import asyncio
import ctypes
import os
import signal
import time

import pytest

from redist import Client, LocalCluster
from redist.store.calls import Result
from redist.store.replies import HandOut
from redist_worker.marks import Marks
from redist_worker.shelf import SIZE, make_shelves, open_shelves
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


@pytest.fixture
def shelves():
    fd = make_shelves(2)
    ours, theirs = open_shelves(os.dup(fd), 2), open_shelves(fd, 2)
    yield ours, theirs
    for shelf in ours + theirs:
        shelf.close()


def test_a_batch_is_taken_only_when_its_thread_does_not_go_on(tokens, shelves, tmp_path):
    marks = Marks(str(tmp_path / "marks"))
    (shelf, _), (seen, _) = shelves
    taken = []

    async def look():
        tails = Tails([Tokens(tokens.reading)], [seen], marks, lambda *both: taken.append(both))
        tokens.put(list(range(1, 40)))
        for attempt in range(1, 31):
            marks.set(0, attempt)
            tokens.take_one()
            assert shelf.put(finished(attempt))
            await asyncio.sleep(0.01)
        assert taken == []
        await asyncio.sleep(0.2)
        tails._loop.remove_reader(tokens.reading)

    asyncio.run(look())
    marks.close()
    assert taken == [(list(range(31, 40)), [finished(attempt) for attempt in range(1, 31)])]


def test_the_last_task_of_a_batch_is_looked_at_too(tokens, shelves, tmp_path):
    marks = Marks(str(tmp_path / "marks"))
    (shelf, _), (seen, _) = shelves
    taken = []

    async def look():
        tails = Tails([Tokens(tokens.reading)], [seen], marks, lambda *both: taken.append(both))
        tokens.put([1])
        tokens.take_one()
        marks.set(0, 1)
        shelf.put(finished(0))
        await asyncio.sleep(0.2)
        tails._loop.remove_reader(tokens.reading)

    asyncio.run(look())
    marks.close()
    assert taken == [([], [finished(0)])]


def test_closed_marks_know_whose_they_were(tmp_path):
    marks = Marks(str(tmp_path / "marks"))
    marks.ordinal = 7
    marks.close()
    marks.close(remove=True)
    assert marks.ordinal == 7


def finished(attempt):
    return Result(f"x{attempt}", attempt, "memory", 5, "int", b"v\xff")


def test_what_lies_on_a_shelf_is_read_by_another_process(shelves):
    (shelf, other), (seen, empty) = shelves
    results = [finished(1), Result("y", 2, "erred", 9, "ValueError", b"E")]
    assert all(shelf.put(result) for result in results)
    assert seen.read() == results
    assert empty.read() == []
    assert other.put(finished(3))
    assert seen.read() == results
    assert empty.read() == [finished(3)]
    shelf.clear()
    assert seen.read() == []


@pytest.mark.parametrize(
    "result",
    [
        Result("x", 1, "memory", 10_000, "bytes"),  # its payload is a segment
        Result("x", 1, "memory", 9, "list", b"v", ["y"]),  # the counts of what it contains come first
        Result("x", 1, "retry"),
        Result("x", 1, "memory", SIZE, "bytes", b"v" * SIZE),
    ],
)
def test_what_only_the_executor_can_hand_in_is_not_put_there(shelves, result):
    (shelf, _), (seen, _) = shelves
    assert not shelf.put(result)
    assert seen.read() == []


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


@pytest.mark.timeout(60)
def test_what_is_finished_does_not_wait_for_a_task_that_holds_the_gil():
    with Client(n_workers=1, threads_per_worker=1) as client:
        client.gather(client.map(work, range(2000), [-1] * 2000, pure=False))
        for number in (401, 431, 461, 491):  # somewhere in a batch
            futures = client.map(work, range(2000), [number] * 2000, pure=False)
            begun = time.monotonic()
            assert client.gather(futures[:number]) == list(range(number))
            assert time.monotonic() - begun < 1.8
            assert futures[number].result() == number


def noted(i, folder, killer):
    with open(f"{folder}/{i}", "a") as file:
        file.write("x")
    if i == killer and os.path.getsize(f"{folder}/{i}") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return i


@pytest.mark.timeout(60)
def test_what_is_finished_is_not_lost_with_its_executor(tmp_path):
    with Client(n_workers=1, threads_per_worker=1) as client:
        client.gather(client.map(work, range(2000), [-1] * 2000, pure=False))
        for killer in (101, 131, 161, 191):  # somewhere in a batch
            folder = tmp_path / str(killer)
            folder.mkdir()
            assert client.gather(client.map(noted, range(300), [str(folder)] * 300, [killer] * 300)) == [
                *range(300)
            ]
            again = [i for i in range(300) if (folder / str(i)).stat().st_size != 1]
            assert again == [killer]
