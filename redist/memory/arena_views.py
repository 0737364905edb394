"""Arenas that are mapped for reading: many values view one without being copied, and it keeps all its bytes for as long.

A view has a shared lock of the arena's file, which its worker needs for itself before it takes bytes away: that is the
mapping's own descriptor, so the lock goes with the last value, also in forked children. Only a sealed arena is mapped: its
writer would wait for the lock of an open one. Whether a record lives is looked up after the arena is locked; then it stays.
Nothing but such records may be touched: elsewhere may be holes, which a look would fill.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
from weakref import WeakValueDictionary

from redist.memory.arena import arena_path, is_open
from redist.memory.descriptors import open_owned

__all__ = ["view_arena"]

#: A process has at most so many (`vm.max_map_count` is 65,530 mappings as a rule).
_MOST = 16_384
#: The part of the open files that a process may have which they are left.
_PART_OF_FILES = 2
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW

#: by their numbers, which are never given twice
_mapped: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()


def view_arena(segments: str, number: int) -> mmap.mmap | None:
    """Return the bytes of an arena in memory, which stay while somebody has them; None if it has to be read instead."""
    mapped = _mapped.get(number)
    if mapped is not None:
        return mapped
    if len(_mapped) >= _MOST:
        return None
    try:
        file = open_owned(arena_path(segments, number), _FLAGS)
        fd = file.fileno()
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most != resource.RLIM_INFINITY and fd >= most // _PART_OF_FILES:
            return None
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        stat = os.fstat(fd)
        # after the lock: it cannot be moved or removed from now on
        if not stat.st_nlink or is_open(fd, number):
            return None
        # keeps a duplicate of the descriptor, and with it the lock
        mapped = mmap.mmap(fd, stat.st_size, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return None
    _mapped[number] = mapped
    return mapped
