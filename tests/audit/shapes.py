"""What calls give, in the types of it: made with redist or with Dask, by a synchronous or an asynchronous client.

Run as a program it makes them with Dask and writes the outcome into the file that it is given, as JSON.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

Outcome: TypeAlias = "dict[str, str]"
DEPTH = 3
#: s in which what was submitted begins, or ends
PATIENCE = 30.0


def inc(x: int) -> int:
    return x + 1


def nothing() -> None:
    pass


def hold(path: str) -> None:
    """Run until there is a file."""
    while not os.path.exists(path):
        time.sleep(0.01)


def shape(value: Any, depth: int = DEPTH) -> str:
    """Describe a value by its types; of a collection by those of its first item."""
    if isinstance(value, Mapping):
        if not depth:
            return "mapping"
        items = [f"{shape(k, depth - 1)}: {shape(v, depth - 1)}" for k, v in list(value.items())[:1]]
        return f"mapping {{{', '.join(items)}}}"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value).__name__
    if isinstance(value, list | tuple | set | frozenset):
        kind = type(value).__name__
        return f"{kind}[{shape(next(iter(value)), depth - 1)}]" if value and depth else kind
    if type(value).__name__ not in ("Client", "Future", "ClientExecutor", "as_completed") and hasattr(
        value, "__enter__"
    ):
        return "context manager"
    return type(value).__name__


def of_client(lib: Any, client: Any, path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls of a client, in the order in which they are to be made."""
    import dask

    class Plugin(lib.WorkerPlugin):  # type: ignore[misc]
        pass

    # before any task: a worker's metrics that tell of one cannot be written by Dask, and come with its next heartbeat
    yield "write_scheduler_file(str)", lambda: client.write_scheduler_file(str(path / "file"))
    future = client.submit(bytes, 100_000)  # not so small that the server would have it
    lazy = dask.delayed(inc)(2)
    module = path / "uploaded_for_its_shape.py"
    module.write_text("x = 1\n")
    for name, *args in (
        ("gather", future), ("submit", inc, 5), ("map", inc, [1, 2]), ("gather", [future]), ("gather", {"a": future}),
        ("scatter", [1, 2]), ("scatter", {"k": 1}), ("scatter", 7), ("who_has", [future]), ("has_what",),
        ("nthreads",), ("ncores",), ("scheduler_info",), ("nbytes",), ("nbytes", None, False), ("processing",),
        ("call_stack",), ("call_stack", None, ["x"]), ("list_datasets",), ("get_versions",), ("wait_for_workers", 1),
        ("set_metadata", "x", 1), ("get_metadata", "x"), ("get_metadata", "none", 3), ("log_event", "topic", 1),
        ("get_events", "topic"),
        ("subscribe_topic", "topic", print), ("unsubscribe_topic", "topic"), ("run", inc, 1), ("compute", lazy),
        ("compute", [lazy]), ("persist", lazy), ("persist", [lazy]), ("get", {"x": 1}, "x"), ("get", {"x": 1}, ["x"]),
        ("normalize_collection", lazy), ("futures_of", [future]), ("get_executor",), ("register_plugin", Plugin(), "plugin"),
        ("unregister_worker_plugin", "plugin"), ("upload_file", str(module)), ("forward_logging",), ("unforward_logging",),
        ("replicate", [future]), ("rebalance",), ("rebalance", [future]),
        ("dump_cluster_state", str(path / "dump")), ("retire_workers", []), ("restart_workers", []), ("as_current",),
        ("cancel", [client.submit(inc, 99)]),
    ):  # fmt: skip
        given = ", ".join(type(arg).__name__ for arg in args)
        yield f"{name}({given})", lambda name=name, args=args: getattr(client, name)(*args)
    yield "compute(sync)", lambda: client.compute(lazy, sync=True)
    yield "get(no sync)", lambda: client.get({"x": 1}, "x", sync=False)
    yield "publish_dataset", lambda: client.publish_dataset(future, name="published")
    yield "list_datasets of one", client.list_datasets
    yield "get_dataset", lambda: client.get_dataset("published")
    yield "unpublish_dataset", lambda: client.unpublish_dataset("published")
    yield "register_worker_callbacks", lambda: client.register_worker_callbacks(setup=nothing)
    done = path / "done"
    done.unlink(missing_ok=True)
    held = client.submit(hold, str(done))
    for name in ("processing", "call_stack"):
        yield f"{name}() at work", getattr(client, name)
    done.touch()
    yield "result of what was at work", held.result
    for name in ("asynchronous", "futures", "status", "refcount", "dashboard_link"):
        yield f"client.{name}", lambda name=name: getattr(client, name)


