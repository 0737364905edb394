import collections
import ctypes
import dataclasses
import pickle
import re
import sys
import threading
from importlib.machinery import ModuleSpec
from types import ModuleType

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from protocol.helpers import FakeFuture, check_stream, mapped, plain_pickle, round_trip, written
from redist.errors import DeserializationError, SerializationError
from redist.protocol import INLINE_LIMIT, dumps, loads, loads_inline
from redist.protocol.sizes import OUT_OF_BAND
from redist.protocol.whole import dump_whole, load_whole

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.complex_numbers()
)
NESTED = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=8),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=5),
        st.frozensets(st.integers() | st.text(max_size=5), max_size=5),
        st.sets(st.binary(max_size=5), max_size=5),
    ),
    max_leaves=30,
)


@settings(max_examples=200, deadline=None)
@given(NESTED, st.sampled_from([0, 100, 4096]))
def test_nested_python(value, inline_limit):
    assert same(round_trip(value, inline_limit=inline_limit), value)


def same(left, right):
    if type(left) is not type(right):
        return False
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(map(same, left.values(), right.values()))
    return left == right if isinstance(left, set | frozenset) else repr(left) == repr(right)


@pytest.mark.parametrize(
    ("value", "type_name"),
    [
        (1, "int"),
        (None, "NoneType"),
        ("text", "str"),
        ([1], "list"),
        (np.arange(3), "numpy.ndarray"),
        (np.float64(1), "numpy.float64"),
        (pa.table({"a": [1]}), "pyarrow.Table"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
    ],
)
def test_a_small_value_is_a_bare_pickle(value, type_name):
    payload = dumps(value)
    assert payload.type == type_name
    assert payload.inline is not None
    assert type(pickle.loads(payload.inline)) is type(value)


@pytest.mark.parametrize("size", [INLINE_LIMIT - 50, INLINE_LIMIT, INLINE_LIMIT + 50])
@pytest.mark.parametrize(
    "make", [bytes, "x".__mul__, lambda size: np.zeros(size, "u1"), lambda size: [b"y" * size]]
)
def test_around_the_inline_limit(make, size):
    value = make(size)
    payload = dumps(value)
    assert (payload.inline is not None) == (len(written(payload)) <= INLINE_LIMIT)
    result = round_trip(value)
    assert bytes(result) == bytes(value) if isinstance(value, np.ndarray) else result == value


@pytest.mark.parametrize("kind", [bytes, bytearray])
@pytest.mark.parametrize("size", [OUT_OF_BAND - 1, OUT_OF_BAND, 3_000_000])
def test_large_bytes(kind, size):
    value = kind(size)
    result = round_trip(value)
    assert type(result) is kind
    assert result == value


def test_large_bytes_anywhere_are_not_copied():
    value = b"x" * 1_000_000
    for obj in ([bytearray(value)], (bytearray(value), value)):
        assert round_trip(obj) == obj
    for obj in (value, [value], {"a": {"b": value}}):
        chunks = list(dumps(obj).chunks())
        assert any(chunk is value or getattr(chunk, "obj", None) is value for chunk in chunks)


def test_buffers_get_a_batch_each():
    value = {
        "a": np.arange(20_000),
        "small": np.arange(10),
        "b": np.arange(30_000.0),
        "c": np.zeros((300, 400), order="F"),
    }
    data = written(dumps(value))
    with pa.ipc.open_stream(data) as reader:
        sizes = [batch.num_rows for batch in reader]
    assert sizes[1:] == [160_000, 240_000, 960_000]
    check_stream(data)
    buffer = mapped(data)
    result = loads(buffer)
    assert all((result[key] == value[key]).all() for key in value)
    assert not result["a"].flags.writeable
    assert result["small"].flags.writeable
    assert result["c"].flags.f_contiguous
    whole = np.frombuffer(buffer, np.uint8)
    assert np.shares_memory(result["a"], whole)
    assert loads(buffer, copy=True)["a"].flags.writeable


def test_arrays_inside_that_numpy_would_copy():
    value = [
        np.arange(100_000).astype("M8[s]"),
        np.arange(100_000).reshape(100, 1000)[::2, ::3],
        np.broadcast_to(1.5, (1000, 1000)),
        np.ma.MaskedArray(np.arange(100_000), mask=True),
    ]
    payload = dumps(value)
    assert payload.nbytes < 3_000_000
    for left, right in zip(loads(mapped(written(payload))), value):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert np.ma.allequal(left, right) if isinstance(left, np.ma.MaskedArray) else (left == right).all()


def test_futures_inside_are_reported():
    class Opaque:
        def __init__(self, inner):
            self.inner = inner

        def __reduce__(self):
            # an object that pickles its parts by itself
            return pickle.loads, (plain_pickle(self.inner),)

    value = [
        FakeFuture("a"),
        {"b": FakeFuture("b")},
        FakeFuture("a"),
        Opaque(FakeFuture("c")),
        np.arange(100_000),
    ]
    payload = dumps(value)
    assert payload.contains == ("a", "b", "c")
    result = round_trip(value)
    assert [result[0].name, result[1]["b"].name, result[3].name] == ["a", "b", "c"]
    assert dumps(FakeFuture("alone")).contains == ("alone",)


def test_a_future_outside_of_the_serializer_takes_its_own_way():
    assert pickle.loads(plain_pickle(FakeFuture("a"))).name == "a/handed-off"


def test_lambdas_and_local_classes():
    @dataclasses.dataclass
    class Local:
        x: int

    assert round_trip(lambda: 5)() == 5
    result = round_trip([Local(3), np.arange(100_000)])
    assert result[0].x == 3
    assert not result[1].flags.writeable


class Refuses:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def recursive():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [threading.Lock(), (i for i in ()), Refuses(ZeroDivisionError("why")), recursive()],
    ids=["lock", "generator", "why", "deep"],
)
def test_what_cannot_be_serialized(value):
    for obj in (value, [1, value]):
        with pytest.raises(SerializationError, match="cannot be serialized"):
            dumps(obj)


