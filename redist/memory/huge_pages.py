"""Files in shared memory whose pages are huge, on any tmpfs: they are written and summed up as fast as private memory.

A processor that walks through pages of 4 KiB spends a third of its time on finding them, and a kernel that hands them
out one by one spends more than it takes to fill them. tmpfs gives huge pages only where it is mounted for it, which takes
an administrator; but since Linux 6.1 a process may ask for them (``MADV_COLLAPSE``, see `madvise(2)`), one extent after
another of a file that it has mapped at an address of the same alignment. So a new file is made as long as its payload,
gets one page in each extent, and the kernel puts a huge page in its place.

Whoever maps such a file has to map it at such an address, too, to see huge pages: `map_file` does.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from functools import cache
from typing import Any

from redist.memory.pieces import Pieces, helpers

__all__ = ["LEAST", "allocate", "are_given", "are_ready", "collapse", "make", "map_file", "populate"]

LEAST = 4 << 20
"""Smallest file, in bytes, that is given huge pages: for smaller ones the call takes longer than what it saves."""

_MADV_COLLAPSE = 25
#: An error where writing would be SIGBUS.
_MADV_POPULATE_WRITE = 23
#: that nobody knows
_NO_ADVICE = 9999
_FAILED = ctypes.c_void_p(-1).value
_MAP_FIXED = 0x10
_MOST_ALIGNED = 2 << 20
#: Bytes that are made an extent at a time, which shows how long it takes, and bytes in a call after that.
_ALONE, _A_CALL = 8 << 20, 8 << 20
#: s that a huge page may take, and how much more all may: 0.0003 where memory lies ready. It is more if the kernel has to
#: tidy up for it, and 0.005 in a virtual machine whose host takes free memory back: single pages are ready then.
_SLOW, _SLACK = 0.001, 0.003
#: s until the kernel is asked again after that, and after it refused: for now, or for what the file system is.
_PAUSE, _LONG_PAUSE, _LONGEST_PAUSE = 2.0, 10.0, 60.0


class _Region:
    """An aligned mapping in a room that unmaps it when nothing views it any more; of numpy's array interface.

    The room is owned by a type written in C from the first moment: an interrupt at any line leaves nothing mapped.
    """

    __slots__ = ("__array_interface__", "_room")

    def __init__(self, room: mmap.mmap, address: int, size: int, writable: bool) -> None:
        self._room = room
        self.__array_interface__ = {
            "data": (address, not writable),
            "shape": (size,),
            "typestr": "|u1",
            "version": 3,
        }


@cache
def _mapped_class() -> Any:
    import numpy as np

    class Mapped(np.ndarray[Any, Any]):
        """The bytes of a region."""

    return Mapped


def map_file(fd: int, size: int, *, writable: bool = False, populate: bool = False) -> memoryview:
    """Map the first bytes of a file, shared; the mapping lives as long as a view of it.

    Parameters
    ----------
    fd : int
        The file. It may be closed; its lock stays for as long as the mapping.
    size : int
        How many bytes, at most the file's size.
    writable : bool
        Whether the view may be written to.
    populate : bool
        Touch all pages in one call.

    Raises
    ------
    OSError
        If it cannot be mapped.
    """
    extent = _extent()
    if not extent or size < extent:
        flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if populate else 0)
        prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return memoryview(mmap.mmap(fd, size, flags=flags, prot=prot))
    import numpy as np

    # Not of the plain class: an array that views an object which in turn views a plain array refers to that alone.
    view: memoryview = (
        np.asarray(_map_aligned(fd, size, extent, writable, populate)).view(_mapped_class()).data
    )
    return view


def are_given() -> bool:
    """Whether files may have huge pages here at all."""
    from redist import config

    return _extent() > 0 and bool(config.get("payloads.huge-pages"))


def are_ready(device: int) -> bool:
    """Whether the kernel probably has huge pages for a device that it need not tidy up for."""
    return are_given() and time.monotonic() >= _not_before.get(device, 0.0)


def allocate(fd: int, view: memoryview) -> bool:
    """Give a new file memory for all of its bytes, in huge pages as far as there are any.

    Parameters
    ----------
    fd : int
        The file, as long as it is to be, and empty.
    view : memoryview
        All of it, from `map_file`, writable; nobody else maps it.

    Returns
    -------
    bool
        False where there are no huge pages now; the file may have memory in some places then.

    Raises
    ------
    OSError
        If there is no memory; ENOSPC if the file system is full.
    """
    extent = _extent()
    device = os.fstat(fd).st_dev
    address = _address(view)
    end = len(view) // extent * extent
    pace = _Pace(device, extent)
    at = 0
    while at < min(end, _ALONE):
        error = _make(address + at, extent, extent)
        if not error and os.fstat(fd).st_blocks * 512 < at + extent:
            error = errno.EINVAL  # ignored, as an emulator does: to write there might be SIGBUS
        if error:
            _put_off(device, error)
            if not at:
                return False
            break
        at += extent
        if not pace.holds(extent):
            break
    else:
        _make_all(view, pace, at, end)
    if pace.slow and pace.done < end / 2:  # what is left takes less time than to begin anew
        return False
    if pace.done < len(view):
        # quick where there is memory already
        os.posix_fallocate(fd, 0, len(view))
    return True


class _Pace:
    """How long huge pages take, for several threads together."""

    def __init__(self, device: int, extent: int) -> None:
        self.done = 0
        self.slow = False
        self._device = device
        self._extent = extent
        self._begun = time.monotonic()
        self._mutex = threading.Lock()

    def holds(self, more: int) -> bool:
        """Count `more` bytes that were made; tell whether to go on, and note it if not."""
        with self._mutex:
            self.done += more
            if time.monotonic() - self._begun > _SLOW * self.done / self._extent + _SLACK and not self.slow:
                self.slow = True
                _put_off(self._device)
            return not self.slow

    def failed(self, error: int) -> None:
        """Note that there are none."""
        _put_off(self._device, error)


def _make_all(view: memoryview, pace: _Pace, begin: int, end: int) -> None:
    """Make huge pages from `begin` to `end`, in several threads, as long as that is quick."""
    extent, address = _extent(), _address(view)
    pieces = Pieces(begin, end, _A_CALL)

    def work() -> None:
        while (piece := pieces.front()) is not None:
            at, size = piece
            error = _make(address + at, size, extent)
            if error:
                pace.failed(error)
                pieces.stop()
            elif not pace.holds(size):
                pieces.stop()

    def help_out(_mapped: memoryview = view) -> None:  # which stays mapped for as long
        work()

    try:
        with helpers(pieces, help_out, (end - begin) // _A_CALL - 1):
            work()
    finally:
        pieces.stop()  # an interrupt may have come between here and `helpers`


def _make(address: int, size: int, extent: int) -> int:
    """Make memory of huge pages; return the error's number, 0 for none."""
    for at in range(address, address + size, extent):
        # One page of each must be there. By the mapping: see `redist.memory.pieces` about descriptors.
        if _libc().madvise(at, 1, _MADV_POPULATE_WRITE):
            return ctypes.get_errno()
    return _collapse(address, size)


