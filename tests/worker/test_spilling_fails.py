"""A spill directory that goes, or cannot be written: said once, noticed, and over when it can be written again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from redist import Client
from redist.diagnostics.doctor import examine
from redist.errors import DataLost, SegmentsFull
from redist.memory.headers import is_file_name
from servers import wait_until
from worker.little_memory import MB, files_in, metrics, small, worker

pytestmark = pytest.mark.timeout(180)

QUICK = {"wait": "1 s", "longest-pause": "0.2 s", "terminate": False}


def make(number: int) -> Any:
    return np.full(MB, number)


def small_one(number: int) -> Any:
    return np.full(1024, number)


def folder_of(client: Client) -> str:
    """Return where the worker's payloads lie on disk."""
    return os.readlink(os.path.join(worker(client)["local_directory"], "spill"))


def spills(client: Client, least: int) -> None:
    wait_until(lambda: metrics(client)["spilled"] > least, what="values are on disk")


def wholly_removed(spill: Path, folder: str = "") -> None:
    """At once: file by file, the worker would write there meanwhile."""
    shutil.rmtree(spill.rename(spill.with_name("removed")))


def emptied(spill: Path, folder: str) -> None:
    """As by who clears a temporary directory."""
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):  # the worker moves it just now
            os.unlink(os.path.join(folder, name))


@pytest.mark.parametrize("remove", [wholly_removed, emptied])
def test_removed(tmp_path: Path, capfd: pytest.CaptureFixture[str], remove: Any) -> None:
    """It is made again; what went with it is computed again or lost, and is not counted any more."""
    with small(tmp_path, "100 MB") as client:
        scattered = client.scatter({f"s{i}": make(i) for i in range(8)})
        made = client.map(make, range(8), key="made")
        tiny = client.map(small_one, range(1000))
        values = client.scatter({f"t{i}": make(i) for i in range(8)})
        spills(client, 50 * MB)
        folder = folder_of(client)
        on_disk = {name for name in os.listdir(folder) if is_file_name(name)}
        assert on_disk
        remove(tmp_path / "spill", folder)
        last = client.scatter({f"u{i}": make(i) for i in range(8)}, timeout=30)
        assert [int(value.result()[0]) for value in last.values()] == list(range(8))
        assert [int(value.result()[0]) for value in made] == list(range(8))
        assert [int(value.result()[0]) for value in tiny] == list(range(1000))
        lost = 0
        for name, value in {**scattered, **values}.items():
            try:
                assert int(value.result()[0]) == int(name[1:])
            except DataLost:
                lost += 1
        assert lost
        spills(client, 0)
        wait_until(
            lambda: metrics(client)["spilled"] == files_in(folder), what="what is told lies on disk again"
        )
        assert examine(client.cluster.endpoint).healthy
    said = capfd.readouterr().err
    assert said.count("somebody has removed this spill directory") == 1
    assert "Traceback" not in said


def test_nobody_reads_what_was_removed(tmp_path: Path) -> None:
    """The worker notices it by itself."""
    with small(tmp_path, "100 MB") as client:
        values = client.scatter({f"s{i}": make(i) for i in range(16)})
        spills(client, 50 * MB)
        wholly_removed(tmp_path / "spill")
        wait_until(lambda: metrics(client)["spilled"] == 0, what="nothing is on disk any more")
        states = wait_until(lambda: {value.status for value in values.values()} - {"finished"})
        assert states == {"lost"}


def test_replaced_by_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Who puts is told that nothing can be spilled, and why; once it can be, all goes on."""
    spill = tmp_path / "spill"
    with small(tmp_path, "100 MB", QUICK) as client:
        values = client.scatter({f"s{i}": make(i) for i in range(8)})
        spills(client, 0)
        wholly_removed(spill)
        spill.write_text("")
        with pytest.raises(SegmentsFull, match=rf"nothing can be spilled.*{spill}.*it waited"):
            for number in range(16):
                values[f"t{number}"] = client.scatter(make(number), timeout=30)
        spill.unlink()
        spill.mkdir()
        last = wait_until(lambda: scattered(client), what="there is room")
        assert int(last.result()[0]) == 77
    said = capfd.readouterr().err
    assert said.count(f"{spill}: not a directory") == 1
    assert "Traceback" not in said


def test_who_puts_waits_no_longer_than_asked(tmp_path: Path) -> None:
    """The worker would wait for a minute, and cannot spill; this holds for what shares files as well."""
    spill = tmp_path / "spill"
    with small(tmp_path, "100 MB", {**QUICK, "wait": "60 s"}) as client:
        spill.rmdir()
        spill.write_text("")
        values: list[Any] = []
        began = time.monotonic()
        with pytest.raises(SegmentsFull, match=r"nothing can be spilled.*it waited"):
            values.extend(client.scatter(make(number), timeout=1) for number in range(20))
        with pytest.raises(SegmentsFull, match=r"nothing can be spilled.*it waited"):
            parts = ([small_one(1000 * part + n) for n in range(250)] for part in range(20))
            values.extend(client.scatter(part, timeout=1) for part in parts)
        assert time.monotonic() - began < 40
        spill.unlink()


def scattered(client: Client) -> Any:
    try:
        return client.scatter(make(77), timeout=30)
    except SegmentsFull:
        return None


_ON_A_DISK = """
import subprocess, sys
import numpy as np
import redist
from redist import Client, LocalCluster
from redist.errors import SegmentsFull

spill, read_only = sys.argv[1:]
settings = {"worker.memory.wait": "1 s", "worker.memory.terminate": False}
if __name__ == "__main__":
    with redist.config.set(settings), LocalCluster(
        n_workers=1, threads_per_worker=1, memory_limit="100MB", spill_dir=spill
    ) as cluster, Client(cluster) as client:
        if int(read_only):
            subprocess.run(["mount", "-o", "remount,ro", spill], check=True)
        values = []
        try:
            while len(values) < 40:
                values.append(client.scatter(np.full(1_000_000, len(values)), timeout=30))
        except SegmentsFull as error:
            print(error)
        for i, value in enumerate(values):
            assert value.result()[0] == i
"""


@pytest.mark.parametrize(
    ("disk", "read_only", "why"),
    [("40m", 0, "No space left on device"), ("1g", 1, "Read-only file system")],
)
def test_a_disk_that_cannot_be_written(tmp_path: Path, disk: str, read_only: int, why: str) -> None:
    if subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    program, spill = tmp_path / "program.py", tmp_path / "spill"
    program.write_text(_ON_A_DISK)
    spill.mkdir()
    commands = (
        f"mount -t tmpfs -o size={disk} tmpfs {spill} && exec {sys.executable} {program} {spill} {read_only}"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", commands],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{spill}/" in done.stdout
    assert f": nothing can be spilled there: {why}; " in done.stdout
    assert done.stderr.count(why) == 1
    assert "Traceback" not in done.stderr
