"""What a traceback shows of a task that failed: the user's call, one line of redist, and the task's frames."""

from __future__ import annotations

import asyncio
import signal
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, Event, Future, LocalCluster, as_completed, scattering, wait
from redist.errors import FutureCancelledError
from servers import wait_until


def inner(x: int) -> float:
    return 1 / x


def outer(x: int) -> float:
    return inner(x)


def frames_of(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client, future: future.result(), "result"),
        (lambda client, future: client.gather([future]), "gather"),
        (lambda client, future: next(as_completed([future], with_results=True)), "__next__"),
        (lambda client, future: client.submit(outer, future).result(), "result"),
    ],
    ids=["result", "gather", "as_completed", "dependent"],
)
def test_a_traceback_is_short(client: Client, call: Callable[[Client, Any], object], name: str) -> None:
    future = client.submit(outer, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        call(client, future)
    assert frames_of(caught.value) == ["test_a_traceback_is_short", "<lambda>", name, "outer", "inner"]
    shown = "".join(traceback.format_exception(caught.value))
    assert shown.count("Traceback (most recent call last)") == 1
    assert shown.count("return 1 / x") == 1
    assert f"in the task {future.key}\n" in shown
    assert "return 1 / x" in "".join(traceback.format_exception(future.exception()))


def test_a_traceback_is_short_in_a_loop(cluster: LocalCluster) -> None:
    async def run() -> None:
        async with Client(cluster, asynchronous=True) as client:
            future = client.submit(outer, 0)
            for call in (lambda: future, future.result, lambda: client.gather([future])):
                with pytest.raises(ZeroDivisionError) as caught:
                    await call()
                frames = [name for name in frames_of(caught.value) if name != "__await__"]
                assert frames[0] == "run"
                assert len(frames) == 4
                assert frames[2:] == ["outer", "inner"]

    asyncio.run(run())


def test_a_cancelled_future_names_the_call_only(client: Client) -> None:
    future = client.submit(outer, 0)
    future.cancel()
    with pytest.raises(FutureCancelledError) as caught:
        future.result()
    assert frames_of(caught.value) == ["test_a_cancelled_future_names_the_call_only", "result"]


def test_a_ctrl_c_names_the_call_only(client: Client) -> None:
    def strike() -> None:
        wait_until(lambda: client._driver._role.holder is not None, what="the call waits")
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    gate = Event("open", client=client)
    futures = []
    for call, name in ((Future.result, "result"), (client.gather, "gather")):
        future = client.submit(Event.wait, gate, pure=False)
        futures.append(future)  # else it may find the gate closed again, and wait for good
        thread = threading.Thread(target=strike)
        thread.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            call(future)
        thread.join()
        assert frames_of(caught.value) == ["test_a_ctrl_c_names_the_call_only", name]
    gate.set()
    wait(futures)
    gate.clear()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_ctrl_c_while_a_value_is_written(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """It names the call, and what is no Ctrl-C keeps the frames that tell what went wrong."""

    def struck(*args: Any) -> None:
        raise error

    monkeypatch.setattr(scattering, "_put", struck)
    with pytest.raises(error) as caught:
        client.scatter(bytes(100_000), hash=False)
    frames = frames_of(caught.value)
    if error is KeyboardInterrupt:
        assert frames == ["test_a_ctrl_c_while_a_value_is_written", "scatter", "_run"]
    else:
        assert frames[-1] == "struck"
        assert len(frames) > 5


def test_what_fails_in_redist_keeps_its_frames(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("a bug")

    future = client.submit(outer, 1)
    future.result()
    monkeypatch.setattr("redist.loading.loads_inline", broken)
    with pytest.raises(RuntimeError) as caught:
        future.result()
    names = frames_of(caught.value)
    assert names.count("result") == 1
    assert {"value_here", "broken"} < set(names)
