"""`Lock`, `Semaphore` and `MultiLock`, by clients, in loops and in tasks."""

from __future__ import annotations

import asyncio
import gc
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from redist import Client, LocalCluster, Lock, MultiLock, Semaphore
from redist.errors import NotInitialized, SemaphoreClosed, ServerFull
from servers import wait_until

NewClient = Callable[..., Client]


@pytest.fixture
def lock_keys(cluster: LocalCluster) -> Iterator[Callable[[], list[str]]]:
    """What there is of locks in the server; nothing at the end."""

    def look() -> list[str]:
        prefix = cluster.endpoint.prefix
        wire = cluster.endpoint.open()
        try:
            found = [key.decode()[len(prefix) :] for key in wire.call("KEYS", f"{prefix}*")]
        finally:
            wire.close()
        families = ("asks", "lock", "limits", "openers", "waits")
        return sorted(key for key in found if key.partition(":")[0] in families)

    yield look
    wait_until(lambda: not look(), what="nothing is left of locks")


@pytest.fixture(autouse=True)
def nothing_is_left_of_locks(lock_keys: Any, new_client: NewClient) -> None:
    """Looks when the clients are closed."""


def in_thread(function: Callable[[], Any]) -> Callable[[], Any]:
    """Call `function` in a thread; the answer waits for its result."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()), daemon=True)
    thread.start()

    def result() -> Any:
        thread.join(20)
        return results[0]

    return result


def in_line(client: Client, name: str) -> int:
    """How many hold the lock or wait for it."""
    wire = client._endpoint.open()
    try:
        count: int = wire.call("ZCARD", f"{client._endpoint.prefix}lock:{name}")
        return count
    finally:
        wire.close()


def test_simple(client: Client) -> None:
    lock = Lock("x")
    assert lock.acquire() is True
    assert lock.locked()
    assert Lock("x").acquire(blocking=False) is False
    assert lock.release() is True
    assert not lock.locked()
    with Lock("x") as held:
        assert held.locked()
        assert repr(held) == "<Lock: x>"


def test_two_clients(client: Client, new_client: NewClient) -> None:
    other = new_client(set_as_default=False)
    mine, theirs = Lock("x", client=client), Lock("x", client=other)
    assert mine.acquire()
    start = time.monotonic()
    assert theirs.acquire(timeout="100 ms") is False
    assert time.monotonic() - start >= 0.1
    wait_until(lambda: in_line(client, "x") == 1)
    result = in_thread(theirs.acquire)
    wait_until(lambda: in_line(client, "x") == 2)
    mine.release()
    assert result() is True
    assert mine.acquire(timeout=0) is False
    theirs.release()


def test_order_of_asking(client: Client, new_client: NewClient) -> None:
    clients = [client, *(new_client(set_as_default=False) for _ in range(2))]
    order: list[int] = []

    def take(i: int) -> None:
        with Lock("x", client=clients[i % 3]):
            order.append(i)

    with Lock("x"):
        results = []
        for i in range(9):
            results.append(in_thread(lambda i=i: take(i)))  # type: ignore[misc]
            wait_until(lambda count=i + 2: in_line(client, "x") == count)
    for result in results:
        result()
    assert order == list(range(9))


def test_wrong_use(client: Client) -> None:
    lock = Lock()
    assert lock.name.startswith("lock-")
    assert lock.name != Lock().name
    with pytest.raises(RuntimeError, match=f"Released too often: this Lock object of the name '{lock.name}'"):
        lock.release()
    with pytest.raises(ValueError, match="non-blocking"):
        lock.acquire(blocking=False, timeout=1)
    with pytest.raises(TypeError):
        Lock(5).acquire()
    with Lock("x"), pytest.raises(RuntimeError, match="Released too often"):
        Lock("x").release()  # another object
    with pytest.raises(ValueError, match="max_leases"):
        Semaphore(0)


def test_without_a_client() -> None:
    for thing in (Lock("x"), pickle.loads(pickle.dumps(Semaphore(2, "x"))), MultiLock(["x"])):
        with pytest.raises(NotInitialized, match="has no client"):
            thing.acquire()
    with pytest.raises(RuntimeError):
        Lock("x").locked()


def test_pickled(client: Client) -> None:
    for thing in (Lock("x"), Semaphore(3, "s"), MultiLock(["a", ("b", 1)])):
        copy = pickle.loads(pickle.dumps(thing))
        assert type(copy) is type(thing)
        assert repr(copy) == repr(thing)
        with thing:
            pass
    with Lock("x"):
        assert pickle.loads(pickle.dumps(Lock("x"))).acquire(timeout=0) is False
    assert pickle.loads(pickle.dumps(Semaphore(3, "s"))).max_leases == 3


def raise_number(path: str, lock: Any) -> None:
    with lock:
        number = int(Path(path).read_text())
        time.sleep(0.002)
        Path(path).write_text(str(number + 1))


@pytest.mark.parametrize("make", [Lock, lambda name: Semaphore(1, name), lambda name: MultiLock([name, "y"])])
def test_in_tasks(client: Client, tmp_path: Path, make: Any) -> None:
    path = tmp_path / "number"
    path.write_text("0")
    client.gather(client.map(raise_number, [str(path)] * 30, lock=make("x"), pure=False))
    assert path.read_text() == "30"


def hold_and_wait(name: str, seconds: float) -> bool:
    with Lock(name):
        time.sleep(seconds)
    return True


def test_what_blocks_in_a_task_gives_up_its_place() -> None:
    with LocalCluster(n_workers=1, threads_per_worker=1) as one, Client(one) as client, Lock("x"):
        waiting = client.map(hold_and_wait, ["x"] * 5, seconds=0, pure=False)
        wait_until(lambda: in_line(client, "x") == 6, what="all wait, in one thread's place")
        assert client.submit(len, "abc").result(timeout=10) == 3
        client.cancel(waiting, force=True)


async def enter(lock: Any) -> bool:
    async with lock:
        return True


@pytest.mark.parametrize(("make", "line"), [(Lock, "x"), (lambda name: MultiLock([name]), "@x")])
def test_what_is_awaited_in_a_task_gives_up_its_place(make: Any, line: str) -> None:
    """With the client of tasks, which is none of their loops'."""
    with LocalCluster(n_workers=1, threads_per_worker=1) as one, Client(one) as client:
        lock = make("x")
        assert lock.acquire()
        entering = client.submit(enter, make("x"))
        wait_until(lambda: in_line(client, line) == 2)
        assert client.submit(len, "abc").result(timeout=10) == 3
        lock.release()
        assert entering.result(timeout=10)


