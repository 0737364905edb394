"""Whether another process of this host lives, which its pid alone does not tell."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from redist.memory.host import is_near, lives, process_id
from servers import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is seen in /proc")


@pytest.fixture
def other() -> subprocess.Popen[str]:
    """A process that says its id, and ends with its input."""
    code = "from redist.memory.host import process_id; print(process_id(), flush=True); input()"
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_simple(other: subprocess.Popen[str]) -> None:
    process = said(other)
    assert lives(str(other.pid), process)
    assert lives(str(os.getpid()), process_id())
    other.kill()
    wait_until(lambda: lives(str(other.pid), process) is False)  # nobody has waited for it yet
    other.communicate()
    assert lives(str(other.pid), process) is False


def test_another_has_its_pid(other: subprocess.Popen[str]) -> None:
    process = said(other)
    assert process != process_id()
    assert lives(str(os.getpid()), process) is False
    other.communicate("\n")


@pytest.mark.parametrize("process", ["", "77", "0123456789abcdef.77"])
def test_one_that_counts_elsewhere(process: str) -> None:
    assert lives(str(os.getpid()), process) is None
    assert lives("999999999", process) is None


def test_one_whose_state_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of other users where /proc is mounted with `hidepid`."""
    process = process_id()
    monkeypatch.setattr("redist.memory.host.open", _hide, raising=False)
    assert lives(str(os.getpid()), process) is None


def _hide(path: str, *args: str, **options: str) -> object:
    if path.endswith("/stat"):
        raise PermissionError(path)
    return open(path, *args, **options)  # type: ignore[call-overload]


def test_near(other: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said(other)
    assert is_near(other.pid)
    assert is_near(os.getpid())
    assert not is_near(999999999)
    other.communicate("\n")
    assert not is_near(other.pid)
    real = os.readlink
    elsewhere = f"/proc/{os.getpid()}/ns/uts"
    monkeypatch.setattr(os, "readlink", lambda path: "uts:[1]" if path == elsewhere else real(path))
    assert not is_near(os.getpid())


def test_it_is_short() -> None:
    assert 18 < len(process_id()) <= 64  # fields of that size keep Redis's hashes compact
