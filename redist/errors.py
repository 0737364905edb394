"""Every error that redist raises, one type a failure.

A message says what happened, to which key or address, and what to do about it. Where Dask's users know a name
(``CancelledError``, ``KilledWorker``, ``TimeoutError``), the class carries that name and can be caught as the builtin.
"""

from __future__ import annotations

import concurrent.futures


class RedistError(Exception):
    """Base class of all errors of redist."""


# --- the server -----------------------------------------------------------------------------------------------------


class StoreError(RedistError):
    """The Redis server cannot be used; the message names the mend.

    Attributes
    ----------
    pending : bool
        Whether the call was sent, or has to follow one that was: it is applied, once, when the server takes calls again.
        Otherwise nothing of it is.
    """

    pending = False


class ConnectionLost(StoreError, ConnectionError):
    """The connection to the server broke or could not be made within the timeout."""


class ServerRefused(StoreError):
    """The server answered, but is not fit: too old, wrong eviction policy, read-only, or without rights.

    Attributes
    ----------
    passing : bool
        Whether it is to be expected that it is fit again by itself: it loads its data, is busy, or fails over.
    """

    passing = False


class SchemaMismatch(ServerRefused):
    """The namespace was written by a version of redist with another schema."""


class ServerFull(StoreError, MemoryError):
    """The server is at ``maxmemory`` and refused a call that would grow it."""


class ProtocolError(StoreError):
    """A reply or message that this version does not understand."""


# --- futures and tasks ----------------------------------------------------------------------------------------------


class CancelledError(RedistError, concurrent.futures.CancelledError):
    """The Future was cancelled, or its key was forgotten; the message gives the reason."""


class FutureCancelledError(CancelledError):
    """The Future was cancelled; ``key``, ``reason`` and ``msg`` say which and why.

    Parameters
    ----------
    key : object
        The user's key.
    reason : str, optional
        Why it was cancelled.
    msg : str, optional
        What else there is to say of it.
    """

    def __init__(self, key: object, reason: str | None = None, msg: str | None = None) -> None:
        super().__init__(key, reason, msg)
        self.key = key
        self.reason = reason or "unknown"
        self.msg = msg

    def __str__(self) -> str:
        text = f"{self.key!r} cancelled for reason: {self.reason}"
        return f"{text}\n{self.msg}" if self.msg else text


class KeyTaken(RedistError, ValueError):
    """The key is already in use by another function."""


class DataLost(RedistError):
    """The payload's last copy went with its worker and nothing can recompute it."""


class ActorLost(RedistError, ValueError):
    """The process that had the actor is gone, and the actor with it; submit it again for a new one."""


class KilledWorker(RedistError):
    """The processes that ran this task died too often; names task, signal and last memory sample."""


class DependencyUnknown(FutureCancelledError):
    """A Future in an argument or a value is not known any more (released, cancelled, or from before a restart)."""


class GraphCycle(RedistError, RuntimeError):
    """Tasks of a Dask graph wait for each other; the message names them."""


class ForeignFutureError(RedistError, ValueError):
    """The Future belongs to another cluster: another server, or another namespace."""


class SerializationError(RedistError, TypeError):
    """A value, argument or function cannot be serialized."""


class DeserializationError(RedistError, TypeError):
    """A payload cannot be turned back into an object here."""


class UnsignedPayload(DeserializationError):
    """``REDIST_SECRET`` is set and the pickle carries no valid signature; it was not loaded."""


class Reschedule(RedistError):
    """Raised by a task to be run again elsewhere."""


# --- clients --------------------------------------------------------------------------------------------------------


class ClientClosed(RedistError, RuntimeError):
    """The client (or the client of this Future) is closed."""


class ForkedClientError(ClientClosed):
    """The client belongs to the parent process; make a new one in the child."""


class NoClientError(RedistError, ValueError):
    """There is no current client."""


class NotInitialized(NoClientError, RuntimeError):
    """A Lock, Queue or the like is used, or was unpickled, where there is no client."""


class SemaphoreClosed(RedistError, RuntimeError):
    """The semaphore was closed; make it anew to use it again."""


class DatasetNotFound(RedistError, KeyError):
    """No dataset of that name is published."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class DatasetExists(RedistError, KeyError):
    """A dataset of that name is published already; publish with ``override=True`` to replace it."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class InvalidKey(RedistError, TypeError):
    """A key that is no str, number, bytes or tuple of plain values, or a name that is no str or tuple; or is too long."""


class UnknownArgument(RedistError, TypeError, ValueError):
    """A keyword that is none; the message names the nearest that there is."""


class InvalidTimeSpan(RedistError, ValueError, KeyError):
    """Text that is no span of time."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WorkerGone(RedistError, OSError):
    """The worker that was asked is not there, or its process ended before it answered."""


class UnknownWorker(WorkerGone, KeyError):
    """No worker has this name or address, or lies on this host."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class NameTaken(RedistError, ValueError):
    """A living worker has this name already; the message says which process it is."""


class ConfigurationError(RedistError, ValueError):
    """Settings that do not go together, or a file that a setting names and that cannot be used."""


class NoScheduler(RedistError, NotImplementedError):
    """What was asked for needs a scheduler process, and there is none; the message says what to use instead."""


class NotOffered(RedistError, NotImplementedError):
    """redist does not offer what was asked for; the message says what to use instead."""


class NoWorkers(RedistError):
    """No living worker can take the data; start one, or relax ``workers=``."""


# --- payload memory -------------------------------------------------------------------------------------------------


class SegmentError(RedistError):
    """A payload's file cannot be used."""


class SegmentGone(SegmentError):
    """The payload's file has been evicted meanwhile."""


class SegmentCorrupt(SegmentError):
    """The payload's file or frame is truncated, foreign or lies about its size."""


class QuotaExceeded(RedistError):
    """A client or the namespace would hold more than its quota, or does already; the message names the largest holders.

    Attributes
    ----------
    need, used, limit : int
        Bytes that were to be added, that are held, and that may be.
    holders : tuple
        Names and bytes of the largest: keys of the client, or clients of the namespace.
    """

    need = used = limit = 0
    holders: tuple[tuple[str, int], ...] = ()


class SegmentsFull(SegmentError, MemoryError):
    """There is no space for the payload; names worker or path, need, limit, what is used, and the largest values."""


class DiskFull(SegmentError):
    """Nothing can be spilled: the disk is full or cannot be written, or the spill directory has as much as it may."""


class TransferError(RedistError, ConnectionError):
    """A payload could not be fetched from, or sent to, another host."""


class WorkerUnreached(TransferError):
    """A value could not be put into a worker's memory: it has died, or does not answer; the message names both.

    Attributes
    ----------
    waited : float
        Seconds for which it was waited for.
    """

    waited = 0.0
