"""How much the cluster keeps: known keys, and the bytes of their values, by worker and in the server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redist.describing import all_names, read_states
from redist.markup import page, table
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
        Bytes of values on workers, each copy counted. These alone, each once, count towards quotas.
    inline : int
        Bytes of small values (the setting ``inline-limit``), which lie in the server itself; without those that only tasks
        and containers still need.
    by_worker : dict
        `nbytes` by the worker's name.
    """

    keys: int
    nbytes: int
    inline: int = 0
    by_worker: dict[str, int] = field(default_factory=dict)

    def _repr_html_(self) -> str:
        from redist.memory.space import format_size

        facts = [
            ("Keys", f"{self.keys:,}"),
            ("On workers", format_size(self.nbytes)),
            ("In the server", format_size(self.inline)),
        ]
        rows = [(name, format_size(nbytes)) for name, nbytes in self.by_worker.items()]
        return page("Usage", "", facts, below=table(("Worker", "Values"), rows, figures=1) if rows else "")


def usage(client: Client) -> Operation[Usage]:
    """Count keys and the bytes of their values."""
    meta: dict[str, str] = yield Run(client._peers.fields, ("meta",))
    peers: list[Peer] = yield Run(client._peers.workers)
    names: list[str] = yield Run(all_names, (client,))
    states = yield from read_states(names)
    inline = sum(state.nbytes for state in states if state.state == "memory" and not state.where)
    by_worker = {}
    for peer in peers:
        copies: dict[str, str] = yield Run(client._peers.fields, (f"has:{peer.ordinal}",))
        states = yield from read_states(list(copies))
        # What was lost between the two reads still has a size.
        by_worker[peer.name] = sum(state.nbytes for state in states if state.state == "memory")
    return Usage(int(meta.get("keys", 0)), sum(by_worker.values()), inline, by_worker)
