"""Nothing large is copied on its way: peak memory, measured in fresh processes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTES = 36
#: kinds of `peak` that a process measures one after the other
GROUPS = {
    "numpy": ["numpy", "numpy, every second", "numpy, turned", "numpy, read-only"],
    "python": [
        "bytes",
        "bytearray",
        "memoryview",
        "list of arrays",
        "dict of strided arrays",
        "list of bytes",
    ],
    "pandas": ["pandas, blocks", "pandas, every second row", "pandas, extension types"],
    "pyarrow": ["pyarrow", "pyarrow, slice", "pyarrow, nested"],
    "polars": ["polars", "polars, series", "polars, nested"],
    "scipy": ["scipy, csr", "scipy, coo"],
    "torch": ["torch", "torch, strided", "torch, channels last"],
}

#: what has no read-only form
OWN_MEMORY = ("bytes", "bytearray", "list of bytes", *GROUPS["torch"])


@pytest.mark.parametrize("group", GROUPS)
def test_simple(group: str) -> None:
    if group != "python" and importlib.util.find_spec(group) is None:
        pytest.skip(f"there is no {group}")
    program = [sys.executable, str(Path(__file__).with_name("peak.py")), str(MEGABYTES), *GROUPS[group]]
    done = subprocess.run(program, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.rpartition(": ") for line in done.stdout.splitlines()]
    assert [kind for kind, _, _ in lines] == GROUPS[group]
    for kind, _, figures in lines:
        size, written, pieces, read = map(float, figures.split())
        assert size > 0.9 * MEGABYTES, kind
        assert written < 5, kind
        assert pieces < 5, kind
        assert read < (1.1 * size if kind in OWN_MEMORY else 2), kind