def test_killed_executor(client: Client) -> None:
    future = client.submit(hold_and_wait, "x", 60)
    wait_until(lambda: in_line(client, "x") == 1)
    future.cancel(force=True)  # its process is replaced
    assert Lock("x").acquire(timeout=10)


def test_killed_process(cluster: LocalCluster, client: Client) -> None:
    program = f"""
from redist import *
client = Client({cluster.scheduler_address!r}, heartbeat_interval=0.1)
lock, several = Lock("x"), MultiLock(["a"])
assert lock.acquire() and several.acquire()
print("held", flush=True)
Lock("x").acquire()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    wait_until(lambda: in_line(client, "x") == 2)  # it waits for what it holds itself
    result = in_thread(Lock("x").acquire)
    wait_until(lambda: in_line(client, "x") == 3)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert result() is True
    with MultiLock(["a"]):
        pass


@pytest.mark.parametrize("make", [Lock, lambda name: Semaphore(1, name), lambda name: MultiLock([name])])
def test_collected(client: Client, make: Any) -> None:
    """What nobody can release any more is free."""
    lock = make("x")
    lock.acquire()
    assert make("x").acquire(timeout=0) is False
    waiting = in_thread(make("x").acquire)
    del lock
    gc.collect()
    assert waiting() is True


def forgetful(name: str) -> None:
    lock = Lock(name)
    lock.acquire()
    raise ValueError("before it was released")


def test_a_task_that_fails_without_releasing(client: Client) -> None:
    with pytest.raises(ValueError, match="before it was released"):
        client.submit(forgetful, "x").result()
    assert Lock("x").acquire(timeout=10)


def test_a_named_session_taken_up(cluster: LocalCluster, client: Client) -> None:
    """What the process of before held is free as soon as another takes the session up, not only after its grace."""
    program = f"""
import os, signal
from redist import *
client = Client({cluster.scheduler_address!r}, name="session", grace="1 hour")
lock = Lock("x")
assert lock.acquire()
print("held", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False)
    assert process.stdout == "held\n"
    assert in_line(client, "x") == 1
    with Client(cluster, name="session", grace=1, set_as_default=False) as again:
        assert Lock("x", client=client).acquire(timeout=10)
        assert Lock("y", client=again).acquire(timeout=0)


def test_closed_client(client: Client, new_client: NewClient) -> None:
    other = new_client(set_as_default=False)
    lock = Lock("x", client=other)
    lock.acquire()
    result = in_thread(Lock("x").acquire)
    wait_until(lambda: in_line(client, "x") == 2)
    other.close()
    assert result() is True


def test_ctrl_c(client: Client) -> None:
    with Lock("x"):
        main = threading.main_thread().ident or 0
        in_thread(
            lambda: wait_until(lambda: in_line(client, "x") == 2) and signal.pthread_kill(main, signal.SIGINT)
        )
        with pytest.raises(KeyboardInterrupt):
            Lock("x", client=client).acquire()
        wait_until(lambda: in_line(client, "x") == 1, what="who was interrupted waits no more")
    assert Lock("x").acquire(timeout=5)


