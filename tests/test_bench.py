"""The comparison runs: the command, and redist's figures with small counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


def run(*args: str) -> str:
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    return done.stdout


def test_the_command(tmp_path: Path) -> None:
    output = tmp_path / "medians.json"
    args = ("--systems", "redist", "--figures", "latency", "--rounds", "1", "--output", str(output))
    assert "submit to result, median ms" in run("-m", "bench", *args)
    medians = json.loads(output.read_text())
    assert set(medians) == {"submit to result, median ms", "submit to result, p99 ms"}
    assert all(0 < by["redist"] < 1000 for by in medians.values())


@pytest.mark.parametrize(
    ("module", "small", "figures", "count"),
    [
        (
            "figures",
            {"TASKS": 200, "CHAIN": 20, "CHUNKS": 20, "LIFE": {"redist": 200}},
            ["tasks", "tasks-pure", "life", "chain", "gather", "awaited", "graph"],
            9,
        ),
        (
            "limits",
            {"SPILLED": 32 << 20, "PART": 16 << 20, "LIMIT": 128_000_000, "TIMES": 1, "CHUNK": 8_000_000},
            ["spill", "beyond-memory"],
            5,
        ),
        (
            "payloads",
            {
                "LARGE": 2,
                "REPEATS": 2,
                "SMALL": 200,
                "ROWS": 1_000,
                "PAUSE": 1e-4,
                "STANDS": 0,
                "SIZES": {"1 MB": 1_000_000},
            },
            ["put-fresh", "put-first", "put", "get", "get-sum", "task-sum", "frame", "table", "small"],
            19,
        ),
        (
            "transfers",
            {"LARGE": 2, "BROADCAST": 1, "WORKERS": 2, "COUNT": 50, "REPEATS": 2, "WARM_UP": 1, "PAUSE": 0},
            ["between-hosts", "gather-far", "broadcast"],
            6,
        ),
    ],
)
def test_figures_with_small_values(
    module: str, small: dict[str, Any], figures: list[str], count: int
) -> None:
    code = (
        f"import json; from bench import {module}; from bench.__main__ import measure\n"
        f"vars({module}).update({small!r})\n"
        f"print(json.dumps(measure('redist', {figures!r})))"
    )
    numbers = json.loads(run("-c", code).splitlines()[-1])
    assert len(numbers) == count
    assert all(number > 0 for number in numbers.values())
