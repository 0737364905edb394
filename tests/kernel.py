"""What the kernel that the tests run on can do."""

from __future__ import annotations

import os
import tempfile

from redist.memory import huge_pages
from redist.memory.locks import SHM

__all__ = ["gives_huge_pages"]

MIB = 1 << 20


def gives_huge_pages(parent: str = SHM) -> bool:
    """Whether this kernel gives huge pages at all to files in `parent`, to whoever is patient."""
    with tempfile.NamedTemporaryFile(dir=parent) as file:
        fd = file.fileno()
        os.ftruncate(fd, 4 * MIB)
        view = huge_pages.map_file(fd, 4 * MIB, writable=True)
        for at in (0, 2 * MIB):
            view[at] = 1
        return huge_pages.are_given() and huge_pages.collapse(view, 0, 4 * MIB)
