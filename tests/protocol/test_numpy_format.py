import gc
import mmap
import subprocess
import sys
import weakref

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from protocol.helpers import address_range, check_stream, mapped, round_trip, written
from redist.protocol import dumps, loads
from redist.protocol.payload import Loader

DTYPES = st.one_of(
    hnp.scalar_dtypes(),
    hnp.unicode_string_dtypes(max_len=5),
    hnp.byte_string_dtypes(max_len=5),
    hnp.array_dtypes(max_size=4),
    hnp.array_dtypes(hnp.scalar_dtypes() | hnp.array_dtypes(max_size=2), max_size=3, allow_subarrays=True),
    st.sampled_from(["g", "G", ">f2", "M8[7D]", "m8[25s]", "V3"]).map(np.dtype),
)


def identical(left, right):
    assert type(left) is type(right)
    assert left.dtype == right.dtype
    assert left.dtype.isalignedstruct == right.dtype.isalignedstruct
    assert left.shape == right.shape
    assert left.tobytes() == right.tobytes()


@st.composite
def arrays(draw):
    dtype = draw(DTYPES)
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6))
    size = int(np.prod(shape)) * dtype.itemsize
    array = np.frombuffer(draw(st.binary(min_size=size, max_size=size)) or b"\0", np.uint8, size)
    if dtype.kind == "U" and size:
        # What is no character cannot become a str, which taking an item of the array does.
        points = array.view(np.uint32) % 0xD800
        array = points.astype(np.dtype("u4").newbyteorder(dtype.byteorder)).view(np.uint8)
    array = array.view(dtype).reshape(shape) if size else np.zeros(shape, dtype)
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    if array.ndim and draw(st.booleans()):
        array = array[draw(hnp.basic_indices(array.shape, allow_newaxis=True))]
    if type(array) is np.ndarray and draw(st.integers(0, 4)) == 0:
        array = np.broadcast_to(array, (draw(st.integers(0, 3)), *array.shape))
    return np.asarray(array)


@settings(max_examples=300, deadline=None)
@given(arrays(), st.sampled_from([0, 60, 4096]))
def test_round_trip(array, inline_limit):
    identical(array, round_trip(array, inline_limit=inline_limit))


@settings(max_examples=100, deadline=None)
@given(arrays())
def test_copies_are_private_and_writable(array):
    for options in ({"copy": True}, {"writable": True}):
        result = round_trip(array, inline_limit=0, **options)
        identical(array, result)
        assert result.flags.writeable


@pytest.mark.parametrize(
    ("dtype", "arrow"),
    [
        ("i1", pa.int8()),
        ("u8", pa.uint64()),
        ("?", pa.uint8()),
        ("f2", pa.float16()),
        ("f8", pa.float64()),
        ("M8[ns]", pa.timestamp("ns")),
        ("M8[s]", pa.timestamp("s")),
        ("m8[us]", pa.duration("us")),
        ("M8[D]", pa.binary(8)),
        (">i4", pa.binary(4)),
        ("c16", pa.binary(16)),
        ("U3", pa.binary(12)),
        ("S3", pa.binary(3)),
        ("i4,f8", pa.binary(12)),
    ],
)
@pytest.mark.parametrize("shape", [(2000,), (40, 50), (), (0, 3)])
def test_what_other_readers_see(dtype, arrow, shape):
    array = (
        np.arange(int(np.prod(shape)) * np.dtype(dtype).itemsize).astype(np.uint8).view(dtype).reshape(shape)
    )
    table = check_stream(written(dumps(array, inline_limit=0)))
    assert table.schema.field(0).type == arrow
    assert table.num_rows == array.size
    assert table.schema.metadata[b"shape"] == str(list(shape)).replace(" ", "").encode()
    assert table.schema.metadata[b"order"] == b"C"
    if arrow == pa.float64():
        assert table.column(0).to_pylist() == pytest.approx(array.ravel().tolist(), nan_ok=True)


def test_fortran_order_is_kept():
    array = np.asfortranarray(np.arange(6000.0).reshape(60, 100))
    result = round_trip(array)
    assert result.flags.f_contiguous
    identical(array, result)


def test_nothing_is_copied():
    array = np.arange(100_000)
    payload = dumps(array)
    chunk = max(payload.chunks(), key=len)
    assert np.shares_memory(np.frombuffer(chunk, np.uint8), array)
    buffer = mapped(written(payload))
    result = loads(buffer)
    assert not result.flags.writeable
    assert result.ctypes.data in address_range(buffer)
    assert result.ctypes.data % 64 == 0


def test_a_broadcast_array_stays_small():
    array = np.broadcast_to(np.arange(5.0), (1_000_000, 5))
    payload = dumps(array)
    assert payload.nbytes < 2000
    result = loads(mapped(written(payload)))
    identical(array[:3], result[:3])
    assert result.shape == array.shape


def test_the_buffer_lives_as_long_as_the_array():
    data = written(dumps(np.arange(10_000)))
    mapping = mmap.mmap(-1, len(data))
    mapping[:] = data
    reference = weakref.ref(mapping)
    array = loads(memoryview(mapping))
    part = array[5:10]
    del mapping, array
    gc.collect()
    assert reference() is not None
    assert part.tolist() == [5, 6, 7, 8, 9]
    del part
    gc.collect()
    assert reference() is None


def test_an_owner_lives_as_long_as_the_array():
    class Owner:
        pass

    owner = Owner()
    reference = weakref.ref(owner)
    array = loads(memoryview(written(dumps(np.arange(10_000)))), owner=owner)
    del owner
    gc.collect()
    assert reference() is not None
    del array
    gc.collect()
    assert reference() is None


