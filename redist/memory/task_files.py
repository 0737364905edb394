"""Directories for files of tasks: made by a worker's executors in the temporary directory, and linked from its segments.

::

    SEGMENT DIRECTORY/
        files-NAME      link to TEMPORARY DIRECTORY/NAME

The link is there before the directory, so whoever removes or adopts the segments of a dead worker finds what its executors
left. A link to anything but a directory of this user, of the same name, is not followed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat as statmode

__all__ = ["make_task_directory", "remove_task_directories", "remove_task_directory"]

_LINK = "files-"


def make_task_directory(segments: str, prefix: str) -> str:
    """Make a directory whose name begins with `prefix`, linked from the segment directory; return its path."""
    import tempfile

    name = prefix + secrets.token_hex(4)
    path = os.path.join(tempfile.gettempdir(), name)
    with contextlib.suppress(OSError):  # without it only a clean end removes the directory
        os.symlink(path, os.path.join(segments, _LINK + name))
    os.mkdir(path, 0o700)
    return path


def remove_task_directory(segments: str, path: str) -> None:
    """Remove a directory that `make_task_directory` has made."""
    from shutil import rmtree

    rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        os.unlink(os.path.join(segments, _LINK + os.path.basename(path)))


def remove_task_directories(segments: str, prefix: str = "") -> None:
    """Remove the directories that are linked from a segment directory and whose names begin with `prefix`."""
    try:
        names = [name for name in os.listdir(segments) if name.startswith(_LINK + prefix)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):
            path = os.readlink(os.path.join(segments, name))
            if _LINK + os.path.basename(path) == name and _is_ours(path):
                remove_task_directory(segments, path)


def _is_ours(path: str) -> bool:
    stat = os.lstat(path)
    return stat.st_uid == os.getuid() and statmode.S_ISDIR(stat.st_mode)
