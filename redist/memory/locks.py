"""Who owns a segment directory: the lock file that the living worker holds, and the directories of the dead."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat as statmode
import time
from dataclasses import dataclass

from redist.errors import SegmentError
from redist.memory.arena import number_in
from redist.memory.headers import SPILL_LINK
from redist.memory.holes import KEPT_FROM, punch
from redist.memory.index import retire_index
from redist.memory.space import format_size
from redist.memory.task_files import remove_task_directories

__all__ = [
    "DeadDirectory",
    "check_private",
    "any_living",
    "dead_directories",
    "default_parent",
    "lock_if_free",
    "owner_is_gone",
    "remove_dead",
    "remove_empty_parent",
    "remove_file",
    "remove_tree",
    "small_shm_warning",
    "spilled_by",
    "sweep_dead",
    "try_lock",
]

SHM = "/dev/shm"  # noqa: S108 -- what lies in it is owner-only
LOCK_FILE = "lock"
#: Share of the memory limit that shared memory should have: Linux gives it half of the memory by itself.
_SMALL = 0.4
BEING_MADE = ".new-"


def default_parent() -> str:
    """Return where segment directories of this user go: shared memory, or the temporary directory without it."""
    base = SHM
    if not (os.path.isdir(SHM) and os.access(SHM, os.W_OK | os.X_OK)):
        import tempfile

        base = tempfile.gettempdir()
    return os.path.join(base, f"redist-{os.getuid()}")


def remove_tree(path: str) -> None:
    """Remove a directory with everything in it, as far as that is possible.

    The memory of large files that nobody reads goes back even where processes keep mappings of them.
    """
    from shutil import rmtree

    # readers have arenas open, and the index mapped, for as long as they live
    retire_index(path)
    with contextlib.suppress(OSError):
        for entry in os.scandir(path):
            # a file that a client removes meanwhile must not spare the others
            with contextlib.suppress(OSError):
                if number_in(entry.name) is not None:
                    _empty(entry.path)
                elif entry.is_file(follow_symlinks=False) and entry.stat().st_size >= KEPT_FROM:
                    remove_file(entry.path)
    rmtree(path, ignore_errors=True)


def _empty(path: str) -> None:
    """Give back the memory of an arena, which readers may have open for long, unless a value views it."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        if try_lock(fd):
            os.ftruncate(fd, 0)
    finally:
        os.close(fd)


def remove_file(path: str, *, if_mapped: bool = True) -> bool:
    """Unlink a payload's file, with its memory unless somebody reads it; arrays that view it stay valid.

    Returns False, and leaves it there, if that is so and `if_mapped` false.

    The lock is held until the path is gone: who comes for it meanwhile takes it for evicted. The memory goes after the
    path: a file that its writer has just published elsewhere must not lose its bytes.
    """
    with contextlib.suppress(OSError):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            if if_mapped:
                os.unlink(path)  # no more files can be opened
            return if_mapped or not os.path.lexists(path)
        try:
            alone = try_lock(fd)
            if not alone and not if_mapped:
                return False
            os.unlink(path)
            if alone and os.fstat(fd).st_size >= KEPT_FROM:
                punch(fd)
        finally:
            os.close(fd)
    return True


def check_private(parent: str) -> None:
    """Refuse a parent that another user made or can write: it could replace our files under us."""
    stat = os.lstat(parent)
    if not statmode.S_ISDIR(stat.st_mode):
        raise SegmentError(f"{parent}: not a directory; give another directory")
    if os.path.basename(parent) in (f"redist-{os.getuid()}", f"redist-spill-{os.getuid()}"):
        if stat.st_uid != os.getuid():
            raise SegmentError(f"{parent}: belongs to user {stat.st_uid}; give another directory")
        if stat.st_mode & 0o077:
            os.chmod(parent, 0o700)


def spilled_by(segments: str) -> str:
    """Return the spill directory of a segment directory, empty if it has none of ours."""
    try:
        path = os.readlink(os.path.join(segments, SPILL_LINK))
        stat = os.lstat(path)
    except OSError:
        return ""
    ours = stat.st_uid == os.getuid() and os.path.basename(path) == os.path.basename(segments)
    return path if ours and statmode.S_ISDIR(stat.st_mode) else ""


def remove_segments(path: str) -> bool:
    """Remove a dead worker's segment directory, what it had spilled, and its tasks' files.

    Returns whether that was so: nothing goes while somebody has locked what was spilled.
    """
    spilled = spilled_by(path)
    if spilled:
        lock_fd = lock_if_free(spilled)
        if lock_fd is None and os.path.lexists(os.path.join(spilled, LOCK_FILE)):
            return False  # the lock of a process that ends goes a moment after that of its segments
        remove_tree(spilled)
        remove_empty_parent(spilled)
        if lock_fd is not None:
            os.close(lock_fd)
    remove_task_directories(path)
    remove_tree(path)
    remove_empty_parent(path)
    return True


