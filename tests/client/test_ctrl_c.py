"""A Ctrl-C at a chosen moment: it surfaces, and nothing stays behind."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, scattering
from redist.memory.headers import is_file_name
from servers import wait_until


def payloads(client: Client) -> int:
    """Payload files of all workers."""
    directories = {peer.fields["segments"] for peer in client._peers.workers()}
    return sum(is_file_name(name) for directory in directories for name in os.listdir(directory))


@pytest.mark.parametrize("moment", ["written", "committed"])
def test_in_scatter(client: Client, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    client.scatter(bytes(100_000)).release()
    wait_until(lambda: payloads(client) == 0)
    module: Any = scattering.calls if moment == "written" else scattering
    strike = "commit" if moment == "written" else "parse_commit"
    real: Callable[..., Any] = getattr(module, strike)

    def struck(*args: Any) -> Any:
        monkeypatch.undo()
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, strike, struck)
    with pytest.raises(KeyboardInterrupt):
        client.scatter(bytes(100_000), hash=False)
    wait_until(lambda: payloads(client) == 0, 10, "the file is gone")
    wait_until(lambda: not client.futures, 10, "the references are gone")


def test_in_del(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    ignored: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    real = client._release

    def struck(state: Any) -> None:
        monkeypatch.setattr(client, "_release", real)
        real(state)
        raise KeyboardInterrupt

    future = client.submit(len, "abc", pure=False)
    assert future.result() == 3
    monkeypatch.setattr(client, "_release", struck)
    with pytest.raises(KeyboardInterrupt):  # it comes a moment after the release
        del future
        time.sleep(5)
    assert not ignored
    wait_until(lambda: not client.futures)
