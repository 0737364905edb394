"""Hanging a wait on records of several clients: each under its own client's lock, one lock after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from redist.session.states import FutureState, Relay, Waiter, hang

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["hang_across"]


class Hung:
    """A wait that hangs on records of several clients."""

    def __init__(self, relay: Relay, groups: dict[Client, list[FutureState]]) -> None:
        self._relay = relay
        self._groups = groups

    def drop(self) -> None:
        """Take it down again."""
        for owner, states in self._groups.items():
            with owner.session.lock:
                for state in states:
                    state.drop_waiter(self._relay)


def hang_across(waiter: Waiter, owners: Iterable[tuple[FutureState, Client]]) -> Hung:
    """Hang `waiter` on the records that are pending; its `remaining` says how many they still are."""
    groups: dict[Client, list[FutureState]] = {}
    for state, owner in owners:
        groups.setdefault(owner, []).append(state)
    relay = Relay(waiter)
    waiter.remaining = sum(map(len, groups.values()))
    for owner, states in groups.items():
        with owner.session.lock:
            # What is not pending can be subtracted later: what hits meanwhile is among the others.
            pending = hang(relay, states)
        relay.settled(len(states) - pending)
    return Hung(relay, groups)
