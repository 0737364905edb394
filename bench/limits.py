"""Figures of workers whose memory does not hold all values: how fast they go to disk and back, and a workload on it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

from bench.systems import System, Unsupported

Numbers = dict[str, float]

SPILLED = 1 << 30
PART = 64 << 20
#: of each of two workers
LIMIT = 512_000_000
TIMES = 5
CHUNK = 16_000_000


def spill(system: System) -> Numbers:
    """1 GB of payloads to disk and back into memory, GB/s, beside ``dd`` with direct writes and reads of 16 MiB."""
    if system.name != "redist":
        raise Unsupported
    from redist.memory.directory import SegmentDirectory
    from redist.memory.headers import Header
    from redist.memory.moving import Mover
    from redist.memory.spill import spill_parent
    from redist.memory.writer import SegmentWriter

    directory = SegmentDirectory.create()
    data = memoryview(os.urandom(1 << 20) * (PART >> 20))
    count = SPILLED // PART
    try:
        for i in range(count):
            header = Header(f"x{i}", i, len(data))
            reserved = directory.grants.reserve(header.file_size)
            with SegmentWriter(directory.grants.new_path(), header) as writer:
                writer.write([data])
                writer.publish(directory.path_of(header.name, i))
            directory.add(header.name, i, reserved)
        mover = Mover(directory)
        began = time.perf_counter()
        moved = mover.make_room(SPILLED)
        out = moved / (time.perf_counter() - began) / 1e9
        began = time.perf_counter()
        back = sum(mover.move_in(f"x{i}", i) for i in range(count)) / (time.perf_counter() - began) / 1e9
    finally:
        directory.close()
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(spill_parent())) as file:
        size = ("bs=16M", f"count={SPILLED >> 24}")
        written = _dd("if=/dev/zero", f"of={file.name}", "oflag=direct", *size)
        read = _dd(f"if={file.name}", "of=/dev/null", "iflag=direct", *size)
    return {
        "1 GB to disk, GB/s": out,
        "dd to the same disk, GB/s": written,
        "1 GB from disk into memory, GB/s": back,
        "dd from the same disk, GB/s": read,
    }


def _dd(*args: str) -> float:
    run = subprocess.run(
        ["dd", *args], check=True, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    match = re.search(r"(\d+) bytes .* ([\d.e-]+) s,", run.stderr)
    assert match is not None, run.stderr
    return int(match[1]) / float(match[2]) / 1e9


def beyond_memory(system: System) -> Numbers:
    """Arrays of five times the memory limits of two workers made, all kept, and each summed up in a second task: s."""
    makers: dict[str, Callable[[str], Any]] = {"redist": _redist, "dask.distributed": _dask}
    if system.name not in makers:
        raise Unsupported
    count = 2 * TIMES * LIMIT // CHUNK
    with tempfile.TemporaryDirectory() as disk, makers[system.name](disk) as client:
        client.gather(client.map(len, [(), ()], pure=False))
        began = time.perf_counter()
        chunks = client.map(_make, range(count), nbytes=CHUNK, pure=False)
        sums = client.gather(client.map(_sum, chunks, pure=False))
        took = time.perf_counter() - began
        assert sums == [i * (CHUNK // 8) for i in range(count)]
        del chunks
    return {"5 times the memory limit, s": took}


def _make(i: int, nbytes: int) -> Any:
    import numpy as np

    return np.full(nbytes // 8, i, np.int64)


def _sum(array: Any) -> int:
    return int(array.sum())


def _redist(disk: str) -> Any:
    from redist import Client

    return Client(n_workers=2, threads_per_worker=1, memory_limit=LIMIT, spill_dir=disk, set_as_default=False)


def _dask(disk: str) -> Any:
    import distributed

    client: Any = distributed.Client
    return client(
        n_workers=2,
        threads_per_worker=1,
        memory_limit=LIMIT,
        local_directory=disk,
        dashboard_address=None,
        set_as_default=False,
    )


FIGURES: dict[str, Callable[[System], Numbers]] = {"spill": spill, "beyond-memory": beyond_memory}
