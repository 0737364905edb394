"""The comparison runs: the command, and redist's figures with small counts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

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


def test_figures_with_small_counts() -> None:
    code = (
        "import json; from bench import figures; from bench.__main__ import measure\n"
        "figures.TASKS, figures.CHAIN, figures.CHUNKS, figures.LIFE = 200, 20, 20, {'redist': 200}\n"
        "print(json.dumps(measure('redist', ['tasks', 'tasks-pure', 'life', 'chain', 'gather', 'awaited', 'graph'])))"
    )
    numbers = json.loads(run("-c", code).splitlines()[-1])
    assert len(numbers) == 9
    assert all(number > 0 for number in numbers.values())


def test_figures_of_limits_with_small_values() -> None:
    code = (
        "import json; from bench import limits; from bench.__main__ import measure\n"
        "limits.SPILLED, limits.PART = 32 << 20, 16 << 20\n"
        "limits.LIMIT, limits.TIMES, limits.CHUNK = 128_000_000, 1, 8_000_000\n"
        "print(json.dumps(measure('redist', ['spill', 'beyond-memory'])))"
    )
    numbers = json.loads(run("-c", code).splitlines()[-1])
    assert len(numbers) == 5
    assert all(number > 0 for number in numbers.values())


def test_figures_of_payloads_with_small_values() -> None:
    code = (
        "import json; from bench import payloads; from bench.__main__ import measure\n"
        "payloads.LARGE, payloads.REPEATS, payloads.SMALL, payloads.ROWS, payloads.PAUSE = 2, 2, 200, 1_000, 0\n"
        "payloads.SIZES = {'1 MB': 1_000_000}\n"
        "print(json.dumps(measure('redist', ['put-fresh', 'put', 'get', 'get-sum', 'task-sum', 'frame', 'table', 'small'])))"
    )
    numbers = json.loads(run("-c", code).splitlines()[-1])
    assert len(numbers) == 14
    assert all(number > 0 for number in numbers.values())
