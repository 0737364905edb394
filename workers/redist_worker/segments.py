"""The segment directory of a starting worker: a dead predecessor's, or a new one; and the end of those nobody took over."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redist.errors import SegmentError
from redist.memory.directory import SegmentDirectory
from redist.memory.locks import any_living, dead_directories, remove_dead, sweep_dead
from redist.memory.spill import sweep_abandoned
from redist.memory.task_files import remove_task_directories
from redist_worker.marks import Marks

if TYPE_CHECKING:
    from redist.store.connect import Endpoint

__all__ = ["Home", "Sweeper", "find_home", "sweep_last"]

logger = logging.getLogger("redist.worker")

_RECORD = "worker.json"
_SWEEP_PERIOD = 10.0
#: How long after its worker's lease a directory is kept for a restarted worker, s.
_MARGIN = 20.0
#: How long one of another server or namespace is kept: whether that server counts the lease is not known here.
_FOREIGN = 300.0
#: How long the executors of a dead worker get to follow it, s.
_LAST_BREATH = 2.0


@dataclass(slots=True)
class Home:
    """A worker's directory, and what it takes over from a predecessor.

    Parameters
    ----------
    directory : SegmentDirectory
        Locked by this process.
    name : str
        The predecessor's name, or empty.
    ordinal : int
        The predecessor's ordinal, 0 for none.
    secret : str
        What tells the server that it knew from others, or empty.
    blamed : dict
        Executor ordinal -> attempts that it ran when the predecessor died.
    """

    directory: SegmentDirectory
    name: str = ""
    ordinal: int = 0
    secret: str = ""
    blamed: dict[int, list[int]] | None = None

    def remember(self, name: str, ordinal: int, lease: float = 0.0, secret: str = "") -> None:
        """Write down for a successor whose directory this is and of which server, and for sweepers how long the lease."""
        path = os.path.join(self.directory.path, _RECORD)
        fd = os.open(
            path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"name": name, "ordinal": ordinal, "lease": lease, "secret": secret}, file)
        os.rename(path + ".new", path)


def find_home(endpoint: Endpoint, name: str, limit: int, parent: str | None = None) -> Home:
    """Take over the directory of a dead worker of the same server, namespace and name, or make a new one.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace.
    name : str
        The worker's name; empty takes over any dead worker's, and its name with it.
    limit : int
        Most bytes of payloads, 0 for what the file system has.
    parent : str, optional
        Where segment directories lie.
    """
    server = _server(endpoint)
    for dead in dead_directories(parent):
        owner, _, whose = dead.owner.partition("\t")
        if owner != server or (name and whose != name):
            continue
        directory = _adopt(dead.path, limit, dead.owner)
        if directory is None:
            continue  # another worker was faster
        _await_executors(dead.path)
        remove_task_directories(dead.path)
        before, ordinal, secret = _read_record(dead.path)
        home = Home(directory, before or whose, ordinal, secret, _read_marks(dead.path))
        logger.info(
            "taking over %s with %d payloads of worker %s", dead.path, len(directory.files), home.name
        )
        return home
    sweep_dead(parent)
    return Home(SegmentDirectory.create(parent, limit=limit, owner=f"{server}\t{name}"), blamed={})


def _adopt(path: str, limit: int, owner: str) -> SegmentDirectory | None:
    for _ in range(3):
        try:
            return SegmentDirectory.adopt(path, limit=limit, owner=owner)
        except SegmentError:
            time.sleep(0.02)  # a sweeper that looks has the lock for a moment
    return None


def _await_executors(path: str) -> None:
    """Return when the executors of a dead worker are gone, which die with it: only then is certain what they ran."""
    until = time.monotonic() + _LAST_BREATH
    while _executors_live(path):
        if time.monotonic() >= until:
            logger.warning("%s: an executor of its dead worker is still there", path)
            return
        time.sleep(0.02)


def _server(endpoint: Endpoint) -> str:
    return f"{endpoint.url} {endpoint.namespace}"


class Sweeper:
    """Removes the directories of workers that died and that nobody adopted while their lease lasted.

    A directory is dead from the moment a look finds its lock free: that its payloads are old says nothing of its worker.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace of the worker that looks.
    home : str
        Its own directory; those beside it are looked at.
    lease : float
        Its own lease, s.
    """

    def __init__(self, endpoint: Endpoint, home: str, lease: float) -> None:
        self._server = _server(endpoint)
        self._parent = os.path.dirname(home)
        self._lease = lease
        self._dead_since: dict[str, float] = {}
        self._looked = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last look is long enough ago."""
        return time.monotonic() - self._looked >= _SWEEP_PERIOD

    def look(self) -> list[str]:
        """Look once, and return the directories that were removed. Call it only while the server answers."""
        now = time.monotonic()
        if now - self._looked > self._lease + _MARGIN:
            # The server was away, and does not count leases until one has passed again.
            self._dead_since.clear()
        self._looked = now
        dead = dead_directories(self._parent)
        self._dead_since = {each.path: self._dead_since.get(each.path, now) for each in dead}
        removed = []
        for each in dead:
            if now - self._dead_since[each.path] < self._patience(each.path, each.owner):
                continue
            if not _executors_live(each.path) and remove_dead(each.path):
                logger.info("removed %s: its worker died and was not started again", each.path)
                removed.append(each.path)
        return removed

    def _patience(self, path: str, owner: str) -> float:
        lease = max(self._lease, _read_lease(path)) + _MARGIN
        return lease if owner.partition("\t")[0] == self._server else max(lease, _FOREIGN)


