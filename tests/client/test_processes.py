"""Clients and processes: the interpreter's end, fork, Ctrl-C, a client that is killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redist import Client, Future, LocalCluster, as_completed, fire_and_forget, get_client, wait
from redist.errors import ForkedClientError, NoClientError
from servers import wait_until


def slowly(x: Any, seconds: float = 0.2) -> Any:
    time.sleep(seconds)
    return x


def script(cluster: LocalCluster, text: str, *args: str) -> subprocess.Popen[str]:
    program = f"from redist import *\nclient = Client({cluster.scheduler_address!r})\n" + textwrap.dedent(
        text
    )
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("end", ["", "raise SystemExit(3)", "raise ValueError('mine')"])
def test_interpreter_ends_with_live_futures(cluster: LocalCluster, keys: Any, end: str) -> None:
    process = script(
        cluster,
        f"""
        futures = client.map(lambda i: i + 1, range(50))
        cycle = [futures]; cycle.append(cycle)
        print(sum(client.gather(futures)))
        pending = client.submit(__import__('time').sleep, 0.3)
        {end}
        """,
    )
    out, err = process.communicate(timeout=30)
    assert out == "1275\n"
    assert process.returncode == {"": 0, "raise SystemExit(3)": 3}.get(end, 1)
    assert err == "" if "ValueError" not in end else err.rstrip().endswith("ValueError: mine")
    wait_until(lambda: not keys(), what="every key is gone")


def test_its_own_cluster_ends_behind_the_client() -> None:
    program = """
    from redist import Client, LocalCluster
    client = Client(LocalCluster(n_workers=0))
    driver = client._driver
    future = client.submit(abs, -1)
    import weakref
    # finalizers run in the order of their being made, backwards: this one right before the cluster's
    weakref.finalize(client.cluster, lambda: print(driver.closed))
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


def test_asynchronous_client_at_the_end(cluster: LocalCluster, keys: Any) -> None:
    process = script(
        cluster,
        """
        import asyncio
        async def main():
            global other, future
            other = await Client(client.url, asynchronous=True)
            future = other.submit(pow, 2, 3)
            print(await future)
        asyncio.run(main())
        client.close()
        """,
    )
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("8\n", "", 0)


def test_ctrl_c_in_a_wait(client: Client) -> None:
    future = client.submit(slowly, 1, 0.6)
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        future.result()
    timer.join()
    assert future.result(10) == 1
    assert client.submit(slowly, 2, 0).result(10) == 2


def test_ctrl_c_while_submitting(client: Client) -> None:
    """Whatever it interrupts, the client goes on: what was sent or read half way is sent again."""
    for i in range(10):
        timer = threading.Timer(0.002 * (i + 1), os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            while True:
                client.gather(client.map(slowly, range(20), seconds=0, pure=False))
        timer.join()
        assert client.submit(slowly, i, 0, pure=False).result(20) == i


def test_fork(client: Client) -> None:
    future = client.submit(slowly, 1, 0)
    assert future.result(10) == 1
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        for attempt in (
            future.result,
            lambda: client.submit(slowly, 2),
            lambda: client.gather([future]),
            get_client,
        ):
            try:
                attempt()
            except (ForkedClientError, ValueError) as error:
                os.write(writing, type(error).__name__.encode() + b" ")
        future.release()
        client.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(writing)
    assert os.read(reading, 200) == b"ForkedClientError " * 3 + b"NoClientError "
    os.close(reading)
    assert future.result() == 1
    assert client.submit(slowly, 3, 0).result(10) == 3


def use(future: Future[int]) -> str:
    try:
        return repr(future.result(timeout=10))
    except ForkedClientError as error:
        return f"{future.status} {error}"


def use_in_a_pool() -> str:
    future = get_client().submit(slowly, 1, 0)
    assert future.result(10) == 1
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply_async(use, (future,)).get(timeout=20)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["client", "task"])
def test_a_future_sent_into_a_forked_pool_says_that_it_is_of_no_use(client: Client, where: str) -> None:
    """It is not the unpickling that fails, for that would end the pool's process, and its result never come."""
    told = use_in_a_pool() if where == "client" else client.submit(use_in_a_pool).result(40)
    assert told.startswith("pending this client belongs to the parent process")
    client.restart()  # else the hand-off that nobody took over would keep the key for five minutes


SPAWNED = """
import multiprocessing, sys
from redist import Client, Future
from redist.errors import NoClientError

def use(future):
    try:
        return future.result(timeout=10), future
    except NoClientError:
        return repr(future), future

if __name__ == "__main__":
    with Client(sys.argv[1]) as client, multiprocessing.get_context("spawn").Pool(1) as pool:
        future = client.submit(abs, -1, key="sent")
        told, back = pool.apply_async(use, (future,)).get(timeout=30)
        print(told, back.result(10))
        try:
            pool.apply_async(Future.result, (back,)).get(timeout=30)
        except NoClientError as error:
            print(error)
        client.restart()  # else the second hand-off, which nobody took over, would keep the key for five minutes
"""


def test_a_future_sent_into_a_spawned_pool(cluster: LocalCluster, keys: Any, tmp_path: Path) -> None:
    """There is no client: the Future says so when it is used, and is as before where there is one."""
    program = tmp_path / "spawned.py"
    program.write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, str(program), cluster.scheduler_address], capture_output=True, text=True, timeout=50
    )
    assert done.stdout.startswith(
        "<Future: unbound, key: sent> 1\nthe Future 'sent' was unpickled where there was no client"
    )
    assert (done.stderr, done.returncode) == ("", 0)
    wait_until(lambda: not keys(), what="every key is gone")


