import subprocess
import sys

import numpy as np
import pytest

from redist.protocol import format_bytes, sizeof, type_name
from redist.protocol.sizes import buffer_size


def test_sizeof():
    assert sizeof(np.zeros(1000)) >= 8000
    assert sizeof(b"x" * 1000) >= 1000
    assert sizeof([np.zeros(1000)] * 3) >= 8000
    assert sizeof(1) == sys.getsizeof(1)


def test_format_bytes():
    assert format_bytes(1300 * 2**20) == "1.27 GiB"


@pytest.mark.parametrize(
    ("value", "size"),
    [(b"abc", 3), ("abc", 3), (memoryview(bytes(10)), 10), (np.zeros(4), 32), (5, 0), ([1, 2], 0)],
)
def test_buffer_size(value, size):
    assert buffer_size(value) == size


def test_type_names_are_short_and_printable():
    assert type_name(int) == "int"
    assert type_name(np.ndarray) == "numpy.ndarray"
    assert type_name(type("Odd\n" + "x" * 100, (), {})).isprintable()
    assert len(type_name(type("Odd\n" + "x" * 100, (), {}))) == 48


def test_nothing_heavy_is_imported():
    code = """
import sys
from redist.protocol import *
f = function_of(len)
unpack_arguments(pack_arguments((1, "x"), {"y": 2}).data); key_of_call(f, (1,), {}); load_function(f.data)
loads_inline(dumps([1, {"a": None}]).inline); unpack_error(pack_error(ValueError("x")))
heavy = {"numpy", "pandas", "pyarrow", "dask", "cloudpickle"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)
