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


def test_names_that_nobody_made_hurt_nobody() -> None:
    assert decode_key("('x', nan)") == "('x', nan)"
    assert decode_key("(") == "("
