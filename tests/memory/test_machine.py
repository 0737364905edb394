"""How much memory there is, as control groups say it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from redist.memory.amounts import parse_bytes
from redist.memory.machine import (
    available_memory,
    control_group_limit,
    control_group_room,
    is_in_memory,
    memory_of_machine,
)
from redist.sizing import limit


def written(tmp_path: Path, own: str, files: dict[str, str]) -> tuple[str, str]:
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "mounted" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(tmp_path / "own"), str(tmp_path / "mounted")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "max\n"}, 0),
        ("0::/\n", {"memory.max": "1000000\n"}, 1_000_000),
        ("0::/\n", {}, 0),
        ("0::/a/b\n", {"memory.max": "max", "a/memory.max": "500\n", "a/b/memory.max": "900\n"}, 500),
        # in a container: the host's path, of which only the root is seen
        ("0::/docker/0123\n", {"memory.max": "700\n"}, 700),
        ("4:memory:/\n0::/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0),
        ("5:cpu,cpuacct:/x\n4:memory:/x\n", {"memory/x/memory.limit_in_bytes": "600\n"}, 600),
        ("9:name=systemd:/\n", {"memory.max": "5"}, 0),
        ("nonsense", {}, 0),
    ],
)
def test_control_groups(tmp_path: Path, own: str, files: dict[str, str], expected: int) -> None:
    assert control_group_limit(*written(tmp_path, own, files)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert control_group_limit(str(tmp_path / "nothing"), str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": "max\n", "memory.current": "400\n"}, math.inf),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "400\n"}, 600),
        (
            "0::/a\n",
            {
                "memory.max": "2000",
                "memory.current": "1900",
                "memory.stat": "anon 5\nfile 900\ninactive_file 800\nactive_file 100\n",
                "a/memory.max": "1000",
                "a/memory.current": "700",
                "a/memory.stat": "inactive_file 0\n",
            },
            300,
        ),
        (
            "4:memory:/x\n",
            {
                "memory/x/memory.limit_in_bytes": "600\n",
                "memory/x/memory.usage_in_bytes": "500\n",
                "memory/x/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
            },
            300,
        ),
    ],
)
def test_what_is_left_in_control_groups(
    tmp_path: Path, own: str, files: dict[str, str], expected: float
) -> None:
    assert control_group_room(*written(tmp_path, own, files)) == expected


def test_available_is_what_a_control_group_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redist.memory.machine.control_group_room", lambda: math.inf)
    assert 1_000_000 < available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.setattr("redist.memory.machine.control_group_room", lambda: 1_000_000)
    assert available_memory() == 1_000_000
    monkeypatch.setattr("redist.memory.machine.control_group_room", lambda: -5)
    assert available_memory() == 0


def test_fractions_are_of_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    physical = memory_of_machine()
    assert parse_bytes("0.5") == int(0.5 * physical)
    monkeypatch.setattr("redist.memory.machine.control_group_limit", lambda: 1_000_000)
    assert memory_of_machine() == 1_000_000
    assert parse_bytes("0.5") == 500_000
    monkeypatch.setattr("redist.sizing.cores", lambda: 8)
    assert limit("auto", 2) == limit(None, 2) == "250000"
    assert limit("auto", 16) == "1000000"
    assert limit(0.25, 2) == "250000"
    assert limit(0, 2) == limit("0", 2) == "0"
    assert limit("3 MB", 2) == "3000000"


def test_file_systems_in_memory() -> None:
    assert not is_in_memory("/proc/nothing")
    if os.path.ismount("/dev/shm"):
        assert is_in_memory("/dev/shm")
