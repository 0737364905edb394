import threading

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from protocol.helpers import FakeFuture
from redist.errors import ClientClosed, DeserializationError, SerializationError
from redist.protocol import INLINE_LIMIT, pack_arguments, pack_spec, unpack_arguments, unpack_spec
from redist.protocol.sizes import buffer_size

F = FakeFuture


def there_and_back(args, kwargs, values=None):
    packed = pack_arguments(args, kwargs)
    names = {name: f"value of {name}" for name in packed.dependencies} if values is None else values
    return packed, unpack_arguments(packed.data, [*[names[n] for n in packed.dependencies], *packed.large])


@pytest.mark.parametrize("args", [(), (1,), (1, 2.0, True, None, 1j, "text", b"bytes"), ([1, {"a": (2,)}],)])
@pytest.mark.parametrize("kwargs", [{}, {"x": 1}, {"y": [None, {3}]}])
def test_plain_arguments(args, kwargs):
    packed, result = there_and_back(args, kwargs)
    assert result == (args, kwargs)
    assert packed[1:] == ((), (), ())
    assert list(map(type, result[0])) == list(map(type, args))


def test_futures_at_any_depth_become_values():
    args = (F("a"), [1, F("b"), (F("c"), {"k": F("a"), "l": {F("d"), 2}})], frozenset({F("e")}))
    packed, (result, kwargs) = there_and_back(args, {"x": F("b"), "y": {"z": [F("f")]}})
    v = "value of {}".format
    assert packed.dependencies == ("a", "b", "c", "d", "e", "f")
    assert result == (v("a"), [1, v("b"), (v("c"), {"k": v("a"), "l": {v("d"), 2}})], frozenset({v("e")}))
    assert kwargs == {"x": v("b"), "y": {"z": [v("f")]}}
    assert args[1][1] == F("b"), "the caller's own containers stay as they were"
    assert packed.hidden == ()


class Opaque:
    def __init__(self, inner):
        self.inner = inner


def test_futures_in_opaque_objects_stay_futures():
    packed, ((first, second), _) = there_and_back((Opaque([F("hidden"), F("both")]), F("both")), {})
    assert packed.dependencies == ("both",)
    assert packed.hidden == ("hidden",)
    assert first.inner == [F("hidden"), F("both")]
    assert second == "value of both"


def test_futures_as_keys_of_a_dict_stay_futures():
    packed, (args, _) = there_and_back(({F("k"): 1},), {})
    assert packed.hidden == ("k",)
    assert args == ({F("k"): 1},)


def test_shared_and_recursive_containers():
    shared = [F("a"), 1]
    packed, ((left, right), _) = there_and_back((shared, {"again": shared}), {})
    assert packed.dependencies == ("a",)
    assert left is right["again"]
    loop = [F("a")]
    loop.append(loop)
    _, ((result,), _) = there_and_back((loop,), {})
    assert result[0] == "value of a"
    assert result[1] is result
    loop = {"x": [1]}
    loop["self"] = (loop,)
    _, ((result,), _) = there_and_back((loop,), {})
    assert result["self"][0] is result


LARGE = [
    np.arange(5000),
    "x" * 5000,
    b"x" * 5000,
    bytearray(5000),
    pd.DataFrame({"a": range(5000)}),
    pd.Series(range(5000)),
    list(range(2000)),
    dict.fromkeys(range(1000), "text"),
    tuple("abcdefgh" * 100 for _ in range(20)),
]


@pytest.mark.parametrize("value", LARGE, ids=lambda value: type(value).__name__)
def test_large_arguments_are_taken_out(value):
    for args, kwargs in [
        ((1, value), {}),
        (([value, F("a")],), {}),
        ((), {"k": {"deep": (value,)}}),
        ((value, value), {}),
    ]:
        packed, result = there_and_back(args, kwargs)
        assert len(packed.large) == 1
        taken = packed.large[0]
        # a container of nothing but scalars goes as a whole
        assert taken is value or (type(value) in (str, bytes) and value in taken)
        assert repr(result) == repr((args, kwargs)).replace("FakeFuture('a')", "'value of a'")
        assert len(packed.data) < 300
    assert result[0][0] is value