def make(view: memoryview, at: int, length: int) -> bool:
    """Make memory of huge pages for a part of a file, however long it takes.

    Parameters
    ----------
    view : memoryview
        All of the file, from `map_file`, writable; nobody else maps it.
    at, length : int
        The part, of whole huge pages.

    Returns
    -------
    bool
        False if there is none.
    """
    return not _make(_address(view) + at, length, _extent())


def populate(view: memoryview, at: int, length: int) -> bool:
    """Make memory for a part of a file, in small pages, ahead of writing it.

    Parameters
    ----------
    view : memoryview
        All of the file, mapped writable.
    at, length : int
        The part; `at` is a multiple of a page.

    Returns
    -------
    bool
        False if there is none, or the kernel does not know the call (Linux 5.14). An emulator that ignores it does not.
    """
    return _heeds() and not _libc().madvise(_address(view) + at, length, _MADV_POPULATE_WRITE)


def collapse(view: memoryview, at: int, length: int) -> bool:
    """Have the kernel put huge pages in the place of the small ones of a part of a file.

    Others may read and write it meanwhile. Where the kernel cannot take a page away just then, the part stays as it is.

    Parameters
    ----------
    view : memoryview
        All of the file, from `map_file`.
    at, length : int
        The part.

    Returns
    -------
    bool
        False if there are none, or the file has no memory there any more.
    """
    return _collapse(_address(view) + at, length) not in (errno.EINVAL, errno.ENOMEM)


# --- the kernel's side --------------------------------------------------------------------------------------------------

#: device -> when it may be asked again
_not_before: dict[int, float] = {}


def _put_off(device: int, error: int | None = None) -> None:
    """Note that huge pages take long, or that there was none, for the reason that the error gives."""
    pause = {errno.EINVAL: _LONGEST_PAUSE, errno.ENOMEM: _LONG_PAUSE}.get(error or 0, _PAUSE)
    _not_before[device] = time.monotonic() + pause


def _address(view: memoryview) -> int:
    import numpy as np

    return int(np.frombuffer(view, np.uint8).ctypes.data)


def _collapse(address: int, length: int) -> int:
    """Return the error's number, 0 for none."""
    return ctypes.get_errno() if _libc().madvise(address, length, _MADV_COLLAPSE) else 0


def _map_aligned(fd: int, size: int, extent: int, writable: bool, populate: bool) -> _Region:
    import numpy as np

    # Without access, so that it counts nowhere. What is too much of it stays: only the whole of it has an owner.
    room = mmap.mmap(-1, size + extent, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0)
    address = -(-int(np.frombuffer(room, np.uint8).ctypes.data) // extent) * extent
    prot = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | _MAP_FIXED | (mmap.MAP_POPULATE if populate else 0)
    if _libc().mmap(address, size, prot, flags, fd, 0) == _FAILED:
        raise _error()
    return _Region(room, address, size, writable)


def _error() -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code))


@cache
def _heeds() -> bool:
    """Whether advice counts: an emulator of processors ignores what it does not know, where a kernel refuses it."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    return bool(_libc().madvise(_address(memoryview(page)), mmap.PAGESIZE, _NO_ADVICE))


@cache
def _extent() -> int:
    """Return the size of a huge page; 0 where there are none, or only such that few payloads would fill one."""
    if not hasattr(mmap, "MAP_POPULATE"):  # not Linux
        return 0
    try:
        with open("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") as file:
            size = int(file.read())
    except (OSError, ValueError):
        return 0
    return size if size <= _MOST_ALIGNED else 0


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)  # whose calls let other threads run
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_long,
    )
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return libc
