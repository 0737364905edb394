import operator

import numpy as np
import pytest

from protocol.helpers import FakeFuture
from redist.protocol import (
    function_of,
    key_of_call,
    pack_arguments,
    pack_calls,
    pack_spec,
    unpack_arguments,
    unpack_spec,
)

ADD = function_of(operator.add)
CALLS = [
    (),
    (1, 2),
    ("a", b"b"),
    (None, True),
    ([1, [2]], 3),
    (FakeFuture("f"), 1),
    (np.arange(5000), 1),
    ("x" * 5000,),
]


@pytest.mark.parametrize("kwargs", [None, {"x": 1}, {"y": FakeFuture("g")}])
@pytest.mark.parametrize("flags", [0, 3])
def test_the_same_as_one_by_one(kwargs, flags):
    for args, packed in zip(CALLS, pack_calls(ADD, CALLS, kwargs, flags=flags), strict=True):
        one = pack_arguments(args, kwargs or {})
        assert packed.key == key_of_call(ADD, args, kwargs or {})
        assert packed.spec == pack_spec(ADD.hash, one.data, flags)
        assert packed[2:4] == one[1:3]
        assert list(map(id, packed.large)) == list(map(id, one.large))


def test_impure_calls():
    calls = list(pack_calls(ADD, [(1, 2)] * 100, pure=False))
    assert len({call.key for call in calls}) == 100
    assert unpack_arguments(unpack_spec(ADD.hash, calls[0].spec).args) == ((1, 2), {})


def test_signed(secret):
    (call,) = pack_calls(ADD, [(1, 2)])
    assert unpack_arguments(unpack_spec(ADD.hash, call.spec).args) == ((1, 2), {})
