"""Streams that lie together are loaded as each of them alone."""

from __future__ import annotations

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
