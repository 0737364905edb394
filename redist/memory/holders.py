"""Whom to ask for a payload, and whom next when that one dies; without I/O."""

from __future__ import annotations

from collections.abc import Sequence

from redist.errors import RedistError, SegmentsFull, TransferError
from redist.memory.broker_messages import Wanted
from redist.memory.receive import Received

__all__ = ["HolderPlan", "split_address"]

MAX_A_REQUEST = 1000
"""Most payloads that are asked for in one request."""


class HolderPlan:
    """Requests to be made for some payloads, in rounds, until each arrived or was asked of every holder.

    Parameters
    ----------
    wanted : sequence of (name, attempt, addresses)
        The payloads, each with the data servers that have it, the best first.
    """

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._wanted = wanted
        self._outcomes: list[Received | RedistError | None] = [None] * len(wanted)
        self._asked = [0] * len(wanted)
        self._dead: set[str] = set()

    def groups(self) -> dict[str, list[int]]:
        """Return the requests of the next round: address -> indices of payloads; empty when nothing is left."""
        groups: dict[str, list[int]] = {}
        for index, (name, attempt, addresses) in enumerate(self._wanted):
            outcome = self._outcomes[index]
            if isinstance(outcome, Received | SegmentsFull):
                continue
            while self._asked[index] < len(addresses) and addresses[self._asked[index]] in self._dead:
                self._asked[index] += 1
            if self._asked[index] < len(addresses):
                group = groups.setdefault(addresses[self._asked[index]], [])
                if len(group) < MAX_A_REQUEST:
                    group.append(index)
            elif outcome is None:
                self._outcomes[index] = TransferError(f"{name!r:.80} attempt {attempt}: no living holder")
        return groups

    def payloads(self, indices: Sequence[int]) -> list[tuple[str, int]]:
        """Return names and attempts of the payloads at `indices`."""
        return [self._wanted[index][:2] for index in indices]

    def record(self, indices: Sequence[int], outcomes: Sequence[Received | RedistError]) -> None:
        """Take the outcomes of one request."""
        for index, outcome in zip(indices, outcomes, strict=True):
            addresses = self._wanted[index][2]
            if isinstance(outcome, TransferError) and outcomes and outcome is outcomes[-1]:
                # the connection broke: the other payloads need not wait for this server's timeout again
                self._dead.add(addresses[self._asked[index]])
            self._asked[index] += 1
            self._outcomes[index] = outcome

    def outcomes(self) -> list[Received | RedistError]:
        """Return, for each payload, what arrived or the error of the last holder asked."""
        return [
            outcome
            if outcome is not None
            else TransferError(f"{self._wanted[index][0]!r:.80}: nobody was asked")
            for index, outcome in enumerate(self._outcomes)
        ]


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of ``tcp://host:port`` or ``tls://host:port``.

    Raises
    ------
    TransferError
        If it is no such address.
    """
    rest = address.removeprefix("tcp://").removeprefix("tls://")
    host, colon, port = rest.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536 or not host:
        raise TransferError(f"{address!r:.80} is no address of a data server (tcp://host:port)")
    return host.strip("[]"), int(port)
