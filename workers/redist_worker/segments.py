"""The segment directory of a starting worker: a dead predecessor's, or a new one."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redist.errors import SegmentError
from redist.memory.directory import SegmentDirectory
from redist.memory.locks import dead_directories, sweep_dead
from redist_worker.marks import Marks

if TYPE_CHECKING:
    from redist.store.connect import Endpoint

__all__ = ["Home", "find_home"]

logger = logging.getLogger("redist.worker")

_RECORD = "worker.json"


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
    blamed : dict
        Executor ordinal -> attempts that it ran when the predecessor died.
    """

    directory: SegmentDirectory
    name: str = ""
    ordinal: int = 0
    blamed: dict[int, list[int]] | None = None

    def remember(self, name: str, ordinal: int) -> None:
        """Write down whose directory this is, for a successor."""
        path = os.path.join(self.directory.path, _RECORD)
        fd = os.open(
            path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
        )
        with open(fd, "w", encoding="utf-8") as file:
            json.dump({"name": name, "ordinal": ordinal}, file)
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
    server = f"{endpoint.url} {endpoint.namespace}"
    for dead in dead_directories(parent):
        owner, _, whose = dead.owner.partition("\t")
        if owner != server or (name and whose != name):
            continue
        try:
            directory = SegmentDirectory.adopt(dead.path, limit=limit, owner=dead.owner)
        except SegmentError:
            continue  # another worker was faster
        before, ordinal = _read_record(dead.path)
        home = Home(directory, before or whose, ordinal, _read_marks(dead.path))
        logger.info(
            "taking over %s with %d payloads of worker %s", dead.path, len(directory.files), home.name
        )
        return home
    sweep_dead(parent)
    return Home(SegmentDirectory.create(parent, limit=limit, owner=f"{server}\t{name}"), blamed={})


def _read_record(path: str) -> tuple[str, int]:
    try:
        with open(os.path.join(path, _RECORD), encoding="utf-8") as file:
            record = json.load(file)
        return str(record["name"]), int(record["ordinal"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0


def _read_marks(path: str) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in os.scandir(path):
        if entry.name.startswith("marks-"):
            marks = Marks(entry.path)
            if marks.ordinal:
                found[marks.ordinal] = [attempt for attempt, _ in marks.running()]
            marks.close(remove=True)
    return found
