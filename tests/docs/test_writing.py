"""docs/writing.md: its blocks are run, and the errors that it names are those of numpy."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from docs.documents import DOCS, blocks_of, run_python

PAGE = DOCS / "writing.md"


def test_the_page_is_true() -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    try:
        for block in blocks_of(PAGE, "python"):
            run_python(PAGE, block, namespace)
    finally:
        for name in ("client", "cluster"):
            if name in namespace:
                namespace[name].close()
        namespace.clear()
        gc.collect()


def shared() -> Any:
    return np.frombuffer(np.arange(100.0).tobytes()).reshape(10, 10)


ERRORS: dict[str, Callable[[Any], Any]] = {
    "a[...] = x": lambda a: a.__setitem__(0, 1),
    "a += x": lambda a: a.__iadd__(1),
    "a.sort()": lambda a: a.sort(),
    "a.partition()": lambda a: a.partition(2),
    "rng.shuffle(a)": lambda a: np.random.default_rng(0).shuffle(a),
    "np.putmask": lambda a: np.putmask(a, a > 1, 0),
    "np.put": lambda a: np.put(a, [0], 1),
    "np.fill_diagonal": lambda a: np.fill_diagonal(a, 0),
    "a.byteswap(inplace=True)": lambda a: a.byteswap(inplace=True),
    "np.place": lambda a: np.place(a, a > 1, [1]),
    "a.setflags(write=True)": lambda a: a.setflags(write=True),
}


@pytest.mark.parametrize("call", ERRORS)
def test_numpy_says_what_the_page_says(call: str) -> None:
    with pytest.raises(ValueError, match=r"read-only|WRITEABLE") as caught:
        ERRORS[call](shared())
    rows = [line for line in PAGE.read_text().splitlines() if f"`{call}`" in line]
    said = re.findall(r"(?:ValueError: |, `)([^`]+)`", rows[0])
    assert str(caught.value) in said
