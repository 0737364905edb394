"""How much memory there is for this process, and how many cores: the machine's, or what its control group may use."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator

__all__ = [
    "available_memory",
    "control_group_limit",
    "control_group_room",
    "cores",
    "is_in_memory",
    "memory_of_machine",
]

_CGROUP = "/sys/fs/cgroup"
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "hugetlbfs", "devtmpfs"})


def memory_of_machine() -> int:
    """Return the bytes of physical memory, or the least limit of a control group of this process if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = control_group_limit()
    return min(physical, limit) if limit else physical


def available_memory() -> int:
    """Return how many bytes this process can get without swap, or an end by the kernel; 0 where that cannot be seen."""
    return int(max(0, min(_available_in_machine(), control_group_room())))


def _available_in_machine() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                name, _, amount = line.partition(":")
                if name == "MemAvailable":
                    return int(amount.split()[0]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0


def cores() -> int:
    """Return how many cores this process may use."""
    count = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no cgroup, or no limit
        pass
    return count


def control_group_limit(own: str = "/proc/self/cgroup", mounted: str = _CGROUP) -> int:
    """Return the least memory limit among the control groups of this process, version 1 or 2; 0 if there is none.

    Parameters
    ----------
    own : str
        The file that names the control groups of the process.
    mounted : str
        Where they are mounted.
    """
    return min((limit for _, limit in _limits(own, mounted)), default=0)


def control_group_room(own: str = "/proc/self/cgroup", mounted: str = _CGROUP) -> float:
    """Return the least that is left in a control group of this process, files aside that it can forget.

    Infinite if none has a limit. The parameters are those of `control_group_limit`.
    """
    return min((limit - _used(path) for path, limit in _limits(own, mounted)), default=math.inf)


def _limits(own: str, mounted: str) -> list[tuple[str, int]]:
    """Return the files that limit control groups of a process, and the limits."""
    try:
        with open(own, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError):  # no Linux
        return []
    return [(path, limit) for line in lines for path in _files(line, mounted) if (limit := _read(path))]


def _used(path: str) -> int:
    """Return the bytes that the control group takes which the file at `path` limits."""
    group, name = os.path.split(path)
    first = name == "memory.limit_in_bytes"
    used = _read(os.path.join(group, "memory.usage_in_bytes" if first else "memory.current"))
    try:
        with open(os.path.join(group, "memory.stat"), encoding="ascii") as file:
            for line in file:
                word, _, amount = line.partition(" ")
                if word == ("total_inactive_file" if first else "inactive_file"):
                    return used - int(amount)
    except (OSError, ValueError):
        pass
    return used


def _files(line: str, mounted: str) -> Iterator[str]:
    """Yield the files that limit the control group of one line of ``/proc/self/cgroup``, and those of its parents."""
    number, _, rest = line.partition(":")
    controllers, _, group = rest.partition(":")
    if number == "0" and not controllers:
        root, name = mounted, "memory.max"
    elif "memory" in controllers.split(","):
        root, name = os.path.join(mounted, "memory"), "memory.limit_in_bytes"
    else:
        return
    # In a container the path may be the host's, of which only the mounted root is seen: what is not there does not count.
    while True:
        yield os.path.join(root, group.strip("/"), name)
        if group in ("", "/"):
            return
        group = os.path.dirname(group)


def _read(path: str) -> int:
    try:
        with open(path, encoding="ascii") as file:
            limit = int(file.read())
    except (OSError, ValueError):  # not there, or "max"
        return 0
    return limit if limit < 1 << 60 else 0  # version 1 says "no limit" by a number near 2**63


def is_in_memory(path: str) -> bool:
    """Tell whether the file system of `path` keeps its files in memory; False where that cannot be seen."""
    if sys.platform != "linux":
        return False
    try:
        device = os.stat(path).st_dev
        where = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8") as file:
            for line in file:
                fields = line.split(" ")
                if fields[2] == where:
                    return fields[fields.index("-") + 1] in _IN_MEMORY
    except (OSError, ValueError, IndexError):
        pass
    return False
