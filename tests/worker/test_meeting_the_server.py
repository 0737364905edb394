"""A worker waits for its server, and says so when that takes long."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from redist.errors import ConnectionLost
from redist_worker import worker as workers
from redist_worker.worker import Worker


@pytest.mark.parametrize(("patience", "said"), [(60.0, []), (0.0, ["nothing answers", "answers after"])])
def test_a_server_that_is_started_together_with_its_worker(
    patience: float, said: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = [ConnectionLost("nothing answers at unix:///x")] * 3

    def try_server(timeout: float) -> str:
        if left:
            raise left.pop()
        return "secret"

    monkeypatch.setattr(workers, "_STARTS", patience)
    worker = SimpleNamespace(
        options=SimpleNamespace(connect_timeout=20.0),
        endpoint=SimpleNamespace(url="unix:///x"),
        _try_server=try_server,
    )
    with caplog.at_level(logging.WARNING, logger="redist.worker"):
        assert asyncio.run(Worker._meet_server(worker)) == "secret"
    assert len(caplog.messages) == len(said)
    assert all(part in message for part, message in zip(said, caplog.messages, strict=True))