def test_many_large_items_are_one_value():
    few, many = [np.arange(1000) for _ in range(3)], [np.arange(1000) for _ in range(100)]
    assert len(pack_arguments((few,), {}).large) == 3
    packed = pack_arguments((many,), {})
    assert packed.large == (many,)
    packed, ((result,), _) = there_and_back(([*many, F("a")],), {})
    assert result[-1] == "value of a"


class Model:
    def __init__(self, future=None):
        self.weights = [float(i) for i in range(5000)]
        self.future = future


def test_a_large_opaque_argument_is_taken_out():
    model = Model()
    packed, ((one, result, dependency), _) = there_and_back((1, model, F("a")), {})
    assert packed.large == (model,)
    assert (one, result, dependency) == (1, model, "value of a")
    packed = pack_arguments((), {"m": Model(F("inside"))})
    assert len(packed.large) == 1
    assert packed.hidden == (), "the value that is stored for it contains the Future"


def test_what_is_small_stays():
    value = [np.arange(10), "x" * 100, {"k": np.float64(3)}, pd.Series([1])]
    packed, (args, _) = there_and_back((value,), {})
    assert packed.large == ()
    assert len(packed.data) <= INLINE_LIMIT
    assert repr(args[0]) == repr(value)


LEAVES = st.one_of(
    st.none(), st.integers(), st.text(max_size=5), st.sampled_from("abcd").map(F), st.just(LARGE[0].tolist())
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(TREES, max_size=4), st.dictionaries(st.text(max_size=3), TREES, max_size=3))
def test_any_arguments(args, kwargs):
    def resolved(obj):
        if isinstance(obj, F):
            return f"value of {obj.name}"
        if isinstance(obj, list | tuple):
            return type(obj)(map(resolved, obj))
        return {key: resolved(value) for key, value in obj.items()} if isinstance(obj, dict) else obj

    _, result = there_and_back(tuple(args), kwargs)
    assert result == (resolved(tuple(args)), resolved(kwargs))


def test_the_argument_at_fault_is_named():
    lock = threading.Lock()
    with pytest.raises(SerializationError, match=r"argument 2 of inc \(.*lock\) cannot be serialized"):
        pack_arguments((1, lock), {}, label="inc")
    with pytest.raises(
        SerializationError, match=r"argument 'x' of inc \(list\) cannot be serialized"
    ) as caught:
        pack_arguments((F("a"),), {"x": [F("b"), lock]}, label="inc")
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_future_can_be_refused():
    def refuse(future):
        raise ClientClosed(f"the client of {future.name} is closed")

    for args in ((F("a"),), ([F("a")],), (Opaque(F("a")),)):
        with pytest.raises(ClientClosed, match="client of a is closed"):
            pack_arguments(args, {}, dependency_of=refuse)
    assert pack_arguments((F("a"),), {}, dependency_of=lambda future: "other").dependencies == ("other",)


def test_too_few_values():
    packed = pack_arguments((F("a"), F("b"), F("a")), {})
    for values in ([], [1]):
        with pytest.raises(DeserializationError):
            unpack_arguments(packed.data, values)
    assert unpack_arguments(packed.data, [1, 2]) == ((1, 2, 1), {})


@pytest.mark.parametrize("data", [b"", b"i", b"i\xff\xff\xff\xff", b"nonsense"])
def test_damaged_arguments(data):
    with pytest.raises(DeserializationError):
        unpack_arguments(data)


def test_specs():
    data = pack_arguments((1, 2), {}).data
    for flags in (0, 5, 127):
        spec = unpack_spec("ab" * 12, memoryview(pack_spec("ab" * 12, data, flags)))
        assert (bytes(spec.args), spec.flags) == (data, flags)
        assert unpack_arguments(spec.args) == ((1, 2), {})
    with pytest.raises(DeserializationError):
        unpack_spec("ab" * 12, b"")


def test_sizes_of_what_lies_about_them():
    class Lazy:
        nbytes = 10**12

        def __dask_graph__(self):
            return {}

    class Broken:
        @property
        def nbytes(self):
            raise RuntimeError

    assert (
        buffer_size(Lazy()) == buffer_size(Broken()) == buffer_size(object()) == buffer_size(np.ndarray) == 0
    )
