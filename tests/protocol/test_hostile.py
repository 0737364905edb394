"""Payloads that lie: what somebody forged is refused with an error of ours, whatever it claims."""

from __future__ import annotations

import random
import struct
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from protocol.helpers import written
from protocol.test_arrow import columns
from redist.errors import DeserializationError
from redist.protocol import dumps, loads
from redist.protocol.flatbuffers import field, follow, string
from redist.protocol.header import (
    BATCH_BYTES,
    END_OF_STREAM,
    batch_message,
    read_batch_message,
    read_metadata,
)
from redist.protocol.numpy_format import _column, _dtype, _templates
from redist.protocol.sizes import padding


def forged(
    dtype: str, shape: str, stored: str = "", data: bytes = bytes(64), rows: int | None = None
) -> bytes:
    """Return a payload as `numpy_format` writes them, of whatever is claimed."""
    described = _dtype(dtype)
    rows = len(data) // described.itemsize if rows is None else rows
    schema = _templates(_column(described))[0].message([dtype.encode(), shape.encode(), stored.encode()])
    return schema + batch_message(rows, len(data)) + data + bytes(padding(len(data))) + END_OF_STREAM


FIELD = "{'names': ['a'], 'formats': ['O'], 'offsets': [0], 'itemsize': 8, 'aligned': False}"


@pytest.mark.parametrize("dtype", ["O", "|O", "T", "i4,O", FIELD, "V0", "i4,f4", "int64"])
@pytest.mark.parametrize("options", [{}, {"copy": True}])
def test_a_dtype_that_no_payload_has(dtype: str, options: dict[str, Any]) -> None:
    """Bytes that are taken for addresses of objects would let whoever wrote them run anything."""
    size = _dtype(dtype).itemsize * 8
    with pytest.raises(DeserializationError, match="dtype"):
        loads(memoryview(forged(dtype, "[8]", data=b"\x41" * size, rows=8)), **options)


@pytest.mark.parametrize(
    ("shape", "stored", "size"),
    [
        ("[-2,-4]", "", 64),
        ("[" + "1," * 100 + "8]", "", 64),
        (f"[0,{10**30}]", "", 0),
        ("[3,5]", "[8]", 64),
        (f"[{10**30},8]", "[8]", 64),
        ("[" + "9" * 5000 + "]", "", 64),
        ("8", "", 64),
        ("[8", "", 64),
        ("[x]", "", 64),
        ("[9]", "", 64),
    ],
)
def test_a_shape_that_no_array_has(shape: str, stored: str, size: int) -> None:
    with pytest.raises(DeserializationError):
        loads(memoryview(forged("<i8", shape, stored, bytes(size))))


@pytest.mark.parametrize(
    "dtype",
    [
        "{'names': " + "(" * 100_000,
        "{" + "-" * 1_000_000,
        "{" * 5_000,
        "{'names': ['a'] * 10**9}",
        "no dtype",
    ],
    ids=["parentheses", "signs", "braces", "many", "none"],
)
def test_a_dtype_that_is_none(dtype: str) -> None:
    schema = _templates(_column(np.dtype("i8")))[0].message([dtype.encode(), b"[8]", b""])
    with pytest.raises(DeserializationError, match="dtype"):
        loads(memoryview(schema + batch_message(8, 64) + bytes(64) + END_OF_STREAM))


def ipc(table: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write(table)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_a_compressed_stream_is_refused(compression: str) -> None:
    bomb = ipc(pa.table({"a": np.zeros(1_000_000)}), compression=compression)
    with pytest.raises(DeserializationError, match="compressed"):
        loads(memoryview(bomb))


def test_a_buffer_outside_of_its_message() -> None:
    """By pyarrow alone it would be cut at the end of the message, or be of the next one."""
    table = pa.table({"a": np.arange(1000)})
    data = bytearray(written(dumps(table)))
    start = 8 + struct.unpack_from("<I", data, 4)[0]
    flat = memoryview(data)[start + 8 :]
    batch = follow(flat, field(flat, follow(flat, 0), 2))
    buffers = follow(flat, field(flat, batch, 2)) + 4
    for offset, size in ((-64, 8000), (64, 8000), (0, -1), (2**62, 2**62), (0, 2**63 - 1)):
        struct.pack_into("<qq", flat, buffers + 16, offset, size)
        with pytest.raises(DeserializationError, match="body of 8000 bytes"):
            loads(memoryview(data))


@pytest.mark.parametrize("name", ["str", "list", "dict", "view", "union", "ree"])
def test_values_out_of_bounds_while_a_secret_is_in_force(name: str, secret: str) -> None:
    """Whoever wrote a table is not trusted then, and reading its values must not end the process."""
    array = columns()[name].slice(0, 100)
    data = bytearray(written(dumps(pa.table({"a": array}), inline_limit=0)))
    assert loads(memoryview(data)).num_rows == 100
    rng = random.Random(name)
    refused = 0
    body = 8 + struct.unpack_from("<I", data, 4)[0]
    for _ in range(200):
        altered = bytearray(data)
        position = rng.randrange(body + 256, len(altered) - 8) // 4 * 4
        altered[position : position + 4] = b"\xff\xff\xff\x7f"
        try:
            loads(memoryview(altered)).column(0).to_pylist()
        except DeserializationError:
            refused += 1
    assert refused


STREAMS = {
    **{
        name: written(dumps(pa.table({name: array.slice(0, 20)}), inline_limit=0))
        for name, array in columns().items()
    },
    "numpy": written(dumps(np.arange(20.0).reshape(4, 5), inline_limit=0)),
    "structured": written(dumps(np.zeros(3, "i4,f8"), inline_limit=0)),
    "broadcast": written(dumps(np.broadcast_to(np.arange(3), (4, 3)), inline_limit=0)),
    "pickle": written(dumps({"a": np.arange(10_000)}, inline_limit=0)),
}
WORDS = [
    0,
    1,
    8,
    64,
    0x7F,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A valid payload with some words, bytes or bits of its head altered, cut off or repeated."""
    data = bytearray(STREAMS[draw(st.sampled_from(sorted(STREAMS)))])
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, min(len(data), 2000) - 1))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1:
            width = draw(st.sampled_from([2, 4, 8]))
            position -= position % width
            word = draw(st.sampled_from(WORDS)) & ((1 << 8 * width) - 1)
            data[position : position + width] = word.to_bytes(width, "little")
        elif kind == 2:
            data[position] = draw(st.integers(0, 255))
        else:
            end = position + draw(st.integers(1, 64))
            data[position:end] = data[position:end] * draw(st.sampled_from([0, 2]))
            data += b"\0"
    return bytes(data)


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_mutated_payloads(data: bytes) -> None:
    try:
        loads(memoryview(data))
    except DeserializationError:
        pass


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2**32))
def test_any_flatbuffer(data: bytes, position: int) -> None:
    flat = memoryview(data)
    for read in (
        lambda: follow(flat, position),
        lambda: field(flat, position, 2),
        lambda: string(flat, position),
    ):
        try:
            read()
        except (struct.error, IndexError):
            pass
    assert read_metadata(b"\xff\xff\xff\xff\0\0\0\0" + data) is None or data
    read_batch_message(memoryview(data + bytes(BATCH_BYTES)), len(data) // 2)