def test_interrupted_when_it_was_granted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = Lock("x")

    class Struck(list):  # type: ignore[type-arg]
        def append(self, item: object) -> None:
            super().append(item)
            raise KeyboardInterrupt

    monkeypatch.setattr(lock, "_leases", Struck())
    with pytest.raises(KeyboardInterrupt):
        lock.acquire()
    assert not lock._leases
    assert Lock("x").acquire(timeout=5)


@pytest.mark.parametrize("moment", ["it is given up", "it is given back"])
def test_interrupted_again_where_nothing_can_be_done(
    new_client: NewClient, client: Client, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A lock that nobody can give back any more is free with the next heartbeat."""
    mine = new_client(heartbeat_interval=0.1, set_as_default=False)
    lock = Lock("x", client=mine)
    if moment == "it is given back":
        assert lock.acquire()
        lock._leases.popleft()  # and there it struck
    else:
        others = Lock("x")
        others.acquire()
        post, times = mine._post, iter(range(2))

        def struck(call: Any) -> None:
            if call.script.name == "leave" and next(times, None) is not None:
                raise KeyboardInterrupt
            post(call)

        monkeypatch.setattr(mine, "_post", struck)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire(timeout=0.01)
        others.release()
    assert Lock("x").acquire(timeout=10)


def test_lost_message(client: Client, new_client: NewClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are hints: a heartbeat tells that one did not come, and who waits looks."""
    other = new_client(set_as_default=False, heartbeat_interval=0.2)
    lost: list[bytes] = []
    real = other.session.on_message

    def on_message(channel: bytes, data: bytes) -> None:
        if b"y" in data[:4] and not lost:
            lost.append(data)
        else:
            real(channel, data)

    monkeypatch.setattr(other.session, "on_message", on_message)
    with Lock("x"):
        result = in_thread(Lock("x", client=other).acquire)
        wait_until(lambda: in_line(client, "x") == 2)
    assert result() is True
    assert lost


def test_broken_connections(cluster: LocalCluster, client: Client, new_client: NewClient) -> None:
    """Who waits while its connections break is told what it missed when they are there again."""
    clients = [new_client(set_as_default=False) for _ in range(4)]
    results = []
    first = Lock("x")
    first.acquire()

    def take(lock: Lock) -> bool:
        with lock:
            return True

    for number, other in enumerate(clients):
        results.append(in_thread(lambda other=other: take(Lock("x", client=other))))  # type: ignore[misc]
        wait_until(lambda count=number + 2: in_line(client, "x") == count)
    wire = cluster.endpoint.open()
    try:
        for kind in ("pubsub", "normal"):
            wire.call("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")
    finally:
        wire.close()
    first.release()
    assert [result() for result in results] == [True] * 4


def test_full_server(cluster: LocalCluster, client: Client) -> None:
    lock = Lock("x")
    lock.acquire()
    wire = cluster.endpoint.open()
    try:
        with servers.full(wire.call):
            with pytest.raises(ServerFull):
                Lock("y").acquire()
            assert lock.release() is True
    finally:
        wire.close()
    assert Lock("y").acquire(timeout=5)


def test_restart(client: Client) -> None:
    lock = Lock("x")
    lock.acquire()
    waiting = in_thread(Lock("x").acquire)
    wait_until(lambda: in_line(client, "x") == 2)
    client.restart()
    assert in_line(client, "x") == 2
    assert lock.release() is True
    assert waiting() is True


def test_a_server_that_lost_its_memory() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1) as own,
        Client(own, heartbeat_interval=0.2) as client,
    ):
        lock, semaphore = Lock("x"), Semaphore(2, "s")
        assert lock.acquire()
        assert semaphore.acquire()
        waiting = in_thread(Lock("x").acquire)
        wait_until(lambda: in_line(client, "x") == 2)
        wire = own.endpoint.open()
        wire.call("FLUSHALL")
        wire.close()
        assert waiting() is True  # it asked again, and who held it is forgotten
        assert lock.release() is False
        assert semaphore.acquire(timeout=5)  # it opened it again
        assert semaphore.release() is False
        assert semaphore.release() is True


# --- semaphores -------------------------------------------------------------------------------------------------------


