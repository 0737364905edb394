"""What is measured of payloads between hosts: the workers are made to believe that each has a host of its own.

So every payload goes over TCP, on loopback, where the peers of other figures map memory. A plain copy and Arrow Flight,
which moves the same bytes between two processes, are measured in the same run.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.systems import System, Unsupported

Numbers = dict[str, float]

#: MiB of the array that goes from worker to worker
LARGE = 200
#: MB of what is broadcast, and to how many workers
BROADCAST, WORKERS = 100, 4
#: how many small payloads are gathered, and bytes of each
COUNT, SMALL_BYTES = 1_000, 64 << 10
#: how often each is measured, the first ones not counted
REPEATS = 8
WARM_UP = 3
#: s in which a system gets to free what was let go
PAUSE = 0.2


def between_hosts(system: System) -> Numbers:
    """A large array of one worker, needed by a task on another, which has room that was used before: GB a second."""
    nbytes = LARGE << 20
    with _apart(system, 2) as (client, workers):
        rates = []
        for i in range(REPEATS + WARM_UP):
            made = client.submit(_numbered, i, nbytes, workers=[workers[0]], pure=False)
            _wait(system, made)
            began = time.perf_counter()
            ends = client.submit(_ends, made, workers=[workers[1]], pure=False).result()
            rates.append(nbytes / (time.perf_counter() - began) / 1e9)
            assert ends == _ends(_numbered(i, nbytes))
            assert client.submit(_is_numbered, made, i, workers=[workers[1]], pure=False).result()
            del made
            time.sleep(PAUSE)
    numbers = {f"{LARGE} MiB between hosts, GB/s": statistics.median(rates[WARM_UP:])}
    if system.name == "redist":
        copy, flight = _copies(nbytes), _flights(nbytes)
        ours = numbers[f"{LARGE} MiB between hosts, GB/s"]
        numbers |= {
            f"{LARGE} MiB by Arrow Flight, GB/s": flight,
            f"{LARGE} MiB between hosts, times Arrow Flight": ours / flight,
            f"{LARGE} MiB between hosts, share of memcpy": ours / copy,
        }
    return numbers


def gather_far(system: System) -> Numbers:
    """Many payloads of 64 KiB in one gather, by a client that shares no memory with the workers: median ms."""
    with _apart(system, 2) as (client, _):
        futures = client.map(_numbered, range(COUNT), nbytes=SMALL_BYTES, pure=False)
        _wait(system, futures)
        ways = {"": {}} if system.name == "redist" else {"": {}, ", direct": {"direct": True}}
        numbers = {}
        for label, options in ways.items():
            times = []
            for _ in range(REPEATS + WARM_UP):
                began = time.perf_counter()
                values = client.gather(futures, **options)
                times.append((time.perf_counter() - began) * 1e3)
                assert all(_is_numbered(value, i) for i, value in enumerate(values))
                del values
            numbers[f"{COUNT:,} of 64 KiB gathered from other hosts{label}, median ms"] = statistics.median(
                times[WARM_UP:]
            )
        del futures
    return numbers


def broadcast(system: System) -> Numbers:
    """An array that one of four workers has, copied to the others: median ms."""
    nbytes = BROADCAST * 1_000_000
    with _apart(system, WORKERS) as (client, workers):
        times = []
        for i in range(REPEATS + WARM_UP):
            made = client.submit(_numbered, i, nbytes, workers=[workers[0]], pure=False)
            _wait(system, made)
            began = time.perf_counter()
            client.replicate(made)
            times.append((time.perf_counter() - began) * 1e3)
            assert len(client.who_has(made)[made.key]) == WORKERS
            checks = [
                client.submit(_is_numbered, made, i, workers=[worker], pure=False) for worker in workers
            ]
            assert all(client.gather(checks))
            del made, checks
            time.sleep(PAUSE)
    return {f"{BROADCAST} MB to {WORKERS} hosts, median ms": statistics.median(times[WARM_UP:])}


# --- tasks ----------------------------------------------------------------------------------------------------------


def _numbered(i: int, nbytes: int) -> Any:
    """Return `nbytes` that only a transfer of this very value gives."""
    import numpy as np

    return np.arange(i, i + nbytes // 8)


def _is_numbered(array: Any, i: int) -> bool:
    import numpy as np

    return bool(np.array_equal(array, _numbered(i, array.nbytes)))


def _ends(array: Any) -> tuple[int, int, int, int]:
    return len(array), int(array[0]), int(array[len(array) // 2]), int(array[-1])


# --- systems --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _apart(system: System, n: int) -> Iterator[tuple[Any, list[str]]]:
    """Start a cluster of `n` workers that share no memory with each other, nor with its client."""
    if system.name == "redist":
        from redist import Client, LocalCluster

        with LocalCluster(n_workers=n, threads_per_worker=1) as cluster:
            _set_apart(cluster)
            with Client(cluster, set_as_default=False) as client:
                yield client, list(cluster.workers)
    elif system.name == "dask.distributed":
        import distributed

        make: Any = distributed.Client
        with make(
            n_workers=n, threads_per_worker=1, dashboard_address=None, set_as_default=False
        ) as far:  # workers of Dask share no memory anyway
            yield far, sorted(far.scheduler_info(n_workers=-1)["workers"])
    else:
        raise Unsupported


def _set_apart(cluster: Any) -> None:
    """Give each worker a host of its own in its record, before anybody has read it."""
    wire, prefix = cluster.endpoint.open(), cluster.endpoint.prefix
    try:
        for ordinal in wire.call("HKEYS", f"{prefix}workers"):
            host = f"host-{ordinal.decode()}"
            wire.call("HSET", f"{prefix}caller:{ordinal.decode()}", "hostid", host, "memory", host)
            wire.call("HSET", f"{prefix}hosts", ordinal, host)
    finally:
        wire.close()


def _wait(system: System, futures: Any) -> None:
    if system.name == "redist":
        from redist import wait

        wait(futures)
    else:
        import distributed

        wait_there: Any = distributed.wait
        wait_there(futures)


# --- beside them ----------------------------------------------------------------------------------------------------


def _copies(nbytes: int) -> float:
    """Return what a plain copy does, GB a second."""
    import numpy as np

    source, target = np.ones(nbytes, np.uint8), np.ones(nbytes, np.uint8)
    rates = []
    for _ in range(REPEATS + WARM_UP):
        began = time.perf_counter()
        np.copyto(target, source)
        rates.append(nbytes / (time.perf_counter() - began) / 1e9)
    return statistics.median(rates[WARM_UP:])


def _flights(nbytes: int) -> float:
    """Return what Arrow Flight does between two processes, GB a second."""
    from pyarrow import flight

    code = f"from bench.transfers import _serve_flight; _serve_flight({nbytes})"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            client = flight.connect(f"grpc://127.0.0.1:{int(server.stdout.readline())}")
            rates = []
            for _ in range(REPEATS + WARM_UP):
                began = time.perf_counter()
                table = client.do_get(flight.Ticket(b"")).read_all()
                rates.append(nbytes / (time.perf_counter() - began) / 1e9)
                column = table.column(0)
                assert len(column) == nbytes // 8
                assert column[-1].as_py() == nbytes // 8 - 1
                del table, column
            client.close()
        finally:
            server.terminate()
    return statistics.median(rates[WARM_UP:])


def _serve_flight(nbytes: int) -> None:
    """Serve one array until this process is terminated."""
    import pyarrow as pa
    from pyarrow import flight

    table = pa.table({"data": _numbered(0, nbytes)})

    class Server(flight.FlightServerBase):  # type: ignore[misc]
        def do_get(self, context: Any, ticket: Any) -> Any:
            return flight.RecordBatchStream(table)

    server = Server("grpc://127.0.0.1:0")
    print(server.port, flush=True)
    server.serve()


FIGURES: dict[str, Callable[[System], Numbers]] = {
    "between-hosts": between_hosts,
    "gather-far": gather_far,
    "broadcast": broadcast,
}
