"""What is waited for when a finished value is not where it was: never longer than the caller said."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest

from redist import Client, as_completed, config, gathering
from redist.errors import ConnectionLost, TransferError
from redist.segments import Trouble
from redist.session.operations import AskAll, Run, Until
from redist.session.states import FINISHED


def lose_file(client: Client, key: str) -> None:
    """Delete the payload file of `key` behind everybody's back."""
    (where,) = client.who_has()[key]
    directory = client.scheduler_info()["workers"][where]["local_directory"]
    (victim,) = [
        path
        for path in (os.path.join(directory, name) for name in os.listdir(directory))
        if os.path.isfile(path) and os.path.getsize(path) > 700_000
    ]
    os.unlink(victim)


def test_a_copy_that_cannot_be_reached(client: Client) -> None:
    """Its file is gone, and its worker does not say so."""
    future = client.submit(bytes, 700_001, pure=False)
    assert as_completed([future]).next() is future
    lose_file(client, future.key)
    (where,) = client.who_has()[future.key]
    worker = client.scheduler_info()["workers"][where]["pid"]
    os.kill(worker, signal.SIGSTOP)
    try:
        for ask in (
            lambda: future.result(timeout=0.3),
            lambda: list(as_completed([future], with_results=True, timeout=0.3)),
        ):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                ask()
            assert 0.25 < time.monotonic() - began < 5
    finally:
        os.kill(worker, signal.SIGCONT)
    assert future.result(timeout=30) == bytes(700_001)


def test_a_copy_that_is_computed_again(client: Client) -> None:
    future = client.submit(bytes, 10_000, pure=False)
    assert future.result(timeout=10) == bytes(10_000)
    state = future._state
    operation = gathering._ask_again(client, [state], time.monotonic() + 0.2)
    assert isinstance(next(operation), AskAll)
    computed_again = [b"OK", 0, state.name.encode(), b"processing", b"7", b"0", b"", b"", b""]
    assert isinstance(
        operation.send([computed_again]), AskAll
    )  # a push may have been faster than that answer
    request = operation.send([computed_again])
    assert isinstance(request, Until)
    assert request.timeout is not None
    assert request.timeout <= 0.2
    assert isinstance(operation.send(False), Run)  # why it is not there
    with pytest.raises(TimeoutError):
        operation.send("")
    state.status = FINISHED


def test_a_copy_that_is_there_again_before_the_answer(client: Client) -> None:
    """The push that says so was taken in before the answer that it is being computed: nobody waits for another."""
    future = client.submit(bytes, 10_000, pure=False)
    assert future.result(timeout=10) == bytes(10_000)
    state = future._state
    operation = gathering._ask_again(client, [state], time.monotonic() + 30)
    next(operation)
    reply = [b"OK", 0, state.name.encode(), b"processing", b"7", b"0", b"", b"", b""]
    assert isinstance(operation.send([reply]), AskAll)
    reply[3:] = [b"memory", b"7", b"10000", b"bytes", state.where.encode(), b""]
    with pytest.raises(StopIteration):
        operation.send([reply])
    assert state.status == FINISHED


def test_nobody_says_whether_a_copy_is_there_again(client: Client) -> None:
    future = client.submit(bytes, 10_000, pure=False)
    assert future.result(timeout=10) == bytes(10_000)
    operation = gathering._ask_again(client, [future._state], time.monotonic() + 30)
    next(operation)
    operation.send([[b"OK", 0, future._state.name.encode(), b"processing", b"7", b"0", b"", b"", b""]])
    with pytest.raises(ConnectionLost):
        operation.throw(ConnectionLost("it is away"))
    assert future.result(timeout=10) == bytes(10_000)


def test_values_that_take_long_to_load(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers do not wait for ever for who loads the value of another one; that time is not counted."""
    monkeypatch.setattr("redist.peers.same_host", lambda segments, hostid: False)
    client._peers.forget()
    fetch, rounds = client._segments.fetch, []

    def first_alone(client: Client, wanted: Sequence[Any], *options: Any) -> list[Any]:
        rounds.append(len(wanted))
        broke = Trouble(TransferError("the data server closed the connection"))
        return fetch(client, wanted[:1], *options) + [broke] * (len(wanted) - 1)

    monkeypatch.setattr(client._segments, "fetch", first_alone)
    futures = client.scatter([bytes([i]) * 100_000 for i in range(4)], hash=False)
    with config.set({"client.copies-timeout": "0 s"}):
        assert client.gather(futures) == [bytes([i]) * 100_000 for i in range(4)]
    assert rounds == [4, 3, 2, 1]