def test_writable_writes_to_the_buffer():
    buffer = bytearray(written(dumps(np.zeros(1000))))
    before = bytes(buffer)
    loads(memoryview(buffer), writable=True)[0] = 1
    assert bytes(buffer) != before
    with pytest.raises(ValueError):
        loads(memoryview(buffer))[0] = 1


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(1000, np.dtype("i8", metadata={"a": 1})),
        np.zeros(1000, np.dtype({"names": ["a"], "formats": ["i8"], "titles": ["the title"]})),
        np.zeros(1000, np.dtype([("a", "i1"), ("b", "i8")], align=True)),
        np.array(["a", None, 1] * 1000, object),
        np.array(["text", "other"] * 1000, np.dtypes.StringDType()),
        np.zeros(1000, "V0"),
        np.ones((100, 100)).view(np.matrix),
        np.rec.array([(1, 2.0)] * 1000, dtype=[("x", "i4"), ("y", "f8")]),
    ],
    ids=lambda array: f"{type(array).__name__}-{array.dtype}",
)
def test_unusual_arrays(array):
    result = round_trip(array)
    assert type(result) is type(array)
    assert result.dtype == array.dtype
    assert result.dtype.metadata == array.dtype.metadata
    assert result.dtype.isalignedstruct == array.dtype.isalignedstruct
    assert result.tolist() == array.tolist()


def test_a_memmap_is_an_array(tmp_path):
    array = np.memmap(tmp_path / "file", "i8", "w+", shape=(5000,))
    array[:] = np.arange(5000)
    for value in (array, [array]):
        result = round_trip(value)
        result = result[0] if value is not array else result
        assert type(result) is np.ndarray
        assert (result == array).all()


@pytest.mark.parametrize("n", [10, 50_000])
@pytest.mark.parametrize("masked", [True, False])
def test_masked_arrays(n, masked):
    array = np.ma.MaskedArray(
        np.arange(n), np.arange(n) % 3 == 0 if masked else False, fill_value=7, hard_mask=True
    )
    array._optinfo["note"] = "kept"
    result = round_trip(array)
    assert type(result) is np.ma.MaskedArray
    assert result.fill_value == 7
    assert result.hardmask
    assert result._optinfo == {"note": "kept"}
    assert (result.mask == array.mask).all()
    assert (result.filled() == array.filled()).all()


@pytest.mark.parametrize("n", [100, 5000])
def test_arrays_of_str_objects(n):
    strings = [f"ü{i}" for i in range(n)]
    for values in (
        strings,
        [*strings, None],
        [*strings, 1],
        [*strings, float("nan")],
        [*strings, "\ud800"],
        ["same"] * n,
    ):
        array = np.array(values, object)
        result = round_trip(array)
        assert list(map(repr, result)) == list(map(repr, values))
    square = np.array([strings, strings], object)
    for array in (square, np.asfortranarray(square), square[:, ::2]):
        result = round_trip(array)
        assert result.tolist() == array.tolist()
        assert result.flags.writeable


def test_shared_str_objects_stay_shared():
    array = np.array(["a long string " * 3] * 10_000, object)
    assert len(set(map(id, round_trip(array)))) == 1


def test_numpy_and_pickle_need_no_pyarrow():
    code = """
import sys, numpy as np
from redist.protocol import dumps, loads
for value in (np.arange(10000), {"a": np.arange(100000)}, "text" * 5000, b"x" * 100000):
    payload = dumps(value)
    assert payload.inline is None
    loads(memoryview(b"".join(payload.chunks())))
assert not {"pyarrow", "pandas", "dask", "cloudpickle"} & set(sys.modules), set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "dtype",
    [
        "i1",
        "<i2",
        "f4",
        ">f8",
        "c16",
        "g",
        "S3",
        "U3",
        "M8[ns]",
        "V5",
        "i1,f8",
        np.dtype("i1,f8", align=True),
    ],
    ids=str,
)
def test_large_arrays_that_are_not_contiguous(dtype):
    """They are gathered into the payload, to the last byte of padding."""
    dtype = np.dtype(dtype)
    count = 2_500_000 // dtype.itemsize // 100 * 100
    items = np.arange(2 * count * dtype.itemsize, dtype="u4").astype("u1").view(dtype)
    if dtype.kind == "U":
        items = np.full(2 * count, "ab", dtype)
    for array in (
        items[::2],
        items.reshape(-1, 100)[::2, ::-1],
        items.reshape(-1, 10, 10).transpose(1, 0, 2)[:, ::2],
    ):
        for value in (array, [array]):
            payload = dumps(value)
            assert not any(len(piece) > 1_100_000 for piece in payload.chunks())
            result = loads(mapped(written(payload)))
            result = result[0] if value is not array else result
            assert result.dtype == dtype
            assert result.shape == array.shape
            raw = f"V{dtype.itemsize}"
            assert result.view(raw).tobytes() == array.view(raw).tobytes()
            assert not result.flags.writeable
            again = loads(mapped(written(payload)), copy=True)
            assert (again if value is array else again[0]).flags.writeable


def test_fields_that_are_renamed_in_place_are_renamed_in_that_array_alone():
    dtype = np.dtype([("a", "i4"), ("b", "f8"), ("inner", [("c", "i2")])], align=True)
    stream = b"".join(map(bytes, dumps(np.ones(500, dtype), inline_limit=0).chunks()))
    for _ in range(3):
        array = loads(memoryview(stream))
        assert array.dtype == dtype
        assert array.dtype.isalignedstruct
        assert array["inner"].dtype.names == ("c",)
        array.dtype.names = ("x", "y", "z")
        array["z"].dtype.names = ("w",)
    loader = Loader()
    for _ in range(3):
        array = loader.load(stream, 0, len(stream))
        assert array.dtype == dtype
        array.dtype.names = ("x", "y", "z")
