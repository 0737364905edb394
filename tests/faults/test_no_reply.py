"""A server that goes away or becomes a replica in mid-life: every call that waits for a reply ends in time and says why."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from redist import Client, LocalCluster, WorkerPlugin, as_completed, wait
from redist.diagnostics.doctor import examine
from redist.errors import ConnectionLost, NoWorkers, ServerRefused, StoreError
from redist.store.connect import endpoint as make_endpoint
from redist.store.server import EmbeddedServer
from servers import fresh_namespace, wait_until

pytestmark = pytest.mark.timeout(60)

TIMEOUT = 0.5
MARGIN = 0.6

#: Every call that waits for a reply, and whether the server reads for it what a replica has as well.
CALLS: dict[str, tuple[Callable[[Client, Any], Any], bool]] = {
    "scatter": (lambda c, f: c.scatter(1), False),
    "scatter by its own timeout": (lambda c, f: c.scatter([2, 3], timeout=TIMEOUT), False),
    "scatter large": (lambda c, f: c.scatter(b"x" * 100_000), False),
    "submit large": (lambda c, f: c.submit(len, b"y" * 3_000_000), False),
    "publish_dataset": (lambda c, f: c.publish_dataset(1, name="new"), False),
    "get_dataset": (lambda c, f: c.get_dataset("old"), False),
    "unpublish_dataset": (lambda c, f: c.unpublish_dataset("old"), False),
    "list_datasets": (lambda c, f: c.list_datasets(), True),
    "retry": (lambda c, f: c.retry(f), False),
    "who_has": (lambda c, f: c.who_has(f), True),
    "has_what": (lambda c, f: c.has_what(), True),
    "scheduler_info": (lambda c, f: c.scheduler_info(), True),
    "processing": (lambda c, f: c.processing(), True),
    "usage": (lambda c, f: c.usage(), True),
    "why": (lambda c, f: c.why(f), True),
    "wait_for_workers": (lambda c, f: c.wait_for_workers(1, timeout=TIMEOUT), True),
    "run": (lambda c, f: c.run(abs, 1), True),
    "get_versions": (lambda c, f: c.get_versions(), True),
    "call_stack": (lambda c, f: c.call_stack(), True),
    "nbytes": (lambda c, f: c.nbytes(), True),
    "get_metadata": (lambda c, f: c.get_metadata("x", default=None), True),
    "set_metadata": (lambda c, f: c.set_metadata("x", 1), False),
    "set_metadata inside": (lambda c, f: c.set_metadata(["x", "y"], 1), False),
    "log_event": (lambda c, f: c.log_event("x", 1), False),
    "subscribe_topic": (lambda c, f: c.subscribe_topic("x", len), False),
    "get_events": (lambda c, f: c.get_events("x"), True),
    "register_plugin": (lambda c, f: c.register_plugin(WorkerPlugin()), False),
    "unregister_worker_plugin": (lambda c, f: c.unregister_worker_plugin("x"), False),
    "dump_cluster_state": (lambda c, f: c.dump_cluster_state("memory://dump"), True),
    "replicate": (lambda c, f: c.replicate([f], n=1), True),
    "rebalance": (lambda c, f: c.rebalance(), True),
    "retire_workers": (lambda c, f: c.retire_workers(n=1), True),
    "restart_workers": (lambda c, f: c.restart_workers([]), True),
    "memory": (lambda c, f: c.memory(), True),
    "nthreads": (lambda c, f: c.nthreads(), True),
    "upload_file": (lambda c, f: c.upload_file(__file__), False),
    "register_worker_callbacks": (lambda c, f: c.register_worker_callbacks(len), False),
    "forward_logging": (lambda c, f: c.forward_logging("x"), False),
    "cancel": (lambda c, f: c.cancel(f), False),
    "restart": (lambda c, f: c.restart(timeout=TIMEOUT), False),
}

#: What waits for a task, or only looks at the client, or refuses to be called at all, or ends it.
OTHERS = {
    "as_current", "close", "closed", "compute", "connects_to", "current", "dashboard_link", "datasets", "futures",
    "futures_of", "gather", "generation", "get", "get_executor", "get_scheduler_logs", "get_task_stream",
    "get_worker_logs", "is_of", "map", "name", "namespace", "ncores", "normalize_collection", "persist", "profile",
    "run_on_scheduler", "shutdown", "story", "submit", "unforward_logging",
    "unregister_scheduler_plugin", "unsubscribe_topic", "url", "write_scheduler_file",
}  # fmt: skip


def test_every_method_is_called_or_waits_for_nothing() -> None:
    called = {name.split(" ")[0] for name in CALLS}
    assert {name for name in dir(Client) if not name.startswith("_")} == called | OTHERS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path / "server", persistent=True, settings={"appendfsync": "always"})
    server.start()
    yield server
    server.stop()


def make(server: EmbeddedServer, **options: Any) -> Client:
    return Client(make_endpoint(server.url, fresh_namespace()), timeout=TIMEOUT, **options)


def kill(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGKILL)
    server.stop()


def command(server: EmbeddedServer, *words: str) -> None:
    wire = make_endpoint(server.url).open()
    wire.call(*words)
    wire.close()


def outcome_of(call: Callable[[], Any]) -> tuple[BaseException | None, float]:
    start = time.monotonic()
    try:
        call()
        return None, time.monotonic() - start
    except Exception as error:
        return error.with_traceback(None), time.monotonic() - start


def complaints(client: Client, held: Any, kind: type[StoreError], word: str, *, replica: bool) -> list[str]:
    wrong = []
    for name, (call, reads) in CALLS.items():
        error, took = outcome_of(lambda call=call: call(client, held))  # type: ignore[misc]
        if replica and reads and (error is None or (isinstance(error, TimeoutError) and word in str(error))):
            continue
        if replica and reads and isinstance(error, NoWorkers):
            continue
        if type(error) is not kind or word not in str(error) or took > TIMEOUT + MARGIN:
            wrong.append(f"{name}: {took:.2f} s, {error!r}")
        elif not replica and error.pending != (name == "cancel"):  # type: ignore[union-attr]
            wrong.append(f"{name}: pending {error.pending}")  # type: ignore[union-attr]
    return wrong


def is_clean(client: Client) -> bool:
    report = examine(client._endpoint)
    assert not report.violations, report
    return True


def goes_on(client: Client, value: Any) -> None:
    """The client works, what it held is there, and nothing is left of what was given up."""
    assert client.gather(client.scatter([1, "again"])) == [1, "again"]
    assert client.gather(value) == 7
    del value


def test_a_killed_server(server: EmbeddedServer) -> None:
    client = make(server)
    client.publish_dataset(5, name="old")
    kept, cancelled = client.scatter(7), client.scatter(8)
    kill(server)
    wait_until(lambda: not client._driver.links.up)
    assert complaints(client, cancelled, ConnectionLost, "nothing answers at", replica=False) == []
    server.start()
    wait_until(lambda: client._driver.links.up and client._driver.links.since is None)
    goes_on(client, kept)
    # What never left was taken back; a cancel is carried out.
    assert client.list_datasets() == ("old",)
    assert client.get_dataset("old") == 5
    assert cancelled.cancelled()
    del kept, cancelled
    client.unpublish_dataset("old")
    wait_until(lambda: client.usage().keys == 0, what="everything given up is gone")
    assert is_clean(client)
    client.close()


def test_a_server_that_becomes_a_replica(server: EmbeddedServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "redist.session")
    client = make(server)
    client.publish_dataset(5, name="old")
    kept, cancelled = client.scatter(7), client.scatter(8)
    command(server, "REPLICAOF", "127.0.0.1", "1")
    assert complaints(client, cancelled, ServerRefused, "READONLY", replica=True) == []
    future = client.submit(len, "abc")
    error, took = outcome_of(lambda: future.result(TIMEOUT))
    assert isinstance(error, TimeoutError)
    assert "READONLY" in str(error)
    assert "no calls get through since" in str(error)
    assert took < TIMEOUT + MARGIN
    said = [record.getMessage() for record in caplog.records if "READONLY" in record.getMessage()]
    assert len(said) == 1, said
    command(server, "REPLICAOF", "NO", "ONE")
    wait_until(lambda: client._driver.links.since is None)
    goes_on(client, kept)
    assert cancelled.cancelled()
    del kept, cancelled, error
    future.release()
    for name in client.list_datasets():
        client.unpublish_dataset(name)
    wait_until(lambda: client.usage().keys == 0, what="everything given up is gone")
    assert is_clean(client)
    client.close()


def test_a_call_that_may_be_applied_is_applied_once(server: EmbeddedServer) -> None:
    client = make(server)
    client.scatter(0)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        error, took = outcome_of(lambda: client.publish_dataset("late", name="late"))
        assert type(error) is ConnectionLost
        assert error.pending
        assert "does not answer" in str(error)
        assert took < TIMEOUT + MARGIN
        error, _ = outcome_of(lambda: client.scatter("lost"))
        assert type(error) is ConnectionLost
        assert error.pending
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert client.get_dataset("late") == "late"
    again = client.scatter("lost")
    assert again.result(5) == "lost"
    assert client.session.ledger.total == 1
    del again, error
    client.unpublish_dataset("late")
    wait_until(lambda: client.usage().keys == 0)
    assert is_clean(client)
    client.close()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_why_waits_for_its_two_answers_no_longer_than_the_timeout(
    server: EmbeddedServer, how: signal.Signals
) -> None:
    client = Client(make_endpoint(server.url, fresh_namespace()), timeout=2.0)
    kept = client.scatter({"k": 7})
    if how == signal.SIGKILL:
        kill(server)
        wait_until(lambda: not client._driver.links.up)
    else:
        os.kill(server.pid, how)
    error, took = outcome_of(lambda: client.why("k"))
    assert type(error) is ConnectionLost
    assert took < 3.0
    if how == signal.SIGKILL:
        server.start()
    else:
        os.kill(server.pid, signal.SIGCONT)
    assert client.why("k").state == "memory"
    del kept
    wait_until(lambda: client.usage().keys == 0, what="nothing is left")
    assert is_clean(client)
    client.close()


def test_waits_say_that_the_connection_is_down(server: EmbeddedServer) -> None:
    client = make(server)
    future = client.submit(len, "abc")
    kill(server)
    wait_until(lambda: not client._driver.links.up)
    for call in (
        lambda: future.result(TIMEOUT),
        lambda: wait(future, TIMEOUT),
        lambda: next(iter(as_completed([future], timeout=TIMEOUT))),
    ):
        error, took = outcome_of(call)
        assert isinstance(error, TimeoutError)
        assert "no calls get through since" in str(error)
        assert "nothing answers at" in str(error)
        assert took < TIMEOUT + MARGIN
    server.start()
    future.release()
    wait_until(lambda: client._driver.links.up and not client.session.lane.unanswered)
    client.close()


@pytest.mark.parametrize("replica", [False, True])
def test_in_an_event_loop(server: EmbeddedServer, replica: bool) -> None:
    async def main() -> None:
        client = await make(server, asynchronous=True)
        kept, cancelled = await client.scatter([7, 8])
        if replica:
            command(server, "REPLICAOF", "127.0.0.1", "1")
        else:
            kill(server)
            while client._driver.links.up:
                await asyncio.sleep(0.01)
        kind = ServerRefused if replica else ConnectionLost
        calls = (
            lambda: client.scatter(1, timeout=TIMEOUT),
            lambda: client.scatter(b"x" * 100_000),
            lambda: client.publish_dataset(1, name="new"),
            lambda: client.get_dataset("old"),
            lambda: client.cancel(cancelled),
            lambda: client.restart(timeout=TIMEOUT),
        )
        for call in calls:
            start = time.monotonic()
            with pytest.raises(kind):
                await call()
            assert time.monotonic() - start < TIMEOUT + MARGIN
        if replica:
            command(server, "REPLICAOF", "NO", "ONE")
        else:
            server.start()
        while client._driver.links.since is not None:
            await asyncio.sleep(0.01)
        assert await client.gather(await client.scatter([1, "again"])) == [1, "again"]
        assert await client.gather(kept) == 7
        await client.close()

    asyncio.run(main())


def test_with_a_worker_the_work_goes_on() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1) as cluster,
        Client(cluster, timeout=TIMEOUT) as client,
    ):
        held = client.submit(bytes, 100_000)
        held.result(10)
        server = cluster.server
        assert server is not None
        command(server, "REPLICAOF", "127.0.0.1", "1")
        wait_until(lambda: client._driver.links.since is not None)
        later = client.submit(len, held)
        error, took = outcome_of(lambda: client.scatter(b"z" * 200_000))
        assert type(error) is ServerRefused
        assert took < 2 * TIMEOUT + MARGIN
        command(server, "REPLICAOF", "NO", "ONE")
        assert later.result(20) == 100_000
        assert client.gather(client.scatter(b"z" * 200_000)) == b"z" * 200_000
        del held, later, error
        wait_until(lambda: client.usage().keys == 0)
        assert is_clean(client)


def test_a_large_argument_of_a_loop_waits_for_the_server() -> None:
    async def main(cluster: LocalCluster) -> None:
        async with Client(cluster, timeout=TIMEOUT, asynchronous=True) as client:
            assert await client.submit(len, "ab") == 2
            server = cluster.server
            assert server is not None
            command(server, "REPLICAOF", "127.0.0.1", "1")
            future = client.submit(len, b"y" * 3_000_000)
            await asyncio.sleep(3 * TIMEOUT)
            command(server, "REPLICAOF", "NO", "ONE")
            assert await asyncio.wait_for(future.result(), 20) == 3_000_000

    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        asyncio.run(main(cluster))


def test_a_finished_value_is_read_although_the_time_is_up(server: EmbeddedServer) -> None:
    client = make(server)
    future = client.scatter("value")
    future._state.value = None
    assert future.result(timeout=0) == "value"
    client.close()
