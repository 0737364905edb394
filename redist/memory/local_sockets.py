"""Unix sockets at paths of any length.

An address holds 107 bytes of a path. A longer one is given by way of its directory's descriptor, so that the socket lies
where it belongs and goes with its directory, whoever removes that.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["address_of", "bind"]

_LONGEST = 107


@contextmanager
def address_of(path: str) -> Iterator[str]:
    """Give an address by which the socket at `path` can be bound or connected to in this context."""
    if len(os.fsencode(path)) <= _LONGEST:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)


def bind(path: str) -> socket.socket:
    """Return a socket bound at `path`, which only this user may connect to; a file that was there goes."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with address_of(path) as address:
            sock.bind(address)
        os.chmod(path, 0o600)
    except BaseException:
        sock.close()
        raise
    return sock