def unbound(data: bytes) -> Future[Any]:
    """Load a Future where there is no client."""
    with set_aside():
        future: Future[Any] = pickle.loads(data)
    return future


@contextlib.contextmanager
def set_aside() -> Iterator[None]:
    """There is no current client meanwhile."""
    from redist import current

    defaults, current._defaults[:] = list(current._defaults), []
    try:
        yield
    finally:
        current._defaults[:] = defaults


USES: dict[str, Callable[[Client, Future[Any]], Any]] = {
    "result": lambda client, future: future.result(),
    "exception": lambda client, future: future.exception(),
    "done": lambda client, future: future.done(),
    "status": lambda client, future: future.status,
    "add_done_callback": lambda client, future: future.add_done_callback(print),
    "future.cancel": lambda client, future: future.cancel(),
    "gather": lambda client, future: client.gather([future]),
    "submit": lambda client, future: client.submit(slowly, future),
    "submit, nested": lambda client, future: client.submit(slowly, [future]),
    "map": lambda client, future: client.map(slowly, [future]),
    "cancel": lambda client, future: client.cancel([future]),
    "retry": lambda client, future: client.retry([future]),
    "scatter": lambda client, future: client.scatter([future]),
    "publish_dataset": lambda client, future: client.publish_dataset(x=future),
    "who_has": lambda client, future: client.who_has([future]),
    "wait": lambda client, future: wait([future], timeout=5),
    "as_completed": lambda client, future: list(as_completed([future])),
    "fire_and_forget": lambda client, future: fire_and_forget(future),
}


def test_an_unbound_future(client: Client, keys: Callable[[], list[str]]) -> None:
    data = pickle.dumps(client.submit(slowly, 1, 0, key="sent"))
    future = unbound(data)
    assert (future.key, future.name, future.nbytes, future.type) == ("sent", "sent", 0, None)
    accepted = []
    for name, use in USES.items():
        try:
            use(client, future)
            accepted.append(name)
        except NoClientError as error:
            assert "'sent' was unpickled where there was no client" in str(error)  # noqa: PT017
    assert accepted == []
    again = unbound(pickle.dumps(future))
    del future  # counts for nothing
    again.bind_client(client)
    assert again.result(10) == 1
    again.release()
    wait_until(lambda: not keys(), what="the hand-off is over, and nothing is left")


def test_client_in_a_forked_child(
    client: Client, cluster: LocalCluster, keys: Callable[[], list[str]]
) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with Client(cluster.scheduler_address) as mine:
                os.write(writing, str(mine.submit(slowly, 7, 0).result(10)).encode())
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(writing)
    assert os.read(reading, 10) == b"7"
    os.close(reading)


def test_killed_client_is_released(cluster: LocalCluster, keys: Any) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            (
                f"from redist import *\nclient = Client({cluster.scheduler_address!r}, heartbeat_interval=0.2)\n"
                "futures = client.map(lambda i: i, range(20)); wait(futures); print('ready', flush=True); input()"
            ),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    assert len(keys()) == 20
    process.kill()
    process.wait()
    process.stdout.close()
    process.stdin.close()
    wait_until(lambda: not keys(), 20, "what the client held is released")


def test_a_named_session_is_taken_up(cluster: LocalCluster, keys: Callable[[], list[str]]) -> None:
    """What a client that was killed held is there for the next of its name, and stays."""
    process = script(
        cluster,
        """
        import os, signal
        client = Client(client.url, name="nightly", grace="1h")
        futures = client.map(abs, range(1200), key=[f"n-{i}" for i in range(1200)])
        twice = Future("n-7")
        scattered = client.scatter(b"x" * 100_000)
        late = client.submit(lambda: __import__("time").sleep(1) or 5, key="late")
        assert sum(client.gather(futures)) == sum(range(1200))
        print(scattered.key, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """,
    )
    out, _ = process.communicate(timeout=60)
    scattered = out.strip()
    beats: list[Any] = []
    with Client(cluster, name="nightly", grace="1h", set_as_default=False) as client:
        assert client.session.adopted
        assert set(client.futures) == {f"n-{i}" for i in range(1200)} | {scattered, "late"}
        incarnation = client.session.incarnation
        client.session.on_beat = beats.append
        for _ in range(5):
            count = len(beats)
            with client.session.lock:
                client.session.heart.beat()
                client._driver.push_out()
            wait_until(lambda count=count: len(beats) > count, what="a heartbeat is answered")
        assert beats[-1].agree
        assert client.session.incarnation == incarnation
        assert "n-7" in keys()
        assert client.gather([Future(f"n-{i}", client) for i in range(1200)]) == list(range(1200))
        assert Future("late", client).result(20) == 5
        assert Future(scattered, client).result(20) == b"x" * 100_000
        assert Future("n-3", client).result(20) == 3
    wait_until(lambda: not keys(), what="every key is gone")


def test_a_client_that_stands_still_is_given_up_when_it_said(
    cluster: LocalCluster, keys: Callable[[], list[str]]
) -> None:
    """Its connections stand all the time."""
    process = script(
        cluster,
        """
        import time
        first, client = client, Client(client.url, silence="1s", heartbeat_interval=0.2)
        first.close()
        held = client.submit(abs, -1, key="held")
        held.result()
        print("ready", flush=True)
        time.sleep(60)
        """,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    assert "held" in keys()
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: "held" not in keys(), 30, "what it held is released")
    process.kill()
    process.wait()
    process.stdout.close()
    process.stderr.close()
