"""A Dask program gives the same on both, with nothing but its import changed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "examples" / "dask_program.py"
IMPORT = "from redist import "


def output(path: Path, **environment: str) -> str:
    run = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.mark.timeout(260)
def test_it_gives_the_same_on_both(tmp_path: Path) -> None:
    ours = output(PROGRAM)
    assert "pi is about 3.14" in ours
    assert "squares: 0 1 4 9 16 25 36 49 64 81" in ours
    assert "one task failed: ZeroDivisionError" in ours
    assert len(ours.splitlines()) == 7
    if find_spec("distributed") is None:
        pytest.skip("dask.distributed is not installed, to compare with")
    text = PROGRAM.read_text()
    assert text.count(IMPORT) == 1
    theirs = tmp_path / "theirs.py"
    theirs.write_text(text.replace(IMPORT, "from dask.distributed import "))
    assert output(theirs, TMPDIR=str(tmp_path)) == ours  # Dask leaves a directory there
