"""How a local cluster ends: its workers, its server, and what killed ones left."""

from __future__ import annotations

import shutil
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
        if not clean and not server.persistent:
            _remove_segments(endpoint, set(launcher.workers))


def _remove_segments(endpoint: Endpoint, names: set[str]) -> None:
    """Remove what killed workers left, once the last of their processes has let go of it."""
    from redist.memory.locks import dead_directories

    owners = {f"{endpoint.url} {endpoint.namespace}\t{name}" for name in names}
    deadline = time.monotonic() + _LET_GO
    while True:
        for dead in dead_directories():
            if dead.owner in owners:
                shutil.rmtree(dead.path, ignore_errors=True)
                owners.discard(dead.owner)
        if not owners or time.monotonic() > deadline:
            return
        time.sleep(0.01)