def of_futures(lib: Any, client: Any, path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls of Futures, and functions of the module."""
    future, wrong = client.submit(inc, 1), client.submit(inc, "x")
    yield "wait", lambda: lib.wait([future, wrong])
    for name in ("key", "status", "client", "executor", "type"):
        yield f"future.{name}", lambda name=name: getattr(future, name)
    for name in ("done", "cancelled", "result", "exception", "traceback", "release"):
        yield f"future.{name}()", lambda name=name: getattr(future, name)()
    for name in ("done", "cancelled", "exception", "traceback", "retry", "cancel"):
        yield f"wrong.{name}()", lambda name=name: getattr(wrong, name)()
    another = client.submit(inc, 3)
    yield "add_done_callback", lambda: another.add_done_callback(lambda _: None)
    yield "bind_client", lambda: another.bind_client(client)
    yield "as_completed", lambda: lib.as_completed([another])
    for name in ("count", "has_ready", "is_empty", "clear"):
        yield f"as_completed.{name}", lambda name=name: getattr(lib.as_completed([another]), name)()
    yield "progress", lambda: lib.progress([another], notebook=False)
    yield "fire_and_forget", lambda: lib.fire_and_forget(another)
    yield "futures_of", lambda: lib.futures_of([another])
    yield "default_client", lib.default_client
    yield "get_client", lib.get_client


def of_coordination(lib: Any, client: Any, path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield calls of what is shared by name."""
    future = client.submit(inc, 1)
    queue, variable, event = (kind("x", client=client) for kind in (lib.Queue, lib.Variable, lib.Event))
    semaphore, lock = lib.Semaphore(2, "x"), lib.Lock("y")
    several = lib.MultiLock(["a", "b"], client=client)
    yield "Queue", lambda: queue  # in a loop they are made known by being awaited
    yield "Semaphore", lambda: semaphore
    for owner, name, *args in (
        (queue, "put", 1), (queue, "qsize"), (queue, "get"), (queue, "put", future), (queue, "get"), (queue, "put", 1),
        (queue, "get", None, True), (queue, "close"), (variable, "set", 1), (variable, "get"), (variable, "set", future),
        (variable, "get"), (variable, "delete"), (semaphore, "register"), (semaphore, "acquire"), (semaphore, "get_value"),
        (semaphore, "release"), (semaphore, "close"), (event, "is_set"), (event, "set"), (event, "wait"), (event, "clear"),
        (lock, "acquire"), (lock, "locked"), (lock, "get_value"), (lock, "release"), (several, "acquire"),
        (several, "locked"), (several, "release"),
    ):  # fmt: skip
        given = ", ".join(type(arg).__name__ for arg in args)
        yield f"{type(owner).__name__}.{name}({given})", lambda o=owner, n=name, a=args: getattr(o, n)(*a)


PARTS = (of_client, of_futures, of_coordination)
#: What tells of tasks that run, and whether it is to find some: called too early, or too late, it gives other types.
AT_WORK = {
    "processing()": False,
    "call_stack()": False,
    "processing() at work": True,
    "call_stack() at work": True,
}


def described(error: Exception) -> str:
    return f"raises {type(error).__name__}"


def settled(name: str, found: Mapping[str, Any], began: float) -> bool:
    """Tell whether as much runs as the call is to find."""
    if time.monotonic() - began > PATIENCE:
        raise TimeoutError(f"{name}: finds {dict(found)}")
    return any(found.values()) == AT_WORK[name]


def outcomes(lib: Any, address: Any, path: Path) -> Outcome:
    """Make the calls with a synchronous client."""
    found: Outcome = {}
    with lib.Client(address) as client:
        for part in PARTS:
            for name, call in part(lib, client, path):
                began = time.monotonic()
                while name in AT_WORK and not settled(name, call(), began):
                    time.sleep(0.01)
                try:
                    found[name] = shape(call())
                except Exception as error:
                    found[name] = described(error)
    return found


async def async_outcomes(lib: Any, address: Any, path: Path) -> Outcome:
    """Make the calls with an asynchronous client, and await what is to be awaited."""
    found: Outcome = {}
    async with lib.Client(address, asynchronous=True) as client:
        for part in PARTS:
            for name, call in part(lib, client, path):
                began = time.monotonic()
                while name in AT_WORK and not settled(name, await call(), began):
                    await asyncio.sleep(0.01)
                try:
                    came = call()
                    awaited = inspect.isawaitable(came) and type(came).__name__ not in ("Future", "Client")
                    found[name] = f"await {shape(await came)}" if awaited else shape(came)
                except Exception as error:
                    found[name] = described(error)
    return found


def main(output: str) -> None:
    import distributed

    warnings.simplefilter("ignore")
    logging.disable()
    path = Path(output).parent
    # Processes, so that what is told goes through sockets, and comes in the types that it always comes in.
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=None, silence_logs=50
    ) as cluster:
        address = cluster.scheduler_address
        found = {
            "synchronous": outcomes(distributed, address, path),
            "asynchronous": asyncio.run(async_outcomes(distributed, address, path)),
        }
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
