"""Payloads that workers may have got and nobody makes known: they are told to drop them, in threads beside."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from threading import Thread, current_thread
from typing import TYPE_CHECKING

from redist.errors import RedistError

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["drop_soon", "wait_for_drops"]


def drop_soon(
    client: Client, give_up: Callable[[], None] | None, placed: Sequence[tuple[str, int, int]]
) -> None:
    """Have workers drop payloads (name, attempt, worker) that nobody will make known, in a thread of its own.

    `give_up` returns when nothing writes them any more; None where that is so.
    """
    if placed:
        drop = Thread(target=_drop, args=(client, give_up, placed), name="redist-drop", daemon=True)
        client._drops.add(drop)
        drop.start()


def wait_for_drops(client: Client, timeout: float) -> None:
    """Wait until nothing is left to be dropped; before the client's connections to workers are closed."""
    until = time.monotonic() + timeout
    for drop in list(client._drops):
        drop.join(max(0.0, until - time.monotonic()))


def _drop(client: Client, give_up: Callable[[], None] | None, placed: Sequence[tuple[str, int, int]]) -> None:
    try:
        if give_up is not None:
            # A worker forgets at once what it is told to drop: told before it is written, it would keep it.
            give_up()
        _drop_placed(client, placed)
    finally:
        client._drops.discard(current_thread())


def _drop_placed(client: Client, placed: Sequence[tuple[str, int, int]]) -> None:
    for worker in {item[2] for item in placed}:
        payloads = [(name, attempt) for name, attempt, where in placed if where == worker]
        with contextlib.suppress(RedistError, OSError):  # a worker that is gone took them along
            peer = client._peers.worker(worker)
            if peer is not None and peer.here:
                client._broker_of(peer).drop(payloads)
            elif peer is not None:
                client._segments.data_client(client).drop(peer.address, payloads)
