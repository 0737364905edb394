"""Waits on records: of one client under its lock, of several each under its own client's lock, one lock after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from redist.session.operations import Operation, Until
from redist.session.states import FutureState, Relay, Waiter, hang

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Hung", "hang_across", "until_ready"]


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


def until_ready(
    client: Client, waiter: Waiter, states: Sequence[FutureState], hung: Hung | None, timeout: float | None
) -> Operation[bool]:
    """Wait for `waiter`, which hangs on `states` of `client`, or as `hung` says; whatever comes, it is taken down again.

    False if the timeout came first.
    """
    try:
        return waiter.remaining <= 0 or (yield Until(waiter, timeout))
    finally:
        if hung is not None:
            hung.drop()
        elif any(state.waiters is not None for state in states):
            with client.session.lock:
                for state in states:
                    state.drop_waiter(waiter)
