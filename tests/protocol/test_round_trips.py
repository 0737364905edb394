"""Round trips of what libraries make: pandas' extension types in every attribute, sparse matrices of all formats, torch."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from protocol.helpers import round_trip

INTS = st.lists(st.integers(0, 100) | st.none(), max_size=30)
TIMES = st.lists(st.datetimes(min_value=pd.Timestamp("1900").to_pydatetime()) | st.none(), max_size=20)
DTYPES = ["Int8", "UInt64", "Float32", "boolean", "int64[pyarrow]", "double[pyarrow]"]


@st.composite
def extension_arrays(draw: st.DrawFn) -> Any:
    """An array of one of pandas' own types, with missing values."""
    kind = draw(st.integers(0, 8))
    numbers = draw(INTS)
    if kind == 0:
        dtype = draw(st.sampled_from(DTYPES))
        values = [None if n is None else bool(n % 2) for n in numbers] if dtype == "boolean" else numbers
        return pd.array(values, dtype=dtype)
    if kind == 1:
        dtype = draw(st.sampled_from(["str", "string", "string[python]", "string[pyarrow]"]))
        return pd.array(
            draw(st.lists(st.text(st.characters(exclude_categories=["Cs"])) | st.none())), dtype=dtype
        )
    if kind == 2:
        ordered = draw(st.booleans())
        categories = pd.Index([3, 1, 2, 50, 60], name="of")
        return pd.Categorical([n for n in numbers if n in categories], categories=categories, ordered=ordered)
    if kind == 3:
        breaks = np.cumsum([n or 0 for n in [1, *numbers]])
        closed = draw(st.sampled_from(["left", "right", "both", "neither"]))
        return pd.arrays.IntervalArray.from_breaks(breaks, closed=closed)
    if kind == 4:
        freq = draw(st.sampled_from(["D", "h", "M", "Q-MAR"]))
        return pd.arrays.PeriodArray(np.array([n or 0 for n in numbers], "i8"), dtype=pd.PeriodDtype(freq))
    if kind == 5:
        fill = draw(st.sampled_from([0, -1, np.nan]))
        return pd.arrays.SparseArray([np.nan if n is None else float(n) for n in numbers], fill_value=fill)
    unit = draw(st.sampled_from(["s", "ms", "us"]))
    times = pd.Series(draw(TIMES), dtype=f"M8[{unit}]")
    if kind == 6:
        return (times - pd.Timestamp("2000")).array
    zone = draw(st.sampled_from([None, "UTC", "America/New_York", "+05:30"]))
    return (times if zone is None else times.dt.tz_localize("UTC").dt.tz_convert(zone)).array