def sweep_last(endpoint: Endpoint, home: str, spilled: str, needed: Callable[[int], bool]) -> list[str]:
    """Remove what dead workers left and nobody needs, if the worker that has just ended was the last one here.

    Nobody who starts again could make use of it either, and nobody is left who would sweep it later.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace of the worker that has ended.
    home : str
        Its directory, which is gone.
    spilled : str
        Where spill directories lie, or empty.
    needed : callable
        Tells whether the server knows of values on the worker with this ordinal.

    Returns
    -------
    list of str
        The removed directories.
    """
    parent = os.path.dirname(home)
    if any_living(parent):
        return []
    removed = []
    for dead in dead_directories(parent):
        if dead.owner.partition("\t")[0] == _server(endpoint):
            ordinal = _read_record(dead.path)[1]
            stays = ordinal > 0 and needed(ordinal)
        else:
            stays = dead.age < _FOREIGN
        if not stays and not _executors_live(dead.path) and remove_dead(dead.path):
            removed.append(dead.path)
    if os.path.isdir(spilled):
        removed += sweep_abandoned(spilled)
    return removed


def _executors_live(path: str) -> bool:
    """Whether a process has the marks of an executor in the directory `path` mapped; False where that cannot be seen."""
    sought = os.fsencode(os.path.join(os.path.realpath(path), "marks-"))
    uid = os.getuid()
    try:
        processes = [entry for entry in os.scandir("/proc") if entry.name.isdigit()]
    except OSError:
        return False
    for process in processes:
        try:
            if process.stat().st_uid != uid:
                continue
            with open(f"{process.path}/maps", "rb") as file:
                if any(sought in line for line in file):
                    return True
        except OSError:
            continue
    return False


def _read_lease(path: str) -> float:
    try:
        with open(os.path.join(path, _RECORD), encoding="utf-8") as file:
            return float(json.load(file)["lease"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _read_record(path: str) -> tuple[str, int, str]:
    try:
        with open(os.path.join(path, _RECORD), encoding="utf-8") as file:
            record = json.load(file)
        return str(record["name"]), int(record["ordinal"]), str(record["secret"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0, ""


def _read_marks(path: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in os.scandir(path):
        if entry.name.startswith("marks-"):
            marks = Marks(entry.path)
            if marks.ordinal:
                found[marks.ordinal] = [attempt for attempt, _ in marks.running()]
            marks.close(remove=True)
    return found