def test_read_only_arrays_inside_can_be_had_writable():
    value = [
        np.arange(100_000),
        np.arange(100_000).astype("M8[s]"),
        np.asfortranarray(np.ones((200, 300))),
        np.arange(5),
    ]
    for array in value:
        array.flags.writeable = False
    data = written(dumps(value))
    shared = loads(mapped(data))
    private = loads(mapped(data), copy=True)
    for before, left, right in zip(value, shared, private):
        assert (left == before).all()
        assert (right == before).all()
        assert left.dtype == before.dtype
        assert left.flags.f_contiguous == before.flags.f_contiguous
        assert not left.flags.writeable or before.size == 5
        assert right.flags.writeable


def fails_to_load():
    raise ZeroDivisionError("on the way back")


class FailsToLoad:
    def __reduce__(self):
        return fails_to_load, ()


@pytest.mark.parametrize("inline_limit", [0, 4096])
def test_what_cannot_be_loaded(inline_limit):
    payload = dumps(FailsToLoad(), inline_limit=inline_limit)
    with pytest.raises(DeserializationError, match=re.escape("ZeroDivisionError: on the way back")):
        if payload.inline is not None:
            loads_inline(payload.inline)
        else:
            loads(memoryview(written(payload)))


def test_a_short_buffer_is_refused():
    with pytest.raises(ValueError, match="needs"):
        dumps(np.arange(1000)).write_into(memoryview(bytearray(100)))


@pytest.mark.parametrize("size", [10, 100_000])
def test_memoryviews(size):
    view = memoryview(np.arange(size * 4, dtype="i4").reshape(4, size).data)
    for value in (memoryview(bytes(size)), view, view[::2] if view.ndim == 1 else view):
        for result in (round_trip(value), round_trip([value])[0]):
            assert type(result) is memoryview
            assert result.format == value.format
            assert result.tolist() == value.tolist()
    strided = memoryview(bytes(range(100)))[::3]
    assert round_trip(strided).tolist() == strided.tolist()


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("kind", ["f8", ">f8", "f2", "c16", "g", "U2", "i4,f8", ">i4,S3"])
def test_memoryviews_of_all_kinds(kind: str, size: int) -> None:
    array = np.arange(size * np.dtype(kind).itemsize).astype("u1").view(kind)
    if kind == "U2":
        array = np.array(["a", "bc"] * (size // 2))
    for value in (
        memoryview(array),
        memoryview(array)[::2],
        memoryview(array.reshape(2, -1)),
        memoryview(array[:0]),
    ):
        for result in (round_trip(value, inline_limit=0), round_trip([value])[0]):
            assert type(result) is memoryview
            assert result.shape == value.shape
            # of a structure numpy says in more than one way how it is aligned
            assert np.asarray(result).dtype == np.asarray(value).dtype
            assert result.format == value.format or "," in kind
            assert result.tobytes() == value.tobytes()


def test_memoryviews_of_other_shapes_and_owners() -> None:
    numbers = (ctypes.c_int * 5)(*range(5))  # its format names a byte order
    assert round_trip(memoryview(numbers)).tolist() == list(range(5))
    for array in (np.zeros((0, 3)), np.array(1.5), np.asfortranarray(np.arange(40_000.0).reshape(200, 200))):
        for result in (round_trip(array.data, inline_limit=0), round_trip([array.data])[0]):
            assert (result.format, result.shape) == (array.data.format, array.shape)
            assert result.tobytes() == array.tobytes()


def test_a_memoryview_that_nobody_could_make_again() -> None:
    with pytest.raises(SerializationError, match="memoryview"):
        dumps(memoryview((ctypes.POINTER(ctypes.c_int) * 3)()))


def test_a_library_that_another_thread_is_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in `sys.modules` before it has anything in it."""
    monkeypatch.delitem(sys.modules, "__mp_main__", raising=False)
    for name in ("cloudpickle", "polars"):
        half = ModuleType(name)
        half.__spec__ = ModuleSpec(name, None)
        monkeypatch.setattr(half.__spec__, "_initializing", True, raising=False)
        monkeypatch.setitem(sys.modules, name, half)
    assert load_whole(dump_whole([1, "x", b"y"])) == [1, "x", b"y"]
    assert round_trip({"a": 1}) == {"a": 1}
