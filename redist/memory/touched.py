"""When payloads were last read: a small table in the segment directory, which every reader of the host updates.

::

    SLOTS words of 8 bytes: monotonic time, in ns, of the last read of a payload whose file name begins with the slot's
    number in hex, or of one in an arena whose number ends so; 0: never

Readers map payloads without a word to the worker, so this is how it knows which of them are cold. Payloads that share a slot
count as read together: at worst a cold one stays in memory. The table is allocated by the worker before anybody maps it;
where there is no room for it, or no table, nobody notes anything.
"""

from __future__ import annotations

import mmap
import os
from time import monotonic_ns

__all__ = ["FILE", "Touched", "touch", "touch_arena"]

FILE = "touched"
_DIGITS = 3
SLOTS = 16**_DIGITS
_SIZE = 8 * SLOTS

#: The tables that this process has mapped, by segment directory; None: there is none.
_tables: dict[str, memoryview | None] = {}
_MOST = 256
#: The slots by the first characters of a file name: looked up in half the time in which they are parsed.
_slots: dict[str, int] = {}


def touch(path: str) -> None:
    """Note that the payload at `path`, in its segment directory, is read now."""
    directory, _, name = path.rpartition("/")
    try:
        words = _tables[directory]
    except KeyError:
        words = _open(directory)
    if words is not None:
        slot = _slots.get(name[:_DIGITS])
        if slot is not None:
            words[slot] = monotonic_ns()


def touch_arena(directory: str, number: int) -> None:
    """Note that a payload in this arena of a segment directory is read now."""
    try:
        words = _tables[directory]
    except KeyError:
        words = _open(directory)
    if words is not None:
        words[number % SLOTS] = monotonic_ns()


def _open(directory: str) -> memoryview | None:
    """Map the table of a directory, as far as there is one, and remember it."""
    try:
        fd = os.open(os.path.join(directory, FILE), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    words = None
    try:
        stat = os.fstat(fd)
        # What was not allocated could not be written where the file system is full.
        if stat.st_size == _SIZE and stat.st_blocks * 512 >= _SIZE:
            words = memoryview(mmap.mmap(fd, _SIZE)).cast("Q")
    except (OSError, ValueError):  # no address space: nothing is noted
        pass
    finally:
        os.close(fd)
    if not _slots:
        _slots.update((f"{slot:0{_DIGITS}x}", slot) for slot in range(SLOTS))
    if len(_tables) >= _MOST:
        _tables.clear()
    _tables[directory] = words
    return words


class Touched:
    """The table as its worker sees it.

    Parameters
    ----------
    directory : str
        The segment directory; the table is made if it is missing.
    """

    def __init__(self, directory: str) -> None:
        try:
            path = os.path.join(directory, FILE)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                os.posix_fallocate(fd, 0, _SIZE)
            finally:
                os.close(fd)
        except OSError:  # full: payloads count as read in the order in which they came
            pass
        self._directory = directory
        self._words = _open(directory)

    def note(self, file: str) -> None:
        """Note that the payload with this file name has just been written."""
        if self._words is not None:
            self._words[_slots[file[:_DIGITS]]] = monotonic_ns()

    def last(self, file: str) -> int:
        """Return when the payload with this file name was last written or read, in ns; 0 if that is not known."""
        return 0 if self._words is None else self._words[_slots[file[:_DIGITS]]]

    def last_of_arena(self, number: int) -> int:
        """Return when a payload in this arena was last read, in ns; 0 if that is not known."""
        return 0 if self._words is None else self._words[number % SLOTS]

    def close(self) -> None:
        """Let go of the table."""
        _tables.pop(self._directory, None)
        self._words = None
