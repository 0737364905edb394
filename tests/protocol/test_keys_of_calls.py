import itertools
import operator
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from protocol.helpers import FakeFuture
from redist.errors import SerializationError
from redist.protocol import function_of, key_of_call

ADD = function_of(operator.add)
F = FakeFuture

DIFFERENT = [
    ((), {}),
    ((1,), {}),
    ((1.0,), {}),
    ((True,), {}),
    ((1 + 0j,), {}),
    (("1",), {}),
    ((b"1",), {}),
    ((None,), {}),
    ((0.0,), {}),
    ((-0.0,), {}),
    ((1, 2), {}),
    (((1, 2),), {}),
    (([1, 2],), {}),
    (({1, 2},), {}),
    ((frozenset({1, 2}),), {}),
    (({1: 2},), {}),
    (([1], [2]), {}),
    (([[1], 2],), {}),
    ((1,), {"x": 2}),
    ((), {"x": 1}),
    ((), {"y": 1}),
    (((), {"x": 1}), {}),
    ((F("a"),), {}),
    ((F("b"),), {}),
    (("a",), {}),
    ((("future", "a"),), {}),
    (([F("a")],), {}),
    ((np.arange(3),), {}),
    ((np.arange(3.0),), {}),
    ((np.arange(3)[:, None],), {}),
    ((np.array([0, 1, 3]),), {}),
    ((np.int64(1),), {}),
    ((pd.Series([0, 1, 2]),), {}),
    (("token", 1), {}),
]


def test_different_calls_have_different_keys():
    keys = [key_of_call(ADD, args, kwargs) for args, kwargs in DIFFERENT]
    for (one, a), (two, b) in itertools.combinations(zip(keys, DIFFERENT), 2):
        assert one != two, (a, b)
    assert all(key.startswith("add-") for key in keys)


def test_equal_calls_have_the_same_key():
    for args, kwargs in DIFFERENT:
        assert key_of_call(ADD, args, kwargs) == key_of_call(ADD, args, kwargs)
    text = "not interned "
    pairs = [
        ((("ab", text.strip()),), (("ab", "not interned"),)),
        (({"a": 1, "b": 2},), ({"b": 2, "a": 1},)),
        ((np.arange(10)[::2],), (np.array([0, 2, 4, 6, 8]),)),
        ((2**70,), (2**70,)),
    ]
    for left, right in pairs:
        assert key_of_call(ADD, left, {}) == key_of_call(ADD, right, {})
    assert key_of_call(ADD, (), {"x": 1, "y": 2}) == key_of_call(ADD, (), {"y": 2, "x": 1})


def test_other_functions_have_other_keys():
    assert key_of_call(ADD, (1,), {}) != key_of_call(function_of(operator.sub), (1,), {})


def test_the_same_in_every_process():
    code = """
import operator, numpy as np
from redist.errors import SerializationError
from redist.protocol import function_of, key_of_call
f = function_of(operator.add)
for args in [(1,), ("text",), ({"b", "a", "c"},), ({"x": [1, None]},), (np.arange(5),), (1.5, b"x")]:
    print(key_of_call(f, args, {}), key_of_call(f, args, {"k": "v"}))
"""
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in "123"
    }
    assert len(runs) == 1


def test_impure_calls_are_all_different():
    keys = {key_of_call(ADD, (1,), {}, pure=False) for _ in range(1000)}
    assert len(keys) == 1000
    assert all(key.startswith("add-") for key in keys)


def test_impure_calls_differ_in_a_forked_child():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, key_of_call(ADD, (), {}, pure=False).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as file:
        assert file.read().rpartition("-")[0] != key_of_call(ADD, (), {}, pure=False).rpartition("-")[0]


def test_a_future_can_be_refused():
    with pytest.raises(ValueError, match="foreign"):
        key_of_call(
            ADD, ([F("a")],), {}, dependency_of=lambda future: (_ for _ in ()).throw(ValueError("foreign"))
        )


def test_what_dask_cannot_tokenize_is_named_after_its_pickle(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> str:
        raise ValueError("cannot reshape")

    monkeypatch.setattr("dask.base.tokenize", refuse)
    masked = np.ma.masked_array(np.arange(5.0), [0, 1, 0, 0, 0])
    one, same = (key_of_call(function_of(len), (masked.copy(),), {}) for _ in range(2))
    other = key_of_call(function_of(len), (np.ma.masked_array(np.arange(5.0), [0, 0, 0, 0, 0]),), {})
    assert one == same != other


def test_arguments_that_contain_themselves() -> None:
    around: list[object] = []
    around.append(around)
    with pytest.raises(
        SerializationError, match="the arguments of len are nested too deeply, or one contains itself"
    ):
        key_of_call(function_of(len), (around,), {})
