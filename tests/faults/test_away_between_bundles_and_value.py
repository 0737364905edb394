"""A client that stands still for longer than its lease, in the middle of storing a value with very many Futures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from faults.rig import PATIENCE, Rig
from redist import Client, scattering
from redist.bundling import Bundles
from redist.errors import DependencyUnknown
from redist.session.operations import Operation
from servers import wait_until

pytestmark = pytest.mark.timeout(120)


def away(rig: Rig, client: Client) -> None:
    """The client stands still until others have given it up, and all that it held."""
    ordinal = str(client.session.ordinal)
    with client.session.lock:
        rig.command("HSET", f"{rig.endpoint.prefix}caller:{ordinal}", "silence", "0")
        rig.command("ZADD", f"{rig.endpoint.prefix}leases", "1", ordinal)
        wait_until(lambda: ordinal not in rig.hash("clients"), PATIENCE)
        wait_until(lambda: not rig.names(), PATIENCE)


def test_it_says_what_is_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    leaves = client.scatter([b"x" * 5_000] * 1_200, hash=False)

    class Slow(Bundles):
        def of(self, names: Sequence[str], timeout: float | None = None) -> Operation[Sequence[str]]:
            names = yield from super().of(names, timeout)
            away(rig, client)
            return names

    monkeypatch.setattr(scattering, "Bundles", Slow)
    with pytest.raises(DependencyUnknown, match="longer than its lease"):
        client.scatter([leaves])
    monkeypatch.undo()
    del leaves
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()
