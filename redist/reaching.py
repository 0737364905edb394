"""A worker that values are put to: how long it is waited for, and what is said where it cannot be reached."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from redist.errors import RedistError, TransferError, WorkerUnreached
from redist.memory.patience import patience
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["reaching"]

#: What the system says of a socket behind which no process is.
_DEAD = (errno.ECONNREFUSED, errno.ECONNRESET, errno.ENOENT, errno.EPIPE)
#: How long a look whether a worker is there may take, s.
_LOOK = 0.5


@contextmanager
def reaching(client: Client, worker: int, names: Sequence[str], timeout: float | None) -> Iterator[None]:
    """Put values to a worker in the ``with`` block, which waits for `timeout` at most, and until the worker is given up.

    Raises
    ------
    WorkerUnreached
        If it cannot be reached; names the worker and the first of `names`.
    """
    peer = client._peers.worker(worker)
    began = time.monotonic()
    try:
        with patience(timeout, partial(_check, client, worker)):
            yield
    except TransferError as error:
        where = () if peer is None else (peer.socket, peer.address)
        who = str(worker) if peer is None else peer.name
        unreached = WorkerUnreached(_told(who, where, error, names))
        unreached.waited = time.monotonic() - began
        try:
            raise unreached from error
        finally:
            del unreached  # else it would keep this frame, and this frame it


def _check(client: Client, worker: int) -> None:
    """Raise if the server has given the worker up; the announcement of that may be late, or nobody reads it now."""
    try:
        with client._peers.within(time.monotonic() + _LOOK):
            there = client._peers.field("workers", str(worker))
    except RedistError:
        return  # that cannot be told now
    if there is None:
        raise TransferError("the worker is gone: it was not heard of for longer than its lease, or has ended")


def _told(who: str, addresses: Sequence[str], error: TransferError, names: Sequence[str]) -> str:
    said = str(error)
    for address in addresses:
        said = said.removeprefix(f"{address}: ")
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _DEAD and str(cause.strerror) in said:
        said = f"cannot be reached ({cause.strerror}): it has died, or is about to end"
    elif said.startswith("the worker did not "):
        said = f"{said.removeprefix('the worker ')}: it is stopped, busy, or waits for room"
    elif said.startswith("the worker "):
        said = said.removeprefix("the worker ")
    else:
        said = f"cannot be reached: {said}"
    first = repr(decode_key(names[0]))
    what = f"{first} was" if len(names) == 1 else f"{first} and {len(names) - 1:,} more were"
    return f"worker {who!r} {said}; {what} not stored: start a worker, or try again with a longer timeout"
