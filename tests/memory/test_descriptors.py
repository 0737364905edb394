"""A descriptor closes with the object that owns it."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from redist.memory import descriptors
from redist.memory.descriptors import Descriptor


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("own", [descriptors._own, descriptors._Closing], ids=["system", "python"])
def test_closed_once(own: Callable[[int], Descriptor], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    file = own(os.open(path, os.O_RDONLY))
    fd = file.fileno()
    assert os.fstat(fd).st_ino == path.stat().st_ino
    del file
    assert not is_open(fd)
    file = own(os.open(path, os.O_RDONLY))
    fd = file.fileno()
    file.close()
    other = os.open(path, os.O_RDONLY)  # gets the number that is free now
    assert other == fd
    file.close()
    del file
    assert is_open(other)
    os.close(other)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        descriptors.open_owned(str(tmp_path / "none"), os.O_RDONLY)


def test_an_interrupt_at_any_instruction_leaves_nothing_open(tmp_path: Path) -> None:
    """A system call takes its time, and an interrupt that comes meanwhile is raised right behind it."""
    if descriptors._own is descriptors._Closing:
        pytest.skip("this system has no owner in C")
    path = tmp_path / "file"

    def interrupter(at: int) -> Any:
        instructions = itertools.count(1)

        def trace(frame: FrameType, event: str, arg: object) -> Any:
            if frame.f_code is not descriptors.open_owned.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and next(instructions) == at:
                raise KeyboardInterrupt
            return trace

        return trace

    before, fds = sys.gettrace(), len(os.listdir("/proc/self/fd"))
    for at in itertools.count(1):
        done = False
        sys.settrace(interrupter(at))
        try:
            descriptors.open_owned(str(path), os.O_RDWR | os.O_CREAT)
            done = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert len(os.listdir("/proc/self/fd")) == fds, at
        if done:
            if at == 1 and sys.version_info[:2] == (3, 12):
                pytest.skip("Python 3.12 traces no instructions of a frame that asks for it")
            break
    assert at > 5
    assert path.stat().st_mode & 0o777 == 0o600