def test_semaphore(client: Client, new_client: NewClient) -> None:
    other = new_client(set_as_default=False)
    semaphore = Semaphore(2, "s")
    assert semaphore.get_value() == 0
    assert semaphore.acquire()
    assert semaphore.acquire()
    assert semaphore.get_value() == 2
    theirs = Semaphore(2, "s", client=other)
    assert theirs.acquire(timeout=0) is False
    result = in_thread(theirs.acquire)
    semaphore.release()
    assert result() is True
    with pytest.raises(ValueError, match=r"Inconsistent max leases: 3, expected: 2"):
        Semaphore(3, "s").acquire()
    with pytest.raises(ValueError, match=r"Inconsistent max leases: 1, expected: 2"):
        Lock("s").acquire()
    with pytest.warns(RuntimeWarning, match="2 leases"):
        semaphore.close()
    with pytest.raises(SemaphoreClosed, match="not known"):
        semaphore.acquire()
    assert theirs.release()
    assert semaphore.release()
    with pytest.raises(RuntimeError):
        semaphore.release()
    with Semaphore(5, "s") as again:
        assert again.get_value() == 1


def test_semaphore_is_registered(client: Client) -> None:
    Semaphore(2, "s").register()
    with pytest.raises(ValueError, match="Inconsistent"):
        Semaphore(3, "s").register()
    Semaphore(2, "s").close()


def most_at_once(path: str, i: int, semaphore: Semaphore) -> int:
    with semaphore:
        marker = Path(path) / str(i)
        marker.touch()
        time.sleep(0.02)
        count = len(list(Path(path).iterdir()))
        marker.unlink()
        return count


def test_semaphore_in_tasks(client: Client, tmp_path: Path) -> None:
    counts = client.gather(
        client.map(most_at_once, [str(tmp_path)] * 16, range(16), semaphore=Semaphore(2, "s"))
    )
    assert max(counts) <= 2


# --- several locks ----------------------------------------------------------------------------------------------------


def test_multi_lock(client: Client, new_client: NewClient) -> None:
    other = new_client(set_as_default=False)
    lock, theirs = MultiLock(["x", "y"]), MultiLock(["y", "z"], client=other)
    with pytest.raises(ValueError, match="not yet acquired"):
        lock.release()
    with lock:
        assert lock.locked()
        assert theirs.acquire(timeout=0.05) is False
        assert theirs.acquire(blocking=False) is False
        assert theirs.acquire(num_locks=1) is True
        theirs.release()
        assert Lock("x").acquire(timeout=0) is True  # another lock, as in Dask
        with pytest.raises(RuntimeError, match="re-entrant"):
            lock.acquire()
        result = in_thread(theirs.acquire)
        wait_until(lambda: in_line(client, "@y") == 2)
    assert result() is True
    assert not lock.locked()
    with pytest.raises(ValueError, match="3 locks are needed"):
        lock.acquire(num_locks=3)
    with MultiLock():  # of nothing
        pass


def test_multi_locks_do_not_wait_in_a_circle(client: Client, new_client: NewClient) -> None:
    clients = [client, *(new_client(set_as_default=False) for _ in range(3))]
    count: list[int] = []

    def work(i: int) -> None:
        names = [f"n{(i + k) % 5}" for k in range(3)]
        for _ in range(20):
            with MultiLock(names if i % 2 else names[::-1], client=clients[i % 4]):
                count.append(i)

    results = [in_thread(lambda i=i: work(i)) for i in range(8)]  # type: ignore[misc]
    for result in results:
        result()
    assert len(count) == 160


# --- loops ------------------------------------------------------------------------------------------------------------


def test_asynchronous(cluster: LocalCluster, client: Client) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True, set_as_default=True) as loop_client:
            lock = await Lock("x")
            assert lock.client is loop_client
            async with lock:
                assert await lock.locked()
                assert await Lock("x").acquire(timeout=0.05) is False
                waiting = asyncio.create_task(Lock("x").acquire())
                second = Lock("x")
                after = asyncio.create_task(second.acquire())
                await wait_in_loop(lambda: in_line(client, "x") == 3)
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                await wait_in_loop(lambda: in_line(client, "x") == 2)
                with pytest.raises(TypeError, match="async with"):
                    with lock:
                        pass
            assert await after is True
            assert await second.release() is True
            semaphore = await Semaphore(2, "s")
            async with semaphore, semaphore:
                assert await semaphore.get_value() == 2
            async with MultiLock(["a", "b"]) as several:
                assert several.locked()
            with pytest.raises(ValueError, match="not yet acquired"):
                several.release()

    asyncio.run(main())


def test_cancelled_in_the_moment_when_it_is_granted(cluster: LocalCluster, client: Client) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as loop_client:
            for _ in range(20):
                first = Lock("x", client=loop_client)
                await first.acquire()
                waiting = asyncio.create_task(Lock("x", client=loop_client).acquire())
                await wait_in_loop(lambda: in_line(client, "x") == 2)
                await first.release()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                last = Lock("x", client=loop_client)
                assert await last.acquire(timeout=10) is True
                await last.release()

    asyncio.run(main())


async def wait_in_loop(condition: Callable[[], Any], timeout: float = 10.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.003)
