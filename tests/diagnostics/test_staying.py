"""The doctor's notes of what stays since nobody has taken it away."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from redist import Client, Event, Lock, Queue, Variable
from redist.diagnostics.doctor import examine
from redist.store.connect import Endpoint
from servers import Server, wait_until


@pytest.fixture
def point(valkey: Server, namespace: str) -> Iterator[Endpoint]:
    yield valkey.endpoint(namespace)
    valkey.forget(namespace)


def notes(point: Endpoint) -> list[str]:
    report = examine(point, patience=0.2)
    assert report.healthy
    return list(report.notes)


def test_simple(point: Endpoint) -> None:
    with Client(point) as client, Client(point, set_as_default=False) as other:
        lock = Lock("held", client=client)
        lock.acquire()
        assert notes(point) == []  # it ends with its client
        rate = Variable("rate", client=client)
        rate.set(1)
        assert notes(point) == ["the variable 'rate': a value stays until delete() is called"]
        Variable(("of", 1), client=client).set(2)
        jobs = Queue("jobs", client=client)
        jobs.put("a")
        jobs.put("b")
        go = Event("go", client=client)
        go.set()
        assert notes(point) == [
            "2 variables, ('of', 1), 'rate': a value stays until delete() is called",
            "the event 'go' is set: that stays until clear() is called",
        ]
        other.close()
    assert notes(point)[1:] == [
        "the queue 'jobs' has 2 items, and no client is there that opened it: items stay until get() or close()",
        "the event 'go' is set: that stays until clear() is called",
    ]
    with Client(point) as client:
        Variable("rate", client=client).delete()
        Variable(("of", 1), client=client).delete()
        queue = Queue("jobs", client=client)
        assert queue.get(batch=True) == ["a", "b"]
        Event("go", client=client).clear()
        assert notes(point) == []


def test_what_is_waited_for_is_in_use(point: Endpoint) -> None:
    with Client(point) as client:
        variable, event = Variable("x", client=client), Event("e", client=client)
        thread = threading.Thread(target=variable.get)
        thread.start()
        wait_until(lambda: "variable x" in repr(client._peers.command("KEYS", f"{point.prefix}waits:*")))
        variable.set(5)
        thread.join(10)
        event.set()
        assert len(notes(point)) == 2
        event.clear()
        variable.delete()


def test_only_some_of_many_are_named(point: Endpoint) -> None:
    with Client(point) as client:
        variables = [Variable(f"v{i}", client=client) for i in range(8)]
        for variable in variables:
            variable.set(0)
        assert notes(point) == [
            "8 variables, 'v0', 'v1', 'v2', 'v3', 'v4' and 3 others: a value stays until delete() is called"
        ]
        for variable in variables:
            variable.delete()
