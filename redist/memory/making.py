"""Making a segment directory, which is nobody else's and locked from the moment it has its name."""

from __future__ import annotations

import fcntl
import os

from redist.memory.host import ID_FILE, new_host_id
from redist.memory.index import make_index
from redist.memory.locks import BEING_MADE, LOCK_FILE, remove_tree
from redist.memory.places import SEGMENT, check_above, make_place, unusable

__all__ = ["make_directory", "write_file"]

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def make_directory(parent: str, path: str, *, log: bool) -> int:
    """Make the directory `path` below `parent`, locked from the moment it has its name; return the lock."""
    check_above(parent, SEGMENT)
    making = os.path.join(parent, BEING_MADE + os.path.basename(path))
    for left in (2, 1, 0):
        try:
            make_place(parent, log=log)
            os.mkdir(making, 0o700)
            write_file(os.path.join(making, ID_FILE), new_host_id().encode())
            make_index(making)
            lock_fd = os.open(os.path.join(making, LOCK_FILE), _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(making, path)
            except BaseException:
                os.close(lock_fd)
                raise
            return lock_fd
        except FileNotFoundError as error:
            # the last worker of the user left meanwhile, and took the empty parent along
            if not left:
                raise unusable(parent, SEGMENT, error) from error
        except OSError as error:
            remove_tree(making)
            raise unusable(parent, SEGMENT, error) from error
    raise AssertionError


def write_file(path: str, data: bytes) -> None:
    """Write a new file."""
    fd = os.open(path, _OPEN | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