def remove_empty_parent(path: str) -> None:
    """Remove the user's own directory above the removed directory `path` if it was the last."""
    parent = os.path.dirname(path)
    if os.path.basename(parent) in (f"redist-{os.getuid()}", f"redist-spill-{os.getuid()}"):
        try:
            os.rmdir(parent)
        except OSError:
            pass


def lock_if_free(path: str) -> int | None:
    """Lock a segment directory whose worker is gone; return the descriptor, None if it lives or is none of ours."""
    lock = os.path.join(path, LOCK_FILE)
    try:
        if os.lstat(path).st_uid != os.getuid():
            return None
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        if try_lock(fd) and os.stat(lock).st_ino == os.fstat(fd).st_ino:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def owner_is_gone(path: str) -> bool:
    """Tell whether the worker of a segment directory is gone; False where the directory is, or is none of ours."""
    fd = lock_if_free(path)
    if fd is None:
        return False
    os.close(fd)
    return True


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file unless somebody else has a lock on it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_file_at(fd: int, path: str) -> bool:
    """Tell whether the open file is what lies at `path`."""
    here = os.fstat(fd)
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return (there.st_ino, there.st_dev) == (here.st_ino, here.st_dev)


@dataclass(frozen=True, slots=True)
class DeadDirectory:
    """A segment directory whose worker is gone.

    Parameters
    ----------
    path : str
        The directory.
    owner : str
        What its worker gave as ``owner``.
    age : float
        Seconds since a payload came or went.
    size : int
        Bytes of memory that its files take.
    """

    path: str
    owner: str
    age: float
    size: int


def dead_directories(parent: str | None = None) -> list[DeadDirectory]:
    """List this user's segment directories below `parent` whose worker is gone, the youngest first."""
    parent = parent if parent is not None else default_parent()
    found = []
    now = time.time()
    try:
        entries = [entry for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    for entry in entries:
        if entry.name.startswith(BEING_MADE):
            continue
        lock_fd = lock_if_free(entry.path)
        if lock_fd is None:
            continue
        try:
            owner = os.pread(lock_fd, 4096, 0).decode("utf-8", "replace").split("\n")[0]
            age = now - os.stat(entry.path).st_mtime
            found.append(DeadDirectory(entry.path, owner, age, _memory_in(entry.path)))
        except OSError:
            pass
        finally:
            os.close(lock_fd)
    return sorted(found, key=lambda dead: dead.age)


def _memory_in(path: str) -> int:
    taken = 0
    for entry in os.scandir(path):
        with contextlib.suppress(FileNotFoundError):
            taken += entry.stat(follow_symlinks=False).st_blocks * 512
    return taken


def any_living(parent: str) -> bool:
    """Tell whether a worker of this user lives that has its segment directory below `parent`."""
    try:
        paths = [entry.path for entry in os.scandir(parent) if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return False
    for path in paths:
        lock_fd = lock_if_free(path)
        if lock_fd is not None:
            os.close(lock_fd)
        elif os.path.lexists(os.path.join(path, LOCK_FILE)):
            return True
    return False


def sweep_dead(parent: str | None = None, *, older_than: float = 300.0) -> list[str]:
    """Remove directories whose worker has been gone for a while.

    Parameters
    ----------
    parent : str, optional
        Where to look; default `default_parent`.
    older_than : float
        Seconds since a payload last came or went there. Younger ones are left for a restarted worker to adopt.

    Returns
    -------
    list of str
        The removed directories.
    """
    parent = parent if parent is not None else default_parent()
    removed = []
    for dead in dead_directories(parent):
        if dead.age < older_than:
            continue
        if remove_dead(dead.path):
            removed.append(dead.path)
    try:
        for entry in os.scandir(parent):
            if entry.name.startswith(BEING_MADE) and time.time() - entry.stat().st_mtime >= max(
                older_than, 60.0
            ):
                remove_tree(entry.path)
    except OSError:
        pass
    return removed


def remove_dead(path: str) -> bool:
    """Remove a segment directory and what was spilled from it, unless somebody has adopted it; return whether it went."""
    lock_fd = lock_if_free(path)
    if lock_fd is None:
        return False
    try:
        return remove_segments(path)
    finally:
        os.close(lock_fd)


def small_shm_warning(path: str, limit: int) -> str | None:
    """Return a warning if the file system of `path` is small for a memory limit, with the option that mends it."""
    stat = os.statvfs(path)
    size = stat.f_blocks * stat.f_frsize
    if size >= _SMALL * limit:
        return None
    text = (
        f"{path} has room for {format_size(size)}, the memory limit is {format_size(limit)}: what does not fit goes to"
        " disk early; "
    )
    if path.startswith(SHM + "/"):
        return text + (
            "in Docker start the container with --shm-size (compose: shm_size), in Kubernetes mount an emptyDir with"
            f" medium: Memory at {SHM}, elsewhere `mount -o remount,size=... {SHM}`; or give another segment directory"
        )
    return text + "give a segment directory on a larger file system"
