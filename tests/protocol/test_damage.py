import random

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings

from protocol.helpers import written
from redist.errors import DeserializationError
from redist.protocol import dumps, loads, loads_inline

VALUES = {
    "numpy": np.arange(1000.0).reshape(10, 100),
    "structured": np.zeros(500, "i4,f8"),
    "pickle": {"a": np.arange(10_000), "b": "text" * 2000, "c": np.arange(20_000)},
    "table": pa.table({"a": list(range(5000)), "b": ["x"] * 5000}),
    "batch": pa.record_batch({"a": list(range(5000))}),
    "frame": pd.DataFrame({"a": range(10_000), "b": "x"}),
}
STREAMS = {name: written(dumps(value)) for name, value in VALUES.items()}


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_that_is_cut_off(name):
    data = STREAMS[name]
    cuts = {0, 1, 7, 8, 9, 63, 64, 65, *range(0, len(data) - 72, max(64, len(data) // 200))}
    for cut in sorted(cuts):
        with pytest.raises(DeserializationError):
            loads(memoryview(data)[:cut])


@pytest.mark.parametrize("name", ["numpy", "pickle"])
def test_headers_are_compared_whole(name):
    # Whichever byte of a header is altered, the payload is refused or means the same.
    data = STREAMS[name]
    head = 8 + int.from_bytes(data[4:8], "little") + 192
    for position in range(head):
        altered = bytearray(data)
        altered[position] ^= 0x11
        try:
            result = loads(memoryview(altered))
        except DeserializationError:
            continue
        assert isinstance(result, pa.Table)  # without redist's mark it is a stream like any other


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=600))
def test_arbitrary_bytes(data):
    for start in (b"", b"\xff\xff\xff\xff", b"\xff\xff\xff\xff\x10\0\0\0"):
        with pytest.raises(DeserializationError):
            loads(memoryview(start + data))


@pytest.mark.parametrize("name", ["table", "batch", "frame"])
def test_altered_bytes_never_raise_anything_else(name):
    rng = random.Random(name)
    for _ in range(200):
        altered = bytearray(STREAMS[name])
        for _ in range(3):
            altered[rng.randrange(min(len(altered), 1500))] = rng.randrange(256)
        try:
            loads(memoryview(altered))
        except DeserializationError:
            pass


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80\x05", b"nonsense", b"\x80\x05cno_such_module\nf\n."])
def test_inline_values(data):
    with pytest.raises(DeserializationError):
        loads_inline(data)


def test_a_foreign_stream_is_a_table():
    table = pa.table({"a": [1, 2, 3]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert loads(memoryview(sink.getvalue())) == table
