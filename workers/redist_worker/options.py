"""What a worker is told at its start."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redist.memory.limits import MemoryLimits

if TYPE_CHECKING:
    from redist.store.connect import Endpoint

__all__ = ["WorkerOptions"]


@dataclass(slots=True)
class WorkerOptions:
    """Options of one worker.

    Parameters
    ----------
    endpoint : Endpoint
        The server and namespace.
    name : str
        Name for people, unique among the workers; empty: one is made of host and pid, or a dead predecessor's is taken.
    executors : int
        How many executor processes.
    threads : int
        Threads of each.
    memory_limit : int
        Most bytes of payloads and of executors; 0 for no limit but what the file system of payloads has.
    memory : MemoryLimits
        What is done at which fraction of it.
    spill_dir : str
        Parent of the directory for payloads on disk; empty for a temporary directory.
    max_spill : int
        Most bytes on disk; 0 for what the disk has.
    resources : str
        ``GPU=1,MEM=2.5``, what tasks can ask for.
    host, port : str and int
        Where the data server listens; an empty host is the address that leads to the server.
    segments : str
        Parent of the segment directory; empty for shared memory.
    lease : float
        Seconds after which others believe a silent worker dead.
    grace : float
        Seconds that tasks get to finish when the worker is stopped.
    connect_timeout : float
        Seconds to wait for the server at the start.
    parent_fd : int
        Descriptor whose closing tells that the process that started the worker is gone; -1 for none.
    echo : bool
        Whether what tasks print also goes to the worker's own output, not only to the clients.
    """

    endpoint: Endpoint
    name: str = ""
    executors: int = 1
    threads: int = 1
    memory_limit: int = 0
    memory: MemoryLimits = field(default_factory=MemoryLimits)
    spill_dir: str = ""
    max_spill: int = 0
    resources: str = ""
    host: str = ""
    port: int = 0
    segments: str = ""
    lease: float = 10.0
    grace: float = 5.0
    connect_timeout: float = 60.0
    parent_fd: int = -1
    echo: bool = True
    hostname: str = field(default_factory=socket.gethostname)

    def default_name(self) -> str:
        """Return the name of a worker that was given none."""
        return f"{self.hostname}-{os.getpid()}"
