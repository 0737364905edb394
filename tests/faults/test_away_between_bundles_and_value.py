"""A client that stands still for longer than its lease, while it stores, or holds, values with Futures."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from faults.rig import PATIENCE, Rig
from redist import Client, Queue, Variable, named_values, scattering
from redist.bundling import Bundles
from redist.errors import DatasetNotFound, DependencyUnknown
from redist.session.operations import Operation
from servers import wait_until

pytestmark = pytest.mark.timeout(120)

MANY = 1_200  # Futures in a value, so that it takes bundles


def away(rig: Rig, client: Client) -> None:
    """The client stands still until others have given it up, and all that it held."""
    ordinal = str(client.session.ordinal)
    with client.session.lock:
        held = {name.decode() for name in rig.command("SMEMBERS", f"{rig.endpoint.prefix}holds:{ordinal}")}
        rig.command("HSET", f"{rig.endpoint.prefix}caller:{ordinal}", "silence", "0")
        rig.command("ZADD", f"{rig.endpoint.prefix}leases", "1", ordinal)
        wait_until(lambda: ordinal not in rig.hash("clients"), PATIENCE)
        wait_until(lambda: held.isdisjoint(rig.names()), PATIENCE)


def away_when_enclosed(rig: Rig, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client stands still once the bundles of a value that is to be kept under a name are known."""

    def slow(names: Sequence[str]) -> Operation[None]:
        yield from known(names)
        away(rig, client)

    known = named_values._check_known
    monkeypatch.setattr(named_values, "_check_known", slow)


def test_it_says_what_is_lost(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    leaves = client.scatter([b"x" * 5_000] * MANY, hash=False)

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


@pytest.mark.parametrize("how", ["dataset", "override", "variable", "queue"])
def test_nothing_is_kept_under_a_name_whose_futures_are_lost(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What had the name before keeps it."""
    rig.worker("w1")
    rig.ready(1)
    client, other = rig.client(), rig.client()
    variable, queue = Variable("v", client), Queue("q", client)
    other.publish_dataset("before", name="before")
    variable.set("before")
    leaves = client.scatter([b"x" * 5_000] * MANY, hash=False)

    away_when_enclosed(rig, client, monkeypatch)
    with pytest.raises(DependencyUnknown, match="longer than its lease") as caught:
        if how == "variable":
            variable.set(leaves)
        elif how == "queue":
            queue.put(leaves)
        else:
            name = "before" if how == "override" else "ds"
            client.publish_dataset(leaves, name=name, override=how == "override")
    assert caught.value.key in {leaf.key for leaf in leaves}
    monkeypatch.undo()
    assert other.get_dataset("before") == "before"
    with pytest.raises(DatasetNotFound):
        other.get_dataset("ds")
    assert (variable.get(), queue.qsize()) == ("before", 0)
    del leaves, caught
    variable.delete()
    queue.close()
    other.unpublish_dataset("before")
    rig.finish()


def test_bundles_of_tasks_are_told_again_behind_them(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = rig.client(), rig.client()
    tasks = client.map(abs, range(-MANY, 0), pure=False)
    away_when_enclosed(rig, client, monkeypatch)
    client.publish_dataset(tasks, name="ds")
    monkeypatch.undo()
    del tasks
    rig.worker("w1")
    rig.ready(1)
    assert client.gather(client.get_dataset("ds")) == list(range(MANY, 0, -1))
    client.unpublish_dataset("ds")
    rig.finish()


def test_values_that_contain_tasks_are_told_again_behind_them(rig: Rig) -> None:
    """So that they keep them, once nobody else does."""
    client, _ = rig.client(), rig.client()
    task = client.submit(abs, -1)
    (value,) = client.scatter([[task]])
    on_it = client.submit(len, value)
    (over,) = client.scatter([[on_it]])
    before = sorted(future.key for future in (task, value, on_it, over))
    wait_until(lambda: rig.names() == before, PATIENCE)
    away(rig, client)
    wait_until(lambda: rig.names() == before, PATIENCE)
    del task, on_it
    rig.worker("w1")
    rig.ready(1)
    assert client.gather(client.gather(value)) == [1]
    assert client.gather(client.gather(over)) == [1]
    del value, over
    rig.finish()
