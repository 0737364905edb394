"""How a local cluster ends: its workers, its server, and what killed ones left."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redist.launch import Launcher
    from redist.store.connect import Endpoint
    from redist.store.server import EmbeddedServer

__all__ = ["STOP_TIMEOUT", "end"]

#: s that workers get to end in good order
STOP_TIMEOUT = 10.0
_LET_GO = 0.5


def end(launcher: Launcher, server: EmbeddedServer | None, endpoint: Endpoint) -> None:
    """Stop everything; a killed worker's payloads go too, where the server that knew them goes."""
    clean = launcher.close(STOP_TIMEOUT, abandon=server is not None)
    if server is not None:
        server.stop()
        # a successor that was stopped before it adopted what a killed worker left has ended in good order
        restarted = any(worker.restarts for worker in launcher.workers.values())
        if not server.persistent and (restarted or not clean):
            _remove_segments(
                endpoint, set(launcher.workers), launcher.settings.segments, 0.0 if clean else _LET_GO
            )


def _remove_segments(endpoint: Endpoint, names: set[str], parent: str, patience: float) -> None:
    """Remove what killed workers left in memory and on disk, once the last of their processes has let go of it."""
    from redist.memory.locks import dead_directories, remove_dead

    owners = {f"{endpoint.url} {endpoint.namespace}\t{name}" for name in names}
    deadline = time.monotonic() + patience
    while True:
        for dead in dead_directories(parent or None):
            if dead.owner in owners and remove_dead(dead.path):
                owners.discard(dead.owner)
        if not owners or time.monotonic() > deadline:
            return
        time.sleep(0.01)
