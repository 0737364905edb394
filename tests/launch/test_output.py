"""What a program that starts a LocalCluster sees on its terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys, time, warnings
from redist import Client, LocalCluster

def speak(n):
    print("spoken", n)
    warnings.warn("warned")
    return n

if __name__ == "__main__":
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster, Client(cluster) as client:
        assert client.submit(speak, 1).result(20) == 1
        time.sleep(0.2)
        client.restart()
        assert client.submit(abs, -2).result(20) == 2
"""


def test_what_tasks_print_is_seen_once(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("spoken 1") == 1
    assert done.stderr.count("UserWarning: warned") == 1
    # An executor that is replaced because somebody asked for it is no reason to warn.
    assert "WARNING" not in done.stderr
