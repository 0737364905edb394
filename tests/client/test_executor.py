"""`Client.get_executor`: a standard executor whose tasks run in the cluster."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import gc
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from redist import Client, Event, LocalCluster, get_client
from redist.executor import ClientExecutor
from servers import wait_until

GATE = 20.0


def double(x: int) -> int:
    return 2 * x


def fail(x: int) -> int:
    raise LookupError(f"no {x}")


def when_there(path: str, x: int = 7) -> int:
    deadline = time.monotonic() + GATE
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)
    return x


def executor_threads() -> int:
    return sum(thread.name == "redist-executor" for thread in threading.enumerate())


def test_submit(client: Client) -> None:
    with client.get_executor() as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        future = executor.submit(double, 4)
        assert isinstance(future, concurrent.futures.Future)
        assert future.result(10) == 8
        assert future.done()
        assert not future.cancelled()
        assert future.exception() is None
        assert executor.submit(sorted, [2, 3, 1], reverse=True).result() == [3, 2, 1]
        assert executor.submit(dict, key=1, workers=2, pure=3).result() == {"key": 1, "workers": 2, "pure": 3}


def test_errors_arrive_as_themselves(client: Client) -> None:
    with client.get_executor() as executor:
        future = executor.submit(fail, 3)
        with pytest.raises(LookupError, match="no 3") as info:
            future.result(10)
        assert info.traceback[-1].name == "fail"
        assert isinstance(future.exception(), LookupError)
        with pytest.raises(LookupError, match="no 1"):
            list(executor.map(fail, [1, 2]))
        del info


def test_arrays_and_futures_as_arguments(client: Client) -> None:
    with client.get_executor() as executor:
        array = executor.submit(numpy.arange, 100_000).result(10)
        assert array.sum() == sum(range(100_000))
        del array
        ours = client.submit(double, 4)
        assert executor.submit(double, ours).result(10) == 16
        many = [executor.submit(numpy.full, 50_000, i) for i in range(20)]
        assert [int(future.result()[-1]) for future in many] == list(range(20))


def test_wait_and_as_completed(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as executor:
        quick = [executor.submit(double, i) for i in range(50)]
        slow = executor.submit(when_there, str(tmp_path / "go"))
        done, not_done = concurrent.futures.wait([*quick, slow], 10, concurrent.futures.FIRST_COMPLETED)
        assert done <= set(quick)
        assert slow in not_done
        wrong = executor.submit(fail, 1)
        done, _ = concurrent.futures.wait([wrong, slow], 10, concurrent.futures.FIRST_EXCEPTION)
        assert done == {wrong}
        came = [future.result() for future in concurrent.futures.as_completed(quick, 10)]
        assert sorted(came) == [2 * i for i in range(50)]
        (tmp_path / "go").touch()
        assert concurrent.futures.wait([slow], 10).done == {slow}


def test_wait_for_cancelled_ones(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as executor:
        future = executor.submit(when_there, str(tmp_path / "go"))
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert concurrent.futures.wait([future], 10).done == {future}
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(10)
        (tmp_path / "go").touch()
        done = executor.submit(double, 1)
        assert done.result(10) == 2
        assert not done.cancel()


def test_what_is_cancelled_does_not_run(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as executor:
        gate = [executor.submit(when_there, str(tmp_path / "go"), i) for i in range(4)]
        mark = executor.submit(Path.touch, tmp_path / "ran")
        assert mark.cancel()
        (tmp_path / "go").touch()
        assert [future.result(GATE) for future in gate] == [0, 1, 2, 3]
        assert executor.submit(double, 5).result(10) == 10
        assert not (tmp_path / "ran").exists()


def test_one_of_two_that_are_the_same_task_is_cancelled(client: Client, tmp_path: Path) -> None:
    with client.get_executor(pure=True) as executor:
        a, b = (executor.submit(when_there, str(tmp_path / "go")) for _ in range(2))
        assert a.cancel()
        (tmp_path / "go").touch()
        assert b.result(10) == 7


def test_what_others_cancel_is_cancelled(
    client: Client, new_client: Callable[..., Client], tmp_path: Path
) -> None:
    with client.get_executor() as executor:
        future = executor.submit(when_there, str(tmp_path / "go"))
        new_client().cancel([future._task], force=True)  # type: ignore[attr-defined]
        assert concurrent.futures.wait([future], 10).done == {future}
        assert future.cancelled()


def test_calls_are_not_pure_but_on_demand(client: Client) -> None:
    with client.get_executor() as executor:
        assert len({executor.submit(os.urandom, 8).result(10) for _ in range(3)}) == 3
    with client.get_executor(pure=True) as executor:
        futures = [executor.submit(os.urandom, 8) for _ in range(3)]
        assert len({future.result(10) for future in futures}) == 1


def test_a_collected_future_releases_its_key(client: Client, keys: Callable[[], list[str]]) -> None:
    with client.get_executor() as executor:
        futures = [executor.submit(double, i) for i in range(20)]
        concurrent.futures.wait(futures, 10)
        assert len(keys()) == 20
        del futures
        gc.collect()
        wait_until(lambda: not keys(), what="the keys are gone")


def test_nobody_has_to_keep_a_future_of_a_call(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as executor:
        for i in range(5):
            executor.submit(Path.touch, tmp_path / str(i))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "3", "4"]
    called = threading.Event()
    executor = client.get_executor()
    executor.submit(double, 1).add_done_callback(lambda future: called.set())
    del executor
    gc.collect()
    assert called.wait(10)


@pytest.mark.parametrize("chunksize", [1, 3, 100])
def test_map(client: Client, chunksize: int) -> None:
    with client.get_executor() as executor:
        results = executor.map(pow, range(10), [2] * 10, chunksize=chunksize)
        assert next(results) == 0
        assert list(results) == [i**2 for i in range(1, 10)]
        assert list(executor.map(double, [], chunksize=chunksize)) == []
        assert list(executor.map(double, iter(range(10)), chunksize=chunksize, buffersize=2)) == [
            2 * i for i in range(10)
        ]
        with pytest.raises(ValueError, match="chunksize"):
            executor.map(double, [1], chunksize=0)


def test_map_goes_over_what_is_endless_with_a_buffer(client: Client) -> None:
    import itertools

    with client.get_executor() as executor:
        results = executor.map(double, itertools.count(), buffersize=4)
        assert [next(results) for _ in range(10)] == list(range(0, 20, 2))
        results.close()  # type: ignore[attr-defined]


def test_map_gives_up_when_the_time_is_over(client: Client, tmp_path: Path) -> None:
    with client.get_executor() as executor:
        results = executor.map(when_there, [str(tmp_path / "go")] * 20, timeout=0.1)
        with pytest.raises(concurrent.futures.TimeoutError):
            list(results)
        assert not executor._settler.pending
        (tmp_path / "go").touch()


def test_shutdown(client: Client, tmp_path: Path) -> None:
    executor = client.get_executor()
    future = executor.submit(when_there, str(tmp_path / "go"))
    executor.shutdown(wait=False)
    assert not future.done()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(double, 1)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(double, [1])
    (tmp_path / "go").touch()
    executor.shutdown()
    assert future.done()
    assert future.result() == 7
    assert "shut down" in repr(executor)


def test_shutdown_cancels_on_demand(client: Client, tmp_path: Path) -> None:
    executor = client.get_executor()
    futures = [executor.submit(when_there, str(tmp_path / "go")) for _ in range(10)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    (tmp_path / "go").touch()


def test_one_thread_for_all_futures_which_ends(client: Client) -> None:
    gc.collect()
    wait_until(lambda: not executor_threads(), what="those of other tests ended")
    before = threading.active_count()
    with client.get_executor() as executor:
        futures = [executor.submit(double, i) for i in range(500)]
        assert threading.active_count() <= before + 2
        assert [future.result(10) for future in futures] == [2 * i for i in range(500)]
        assert executor_threads() == 1
    wait_until(lambda: not executor_threads(), what="the thread ended")
    executor = client.get_executor()
    assert executor.submit(double, 1).result(10) == 2
    del executor
    gc.collect()
    wait_until(lambda: not executor_threads(), what="the thread of a collected executor ended")


def test_options(client: Client, cluster: LocalCluster, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unsupported arguments to ClientExecutor"):
        client.get_executor(retry=3)
    address, other = client.nthreads()
    with client.get_executor(workers=address) as executor:
        where = functools.partial(_address)
        assert {executor.submit(where).result(10) for _ in range(10)} == {address}
        assert set(executor.map(_address_of, range(10))) == {address}
    with client.get_executor(workers=[other], allow_other_workers=True, priority=3) as executor:
        assert executor.submit(_address).result(10) in (address, other)
    with client.get_executor(retries=2) as executor:
        assert executor.submit(_third_time, str(tmp_path)).result(10) == 3
    with client.get_executor(resources={"NONE": 1}) as executor:
        future = executor.submit(double, 1)
        with pytest.raises(TimeoutError):
            future.result(0.2)
        executor.shutdown(cancel_futures=True)


def _address() -> str:
    from redist import get_worker

    return get_worker().address


def _address_of(_: int) -> str:
    return _address()


def _third_time(directory: str) -> int:
    count = len(os.listdir(directory)) + 1
    Path(directory, str(count)).touch()
    if count < 3:
        raise ValueError(count)
    return count


def test_the_end_of_the_client_ends_its_futures(new_client: Callable[..., Client], tmp_path: Path) -> None:
    client = new_client()
    executor = client.get_executor()
    future = executor.submit(when_there, str(tmp_path / "go"))
    client.close()
    assert concurrent.futures.wait([future], 10).done == {future}
    assert future.exception() is not None if not future.cancelled() else True
    with pytest.raises(RuntimeError, match="closed"):
        executor.submit(double, 1)
    (tmp_path / "go").touch()


def _sum_of_tasks(depth: int) -> int:
    if not depth:
        return 1
    with get_client().get_executor() as executor:
        return 1 + executor.submit(_sum_of_tasks, depth - 1).result() + sum(executor.map(double, [0, 0]))


def test_inside_tasks() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        assert client.submit(_sum_of_tasks, 10).result(GATE) == 11


def test_asyncio(client: Client, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with client.get_executor() as executor:
            assert await loop.run_in_executor(executor, double, 4) == 8
            assert await asyncio.wrap_future(executor.submit(double, 5)) == 10
            with pytest.raises(LookupError, match="no 9"):
                await loop.run_in_executor(executor, fail, 9)
            waiting = loop.run_in_executor(executor, when_there, str(tmp_path / "go"))
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            (tmp_path / "go").touch()

    asyncio.run(main())


def test_an_asynchronous_client(
    new_client: Callable[..., Client], cluster: LocalCluster, tmp_path: Path
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Client(cluster, asynchronous=True) as client:
            executor = client.get_executor()
            assert isinstance(executor, ClientExecutor)
            assert await loop.run_in_executor(executor, double, 4) == 8
            futures: list[Any] = [
                asyncio.wrap_future(executor.submit(numpy.full, 50_000, i)) for i in range(5)
            ]
            assert [int(array[0]) for array in await asyncio.gather(*futures)] == list(range(5))
            with pytest.raises(LookupError, match="no 9"):
                await loop.run_in_executor(executor, fail, 9)
            waiting = executor.submit(when_there, str(tmp_path / "go"))
            assert waiting.cancel()
            with pytest.raises(TypeError, match="no map"):
                executor.map(double, [1])
            last = executor.submit(when_there, str(tmp_path / "go"))
            executor.shutdown()
            assert not last.done()
            (tmp_path / "go").touch()
            assert await asyncio.wrap_future(last) == 7
            with pytest.raises(RuntimeError, match="after shutdown"):
                executor.submit(double, 1)
            open_ = client.get_executor().submit(when_there, str(tmp_path / "never"))
        await asyncio.sleep(0)
        assert open_.done()
        (tmp_path / "never").touch()

    asyncio.run(main())


def double_behind(gate: Event, x: int) -> int:
    gate.wait()
    return double(x)


def test_a_callback_that_would_end_the_thread(client: Client) -> None:
    def leave(future: object) -> None:
        raise SystemExit

    gate = Event("callbacks are there", client=client)
    with client.get_executor() as executor:
        for _ in range(3):
            # later, it would be called here
            futures = [executor.submit(double_behind, gate, i) for i in range(5)]
            for future in futures:
                future.add_done_callback(leave)
            gate.set()
            assert [future.result(10) for future in futures] == [0, 2, 4, 6, 8]
            gate.clear()
    wait_until(lambda: not executor_threads(), what="the thread ended")


def test_shut_down_while_another_thread_submits(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = client.get_executor()
    assert executor.submit(double, 1).result(10) == 2
    submit = client._submitter.submit

    def late(*args: Any) -> Any:
        monkeypatch.undo()
        executor.shutdown()
        wait_until(lambda: not executor_threads(), what="its thread ended")
        return submit(*args)

    monkeypatch.setattr(client._submitter, "submit", late)
    assert executor.submit(double, 4).result(10) == 8
    wait_until(lambda: not executor_threads(), what="the thread ended")


def test_a_map_that_cannot_go_on_says_so(client: Client) -> None:
    with client.get_executor() as executor:
        results = executor.map(double, range(10), buffersize=2)
        whole = executor.map(double, range(2), buffersize=2)
        assert next(results) == 0
    assert list(whole) == [0, 2]
    with pytest.raises(RuntimeError, match="after shutdown"):
        list(results)


def test_a_callback_of_a_closed_client_leaves_no_thread(new_client: Callable[..., Client]) -> None:
    client = new_client(set_as_default=False)
    future = client.submit(double, 1)
    called = threading.Event()
    future.add_done_callback(lambda _: called.set())
    assert called.wait(10)
    client.close()
    for _ in range(2):
        called.clear()
        future.add_done_callback(lambda _: called.set())
        assert called.wait(10)
    wait_until(lambda: not any(thread.name == "redist-callbacks" for thread in threading.enumerate()))
