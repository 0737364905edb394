"""Functions beside tasks: `Client.run`."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from redist import Client, Future, LocalCluster, get_client, get_worker
from redist.errors import NoScheduler, SerializationError, WorkerGone
from redist.protocol import use_secret
from servers import wait_until


def addresses(client: Client) -> set[str]:
    return set(client.scheduler_info()["workers"])


def test_results_come_by_the_address_of_the_worker(client: Client) -> None:
    pids = client.run(os.getpid)
    assert set(pids) == addresses(client)
    assert len(set(pids.values())) == 2
    assert os.getpid() not in pids.values()


def test_arguments_and_the_worker(client: Client) -> None:
    def where(a: int, b: int = 0, dask_worker: Any = None) -> tuple[int, int, str, bool]:
        return a, b, dask_worker.address, dask_worker is get_worker()

    assert client.run(where, 1, b=2) == {a: (1, 2, a, True) for a in addresses(client)}


def test_it_runs_where_tasks_run(client: Client) -> None:
    def mark(value: int) -> None:
        import builtins

        builtins.mark_of_a_test = value  # type: ignore[attr-defined]

    def look() -> int:
        import builtins

        return builtins.mark_of_a_test  # type: ignore[attr-defined,no-any-return]

    client.run(mark, 5)
    try:
        assert [client.submit(look, workers=a, pure=False).result() for a in addresses(client)] == [5, 5]
    finally:
        client.run(lambda: delattr(__import__("builtins"), "mark_of_a_test"))


def test_it_runs_while_every_thread_is_busy(client: Client, tmp_path: Any) -> None:
    path = str(tmp_path / "go on")

    def until(path: str) -> None:
        while not os.path.exists(path):
            time.sleep(0.01)

    futures = [client.submit(until, path, pure=False) for _ in range(6)]
    wait_until(lambda: sum(map(len, client.processing().values())) >= 4)
    try:
        assert len(client.run(os.getpid)) == 2
    finally:
        open(path, "w").close()
    client.gather(futures)


def test_workers_are_chosen(client: Client) -> None:
    one, other = sorted(addresses(client))
    name = client.scheduler_info()["workers"][other]["name"]
    assert set(client.run(os.getpid, workers=[one])) == {one}
    assert set(client.run(os.getpid, workers=one)) == {one}
    assert set(client.run(os.getpid, workers=[name])) == {other}
    assert client.run(os.getpid, workers=[]) == {}


def test_a_worker_that_is_not_there(client: Client) -> None:
    one = min(addresses(client))
    nobody = "tcp://127.0.0.1:1"
    with pytest.raises(WorkerGone, match=r"127\.0\.0\.1:1"):
        client.run(os.getpid, workers=[one, nobody])
    with pytest.raises(OSError, match="no worker"):
        client.run(os.getpid, workers=nobody)
    returned = client.run(os.getpid, workers=[one, nobody], on_error="return")
    assert isinstance(returned[nobody], WorkerGone)
    assert isinstance(returned[one], int)
    assert set(client.run(os.getpid, workers=[one, nobody], on_error="ignore")) == {one}


def test_errors(client: Client) -> None:
    one, other = sorted(addresses(client))

    def fail(where: str, dask_worker: Any) -> str:
        if dask_worker.address == where:
            raise ValueError("not here")
        return "fine"

    with pytest.raises(ValueError, match="not here"):
        client.run(fail, one)
    returned = client.run(fail, one, on_error="return")
    assert isinstance(returned[one], ValueError)
    assert returned[other] == "fine"
    assert client.run(fail, one, on_error="ignore") == {other: "fine"}
    with pytest.raises(ValueError, match="on_error"):
        client.run(fail, one, on_error="whatever")


def test_what_cannot_be_serialized(client: Client) -> None:
    with pytest.raises(SerializationError):
        client.run(print, threading.Lock())
    with pytest.raises(SerializationError):
        client.run(threading.Lock)
    with pytest.raises(SerializationError, match="scatter"):
        client.run(len, bytes(65 << 20))


def test_large_arguments_and_values(client: Client) -> None:
    array = np.arange(500_000)
    for value in client.run(lambda x: x + 1, array).values():
        assert (value == array + 1).all()


def test_coroutines(client: Client, tmp_path: Any) -> None:
    async def loop_of(x: int) -> tuple[int, int]:
        await asyncio.sleep(0)
        return x, id(asyncio.get_running_loop())

    first, second = client.run(loop_of, 3), client.run(loop_of, 3)
    assert first == second
    assert {x for x, _ in first.values()} == {3}

    async def later(path: str) -> None:
        await asyncio.sleep(0.05)
        with open(f"{path}/{os.getpid()}", "w"):
            pass

    assert client.run(later, str(tmp_path), wait=False) is None
    wait_until(lambda: len(os.listdir(tmp_path)) == 2)


def test_a_future_stays_one_and_comes_back(client: Client) -> None:
    future = client.scatter([1, 2, 3])

    def look(future: Future[Any]) -> int:
        return sum(f.result() for f in future)

    assert set(client.run(look, future).values()) == {6}

    def make() -> Future[int]:
        return get_client().submit(abs, -7, pure=False)

    made = client.run(make)
    assert [f.result() for f in made.values()] == [7, 7]
    assert all(f.client is client for f in made.values())


def test_inside_a_task_and_inside_itself(client: Client) -> None:
    def look() -> set[str]:
        return set(get_client().run(os.getpid))

    assert client.submit(look, pure=False).result() == addresses(client)
    assert set(map(frozenset, client.run(look).values())) == {frozenset(addresses(client))}


def test_two_clients_at_once(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    results: list[dict[str, int]] = []

    def run(client: Client) -> None:
        results.extend(client.run(lambda i: i, i) for i in range(10))

    threads = [threading.Thread(target=run, args=(c,)) for c in (client, other, client)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(min(r.values()) for r in results) == sorted([*range(10)] * 3)


def test_asynchronous(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            info = await client.scheduler_info()
            assert set(await client.run(os.getpid)) == set(info["workers"])
            many = await asyncio.gather(*(client.run(lambda i: i, i) for i in range(30)))
            assert [set(r.values()) for r in many] == [{i} for i in range(30)]
            with pytest.raises(ZeroDivisionError):
                await client.run(divmod, 1, 0)

    asyncio.run(main())


def test_what_is_not_there_says_so(client: Client) -> None:
    with pytest.raises(NoScheduler, match="no scheduler process"):
        client.run_on_scheduler(os.getpid)
    with pytest.raises(NotImplementedError, match="nanny"):
        client.run(os.getpid, nanny=True)


def test_it_is_asked_for_again_when_messages_are_lost(
    client: Client, cluster: LocalCluster, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("redist.running._PATIENCE", 0.05)
    lost: list[Any] = []
    take = client._inbox.obey

    def lose_the_first(message: list[Any]) -> None:
        if not lost:
            lost.append(message)
        else:
            take(message)

    monkeypatch.setattr(client._inbox, "obey", lose_the_first)

    def once(path: str) -> int:
        with open(f"{path}/{os.getpid()}", "x"):
            return os.getpid()

    assert len(client.run(once, str(tmp_path))) == 2
    assert lost[0][0] == "ran"


def test_a_message_that_never_came_is_sent_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    from redist.store import calls

    monkeypatch.setattr("redist.running._PATIENCE", 0.05)
    send, sent = calls.send, []

    def lose_the_first(ordinals: list[int], message: bytes) -> Any:
        sent.append(message)
        return send(ordinals if len(sent) > 1 else [], message)

    monkeypatch.setattr("redist.running.calls.send", lose_the_first)
    assert len(client.run(os.getpid)) == 2
    assert sent.count(sent[0]) == 2


def test_a_process_that_dies() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        with pytest.raises(WorkerGone, match="ended"):
            client.run(os._exit, 1)
        client.wait_for_workers(1, timeout=10)
        assert len(client.run(os.getpid)) == 1


def test_several_executors_of_a_worker() -> None:
    with LocalCluster(n_workers=0) as cluster, Client(cluster) as client:
        assert client.run(os.getpid) == {}
        import subprocess
        import sys

        worker = subprocess.Popen(
            [sys.executable, "-m", "redist_worker", cluster.endpoint.url, "--executors", "3"],
            env={**os.environ, "REDIST_NAMESPACE": cluster.endpoint.namespace},
        )
        try:
            client.wait_for_workers(1, timeout=10)
            wait_until(lambda: len(client.run(os.getpid)) == 3)
            (address,) = addresses(client)
            pids = client.run(os.getpid)
            assert set(pids) == {f"{address}/{i}" for i in range(3)}
            assert len(set(pids.values())) == 3
            assert client.run(os.getpid, workers=[f"{address}/1"]) == {f"{address}/1": pids[f"{address}/1"]}
            assert client.run(os.getpid, workers=address) == pids
        finally:
            worker.terminate()
            worker.wait()


def test_what_is_not_signed_is_not_run(client: Client) -> None:
    use_secret("another")
    try:
        with pytest.raises(Exception, match="signature"):
            client.run(os.getpid)
    finally:
        use_secret(None)


def test_names_in_main_go_by_value(cluster: LocalCluster) -> None:
    import subprocess
    import sys

    program = f"""
from redist import Client
def mine(x): return x + base
base = 40
with Client({cluster.endpoint.url!r}, namespace={cluster.endpoint.namespace!r}) as client:
    print(set(client.run(mine, 2).values()))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "{42}\n"


async def leave() -> None:
    raise SystemExit(3)


async def stay() -> int:
    return 1


def test_a_coroutine_that_would_end_the_loop(client: Client) -> None:
    for _ in range(2):
        errors = client.run(leave, on_error="return")
        assert [type(error) for error in errors.values()] == [SystemExit] * 2
        assert set(client.run(stay).values()) == {1}
