import datetime

import hypothesis.extra.pandas as hpd
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from protocol.helpers import check_stream, mapped, round_trip, written
from redist.protocol import dumps, loads

N = 20_000


def frame(n=N):
    df = pd.DataFrame(
        {
            "int": np.arange(n),
            "float": np.arange(n) * 0.5,
            "more": np.arange(n) * 2.5,
            "str": pd.Series([f"s{i}" for i in range(n)], dtype="str"),
            "object": pd.Series([f"o{i}" for i in range(n)], dtype=object),
            "mixed": pd.Series([None, 1, "x", (2, 3)] * (n // 4), dtype=object),
            "time": pd.date_range("2020", periods=n, freq="min"),
            "zone": pd.date_range("2020", periods=n, freq="min", tz="Europe/Berlin"),
            "delta": pd.to_timedelta(np.arange(n), unit="s"),
            "period": pd.period_range("2020", periods=n, freq="h"),
            "category": pd.Categorical(["a", "b"] * (n // 2), categories=["b", "a", "c"], ordered=True),
            "Int64": pd.array([1, None] * (n // 2), dtype="Int64"),
            "boolean": pd.array([True, None] * (n // 2), dtype="boolean"),
            "interval": pd.arrays.IntervalArray.from_breaks(np.arange(n + 1)),
            "sparse": pd.arrays.SparseArray([0, 1] * (n // 2)),
            "complex": np.arange(n) * 1j,
            "f4": np.arange(n, dtype="f4"),
            "bool": np.arange(n) % 2 == 0,
        }
    )
    df.attrs["source"] = {"nested": [1, 2]}
    return df


INDEXES = [
    pd.RangeIndex(2, 20, 3, name="range"),
    pd.Index(["a", "b", None], dtype=object),
    pd.Index(["a", "b"], dtype="str", name="s"),
    pd.MultiIndex.from_product(
        [[1, 2], ["a", "b"], pd.date_range("2020", periods=2)], names=["x", None, "t"]
    ),
    pd.DatetimeIndex(["2020-03-01", "2020-03-02"], freq="D", tz="UTC"),
    pd.CategoricalIndex(["x", "y", "x"]),
    pd.IntervalIndex.from_breaks([0, 1, 2], closed="left"),
    pd.PeriodIndex(["2020-01", "2020-02"], freq="M"),
    pd.TimedeltaIndex(["1s", "2s"]),
    pd.Index(np.arange(N * 2)),
]


def test_a_frame_with_everything():
    df = frame()
    result = round_trip(df)
    pd.testing.assert_frame_equal(result, df, check_freq=True, check_flags=True)
    assert result.attrs == df.attrs
    assert [type(result[c].array) for c in df] == [type(df[c].array) for c in df]
    assert type(result["mixed"][3]) is tuple


def test_a_small_frame_is_inline():
    df = frame(4)[["int", "float", "time"]]
    assert dumps(df).inline is not None
    pd.testing.assert_frame_equal(round_trip(df), df)


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: type(index).__name__ + "-" + str(index.dtype))
@pytest.mark.parametrize("inline_limit", [0, 4096])
def test_indexes(index, inline_limit):
    result = round_trip(index, inline_limit=inline_limit)
    pd.testing.assert_index_equal(result, index, exact=True)
    assert type(result) is type(index)
    assert getattr(result, "freq", None) == getattr(index, "freq", None)
    series = pd.Series(range(len(index)), index=index, name=("a", 1))
    pd.testing.assert_series_equal(round_trip(series, inline_limit=inline_limit), series)


def test_flags_and_odd_labels():
    df = pd.DataFrame([[1, 2]], columns=[("a", 1), None]).set_flags(allows_duplicate_labels=False)
    df.columns.name = datetime.date(2020, 1, 1)
    result = round_trip(df, inline_limit=0)
    assert not result.flags.allows_duplicate_labels
    pd.testing.assert_frame_equal(result, df)
    twice = pd.DataFrame(np.ones((3, 2)), columns=["x", "x"])
    pd.testing.assert_frame_equal(round_trip(twice), twice)
    pd.testing.assert_frame_equal(round_trip(pd.DataFrame()), pd.DataFrame())


@settings(max_examples=60, deadline=None)
@given(
    hpd.data_frames(
        columns=[
            hpd.column("i", dtype=int),
            hpd.column("f", dtype=float),
            hpd.column("t", dtype="datetime64[ns]"),
            hpd.column("o", elements=st.text() | st.none() | st.integers(), dtype=object),
            hpd.column("b", dtype=bool),
        ]
    ),
    st.sampled_from([0, 4096]),
)
def test_any_frame(df, inline_limit):
    pd.testing.assert_frame_equal(round_trip(df, inline_limit=inline_limit), df)
    part = df.iloc[::2, 1:]
    pd.testing.assert_frame_equal(round_trip(part, inline_limit=inline_limit), part)


def test_buffers_are_views():
    df = pd.DataFrame({"a": np.arange(N), "b": np.arange(N) * 1.0, "t": pd.date_range("2020", periods=N)})
    data = written(dumps(df))
    check_stream(data)
    buffer = mapped(data)
    result = loads(buffer)
    whole = np.frombuffer(buffer, np.uint8)
    for column in df:
        assert np.shares_memory(result[column].to_numpy(), whole)


def test_dumps_copies_no_column():
    df = pd.DataFrame(np.zeros((3, 100_000)))
    values = df._mgr.blocks[0].values
    assert any(
        np.shares_memory(np.frombuffer(chunk, np.uint8), values) for chunk in dumps(df).chunks() if len(chunk)
    )


WRITES = {
    "loc": lambda df: df.__class__.loc.fset if False else df.loc.__setitem__((0, "int"), -1),
    "iloc": lambda df: df.iloc.__setitem__((1, 1), -1.0),
    "slice": lambda df: df.loc.__setitem__((slice(0, 10), "time"), df["time"].iloc[20]),
    "category": lambda df: df.loc.__setitem__((0, "category"), "c"),
    "Int64": lambda df: df.loc.__setitem__((0, "Int64"), 9),
    "str": lambda df: df.loc.__setitem__((0, "str"), "new"),
    "object": lambda df: df.loc.__setitem__((0, "object"), 5),
    "column": lambda df: df.__setitem__("int", df["int"] + 1),
    "mask": lambda df: df.loc.__setitem__((df["int"] > 5, "float"), 0.0),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize(
    "derive",
    [
        lambda buffer: loads(buffer),
        lambda buffer: loads(buffer).rename(columns=str),
        lambda buffer: loads(buffer)[:],
        lambda buffer: loads(buffer).copy(deep=False),
        lambda buffer: round_trip([loads(buffer)])[0],
    ],
    ids=["itself", "rename", "slice", "shallow", "nested"],
)
def test_writing_just_works(write, derive):
    before = frame(10_000)
    data = written(dumps(before))
    buffer = mapped(data)
    df = derive(buffer)
    write(df)
    pd.testing.assert_frame_equal(loads(buffer), before)
    assert bytes(buffer[: len(data)]) == data


def test_writing_to_a_series_just_works():
    series = pd.Series(np.arange(N * 1.0))
    result = round_trip(series)
    result.iloc[0] = 7
    result += 1
    result[result > 100] = 0
    assert result.iloc[0] == 8
    column = round_trip(frame())["float"]
    column.iloc[3] = 5
    assert column.iloc[3] == 5


def test_a_copy_is_written_to_in_place():
    df = pd.DataFrame({"a": np.arange(N)})
    result = round_trip(df, copy=True)
    values = result._mgr.blocks[0].values
    result.iloc[0, 0] = 9
    assert result._mgr.blocks[0].values is values


def test_a_part_does_not_bring_the_whole():
    df = frame()
    assert dumps(df.iloc[:10]).nbytes < 40_000
    assert dumps(df["str"].iloc[:10]).inline is not None
    part = df.iloc[10_000:10_010]
    pd.testing.assert_frame_equal(round_trip(part), part)


def test_what_is_made_of_an_index_can_be_written_to():
    index = round_trip(pd.Index(np.arange(N), name="i"))
    for made in (index.to_series(), pd.Series(index), index.to_frame()["i"], pd.DataFrame({"i": index})["i"]):
        made.iloc[0] = 5
        assert made.iloc[0] == 5
    df = round_trip(
        pd.DataFrame({"a": np.arange(N)}, index=pd.Index(np.arange(N) * 2, name="i"))
    ).reset_index()
    df.iloc[0, 0] = 5
    df.loc[1, "a"] = 7
    assert df["i"].iloc[0] == 5
