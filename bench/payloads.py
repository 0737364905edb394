"""What is measured of payloads: values of some size put, read, summed and moved. Rates are of the value's bytes."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.systems import System, Unsupported, doubles

Numbers = dict[str, float]

#: MiB of the large array
LARGE = 200
#: how often the large ones are put or read, the first ones not counted
REPEATS = 10
#: how often each value is read singly, if that takes no longer than so many s
GETS, GET_SECONDS = 200, 3.0
SMALL = 100_000
SMALL_BYTES = 8_192
# As many as a slow peer puts in a second or two; a rate hardly depends on it.
SMALL_OF = {"redist": 100_000, "ray": 5_000, "dask.distributed": 5_000}
ROWS = 1_000_000
SIZES = {"1 KB": 1_000, "64 KB": 64_000, "1 MB": 1_000_000, "200 MB": 200_000_000, "1 GB": 1_000_000_000}
#: s in which a system gets to free what was let go, as any program gives it between two values
PAUSE = 0.1
#: s that a system stands before its first put
STANDS = 3.0
#: s after which memory that was let go has gone back to the operating system
SETTLES = 12.0


def put_fresh(system: System) -> Numbers:
    """The first put of a large array in a system that was just started: GB a second."""
    return {f"put {LARGE} MiB, fresh, GB/s": _first_put(system)}


def put_first(system: System) -> Numbers:
    """The same in a system that was started a few seconds ago, as by who loads or computes the array first."""
    time.sleep(STANDS)
    return {f"put {LARGE} MiB, fresh, after {STANDS:g} s, GB/s": _first_put(system)}


def _first_put(system: System) -> float:
    value = doubles(LARGE)
    began = time.perf_counter()
    reference = system.put(value)
    rate: float = value.nbytes / (time.perf_counter() - began) / 1e9
    del reference
    return rate


def put_warm(system: System) -> Numbers:
    """Puts of a large array, each let go before the next: median GB a second; and what a plain copy does."""
    import numpy as np

    value = doubles(LARGE)
    target = doubles(LARGE)
    rates, copies = [], []
    for _ in range(REPEATS + 3):
        began = time.perf_counter()
        reference = system.put(value)
        rates.append(value.nbytes / (time.perf_counter() - began) / 1e9)
        del reference
        time.sleep(PAUSE)
        began = time.perf_counter()
        np.copyto(target, value)
        copies.append(value.nbytes / (time.perf_counter() - began) / 1e9)
    return {
        f"put {LARGE} MiB, warm, GB/s": statistics.median(rates[3:]),
        f"put {LARGE} MiB, share of memcpy": statistics.median(rates[3:]) / statistics.median(copies[3:]),
    }


def get_each(system: System) -> Numbers:
    """Get of one value on its host, by size: median ms."""
    numbers: Numbers = {}
    for label, nbytes in SIZES.items():
        import numpy as np

        reference = system.put(np.ones(nbytes, np.uint8))
        times: list[float] = []
        while len(times) < REPEATS + 3 or (len(times) < GETS and sum(times) < GET_SECONDS * 1e3):
            began = time.perf_counter()
            value = system.get(reference)
            times.append((time.perf_counter() - began) * 1e3)
            assert value[-1] == 1
            del value
        del reference
        time.sleep(PAUSE)
        numbers[f"get {label}, median ms"] = statistics.median(times[3:])
    return numbers


def get_and_sum(system: System) -> Numbers:
    """Put and get of a large array, and its first sum by who got it: median ms of get and sum; and of a plain sum."""
    times, plain = [], []
    value = doubles(LARGE)
    for _ in range(REPEATS + 3):
        reference = system.put(value)
        began = time.perf_counter()
        system.get(reference).sum()
        times.append((time.perf_counter() - began) * 1e3)
        del reference
        time.sleep(PAUSE)
        began = time.perf_counter()
        value.sum()
        plain.append((time.perf_counter() - began) * 1e3)
    return {
        f"get and sum {LARGE} MiB, median ms": statistics.median(times[3:]),
        f"get and sum {LARGE} MiB, plain sums": statistics.median(times[3:]) / statistics.median(plain[3:]),
    }


def task_sum(system: System) -> Numbers:
    """A task that sums a large array which another worker of the host made: median ms, submit to result."""
    reference = system.make(LARGE, 0)
    times = []
    for _ in range(REPEATS + 3):
        began = time.perf_counter()
        assert system.total(reference, 1) == LARGE << 17
        times.append((time.perf_counter() - began) * 1e3)
    plain = []
    value = doubles(LARGE)
    for _ in range(REPEATS + 3):
        began = time.perf_counter()
        value.sum()
        plain.append((time.perf_counter() - began) * 1e3)
    return {
        f"task that sums {LARGE} MiB, median ms": statistics.median(times[3:]),
        f"task that sums {LARGE} MiB, plain sums": statistics.median(times[3:])
        / statistics.median(plain[3:]),
    }


def _frame() -> Any:
    import numpy as np
    import pandas as pd

    chosen = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "integer": chosen.integers(0, 1 << 40, ROWS),
            "number": chosen.random(ROWS),
            "word": chosen.integers(0, 10_000, ROWS).astype(str).astype(object),
            "day": pd.date_range("2000-01-01", periods=ROWS, freq="s"),
            "kind": pd.Categorical(chosen.choice(["a", "b", "c", "d"], ROWS)),
        }
    )


def _put_and_get(system: System, label: str, make: Callable[[], Any], rows: Callable[[Any], int]) -> Numbers:
    """Median ms of put and get, one after the other, and with a rest between, in which caches and processors cool down."""
    value = make()
    numbers: Numbers = {}
    for rest, text in ((0.0, ""), (PAUSE, f", {PAUSE:g} s of rest between")):
        puts, gets = [], []
        for _ in range(REPEATS + 3):
            began = time.perf_counter()
            reference = system.put(value)
            puts.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            got = system.get(reference)
            gets.append((time.perf_counter() - began) * 1e3)
            assert rows(got) == ROWS
            del reference, got
            time.sleep(rest)
        numbers[f"put {label}{text}, median ms"] = statistics.median(puts[3:])
        numbers[f"get {label}{text}, median ms"] = statistics.median(gets[3:])
    return numbers


def frame(system: System) -> Numbers:
    """A pandas frame of a million rows (integers, floats, words, days, categories), put and got: median ms."""
    return _put_and_get(system, "pandas frame", _frame, len)


def table(system: System) -> Numbers:
    """The same as a pyarrow table: median ms."""
    import pyarrow as pa

    return _put_and_get(
        system, "pyarrow table", lambda: pa.Table.from_pandas(_frame()), lambda got: int(got.num_rows)
    )


def small(system: System) -> Numbers:
    """Payloads of 8 KiB put and got, many in one call: how many a second."""
    import numpy as np

    n = min(SMALL, SMALL_OF.get(system.name, 0))
    if not n:
        raise Unsupported
    values = [np.full(SMALL_BYTES, i % 251, np.uint8) for i in range(n)]
    began = time.perf_counter()
    references = system.put(values)
    put = time.perf_counter()
    got = system.get(references)
    done = time.perf_counter()
    assert got[-1][0] == (n - 1) % 251
    del references, got
    return {
        "payloads of 8 KiB put a second": n / (put - began),
        "payloads of 8 KiB got a second": n / (done - put),
    }


def peak(system: System) -> Numbers:
    """Memory of all processes at most while 1 GB is put and got, beyond the caller's array: GB, shared pages once.

    What lies in shared memory counts whether or not somebody has it mapped just then.
    """
    if system.name == "ray":  # its store is one mapping of fixed size
        raise Unsupported
    import threading

    import numpy as np
    import psutil

    from redist.memory.locks import SHM
    from redist.memory.space import available

    value = np.ones(1_000_000_000, np.uint8)
    own = psutil.Process()

    free = available(SHM)

    def used() -> int:
        total = free - available(SHM)
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(OSError), open(f"/proc/{process.pid}/smaps_rollup") as file:
                kib = {
                    name: int(text.split()[0])
                    for name, _, text in (line.partition(":") for line in file)
                    if text
                }
                total += (kib["Pss"] - kib["Pss_Shmem"]) * 1024
        return total

    time.sleep(SETTLES)
    before, most = used(), 0
    ended = threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, used())
            ended.wait(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    reference = system.put(value)
    got = system.get(reference)
    int(got.sum())
    ended.set()
    watcher.join()
    del reference, got
    return {"peak of put and get of 1 GB, GB beyond the array": (most - before) / 1e9}


FIGURES: dict[str, Callable[[System], Numbers]] = {
    "put-fresh": put_fresh,
    "put-first": put_first,
    "put": put_warm,
    "get": get_each,
    "get-sum": get_and_sum,
    "task-sum": task_sum,
    "frame": frame,
    "table": table,
    "small": small,
    "peak": peak,
}

OF_A_NEW_SYSTEM = frozenset({"put-fresh", "put-first"})
"""Those that find no memory that others have used."""
