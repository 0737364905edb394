"""What is waited for when a finished value is not where it was: never longer than the caller said."""

from __future__ import annotations

import os
import time

import pytest

from redist import Client, as_completed, gathering
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
    future = client.submit(bytes, 700_001, pure=False)
    assert as_completed([future]).next() is future
    lose_file(client, future.key)
    for ask in (
        lambda: future.result(timeout=0.3),
        lambda: list(as_completed([future], with_results=True, timeout=0.3)),
    ):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            ask()
        assert 0.25 < time.monotonic() - began < 5


def test_a_copy_that_is_computed_again(client: Client) -> None:
    future = client.submit(bytes, 10_000, pure=False)
    assert future.result(timeout=10) == bytes(10_000)
    state = future._state
    operation = gathering._ask_again(client, [state], time.monotonic() + 0.2)
    assert isinstance(next(operation), AskAll)
    computed_again = [b"OK", 0, state.name.encode(), b"processing", b"7", b"0", b"", b"", b""]
    request = operation.send([computed_again])
    assert isinstance(request, Until)
    assert request.timeout is not None
    assert request.timeout <= 0.2
    assert isinstance(operation.send(False), Run)  # why it is not there
    with pytest.raises(TimeoutError):
        operation.send("")
    state.status = FINISHED
