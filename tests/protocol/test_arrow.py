import datetime
import decimal
import sys
from types import ModuleType

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from protocol.helpers import address_range, check_stream, mapped, round_trip, written
from redist.protocol import dumps, loads

N = 5000


def columns():
    return {
        "int": pa.array(range(N)),
        "nulls": pa.array([1, None] * (N // 2)),
        "str": pa.array([f"s{i}" for i in range(N)]),
        "large": pa.array(["x", None] * (N // 2), pa.large_string()),
        "view": pa.array(["short", "a string too long to be inline"] * (N // 2), pa.string_view()),
        "dict": pa.array(["a", "b"] * (N // 2)).dictionary_encode(),
        "list": pa.array([[1, 2], None, [], [3]] * (N // 4)),
        "map": pa.array([[("k", 1)], []] * (N // 2), pa.map_(pa.string(), pa.int8())),
        "struct": pa.array([{"x": 1, "y": "z"}, None] * (N // 2)),
        "time": pa.array([datetime.datetime(2020, 1, 1)] * N, pa.timestamp("us", "Europe/Berlin")),
        "decimal": pa.array([decimal.Decimal("1.50")] * N),
        "bool": pa.array([True, False, None, True] * (N // 4)),
        "null": pa.nulls(N),
        "half": pa.array(np.arange(N).astype("f2")),
        "fixed": pa.array([b"abc"] * N, pa.binary(3)),
        "ree": pa.RunEndEncodedArray.from_arrays([N], ["same"]),
        "nested_dict": pa.ListArray.from_arrays(
            range(N + 1), pa.array(["a", "b"] * (N // 2)).dictionary_encode()
        ),
        "union": pa.UnionArray.from_dense(
            pa.array([0, 1] * (N // 2), pa.int8()),
            pa.array(np.repeat(np.arange(N // 2), 2), pa.int32()),
            [pa.array(range(N // 2)), pa.array(["u"] * (N // 2))],
        ),
    }


@pytest.mark.parametrize("name", columns())
def test_types(name):
    array = columns()[name]
    for value in (
        array,
        pa.chunked_array([array, array[:7]]),
        pa.table({name: array}),
        pa.record_batch({name: array}),
    ):
        result = round_trip(value, inline_limit=0)
        assert type(result) is type(value)
        assert result.equals(value)
        result.validate(full=True)
        part = value.slice(11, 100)
        assert round_trip(part, inline_limit=0).equals(part)
        assert round_trip([part, 1])[0].equals(part)


def test_a_wide_table_with_everything():
    schema = pa.table(columns()).schema.with_metadata({"who": "me"})
    table = pa.table(columns(), schema=schema)
    table = pa.concat_tables([table, table.slice(100, 50), table])
    result = round_trip(table)
    assert result.schema.equals(table.schema, check_metadata=True)
    assert result.equals(table)
    assert result.column("int").num_chunks == table.column("int").num_chunks


@pytest.mark.parametrize(
    "value",
    [
        pa.table({}),
        pa.table({"a": pa.array([], pa.string())}),
        pa.schema([("a", pa.int64())], metadata={"m": "n"}).empty_table(),
        pa.record_batch({"a": pa.array([], pa.int8())}),
        pa.chunked_array([], pa.int64()),
        pa.chunked_array([[1], [], [2]]),
        pa.array([], pa.list_(pa.int8())),
        pa.nulls(3),
        pa.table({"a": [1]}, metadata={"redist_": "x"}),
        pa.scalar(3),
        pa.scalar("text" * 2000),
        pa.scalar([1, 2, 3]),
        pa.scalar(None),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("inline_limit", [0, 4096])
def test_small_and_empty(value, inline_limit):
    result = round_trip(value, inline_limit=inline_limit)
    assert type(result) is type(value)
    assert result.equals(value)
    if hasattr(value, "schema"):
        assert result.schema.equals(value.schema, check_metadata=True)


def test_a_table_without_columns_keeps_its_length():
    table = pa.table({"a": [1, 2, 3]}).select([])
    assert round_trip(table, inline_limit=0).num_rows == 3


def test_a_large_table_is_read_in_place():
    table = pa.table({"a": np.arange(100_000), "s": [f"s{i}" for i in range(100_000)]})
    payload = dumps(table)
    source = table.column("a").chunk(0).buffers()[1]
    assert any(pa.py_buffer(chunk).address == source.address for chunk in payload.chunks() if len(chunk))
    data = written(payload)
    check_stream(data)
    buffer = mapped(data)
    result = loads(buffer)
    for column in result.columns:
        for part in column.chunk(0).buffers():
            assert part is None or part.address in address_range(buffer)
    assert loads(buffer, copy=True).column("a").chunk(0).buffers()[1].address not in address_range(buffer)
    assert loads(buffer, copy=True) == table


def test_a_slice_does_not_bring_the_whole():
    table = pa.table({"a": np.arange(1_000_000), "s": ["x"] * 1_000_000})
    assert dumps(table.slice(3, 5)).inline is not None
    assert dumps([table.slice(3, 5), table["a"].chunk(0).slice(7, 2)]).inline is not None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2**40) | st.none(), max_size=5) | st.none(), max_size=20), st.booleans()
)
def test_any_array(values, sliced):
    array = pa.array(values, pa.list_(pa.int64()))
    array = array[len(array) // 3 :] if sliced else array
    assert round_trip(array, inline_limit=0).equals(array)


def test_tables_inside():
    table = pa.table({"a": np.arange(100_000)})
    result = round_trip({"t": [table]})["t"][0]
    assert result == table


class Unregistered(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.int64(), "redist.tests.unregistered")

    def __arrow_ext_serialize__(self):
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls()

    def __reduce__(self):
        return Unregistered, ()


@pytest.mark.parametrize("n", [1, 5000])
def test_tables_whose_metadata_are_those_of_payloads(n: int) -> None:
    """As plain pyarrow reads them from a payload file: they are tables all the same."""
    streams = [
        written(dumps(value, inline_limit=0))
        for value in (np.arange(n), {"a": np.arange(n)}, pa.array(range(n)))
    ]
    tables = [pa.ipc.open_stream(stream).read_all() for stream in streams]
    for word in ("numpy", "batch", "polars", "of tomorrow"):
        tables += [pa.table({"data": range(n)}).replace_schema_metadata({"redist": word, "k": "v"})]
    for table in (*tables, *(table.to_batches()[0] for table in tables)):
        for result in (round_trip(table, inline_limit=0), round_trip([table])[0]):
            assert type(result) is type(table)
            assert result.schema.equals(table.schema, check_metadata=True)
            assert result.equals(table)


#: types of which pyarrow makes no scalar of None
UNTAKEN = {"union", "ree"}


@pytest.mark.parametrize("name", columns())
def test_scalars(name: str) -> None:
    array = columns()[name]
    for value in (array[0], array[N - 1], pa.scalar(None, array.type) if name not in UNTAKEN else array[1]):
        for result in (round_trip(value), round_trip({"a": [value]}, inline_limit=0)["a"][0]):
            assert type(result) is type(value)
            assert result.type == value.type
            assert result.equals(value)


@pytest.mark.parametrize(
    "scalar",
    [
        pa.scalar(123_456_789, pa.time64("ns")),
        pa.scalar((1, 2, 3), pa.month_day_nano_interval()),
        pa.scalar(5_000_000, pa.int32()).cast(pa.date32()),  # a year past 9999
        pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])[0],
        pa.array(["x" * 200_000] * 2).dictionary_encode()[1],
        pa.array([[1, 2]], pa.list_view(pa.int8()))[0],
        pa.UnionArray.from_sparse(pa.array([1], pa.int8()), [pa.array([1]), pa.array(["x"])])[0],
    ],
    ids=lambda scalar: str(scalar.type)[:20],
)
def test_scalars_that_are_more_than_python_has(scalar: pa.Scalar) -> None:
    for result in (round_trip(scalar, inline_limit=0), round_trip([scalar])[0]):
        assert result.type == scalar.type
        assert result.equals(scalar)


def test_an_extension_type_that_only_python_knows():
    array = pa.ExtensionArray.from_storage(Unregistered(), pa.array(range(5000)))
    for value in (
        array,
        pa.table({"a": array}),
        pa.table({"a": pa.array([[1]] * 5000).cast(pa.list_(pa.int64()))}),
    ):
        result = round_trip(value)
        assert result.equals(value)


def test_an_unimported_polars_is_not_missed(monkeypatch):
    monkeypatch.setitem(sys.modules, "polars", None)
    assert isinstance(round_trip(pa.array(range(3000))), pa.Int64Array)
    assert isinstance(sys.modules["pyarrow"], ModuleType)


def test_polars_frames():
    pl = pytest.importorskip("polars")
    df = pl.DataFrame(
        {
            "a": range(3000),
            "s": ["x", None, "z"] * 1000,
            "c": pl.Series(["u", "v", "w"] * 1000, dtype=pl.Categorical),
        }
    )
    for value in (df, df["a"], df["c"], df.head(2), df.with_columns(l=pl.concat_list("a"))):
        result = round_trip(value)
        assert type(result) is type(value)
        assert result.equals(value)
        assert str(result) == str(value)


@pytest.mark.parametrize("name", ["", "a", "data"])
@pytest.mark.parametrize("n", [3, 100_000])
def test_polars_without_names_and_inside_of_others(name, n):
    pl = pytest.importorskip("polars")
    series = pl.Series(name, np.arange(n))
    frame = series.to_frame().with_columns(column_1=pl.lit("text"))
    for value in (series, frame):
        for result in (round_trip(value), round_trip([value, 1])[0], round_trip(value, inline_limit=0)):
            assert type(result) is type(value)
            assert result.equals(value, null_equal=True)
            assert str(result) == str(value)
    if n > 3:
        places = [pa.py_buffer(chunk).address for chunk in dumps([frame]).chunks()]
        assert series.to_arrow().buffers()[1].address in places


def test_polars_types():
    pl = pytest.importorskip("polars")
    n = 20_000
    frame = pl.DataFrame(
        {
            "c": pl.Series(["x", "y"] * (n // 2), dtype=pl.Categorical),
            "e": pl.Series(["x", None] * (n // 2), dtype=pl.Enum(["x", "y"])),
            "d": pl.Series([decimal.Decimal("1.50"), None] * (n // 2), dtype=pl.Decimal(10, 2)),
            "l": [[1, None], []] * (n // 2),
            "array": pl.Series([[1, 2]] * n, dtype=pl.Array(pl.Int64, 2)),
            "t": pl.Series([datetime.time(12, 30)] * n),
            "z": pl.Series([datetime.datetime(2020, 1, 1)] * n).dt.replace_time_zone("Europe/Berlin"),
            "s": [{"a": 1, "b": "x"}, {"a": None, "b": "y"}] * (n // 2),
            "binary": [b"x", None] * (n // 2),
            "null": pl.Series([None] * n),
            "i128": pl.Series([1, None] * (n // 2), dtype=pl.Int128),
            "nan": [float("nan"), None] * (n // 2),
        }
    )
    for value in (frame, frame[::2], frame[3:5], *frame):
        for result in (round_trip(value), round_trip([value])[0]):
            assert result.equals(value)
            assert type(result) is type(value)
            assert getattr(result, "schema", None) == getattr(value, "schema", None)
            assert getattr(result, "dtype", None) == getattr(value, "dtype", None)