@settings(max_examples=100, deadline=None)
@given(extension_arrays(), st.sampled_from([0, 4096]), st.booleans())
def test_extension_types(array: Any, inline_limit: int, sliced: bool) -> None:
    array = array[len(array) // 3 :: 2] if sliced else array
    result = round_trip(array, inline_limit=inline_limit)
    assert type(result) is type(array)
    assert result.dtype == array.dtype
    assert repr(getattr(result, "fill_value", None)) == repr(getattr(array, "fill_value", None))
    series = pd.Series(array, name=("name", 1))
    pd.testing.assert_series_equal(round_trip(series, inline_limit=inline_limit), series)
    frame = pd.DataFrame({"a": array, "b": range(len(array))}, index=pd.Index(array, name="same"))
    frame.attrs["of"] = {"who": [1]}
    again = round_trip({"f": frame}, inline_limit=inline_limit)["f"]
    pd.testing.assert_frame_equal(again, frame, check_freq=True, check_flags=True)
    assert again.attrs == frame.attrs
    assert [column.dtype for _, column in again.items()] == [column.dtype for _, column in frame.items()]
    assert type(again.index) is type(frame.index)


@pytest.mark.parametrize("inline_limit", [0, 4096])
def test_frequencies_levels_and_payloads_of_nan(inline_limit: int) -> None:
    for index in (
        pd.date_range("2020", periods=5, freq="QS-FEB", tz="Asia/Tokyo", name="t"),
        pd.timedelta_range("1h", periods=4, freq="90min"),
        pd.period_range("2020", periods=4, freq="W-WED"),
    ):
        frame = pd.DataFrame({"x": range(len(index))}, index=index)
        result = round_trip(frame, inline_limit=inline_limit).index
        assert result.freq == index.freq
        assert result.dtype == index.dtype
        assert result.name == index.name
    levels = pd.MultiIndex.from_product([["a", "b", "c"], [1, 2]], names=["x", None])[2:4]
    result = round_trip(levels, inline_limit=inline_limit)
    assert [list(level) for level in result.levels] == [list(level) for level in levels.levels]
    assert [code.dtype for code in result.codes] == [code.dtype for code in levels.codes]
    assert result.names == levels.names
    odd = np.array([0x7FF8_0000_0000_BEEF, 0xFFF8_0000_0000_0001, 0x7FF0_0000_0000_0001], "u8").view("f8")
    for value in (odd, [odd], pd.Series(odd), np.ma.MaskedArray(odd, [True, False, False])):
        again = round_trip(value, inline_limit=inline_limit)
        again = again[0] if isinstance(value, list) else again
        assert (
            np.asarray(getattr(again, "data", again) if np.ma.isMA(again) else again).tobytes()
            == odd.tobytes()
        )


FORMATS = ["csr", "csc", "coo", "bsr", "lil", "dok", "dia"]


@pytest.mark.filterwarnings("ignore:Constructing a DIA")
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "c16", "?"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("n", [10, 2000])
def test_sparse_matrices(form: str, dtype: str, n: int) -> None:
    sparse = pytest.importorskip("scipy.sparse")
    steps = np.arange(n)
    made = sparse.coo_array((np.ones(n, dtype), (steps, steps // 2 * 2 % 7)), shape=(n, 7)).asformat(form)
    for value in (
        made,
        getattr(sparse, f"{form}_matrix")(made),
        made[:0] if form in ("csr", "lil") else made,
    ):
        for result in (round_trip(value, inline_limit=0), round_trip([value])[0]):
            assert type(result) is type(value)
            assert result.dtype == value.dtype
            assert result.shape == value.shape
            assert (result != value).nnz == 0
            for name in ("data", "indices", "indptr", "offsets"):
                left, right = (getattr(matrix, name, None) for matrix in (result, value))
                if isinstance(right, np.ndarray) and right.dtype != object:
                    assert left.dtype == right.dtype
                    assert left.tobytes() == right.tobytes()


@pytest.mark.parametrize("n", [3, 100_000, 300_000])
@pytest.mark.parametrize("options", [{}, {"copy": True}, {"writable": True}])
def test_torch(n: int, options: dict[str, bool]) -> None:
    torch = pytest.importorskip("torch")
    loss = torch.ones(n, 3, requires_grad=True)
    tensors = [
        torch.arange(n),
        torch.ones(n, dtype=torch.bfloat16),
        torch.arange(n).to(torch.complex128),
        torch.ones(n, 2)[:, 0],
        torch.ones(n).bool(),
        torch.arange(3 * n).reshape(3, n).T,
        torch.arange(24 * n).reshape(2, 3, 4, n).to(memory_format=torch.channels_last),
        torch.arange(n).expand(3, n),
        torch.arange(n)[None].expand(3, n)[:, ::2],
        torch.zeros(0, 3),
        loss,
        torch.nn.Parameter(torch.ones(n, 3)),
        torch.ones(n, dtype=torch.complex64).conj(),
    ]
    for tensor in tensors:
        values = (
            round_trip(tensor, **options),
            round_trip({"t": [tensor]}, inline_limit=0, **options)["t"][0],
        )
        for result in values:
            assert type(result) is type(tensor)
            assert result.dtype == tensor.dtype
            assert torch.equal(result, tensor)
            assert result.requires_grad == tensor.requires_grad
            if tensor.ndim == 4:
                assert result.stride() == tensor.stride()
            if 0 not in tensor.stride():
                result.detach().zero_()  # what is read-only would end the process
    linear = round_trip(torch.nn.Linear(100, n // 100 + 1))
    assert [parameter.requires_grad for parameter in linear.parameters()] == [True, True]
