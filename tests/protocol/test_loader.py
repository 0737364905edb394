"""Streams that lie together are loaded as each of them alone."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from redist.errors import DeserializationError
from redist.protocol.payload import Loader, dumps, loads

VALUES = [
    np.arange(1000),
    np.arange(1000) + 1,
    np.arange(1000.0),
    np.asfortranarray(np.arange(600).reshape(20, 30)),
    np.asfortranarray(np.arange(600).reshape(20, 30) + 1),
    np.broadcast_to(np.arange(500), (3, 500)),
    pa.table({"a": list(range(1000))}),
    np.arange(1000) + 2,
    pd.DataFrame({"a": range(1000)}),
    b"x" * 5000,
]


def equal(one: object, other: object) -> bool:
    return bool(np.array_equal(one, other)) if isinstance(one, np.ndarray) else one.equals(other)  # type: ignore[attr-defined]


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("writable", [False, True])
def test_every_kind(copy: bool, writable: bool) -> None:
    streams = [b"".join(map(bytes, dumps(value, inline_limit=0).chunks())) for value in VALUES]
    data = b"ab".join([b"", *streams, b""])
    loader = Loader(copy=copy, writable=writable)
    at = 2
    for value, stream in zip(VALUES, streams, strict=True):
        loaded = loader.load(data, at, at + len(stream))
        alone = loads(memoryview(stream), copy=copy, writable=writable)
        assert loaded == value if isinstance(value, bytes) else equal(value, loaded)
        assert type(loaded) is type(alone)
        if isinstance(value, np.ndarray):
            assert loaded.flags.writeable is alone.flags.writeable is (copy or writable)
            assert loaded.flags.f_contiguous == alone.flags.f_contiguous
        at += len(stream) + 2


def test_one_that_is_cut_off_is_an_error_though_what_follows_would_do() -> None:
    stream = b"".join(map(bytes, dumps(np.arange(1000), inline_limit=0).chunks()))
    data = stream + stream
    loader = Loader()
    assert loader.load(data, 0, len(stream))[999] == 999
    with pytest.raises(DeserializationError, match="cut off"):
        loader.load(data, 0, 4000)
    with pytest.raises(DeserializationError, match="cut off"):
        loads(memoryview(stream)[:4000])


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("mapped", [False, True])
def test_all_at_once(tmp_path: Path, copy: bool, mapped: bool) -> None:
    fields = np.ones(500, np.dtype([("a", "i4"), ("b", "f8")]))
    values = [*VALUES[:1] * 3, fields, fields, *VALUES[3:5], *VALUES, *VALUES[:2]]
    streams = [b"".join(map(bytes, dumps(value, inline_limit=0).chunks())) for value in values]
    data: Any = b"".join(streams)
    if mapped:
        (tmp_path / "file").write_bytes(data)
        with open(tmp_path / "file", "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    places: list[Any] = []
    end = 0
    for stream in streams:
        places += [(data, end, end + len(stream)), None]
        end += len(stream)
    for some in (places, places[::2], []):
        found: list[Any] = []
        Loader(copy=copy).load_all(some, found)
        assert [each is None for each in found] == [place is None for place in some]
        loaded = [each for each in found if each is not None]
        assert all(here for here, _ in loaded)
        for value, (_, one) in zip(values, loaded, strict=False):
            assert one == value if isinstance(value, bytes) else equal(value, one)
            if isinstance(value, np.ndarray):
                assert one.dtype == value.dtype
                assert one.flags.writeable is copy
                assert one.flags.f_contiguous == value.flags.f_contiguous
        assert len(loaded) in (0, len(values))


@pytest.mark.parametrize("damage", ["head", "short"])
def test_the_one_of_many_that_cannot_be_loaded(damage: str) -> None:
    stream = b"".join(map(bytes, dumps(np.arange(1000), inline_limit=0).chunks()))
    places = [(stream, 0, len(stream))] * 5
    places[3] = (bytes(100) + stream[100:], 0, len(stream)) if damage == "head" else (stream, 0, 4000)
    found: list[Any] = []
    with pytest.raises(DeserializationError):
        Loader().load_all(places, found)
    assert len(found) == 3


def test_an_array_whose_fields_are_renamed_is_alone() -> None:
    stream = b"".join(map(bytes, dumps(np.ones(500, [("a", "i4"), ("b", "f8")]), inline_limit=0).chunks()))
    found: list[Any] = []
    Loader().load_all([(stream, 0, len(stream))] * 3, found)
    found[1][1].dtype.names = ("x", "y")
    assert [array.dtype.names for _, array in found] == [("a", "b"), ("x", "y"), ("a", "b")]
