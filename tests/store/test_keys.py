"""Wire names of users' keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from redist.errors import InvalidKey
from redist.store.keys import decode_key, encode_key


@pytest.mark.parametrize(
    "key",
    [
        "x",
        "\ud800",
        "(x",
        "@x",
        "a\\b\n",
        ("x", 1, None, True, b"y", 1.5),
        ("x", ("y", -1.5)),
        ("\ud800", 1),
        ("x", np.int64(3), np.float64(1.5)),
        5,
        -(10**30),
        1.5,
        -1e300,
        b"",
        b"b\0'\n\\",
        (5,),
        (1.5, b"x", ()),
        np.int64(3),
        "5",
        "(5)",
        "b'x'",
    ],
)
def test_keys_come_back(key: Any) -> None:
    name = encode_key(key)
    name.encode()
    assert decode_key(name) == key


@pytest.mark.parametrize(
    "item",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        1j,
        np.float64("nan"),
        np.complex128(1j),
        np.datetime64("2020-01-01"),
        np.arange(1),
        [1],
        object(),
    ],
)
def test_what_is_no_plain_value_is_refused(item: object) -> None:
    for key in (("x", item), ("x", ("y", item))):
        with pytest.raises(InvalidKey):
            encode_key(key)


def test_no_two_keys_have_one_name() -> None:
    keys = [
        "5",
        "(5)",
        5,
        (5,),
        ((5,),),
        "(5,)",
        1.5,
        "1.5",
        "(1.5)",
        b"x",
        "b'x'",
        "(b'x')",
        (b"x",),
        "x",
        "\\(5)",
    ]
    names = [encode_key(key) for key in keys]
    assert len(set(names)) == len(keys)
    assert [decode_key(name) for name in names] == keys


def test_equal_numbers_are_one_key() -> None:
    assert encode_key(5) == encode_key(5.0) == encode_key(np.int64(5)) == encode_key(np.float32(5)) == "(5)"
    assert type(decode_key("(5)")) is int


def test_what_is_neither_number_nor_str_is_refused() -> None:
    for key in (
        True,
        None,
        1j,
        float("nan"),
        float("inf"),
        bytearray(b"x"),
        10**5000,
        (10**5000,),
        [1],
        frozenset(),
    ):
        with pytest.raises(InvalidKey, match="key"):
            encode_key(key)  # type: ignore[arg-type]
    for name in (5, 1.5, b"x"):
        with pytest.raises(InvalidKey, match="a topic is a str or a tuple of plain values, not"):
            encode_key(name, "topic")  # type: ignore[arg-type]


def test_names_that_nobody_made_hurt_nobody() -> None:
    assert decode_key("('x', nan)") == "('x', nan)"
    assert decode_key("(") == "("
    assert decode_key("(True)") == "(True)"
