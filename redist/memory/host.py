"""Whether another process shares this host's memory: a random id in a file decides, not a hostname (containers).

Which workers share memory with each other can be told without looking into their directories: by the running kernel and
the file system that a directory lies on.
"""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b

__all__ = ["memory_id", "new_host_id", "read_host_id", "same_host"]

ID_FILE = "id"


def new_host_id() -> str:
    """Return a fresh random id."""
    return secrets.token_hex(16)


def memory_id(path: str) -> str:
    """Return an id of the file system at `path` on the running kernel: who has the same one can map the same files."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            kernel = file.read().strip()
    except OSError:
        kernel = os.uname().nodename
    return blake2b(f"{kernel} {os.stat(path).st_dev}".encode(), digest_size=8).hexdigest()


def read_host_id(segments: str) -> str | None:
    """Return the id in the segment directory `segments`, None if it cannot be read here."""
    try:
        fd = os.open(os.path.join(segments, ID_FILE), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, ValueError):
        return None
    try:
        return os.read(fd, 64).decode("ascii", "replace").strip()
    except OSError:
        return None
    finally:
        os.close(fd)


def same_host(segments: str, hostid: str) -> bool:
    """Tell whether the segment directory `segments` of the worker with `hostid` can be mapped from here."""
    return bool(hostid) and read_host_id(segments) == hostid
