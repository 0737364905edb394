"""Measures what serializing values takes besides value and target: `python peak.py MEGABYTES [KIND...]`.

Prints for each kind the megabytes of its payload, and by how many resident memory rose at most while it was written
into memory, while it was written in pieces, and by how many private memory rose while it was read.
"""

import gc
import mmap
import os
import sys

import numpy as np

from redist.protocol import dumps, loads

MB = 1_000_000
N = int(sys.argv[1]) * MB // 8 // 1000 * 1000  # numbers of 8 bytes


def pandas_frame(name):
    import pandas as pd

    if name == "blocks":
        return pd.DataFrame(np.ones((N // 10, 10)))
    if name == "every second row":
        return pd.DataFrame(np.ones((N // 5, 10))).iloc[::2]
    return pd.DataFrame(
        {
            "time": pd.date_range("2000", periods=N // 4, freq="s"),
            "zone": pd.date_range("2000", periods=N // 4, freq="s", tz="UTC"),
            "nullable": pd.array(np.ones(N // 4, "i8"), dtype="Int64"),
            "category": pd.Categorical.from_codes(np.zeros(N // 4, "i1"), ["a", "b"]),
            "text": pd.array(["some text"], dtype="str").take(np.zeros(N // 4, "i8")),
        }
    )


def arrow_table(name):
    import pyarrow as pa

    table = pa.table({f"c{i}": np.ones(N // 10) for i in range(10)})
    if name == "slice":
        return pa.concat_tables([table, table]).slice(N // 40, N // 10)
    return [table] if name == "nested" else table


def polars_frame(name):
    import polars as pl

    frame = pl.DataFrame({f"c{i}": np.ones(N // 10) for i in range(10)})
    return {"nested": [frame], "series": pl.Series(np.ones(N))}.get(name, frame)


def sparse(name):
    import scipy.sparse

    rows = N // 2
    coo = scipy.sparse.coo_array(
        (np.ones(rows), (np.arange(rows, dtype="i4"), np.zeros(rows, "i4"))), shape=(rows, 10)
    )
    return coo.asformat(name)


def tensor(name):
    import torch

    if name == "channels last":
        return torch.ones(2, 10, 10, N // 100).to(memory_format=torch.channels_last)
    return torch.ones(2 * N, 2)[:, 0] if name else torch.ones(2 * N)


KINDS = {
    "numpy": lambda: np.ones(N),
    "numpy, every second": lambda: np.ones((N, 2))[:, 0],
    "numpy, turned": lambda: np.ones((10, 10, N // 100)).transpose(1, 0, 2),
    "numpy, read-only": lambda: np.broadcast_to(np.ones(N), (1, N))[0],
    "bytes": lambda: bytes(8 * N),
    "bytearray": lambda: bytearray(8 * N),
    "memoryview": lambda: memoryview(bytes(8 * N)),
    "list of arrays": lambda: [np.ones(N // 10) for _ in range(10)],
    "dict of strided arrays": lambda: {i: np.ones((N // 10, 2))[:, 0] for i in range(10)},
    "list of bytes": lambda: [bytes(MB) for _ in range(8 * N // MB)],
    "pandas, blocks": lambda: pandas_frame("blocks"),
    "pandas, every second row": lambda: pandas_frame("every second row"),
    "pandas, extension types": lambda: pandas_frame(""),
    "pyarrow": lambda: arrow_table(""),
    "pyarrow, slice": lambda: arrow_table("slice"),
    "pyarrow, nested": lambda: arrow_table("nested"),
    "polars": lambda: polars_frame(""),
    "polars, series": lambda: polars_frame("series"),
    "polars, nested": lambda: polars_frame("nested"),
    "scipy, csr": lambda: sparse("csr"),
    "scipy, coo": lambda: sparse("coo"),
    "torch": lambda: tensor(""),
    "torch, strided": lambda: tensor("strided"),
    "torch, channels last": lambda: tensor("channels last"),
}


def status(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def start():
    """Begin to note the most resident memory; return how much there is now."""
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return status("VmRSS")


def measure(kind):
    value = KINDS[kind]()
    size = dumps(value).nbytes  # imports what it needs, too
    fd = os.memfd_create("payload")
    os.ftruncate(fd, size)
    target = mmap.mmap(fd, size)
    view = memoryview(target)
    np.frombuffer(view, "u1")[:] = 0
    loads(
        memoryview(b"".join(dumps(value[:1] if kind.startswith("pyarrow") else 1, inline_limit=0).chunks()))
    )

    before = start()
    payload = dumps(value)
    payload.write_into(view)
    written = status("VmHWM") - before

    before = start()
    for piece in payload.chunks():
        len(piece)
    pieces = status("VmHWM") - before
    del payload, value, view, piece
    target.close()

    mapping = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
    start()
    before = status("RssAnon")
    back = loads(memoryview(mapping))
    read = status("RssAnon") - before
    del back
    print(f"{kind}: {size / MB:.0f} {written / MB:.1f} {pieces / MB:.1f} {read / MB:.1f}", flush=True)


if __name__ == "__main__":
    for kind in sys.argv[2:] or KINDS:
        measure(kind)
