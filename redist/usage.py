"""How much the cluster keeps: known keys, and the bytes of payloads by worker."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redist.describing import read_states
from redist.session.operations import Operation, Run

if TYPE_CHECKING:
    from redist.client import Client
    from redist.peers import Peer

__all__ = ["Usage", "usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Memory in use at one moment.

    Attributes
    ----------
    keys : int
        Keys that the server knows, whatever their state.
    nbytes : int
        Bytes of payloads on workers, each copy counted. Values of up to 4 KiB lie in the server and are not in it.
    by_worker : dict
        The same by the worker's name.
    """

    keys: int
    nbytes: int
    by_worker: dict[str, int] = field(default_factory=dict)


def usage(client: Client) -> Operation[Usage]:
    """Count keys and payload bytes."""
    meta: dict[str, str] = yield Run(client._peers.fields, ("meta",))
    peers: list[Peer] = yield Run(client._peers.workers)
    by_worker = {}
    for peer in peers:
        copies: dict[str, str] = yield Run(client._peers.fields, (f"has:{peer.ordinal}",))
        states = yield from read_states(list(copies))
        # What was lost between the two reads still has a size.
        by_worker[peer.name] = sum(state.nbytes for state in states if state.state == "memory")
    return Usage(int(meta.get("keys", 0)), sum(by_worker.values()), by_worker)
