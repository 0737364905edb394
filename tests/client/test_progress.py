"""The bar of `progress`, and what is not recorded."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from dask import delayed

import redist
from redist import Client, Event, LocalCluster, progress, span
from redist.errors import CancelledError, NotOffered
from servers import wait_until

BAR = re.compile(r"\[(#*) *\] \| (\d+)% Completed \| [\dhms. ]+( \| \d+ failed)?")


def wait_in_a_task(i: int) -> int:
    Event("gate").wait()
    return i


def fail(i: int) -> float:
    return 1 / (i % 2)


class Terminal:
    """What is written to a terminal."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w")
        self.text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 4096):
                self.text += data.decode()
        except OSError:  # the other end is closed
            pass

    def close(self) -> str:
        self.file.close()
        self._thread.join(10)
        os.close(self._master)
        return self.text


@pytest.fixture
def gate(client: Client) -> Iterator[Event]:
    gate = Event("gate")
    yield gate
    gate.clear()


def test_on_a_terminal(client: Client, gate: Event, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal.file)
    quick, slow = client.map(abs, range(3)), client.map(wait_in_a_task, range(5))
    client.gather(quick)
    thread = threading.Thread(target=progress, args=(quick, slow), kwargs={"interval": "10 ms"})
    thread.start()
    wait_until(lambda: "37% Completed" in terminal.text, what="three of eight are done")
    assert "\r[###############                         ] | 37%" in terminal.text
    gate.set()
    thread.join(20)
    monkeypatch.undo()
    text = terminal.close()
    assert re.search(r"\r\[#{40}\] \| 100% Completed \| \d+\.\d s\x1b\[K\r?\n$", text)
    assert "failed" not in text


def test_elsewhere(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert progress(client.map(fail, range(4)), width=10) is None
    (line,) = capsys.readouterr().out.splitlines()
    found = BAR.fullmatch(line)
    assert found
    assert (len(found[1]), found[2], found[3]) == (10, "100", " | 2 failed")
    assert progress() is None
    assert progress([]) is None
    assert capsys.readouterr().out == ""


def test_collections(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    kept: Any = client.persist([delayed(abs)(-i) for i in range(5)])
    progress(*kept)
    assert "100% Completed" in capsys.readouterr().out
    assert all(future.done() for future in client.futures_of(kept))


def test_wrong_arguments(client: Client) -> None:
    future = client.submit(abs, 1)
    with pytest.raises(ValueError, match="group_by"):
        progress(future, group_by="x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="widht"):
        progress(future, widht=3)
    future.cancel()
    with pytest.raises(CancelledError):
        progress(future)


def test_a_ctrl_c_ends_it(client: Client, gate: Event, capsys: pytest.CaptureFixture[str]) -> None:
    import signal

    def strike() -> None:
        wait_until(lambda: client._driver._role.holder is not None)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    future = client.submit(wait_in_a_task, 1)
    threading.Thread(target=strike).start()
    with pytest.raises(KeyboardInterrupt):
        progress(future, interval=10)
    assert capsys.readouterr().out.startswith("[  ")
    gate.set()
    assert future.result(10) == 1


def test_asynchronous(cluster: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            futures = client.map(abs, range(10))
            await progress(futures)
            assert all(future.done() for future in futures)

    asyncio.run(main())
    assert "100% Completed" in capsys.readouterr().out


def test_in_a_task(client: Client) -> None:
    def inside() -> bool:
        from redist import get_client

        futures = get_client().map(abs, range(5))
        progress(futures)
        return all(future.done() for future in futures)

    assert client.submit(inside).result(20) is True


def test_spans(client: Client) -> None:
    with span("outer") as first, span("a", "b") as last:
        found = dask.get_annotations()["span"]
        assert client.compute(delayed(abs)(-1)).result() == 1
    assert found["name"] == ("outer", "a", "b")
    assert (found["ids"][0], found["ids"][-1]) == (first, last)
    assert "span" not in dask.get_annotations()
    with pytest.raises(ValueError, match="tag"), span():
        pass


@pytest.mark.parametrize("name", ["performance_report", "get_task_metadata", "get_task_stream"])
def test_what_is_not_recorded(name: str) -> None:
    with pytest.raises(NotOffered, match="WorkerPlugin"), getattr(redist, name)():
        pass
