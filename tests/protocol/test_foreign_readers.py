"""What other readers of Arrow make of our payloads: plain pyarrow, polars, and apache-arrow for JavaScript."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from protocol.helpers import written
from redist.protocol import dumps, use_secret
from redist.protocol.sizes import INLINE_LIMIT

ROOT = Path(__file__).parents[2]
GARBAGE = b"what follows the end of a stream in a file: gap, footer, trailer"

PRIMITIVE = ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
PRIMITIVE += ["?", "M8[s]", "M8[ms]", "M8[us]", "M8[ns]", "m8[s]", "m8[ms]", "m8[us]", "m8[ns]"]
#: of these the reader sees the bytes of each item
FIXED = [">i2", ">i8", ">f4", ">M8[s]", "c8", "c16", "g", "M8[D]", "m8[h]", "U3", ">U3", "S3", "V5", "i4,f8"]

ARRAYS = {
    **{
        dtype: np.arange(24 * np.dtype(dtype).itemsize, dtype="u2").astype("u1").view(dtype)
        if dtype in FIXED
        else np.arange(24).astype(dtype)
        for dtype in PRIMITIVE + FIXED
    },
    "C order": np.arange(24.0).reshape(2, 3, 4),
    "Fortran order": np.asfortranarray(np.arange(24.0).reshape(6, 4)),
    "strided": np.arange(48.0).reshape(8, 6)[::2, ::2],
    "broadcast": np.broadcast_to(np.arange(4.0), (6, 4)),
    "no axes": np.array(7.5),
    "empty": np.zeros((0, 3)),
    "NaN": np.array([0x7FF8_0000_DEAD_BEEF, 0x7FF0_0000_0000_0001], "u8").view("f8"),
}
ROWS = {
    "i": [1, None, 3],
    "s": ["x", None, "a string that is too long to be a view's own"],
    "f": [0.5, 1.5, None],
    "b": [True, None, False],
    "l": [[1, 2], None, []],
}
TABLES = {
    "table": pa.table(ROWS),
    "chunks": pa.concat_tables([pa.table(ROWS), pa.table(ROWS).slice(1)]),
    "slice": pa.table(ROWS).slice(1),
    "batch": pa.record_batch(ROWS),
    "dictionary": pa.table({"d": pa.array(["u", "v", "u", None]).dictionary_encode()}),
    "empty": pa.table({"a": pa.array([], pa.int64())}),
    "array": pa.array([1, None, 3]),
    "chunked": pa.chunked_array([[1, 2], [], [None]]),
}
PICKLES: dict[str, Any] = {
    "frame": pd.DataFrame({"a": np.arange(20_000), "b": np.arange(20_000) * 0.5, "s": ["x"] * 20_000}),
    "nested": {"arrays": [np.arange(10_000), np.arange(10_000.0)], "text": "word" * 2_000},
    "bytes": b"0123456789" * 20_000,
    "text": "word" * 2_000,
}


def stored(array: np.ndarray) -> np.ndarray:
    """Return the items in the order in which they lie in the column."""
    array = array[tuple(slice(0, 1) if step == 0 else slice(None) for step in array.strides)]
    order = "F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C"
    return array.reshape(-1, order=order)


def stream(value: object) -> bytes:
    return written(dumps(value, inline_limit=0))


def as_table(value: Any) -> pa.Table:
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    return pa.table({"data": value})


def read_by_pyarrow(value: object) -> pa.Table:
    return pa.ipc.open_stream(io.BytesIO(stream(value) + GARBAGE)).read_all()


@pytest.mark.parametrize("name", ARRAYS)
def test_pyarrow_reads_arrays(name: str) -> None:
    array = ARRAYS[name]
    table = read_by_pyarrow(array)
    flat = stored(array)
    column = table.column("data")
    assert table.num_rows == flat.size
    assert b"".join(bytes(item.buffers()[1])[: flat.nbytes] for item in column.chunks) == flat.tobytes()
    if name in PRIMITIVE:
        assert (
            column.combine_chunks().to_numpy(zero_copy_only=False).astype(array.dtype).tobytes()
            == flat.tobytes()
        )
    shape = json.loads(table.schema.metadata[b"shape"])
    assert shape == list(array.shape)


@pytest.mark.parametrize("name", TABLES)
def test_pyarrow_reads_tables(name: str) -> None:
    table = read_by_pyarrow(TABLES[name])
    table.validate(full=True)
    assert table.equals(as_table(TABLES[name]))


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", PICKLES)
def test_pyarrow_reads_pickles(name: str, signed: bool) -> None:
    """A batch with the pickle, then one for each buffer: `pickle.loads` takes them as they are."""
    use_secret("sesame" if signed else None)
    try:
        data = stream(PICKLES[name])
    finally:
        use_secret(None)
    reader = pa.ipc.open_stream(io.BytesIO(data + GARBAGE))
    metadata = reader.schema.metadata
    pickled, *buffers = [batch.column(0).buffers()[1] for batch in reader]
    assert metadata[b"redist"] == b"pickle"
    assert len(metadata[b"hmac"]) == (64 if signed else 0)
    value = pickle.loads(pickled, buffers=buffers)
    assert same(value, PICKLES[name])


def same(left: Any, right: Any) -> bool:
    if isinstance(right, pd.DataFrame):
        pd.testing.assert_frame_equal(left, right)
        return True
    if isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in right)
    if isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(right, np.ndarray):
        return left.dtype == right.dtype and bool((left == right).all())
    return type(left) is type(right) and left == right


@pytest.mark.parametrize(
    "value", [*TABLES.values(), *PICKLES.values(), np.arange(9)], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("size", [100, 2_000])
def test_all_above_the_inline_limit_is_a_stream(value: Any, size: int) -> None:
    payload = dumps([value] * size)
    data = written(payload)
    if payload.inline is None:
        assert pa.ipc.open_stream(io.BytesIO(data)).read_all().num_rows
    else:
        assert len(data) <= INLINE_LIMIT


@pytest.mark.parametrize("name", ARRAYS)
def test_polars_reads_arrays(name: str) -> None:
    pl = pytest.importorskip("polars")
    array = ARRAYS[name]
    series = pl.read_ipc_stream(io.BytesIO(stream(array) + GARBAGE)).to_series()
    flat = stored(array)
    assert len(series) == flat.size
    if name in FIXED:
        assert b"".join(series.to_list()) == flat.tobytes()
    else:
        assert series.to_numpy().astype(array.dtype).tobytes() == flat.tobytes()


@pytest.mark.parametrize("name", TABLES)
def test_polars_reads_tables(name: str) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.read_ipc_stream(io.BytesIO(stream(TABLES[name]) + GARBAGE))
    assert frame.to_dict(as_series=False) == as_table(TABLES[name]).to_pydict()


def test_polars_frames_for_others() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({**ROWS, "c": pl.Series(["u", "v", "u"], dtype=pl.Categorical)})
    table = read_by_pyarrow(frame)
    assert table.to_pydict() == frame.to_dict(as_series=False)
    assert pl.read_ipc_stream(io.BytesIO(stream(frame))).equals(frame)


@pytest.fixture(scope="module")
def read_by_node(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Reads payloads by apache-arrow, all of a test in one process."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node")
    modules = os.pathsep.join([str(ROOT / ".ci-node" / "node_modules"), os.environ.get("NODE_PATH", "")])
    environment = {**os.environ, "NODE_PATH": modules}
    look = [node, "-e", "require.resolve('apache-arrow')"]
    if subprocess.run(look, env=environment, capture_output=True, check=False).returncode:
        pytest.skip("no apache-arrow for node: npm install --prefix .ci-node apache-arrow")
    folder = tmp_path_factory.mktemp("streams")

    def read(values: dict[str, Any]) -> dict[str, Any]:
        paths = []
        for number, value in enumerate(values.values()):
            paths.append(folder / str(number))
            paths[-1].write_bytes(stream(value) + GARBAGE)
        program = [node, str(Path(__file__).with_name("read.cjs")), *map(str, paths)]
        done = subprocess.run(
            program, env=environment, capture_output=True, text=True, timeout=50, check=False
        )
        assert done.returncode == 0, done.stderr
        return dict(zip(values, map(json.loads, done.stdout.splitlines()), strict=True))

    return read


def test_node_reads_arrays(read_by_node: Any) -> None:
    for name, told in read_by_node(ARRAYS).items():
        flat = stored(ARRAYS[name])
        column = told["columns"]["data"]
        assert told["rows"] == flat.size, name
        assert told["metadata"]["redist"] == "numpy"
        assert json.loads(told["metadata"]["shape"]) == list(ARRAYS[name].shape)
        assert bytes.fromhex(column["bytes"])[: flat.nbytes] == flat.tobytes(), name
        if name in PRIMITIVE and "[" not in name:
            assert column["values"] == flat.tolist(), name
        elif name in FIXED:
            assert "".join(column["values"]) == flat.tobytes().hex(), name


def test_node_reads_tables(read_by_node: Any) -> None:
    values = dict(TABLES)
    try:
        import polars as pl

        values["polars"] = pl.DataFrame(ROWS)
    except ImportError:
        pass
    for name, told in read_by_node(values).items():
        expected = ROWS if name == "polars" else as_table(values[name]).to_pydict()
        assert {key: column["values"] for key, column in told["columns"].items()} == expected, name


def test_node_reads_pickles(read_by_node: Any) -> None:
    for name, told in read_by_node(PICKLES).items():
        assert told["columns"]["data"]["type"] == "Uint8"
        assert told["metadata"]["redist"] == "pickle"
        assert bytes.fromhex(told["columns"]["data"]["bytes"])[:2] == b"\x80\5", name
