"""redist: shared in-memory data and tasks for many Python processes, with the state in Redis or Valkey."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redist.actor import Actor, ActorFuture, BaseActorFuture
    from redist.adaptive import Adaptive
    from redist.client import Client
    from redist.cluster import LocalCluster
    from redist.completing import as_completed
    from redist.coordination.event import Event
    from redist.coordination.multi_lock import MultiLock
    from redist.coordination.pubsub import Pub, Sub
    from redist.coordination.queue import Queue
    from redist.coordination.semaphore import Lock, Semaphore
    from redist.coordination.variable import Variable
    from redist.current import default_client, fire_and_forget, futures_of, get_client
    from redist.errors import CancelledError, FutureCancelledError, KilledWorker, Reschedule
    from redist.future import Future
    from redist.not_recorded import get_task_metadata, get_task_stream, performance_report, span
    from redist.plugins import UploadDirectory, UploadFile, WorkerPlugin
    from redist.printing import print, warn  # noqa: A004
    from redist.progress_bar import progress
    from redist.waiting import ALL_COMPLETED, FIRST_COMPLETED, wait
    from redist_worker.local import get_worker, rejoin, secede, worker_client

__version__ = "0.1.0"

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "Actor",
    "ActorFuture",
    "Adaptive",
    "BaseActorFuture",
    "CancelledError",
    "Client",
    "Event",
    "Future",
    "FutureCancelledError",
    "KilledWorker",
    "LocalCluster",
    "Lock",
    "MultiLock",
    "Pub",
    "Queue",
    "Reschedule",
    "Semaphore",
    "Sub",
    "TimeoutError",
    "UploadDirectory",
    "UploadFile",
    "Variable",
    "WorkerPlugin",
    "__version__",
    "as_completed",
    "default_client",
    "fire_and_forget",
    "futures_of",
    "get_client",
    "get_task_metadata",
    "get_task_stream",
    "get_worker",
    "performance_report",
    "print",
    "progress",
    "rejoin",
    "secede",
    "span",
    "wait",
    "warn",
    "worker_client",
]

_HOMES = {
    "Actor": "redist.actor",
    "ActorFuture": "redist.actor",
    "Adaptive": "redist.adaptive",
    "BaseActorFuture": "redist.actor",
    "Client": "redist.client",
    "CancelledError": "redist.errors",
    "FutureCancelledError": "redist.errors",
    "KilledWorker": "redist.errors",
    "TimeoutError": "builtins",
    "Future": "redist.future",
    "LocalCluster": "redist.cluster",
    "Event": "redist.coordination.event",
    "Pub": "redist.coordination.pubsub",
    "Sub": "redist.coordination.pubsub",
    "Queue": "redist.coordination.queue",
    "Variable": "redist.coordination.variable",
    "Lock": "redist.coordination.semaphore",
    "MultiLock": "redist.coordination.multi_lock",
    "Semaphore": "redist.coordination.semaphore",
    "ALL_COMPLETED": "redist.waiting",
    "FIRST_COMPLETED": "redist.waiting",
    "as_completed": "redist.completing",
    "wait": "redist.waiting",
    "default_client": "redist.current",
    "fire_and_forget": "redist.current",
    "futures_of": "redist.current",
    "get_client": "redist.current",
    "get_task_metadata": "redist.not_recorded",
    "get_task_stream": "redist.not_recorded",
    "performance_report": "redist.not_recorded",
    "print": "redist.printing",
    "progress": "redist.progress_bar",
    "span": "redist.not_recorded",
    "warn": "redist.printing",
    "UploadDirectory": "redist.plugins",
    "UploadFile": "redist.plugins",
    "WorkerPlugin": "redist.plugins",
    "get_worker": "redist_worker.local",
    "rejoin": "redist_worker.local",
    "Reschedule": "redist.errors",
    "secede": "redist_worker.local",
    "worker_client": "redist_worker.local",
}


def __getattr__(name: str) -> Any:
    if name == "config":
        return importlib.import_module("redist.config")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'redist' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
