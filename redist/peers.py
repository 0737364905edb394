"""Records of other callers, above all of workers, read beside the lane with plain commands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from redist.errors import UnknownWorker
from redist.memory.host import same_host
from redist.session.wakeup import drivers
from redist.store.side import Side

if TYPE_CHECKING:
    from redist.store.connect import Endpoint

__all__ = ["Peer", "Peers", "unknown_worker"]


@dataclass(frozen=True, slots=True)
class Peer:
    """A worker, as its record says.

    Attributes
    ----------
    ordinal : int
        Its ordinal.
    name, address : str
        Name, and address of its data server.
    segments : str
        Its segment directory.
    socket : str
        Path of its local socket.
    here : bool
        Whether its segments can be mapped from this process.
    fields : dict
        The whole record.
    """

    ordinal: int
    name: str
    address: str
    segments: str
    socket: str
    here: bool
    fields: dict[str, str]

    @property
    def names(self) -> set[str]:
        """What it is called by: name, address, or ordinal."""
        return {self.name, self.address, str(self.ordinal)}


def unknown_worker(text: str) -> UnknownWorker:
    """Return the error for a worker that there is not."""
    return UnknownWorker(f"there is no worker {text!r}: scheduler_info() names the workers")


class Peers(Side):
    """Reads records of workers, and remembers them until `forget`. Safe to use from several threads; blocks.

    Parameters
    ----------
    endpoint : Endpoint
        The server.
    timeout : float, optional
        Seconds until a command is given up; default: the endpoint's.
    """

    def __init__(self, endpoint: Endpoint, timeout: float | None = None) -> None:
        super().__init__(endpoint, timeout)
        self._known: dict[int, Peer] = {}
        self._host_id: str | None = None
        drivers.add(self)

    def worker(self, ordinal: int) -> Peer | None:
        """Return the worker with this ordinal, None if there is none."""
        peer = self._known.get(ordinal)
        if peer is None:
            fields = self.fields(f"caller:{ordinal}")
            if fields.get("kind") == "worker" and fields.get("inc"):
                peer = self._known[ordinal] = Peer(
                    ordinal,
                    fields.get("name", ""),
                    fields.get("address", ""),
                    fields.get("segments", ""),
                    fields.get("socket", ""),
                    same_host(fields.get("segments", ""), fields.get("hostid", "")),
                    fields,
                )
        return peer

    def copies(self, where: str) -> list[tuple[Peer, int]]:
        """Return the copies of a payload: the worker that has each, as far as it is known, and the attempt.

        Parameters
        ----------
        where : str
            Its copies: ordinal and attempt of each with a period between, the copies with blanks.
        """
        found = []
        for copy in where.split():
            ordinal, _, attempt = copy.partition(".")
            peer = self._known.get(int(ordinal)) or self.worker(int(ordinal))
            if peer is not None:
                found.append((peer, int(attempt)))
        return found

    def here(self, where: str) -> list[tuple[str, int]]:
        """Return those of the `copies` that lie on this host: segment directory and attempt of each."""
        return [(peer.segments, attempt) for peer, attempt in self.copies(where) if peer.here]

    def workers(self) -> list[Peer]:
        """Return all living workers, by ordinal."""
        self.forget()
        peers = [self.worker(int(ordinal)) for ordinal in self.fields("workers")]
        return sorted((peer for peer in peers if peer is not None), key=lambda peer: peer.ordinal)

    def host_id(self) -> str:
        """Return the id of the host's memory as its workers know it, empty if none is here."""
        if not self._host_id:
            self._host_id = next((peer.fields.get("memory", "") for peer in self.workers() if peer.here), "")
        return self._host_id

    def forget(self) -> None:
        """Forget what was read: workers came or went."""
        self._known.clear()
