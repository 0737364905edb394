"""Writing to what was loaded: shared values refuse it, `copy` and `writable` allow it, pandas and polars copy first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from protocol.helpers import mapped, written
from redist.protocol import dumps, loads

N = 20_000


def sparse(form: str) -> Any:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    return scipy_sparse.random_array((N, 200), density=0.01, format=form, rng=np.random.default_rng(0))


MADE: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(N * 1.0),
    "fortran": lambda: np.asfortranarray(np.ones((100, 200))),
    "strided": lambda: np.ones((400_000, 2))[:, 0],
    "big-endian": lambda: np.arange(N).astype(">i8"),
    "datetimes": lambda: np.arange(N).astype("M8[s]"),
    "structured": lambda: np.zeros(N, "i8,f8"),
    "read-only": lambda: np.frombuffer(bytes(8 * N), "i8"),
    "broadcast": lambda: np.broadcast_to(np.arange(100.0), (N, 100)),
    "masked": lambda: np.ma.MaskedArray(np.arange(N), np.arange(N) % 2 == 0),
    "memoryview": lambda: memoryview(bytearray(8 * N)),
    "memoryview of bytes": lambda: memoryview(bytes(8 * N)),
    "bytearray": lambda: bytearray(8 * N),
    **{form: lambda form=form: sparse(form) for form in ("csr", "csc", "coo", "bsr", "dia")},
}
OWN_MEMORY = ("bytearray",)


def parts(value: Any) -> Iterator[Any]:
    """Yield what can be written to in a value."""
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from parts(item)
    elif hasattr(value, "asformat"):
        yield value.data
    else:
        yield value


def write(part: Any) -> None:
    part[0] = part[1] if isinstance(part, np.ndarray) else 1


@pytest.mark.filterwarnings("ignore:Constructing a DIA|Changing the sparsity")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("name", MADE)
def test_arrays(name: str, nested: bool) -> None:
    value = MADE[name]()
    value = {"a": [value, (value,)]} if nested else value
    data = written(dumps(value, inline_limit=0))
    buffer = mapped(data)
    for part in parts(loads(buffer)):
        if name in OWN_MEMORY:
            write(part)
            continue
        with pytest.raises((ValueError, TypeError), match="read-only"):
            write(part)
    for options in ({"copy": True}, {"writable": True}):
        for part in parts(loads(buffer, **options)):
            write(part)
    assert bytes(buffer[: len(data)]) == data
    own = bytearray(data)  # as a private mapping is
    for part in parts(loads(memoryview(own), writable=True)):
        write(part)


IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "sort": lambda a: a.sort(),
    "add": lambda a: a.__iadd__(1),
    "out": lambda a: np.add(a, 1, out=a),
    "fill": lambda a: a.fill(0),
    "partition": lambda a: a.partition(5),
    "shuffle": lambda a: np.random.default_rng(0).shuffle(a),
    "legacy shuffle": np.random.shuffle,
    "copyto": lambda a: np.copyto(a, 0),
    "put": lambda a: np.put(a, [0], 1),
    "place": lambda a: np.place(a, a > 5, [1]),
    "nan_to_num": lambda a: np.nan_to_num(a, copy=False),
    "median": lambda a: np.median(a, overwrite_input=True),
    "byteswap": lambda a: a.byteswap(inplace=True),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_what_the_page_says_of_numpy(name: str) -> None:
    buffer = mapped(written(dumps(np.arange(N * 1.0))))
    with pytest.raises(ValueError, match="read-only"):
        IN_PLACE[name](loads(buffer))
    IN_PLACE[name](loads(buffer, writable=True))
    IN_PLACE[name](loads(buffer, copy=True))


@pytest.mark.filterwarnings("ignore:Constructing a DIA|Changing the sparsity")
@pytest.mark.parametrize("form", ["csr", "csc"])
def test_what_the_page_says_of_scipy(form: str) -> None:
    buffer = mapped(written(dumps(sparse(form))))

    def unsorted(matrix: Any) -> Any:
        matrix.has_sorted_indices = matrix.has_canonical_format = False
        return matrix

    for call in (
        lambda matrix: unsorted(matrix).sort_indices(),
        lambda matrix: unsorted(matrix).sum_duplicates(),
        lambda matrix: matrix.eliminate_zeros(),
        lambda matrix: matrix.__imul__(2),
        lambda matrix: matrix.__setitem__((0, 0), 1),
    ):
        with pytest.raises(ValueError, match="read-only"):
            call(loads(buffer))
        call(loads(buffer, writable=True))
    matrix = loads(buffer)
    for result in (
        matrix @ np.ones(200),
        matrix.T @ matrix,
        matrix[:5],
        matrix.sum(0),
        matrix.tocoo(),
        matrix * 2,
    ):
        assert result is not None


POLARS: dict[str, Callable[[Any], Any]] = {
    "item": lambda df: df.__setitem__((0, "a"), -1.0),
    "series": lambda df: df["a"].__setitem__(0, -1.0),
    "scatter": lambda df: df["a"].scatter([0, 1], 5.0),
    "sort": lambda df: df["a"].sort(descending=True, in_place=True),
    "extend": lambda df: df.extend(df.clone()),
    "append": lambda df: df["a"].append(df["a"]),
}


@pytest.mark.parametrize("name", POLARS)
def test_polars_copies_what_it_writes_to(name: str) -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": np.arange(N * 1.0), "s": ["text"] * N})
    data = written(dumps(frame))
    buffer = mapped(data)
    POLARS[name](loads(buffer))
    assert bytes(buffer[: len(data)]) == data
    own = memoryview(bytearray(data))
    for options in ({"copy": True}, {"writable": True}):
        POLARS[name](loads(own, **options))
    assert loads(buffer).equals(frame)


def test_tables_are_never_written_to() -> None:
    table = pa.table({"a": np.arange(N * 1.0)})
    data = written(dumps(table))
    for options in ({}, {"copy": True}, {"writable": True}):
        result = loads(mapped(data), **options)
        assert result == table
        frame = result.to_pandas()
        frame.loc[0, "a"] = 9
        assert result["a"][0].as_py() == 0


@pytest.mark.parametrize("options", [{}, {"copy": True}, {"writable": True}])
def test_pandas(options: dict[str, Any]) -> None:
    frame = pd.DataFrame(
        {"a": np.arange(N * 1.0), "I": pd.array([1, None] * (N // 2), dtype="Int64"), "s": "x"}
    )
    data = written(dumps({"frames": [frame]}))
    buffer = mapped(data)
    result = loads(buffer, **options)["frames"][0]
    result.loc[0, "a"] = -1
    result["a"] += 1
    result.iloc[0, 1] = 5
    result.loc[result.index[1], "s"] = "new"
    assert bytes(buffer[: len(data)]) == data
    pd.testing.assert_frame_equal(loads(buffer)["frames"][0], frame)
