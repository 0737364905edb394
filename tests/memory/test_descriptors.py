"""A descriptor closes with the object that owns it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

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
