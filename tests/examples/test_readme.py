"""The program in the README, as a script of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_the_program_in_the_readme(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    ended = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")], capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert "in memory, 80,000," in ended.stdout
    assert "program.py:" in ended.stdout  # the line that holds it
    assert "copy on worker local-" in ended.stdout
