"""Whether another process shares this host's memory: a random id in a file decides, not a hostname (containers).

Which workers share memory with each other can be told without looking into their directories: by the running kernel and
the file system that a directory lies on.
"""

from __future__ import annotations

import os
import secrets
from hashlib import blake2b

__all__ = ["is_near", "lives", "memory_id", "new_host_id", "process_id", "read_host_id", "same_host"]

ID_FILE = "id"


def new_host_id() -> str:
    """Return a fresh random id."""
    return secrets.token_hex(16)


def memory_id(path: str) -> str:
    """Return an id of the file system at `path` on the running kernel: who has the same one can map the same files."""
    return blake2b(f"{_kernel()} {os.stat(path).st_dev}".encode(), digest_size=8).hexdigest()


def _kernel() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename


def process_id() -> str:
    """Return what tells this process from every other that has or had its pid, anywhere; empty where that is not known."""
    where = _numbering()
    return f"{where}.{_began(os.getpid())}" if where else ""


def lives(pid: str, process: str) -> bool | None:
    """Tell whether the process with this pid and `process_id` lives; None if that cannot be seen from here.

    Its pid alone would not do: another process may have it by now, and it counts in its own container.
    """
    where, _, began = process.rpartition(".")
    if not where or where != _numbering() or not pid.isdecimal():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        return _began(int(pid)) == began
    except OSError:  # it is hidden from us, or ends just now
        return None


def is_near(pid: int) -> bool:
    """Tell whether the process that we know as `pid` knows itself as that, and its host by the name that we do."""
    try:
        return bool(_numbering()) and all(
            os.readlink(f"/proc/{pid}/ns/{kind}") == os.readlink(f"/proc/self/ns/{kind}")
            for kind in ("pid", "uts")
        )
    except OSError:
        return False


def _numbering() -> str:
    """Return an id of the kernel and of the namespaces in which our pid and our start count, empty where there are none."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""  # what lies there counts otherwise
        where = _kernel() + os.readlink("/proc/self/ns/pid")
        if os.path.lexists("/proc/self/ns/time"):
            where += os.readlink("/proc/self/ns/time")
    except OSError:
        return ""
    return blake2b(where.encode(), digest_size=8).hexdigest()


def _began(pid: int) -> str:
    """Return when a process began, in ticks since the kernel did; empty if it has ended."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # behind its name, which may have anything in it
        state, *fields = file.read().rpartition(b")")[2].split()
    return "" if state in (b"Z", b"X") else fields[18].decode()


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
