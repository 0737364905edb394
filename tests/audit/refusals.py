"""Calls that Dask refuses, to be made of either library: `python refusals.py` makes them of dask.distributed."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias


def inc(x: int) -> int:
    return x + 1


def fail() -> None:
    raise ValueError("failed")


class Counter:
    def __init__(self) -> None:
        self.n = 0

    def fail(self) -> None:
        raise KeyError("in a method")


def calls(lib: Any, client: Any) -> dict[str, Callable[[], Any]]:
    """Return what is to be refused, by a name for people."""
    good, bad = client.submit(inc, 1), client.submit(fail)
    released, cancelled = client.submit(inc, 2), client.submit(inc, 3)
    lib.wait([good, bad, released, cancelled])
    released.release()
    cancelled.cancel()
    client.publish_dataset(taken=1)
    actor = client.submit(Counter, actor=True).result()
    full = lib.Queue("full", maxsize=1)
    full.put(1)

    def slow() -> Any:
        return client.submit(time.sleep, 0.5, pure=False)

    return {
        "map: nothing to go over": lambda: client.map(inc),
        "map: no function": lambda: client.map("inc", [1]),
        "map: a number": lambda: client.map(inc, 5),
        "map: a Future": lambda: client.map(inc, good),
        "map: batch_size": lambda: client.map(inc, [1, 2], batch_size="x"),
        "map: allow_other_workers alone": lambda: client.map(inc, [3], allow_other_workers=True),
        "submit: no function": lambda: client.submit("inc", 1),
        "submit: None": lambda: client.submit(None),
        "submit: a Future as function": lambda: client.submit(good),
        "submit: allow_other_workers alone": lambda: client.submit(inc, 3, allow_other_workers=True),
        "submit: allow_other_workers": lambda: client.submit(inc, 4, workers="q", allow_other_workers="x"),
        "submit: priority": lambda: client.submit(inc, 5, priority="x").result(5),
        "submit: fifo_timeout": lambda: client.submit(inc, 6, fifo_timeout="soon").result(5),
        "submit: a key that is a list": lambda: client.submit(inc, 7, key=["a"]),
        "submit: a key that is an object": lambda: client.submit(inc, 7, key=object()),
        "submit: a key that is a bool": lambda: client.submit(inc, 7, key=True),
        "submit: too many arguments": lambda: client.submit(inc, 7, y=8).result(),
        "submit: a lock": lambda: client.submit(inc, threading.Lock()),
        "submit: a client": lambda: client.submit(inc, client),
        "submit: a cancelled Future": lambda: client.submit(inc, cancelled).result(),
        "gather: released": lambda: client.gather([released]),
        "gather: cancelled": lambda: client.gather([cancelled]),
        "gather: failed": lambda: client.gather([good, bad]),
        "scatter: a queue": lambda: client.scatter(queue.Queue()),
        "scatter: workers": lambda: client.scatter(1, workers=3),
        "scatter: broadcast": lambda: client.scatter(1, broadcast="x"),
        "scatter: a negative broadcast": lambda: client.scatter(1, broadcast=-1),
        "publish_dataset: a name that is taken": lambda: client.publish_dataset(1, name="taken"),
        "publish_dataset: no name": lambda: client.publish_dataset(1),
        "publish_dataset: no value": lambda: client.publish_dataset(name="x"),
        "get_dataset: unknown": lambda: client.get_dataset("unknown"),
        "datasets: unknown": lambda: client.datasets["unknown"],
        "Future: no key": lambda: lib.Future(),
        "result: in time": lambda: slow().result(timeout=0.01),
        "result: at once": lambda: slow().result(timeout=0),
        "result: timeout": lambda: good.result(timeout="soon"),
        "result: released": lambda: released.result(),
        "result: cancelled": lambda: cancelled.result(),
        "exception: in time": lambda: slow().exception(timeout=0.01),
        "traceback: in time": lambda: slow().traceback(timeout=0.01),
        "wait: in time": lambda: lib.wait([slow()], timeout=0.01),
        "wait: return_when": lambda: lib.wait([good], return_when="NEVER"),
        "wait: Futures one by one": lambda: lib.wait(good, bad),
        "wait: timeout": lambda: lib.wait([good], timeout="soon"),
        "as_completed: a number": lambda: lib.as_completed(5),
        "as_completed: a list of numbers": lambda: list(lib.as_completed([5])),
        "as_completed: a Future": lambda: lib.as_completed(good),
        "as_completed: add": lambda: lib.as_completed().add(5),
        "as_completed: update": lambda: lib.as_completed().update(5),
        "as_completed: nothing": lambda: next(lib.as_completed()),
        "as_completed: in time": lambda: list(lib.as_completed([slow()], timeout=0.01)),
        "as_completed: timeout": lambda: lib.as_completed([good], timeout="soon"),
        "as_completed: failed": lambda: list(lib.as_completed([bad], with_results=True)),
        "has_what": lambda: client.has_what(5),
        "processing: unknown": lambda: client.processing(["tcp://127.0.0.1:1"]),
        "rebalance: unknown": lambda: client.rebalance(workers=["tcp://127.0.0.1:1"]),
        "restart_workers: unknown": lambda: client.restart_workers(["tcp://127.0.0.1:1"], timeout=3),
        "replicate: none": lambda: client.replicate([good], n=0),
        "nbytes: unknown": lambda: client.nbytes(["unknown"], summary=False),
        "call_stack: unknown": lambda: client.call_stack(keys=["unknown"]),
        "get_metadata: unknown": lambda: client.get_metadata(["unknown", "x"]),
        "log_event: an object": lambda: client.log_event("topic", object()),
        "unsubscribe_topic: unknown": lambda: client.unsubscribe_topic("unknown"),
        "register_plugin: none": lambda: client.register_plugin(5),
        "register_plugin: a class": lambda: client.register_plugin(lib.WorkerPlugin),
        "unregister_worker_plugin: unknown": lambda: client.unregister_worker_plugin("unknown"),
        "unforward_logging: unknown": lambda: client.unforward_logging("unknown"),
        "upload_file: missing": lambda: client.upload_file("/nonexistent.py"),
        "run: no function": lambda: client.run(5),
        "run: failed": lambda: client.run(fail),
        "run: on_error": lambda: client.run(fail, on_error="x"),
        "run: workers": lambda: client.run(inc, 1, workers=5),
        "wait_for_workers: none": lambda: client.wait_for_workers(0),
        "wait_for_workers: a str": lambda: client.wait_for_workers("x"),
        "wait_for_workers: a fraction": lambda: client.wait_for_workers(1.5),
        "wait_for_workers: in time": lambda: client.wait_for_workers(10, timeout=0.01),
        "get: a circle": lambda: client.get({"x": (inc, "y"), "y": (inc, "x")}, "x"),
        "get: unknown": lambda: client.get({"x": (inc, 1)}, "y"),
        "get: failed": lambda: client.get({"x": (fail,)}, "x"),
        "dump_cluster_state: format": lambda: client.dump_cluster_state("/nonexistent", format="x"),
        "write_scheduler_file": lambda: client.write_scheduler_file("/nonexistent/x"),
        "get_executor: unknown": lambda: client.get_executor(unknown=1),
        "executor: no function": lambda: client.get_executor().submit(5),
        "executor: in time": lambda: list(client.get_executor().map(time.sleep, [0.5], timeout=0.01)),
        "get_worker: outside": lambda: lib.get_worker(),
        "secede: outside": lambda: lib.secede(),
        "worker_client: outside": lambda: lib.worker_client().__enter__(),
        "Client: a number": lambda: lib.Client(5),
        "Client: a scheme": lambda: lib.Client("nonsense://x", timeout=1),
        "Client: nobody there": lambda: lib.Client("127.0.0.1:1", timeout=2),
        "Client: a keyword": lambda: lib.Client(client.cluster, unknown=1),
        "Queue: maxsize": lambda: lib.Queue("q", maxsize="x").put(1, timeout=1),
        "Queue: empty": lambda: lib.Queue("empty").get(timeout=0.01),
        "Queue: a number in time": lambda: lib.Queue("empty").get(timeout=0.01, batch=3),
        "Queue: full": lambda: full.put(2, timeout=0.01),
        "Queue: timeout": lambda: lib.Queue("empty").get(timeout="soon"),
        "Variable: no value": lambda: lib.Variable("empty").get(timeout=0.01),
        "Lock: not held": lambda: lib.Lock("l").release(),
        "Lock: timeout": lambda: lib.Lock("l").acquire(timeout="soon"),
        "Lock: not to be waited for": lambda: lib.Lock("l").acquire(blocking=False, timeout=1),
        "MultiLock: not held": lambda: lib.MultiLock(["a", "b"]).release(),
        "Event: timeout": lambda: lib.Event("e").wait(timeout="soon"),
        "Semaphore: not held": lambda: lib.Semaphore(1, name="s").release(),
        "Actor: unknown": lambda: actor.unknown,
        "Actor: failed": lambda: actor.fail().result(),
    }


def async_calls(lib: Any, client: Any) -> dict[str, Callable[[], Any]]:
    """Return what is to be refused when it is awaited."""
    wrong = client.submit(fail)

    async def opened(kind: Any, name: str) -> Any:
        found = kind(name, client=client)
        return await found if hasattr(found, "__await__") else found

    async def empty_queue() -> None:
        await (await opened(lib.Queue, "empty too")).get(timeout=0.01)

    async def empty_variable() -> None:
        await (await opened(lib.Variable, "empty too")).get(timeout=0.01)

    async def in_time() -> None:
        async for _ in lib.as_completed([client.submit(time.sleep, 0.5, pure=False)], timeout=0.01):
            pass

    return {
        "gather": lambda: client.gather([wrong]),
        "get_dataset": lambda: client.get_dataset("unknown"),
        "result": lambda: client.submit(time.sleep, 0.5, pure=False).result(timeout=0.01),
        "wait": lambda: lib.wait([client.submit(time.sleep, 0.5, pure=False)], timeout=0.01),
        "wait_for_workers": lambda: client.wait_for_workers(10, timeout=0.01),
        "as_completed": in_time,
        "Queue": empty_queue,
        "Variable": empty_variable,
        "run": lambda: client.run(fail),
        "get_metadata": lambda: client.get_metadata("unknown"),
    }


#: Type and text of what a call raised, None for one that was served.
Outcome: TypeAlias = "tuple[type[BaseException], str] | None"


def outcomes(lib: Any, client: Any) -> dict[str, Outcome]:
    """Make the calls and return what came of each."""
    found: dict[str, Outcome] = {}
    for name, call in calls(lib, client).items():
        try:
            call()
            found[name] = None
        except Exception as error:
            found[name] = type(error), str(error)
    lib.Queue("full").close()
    client.unpublish_dataset("taken")
    return found


async def async_outcomes(lib: Any, address: Any) -> dict[str, Outcome]:
    """Await the calls and return what came of each."""
    found: dict[str, Outcome] = {}
    async with lib.Client(address, asynchronous=True) as client:
        for name, call in async_calls(lib, client).items():
            try:
                await call()
                found[f"async {name}"] = None
            except Exception as error:
                found[f"async {name}"] = type(error), str(error)
    return found


def main() -> None:
    import distributed

    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=4, processes=False, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        found = outcomes(distributed, client)
        found |= asyncio.run(async_outcomes(distributed, cluster.scheduler_address))
    print(json.dumps({name: [came[0].__name__, came[1]] if came else None for name, came in found.items()}))


if __name__ == "__main__":
    main()
