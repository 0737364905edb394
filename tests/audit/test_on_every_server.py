"""What a client does, all of it, on servers that are not a single one with all rights; and while a replica takes over."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Iterator

import numpy as np
import pytest

from redist import (
    Client,
    Event,
    LocalCluster,
    Lock,
    MultiLock,
    Pub,
    Queue,
    Semaphore,
    Sub,
    Variable,
    WorkerPlugin,
    as_completed,
    fire_and_forget,
    get_client,
    get_worker,
    wait,
)
from redist.errors import CancelledError
from redist.memory.headers import is_file_name
from servers import SentinelServer, Server, wait_until


def inc(x: int) -> int:
    return x + 1


def slowly(x: int) -> int:
    time.sleep(0.05)
    return x


@pytest.fixture(params=["redis7", "cluster3", "sentinel", "acl_server"])
def server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def cluster(server: Server, namespace: str) -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, address=server.url, namespace=namespace) as cluster:
        yield cluster


def take(queue: Queue) -> int:
    with Lock("x"):
        return queue.get(timeout=20)


def coordinate(client: Client) -> None:
    """Use everything that clients and tasks coordinate by."""
    queue, event, variable, sub = Queue("q", maxsize=2), Event("e"), Variable("v"), Sub("t")
    with Lock("x"), MultiLock(["x", "y"]), Semaphore(2, "s") as semaphore:
        taking = client.map(take, [queue] * 4, pure=False)
        assert semaphore.get_value() == 1
    for i in range(4):
        queue.put(i)
    assert sorted(client.gather(taking)) == list(range(4))
    queue.put([client.submit(inc, 1)])
    assert queue.get()[0].result() == 2
    variable.set(client.submit(inc, 2))
    assert variable.get().result() == 3
    variable.delete()
    event.set()
    assert event.wait(timeout=5)
    event.clear()
    Pub("t").put([1])
    assert sub.get(timeout=10) == [1]
    queue.close()
    semaphore.close()


def files(client: Client) -> list[str]:
    """The payload files of all workers."""
    folders = [worker["local_directory"] for worker in client.scheduler_info()["workers"].values()]
    return [name for folder in folders for name in os.listdir(folder) if is_file_name(name)]


def test_the_whole_client(server: Server, cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        assert client.gather(client.map(inc, range(50))) == list(range(1, 51))
        # News is pushed. Without that each would wait for the next heartbeats, 2 to 4 s.
        began = time.monotonic()
        for i in range(10):
            assert client.submit(inc, i, pure=False).result(10) == i + 1
        assert time.monotonic() - began < 15
        for future in as_completed(client.map(inc, range(5), pure=False), timeout=10):
            assert future.done()

        dropped = client.scatter(np.ones(50_000))
        assert files(client)
        del dropped
        wait_until(lambda: not files(client), what="what was evicted is gone")
        array = client.scatter(np.arange(50_000))
        assert client.submit(np.sum, array).result(10) == np.arange(50_000).sum()
        (address,) = client.who_has(array)[array.key]
        assert client.has_what()[address] == (array.key,)
        assert pickle.loads(pickle.dumps(array)).result()[-1] == 49_999

        client.publish_dataset(x=[array])
        client.publish_dataset(x=1, override=True)
        assert client.get_dataset("x") == 1
        assert client.list_datasets() == ("x",)
        client.unpublish_dataset("x")

        assert len(client.scheduler_info()["workers"]) == 2
        client.wait_for_workers(2, 10)
        assert set(client.nthreads()) == set(client.processing()) == set(client.has_what())
        assert client.name in str(client.why(array))
        assert client.usage().keys >= 1

        heard: list[object] = []
        client.subscribe_topic("topic", heard.append)
        client.submit(lambda: get_worker().log_event("topic", 5), pure=False).result(10)
        wait_until(lambda: heard, what="an event is heard")
        client.unsubscribe_topic("topic")
        client.set_metadata(["a", "b"], 1)
        assert client.get_metadata("a") == {"b": 1}
        assert len(client.run(os.getpid)) == len(client.get_versions()["workers"]) == 2

        assert len(client.register_plugin(WorkerPlugin(), name="plugin")) == 2
        assert len(client.unregister_worker_plugin("plugin")) == 2
        assert array.key in client.who_has()
        assert array.key in client.nbytes(summary=False)
        assert client.call_stack() == {}
        client.dump_cluster_state("memory://dump")

        slow = client.submit(time.sleep, 0.05, pure=False)
        slow.cancel()
        with pytest.raises(CancelledError):
            slow.result()
        failed = client.submit(divmod, 1, 0)
        assert isinstance(failed.exception(10), ZeroDivisionError)
        failed.retry()
        assert isinstance(failed.exception(10), ZeroDivisionError)

        inside = client.submit(lambda: [get_client().submit(inc, 7)]).result(20)
        assert inside[0].result(10) == 8
        (name, _) = cluster.workers
        assert client.submit(lambda: get_worker().name, workers=name).result(10) == name
        fire_and_forget(client.submit(inc, 99))

        generation = client.generation
        client.restart()
        assert client.generation == generation + 1
        assert array.cancelled()
        assert client.submit(inc, 1).result(20) == 2

        coordinate(client)

        if isinstance(server, SentinelServer):
            held = client.map(inc, range(20))
            wait(held)
            running = client.map(slowly, range(40), pure=False)
            server.ask("SENTINEL", "FAILOVER", server.service)
            assert client.gather(running) == list(range(40))
            assert client.gather(held) == list(range(1, 21))
            assert client.submit(inc, 1, pure=False).result(20) == 2
