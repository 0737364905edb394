"""What a client lets go of is told to the server within milliseconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import pytest

from redist import Client, LocalCluster, wait
from redist.session import thread_driver
from redist.store.wire import Wire
from servers import wait_until

ROUNDS = 20
#: About 2 ms are meant, and a machine may be busy.
BOUND = 0.05


@pytest.fixture
def wire(cluster: LocalCluster) -> Iterator[Wire]:
    wire = cluster.endpoint.open()
    yield wire
    wire.close()


def median_until_told(
    cluster: LocalCluster, client: Client, wire: Wire, before: Callable[[], object]
) -> float:
    """Return the median time from `del` of a Future to the server's forgetting of that reference."""
    spans = []
    for i in range(ROUNDS):
        future = client.scatter({f"value-{i}": i})[f"value-{i}"]
        key = f"{cluster.endpoint.prefix}key:value-{i}"
        field = f"refs:{client.session.ordinal}"
        wait_until(lambda key=key, field=field: wire.call("HEXISTS", key, field))
        before()
        start = time.monotonic()
        del future
        while wire.call("HEXISTS", key, field):
            assert time.monotonic() < start + 10
        spans.append(time.monotonic() - start)
    return statistics.median(spans)


def test_while_nothing_else_happens(cluster: LocalCluster, client: Client, wire: Wire) -> None:
    def idle() -> None:
        """Wait until the background thread only waits for what wakes it."""
        wait_until(lambda: not client._driver._ticking)

    assert median_until_told(cluster, client, wire, idle) < BOUND


def test_right_after_a_wait(
    cluster: LocalCluster, client: Client, wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The background thread looks by itself for so long after a wait; longer than `BOUND`, so that only its looks matter.
    monkeypatch.setattr(thread_driver, "TAKE_BACK", 1.0)

    def waited() -> None:
        wait(client.submit(abs, -1, pure=False))

    assert median_until_told(cluster, client, wire, waited) < BOUND
