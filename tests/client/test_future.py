"""`Future` by itself: callbacks, cancelling, copies, Futures made by hand, what they look like."""

from __future__ import annotations

import asyncio
import copy
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

from redist import CancelledError, Client, Future, FutureCancelledError, LocalCluster, wait
from servers import wait_until


def inc(x: int) -> int:
    return x + 1


def when_there(path: str) -> int:
    deadline = time.monotonic() + 20
    while not os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.005)
    return 7


# --- callbacks ------------------------------------------------------------------------------------------------------


def test_callbacks_come_once_and_in_order(client: Client, tmp_path: Path) -> None:
    future = client.submit(when_there, str(tmp_path / "go"))
    came: list[Any] = []
    for i in range(20):
        future.add_done_callback(lambda f, i=i: came.append((i, f.key, threading.get_ident())))
    assert came == []
    (tmp_path / "go").touch()
    wait(future)
    future.add_done_callback(lambda f: came.append((20, f.key, threading.get_ident())))
    wait_until(lambda: len(came) == 21, what="all callbacks were called")
    assert [(i, key) for i, key, _ in came] == [(i, future.key) for i in range(21)]
    assert {thread for _, _, thread in came}.isdisjoint({threading.get_ident()})
    assert future.result() == 7
    assert len(came) == 21


def test_callbacks_of_what_fails_or_is_cancelled(
    client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    came: list[str] = []

    def note(future: Future[Any]) -> None:
        came.append(future.status)

    def fail(future: Future[Any]) -> None:
        raise RuntimeError("in a callback")

    wrong = client.submit(inc, "x")
    wrong.add_done_callback(fail)
    wrong.add_done_callback(note)
    wait_until(lambda: came == ["error"], what="the error was told, for all that another callback failed")
    assert "failed" in caplog.text
    waiting = client.submit(when_there, str(tmp_path / "go"))
    waiting.add_done_callback(note)
    waiting.cancel()
    wait_until(lambda: came == ["error", "cancelled"], what="that it was cancelled was told")
    (tmp_path / "go").touch()


def test_a_callback_may_ask_for_the_value(client: Client) -> None:
    values: list[Any] = []
    futures = client.map(inc, range(10))
    for future in futures:
        future.add_done_callback(lambda f: values.append(f.result()))
    wait_until(lambda: len(values) == 10, what="every callback had its value")
    assert sorted(values) == list(range(1, 11))


def test_callbacks_in_a_loop(cluster: LocalCluster, tmp_path: Path) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            future = client.submit(when_there, str(tmp_path / "loop"))
            came: list[Any] = []
            for i in range(5):
                future.add_done_callback(lambda f, i=i: came.append((i, threading.get_ident())))
            (tmp_path / "loop").touch()
            assert await future == 7
            await asyncio.sleep(0)
            assert came == [(i, threading.get_ident()) for i in range(5)]

    asyncio.run(main())


# --- cancelling -----------------------------------------------------------------------------------------------------


def test_the_reason_of_cancelling(client: Client, new_client: Callable[..., Client], tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    plain, told, both = (client.submit(when_there, path, key=key) for key in ("plain", "told", "both"))
    client.who_has(both)  # the server knows it
    of_another = Future("both", other := new_client())
    other._settle()
    plain.cancel()
    told.cancel(msg="who needs it")
    both.cancel(reason="too slow", msg="it waits for a file", force=True)
    for future, reason, msg in (
        (plain, "cancelled by user", None),
        (told, "cancelled by user", "who needs it"),
        (both, "too slow", "it waits for a file"),
    ):
        assert future.cancelled()
        with pytest.raises(FutureCancelledError) as info:
            future.result(10)
        error = info.value
        assert (error.key, error.reason, error.msg) == (future.key, reason, msg)
        assert str(error).startswith(f"{future.key!r} cancelled for reason: {reason}")
        assert msg is None or str(error).endswith(msg)
        assert isinstance(error, CancelledError)
        again = pickle.loads(pickle.dumps(error))
        assert (again.key, again.reason, again.msg) == (future.key, reason, msg)
        del info, error
    with pytest.raises(CancelledError, match="too slow: it waits for a file"):
        of_another.result(10)
    (tmp_path / "go").touch()


def test_an_error_of_dask_s_form() -> None:
    assert FutureCancelledError("x", None).reason == "unknown"
    assert FutureCancelledError("x", "why", "more").msg == "more"


# --- copies and Futures made by hand --------------------------------------------------------------------------------


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies(
    client: Client,
    new_client: Callable[..., Client],
    keys: Callable[[], list[str]],
    copied: Callable[[Any], Any],
) -> None:
    future = client.submit(inc, 1)
    new_client()  # the current one; a copy stays with the client of its original
    twin = copied(future)
    assert twin is not future
    assert twin.client is client
    inside = copied({"a": [future]})["a"][0] if copied is copy.deepcopy else copied([future])[0]
    assert inside.key == future.key
    del future
    gc.collect()
    assert twin.result(10) == inside.result() == 2
    twin.release()
    with pytest.raises(CancelledError):
        copied(twin)
    assert keys() == [inside.key]


def test_futures_made_by_hand(client: Client, new_client: Callable[..., Client]) -> None:
    given = client.submit(inc, 1, key=("a", 1))
    wait(given)
    assert Future(("a", 1), client).result(10) == 2
    other = new_client()
    theirs = Future(("a", 1))
    assert theirs.client is other
    assert theirs.result(10) == 2
    unknown = Future("never-heard-of", client)
    with pytest.raises(CancelledError):
        unknown.result(10)


# --- what they look like --------------------------------------------------------------------------------------------


def test_repr(client: Client, tmp_path: Path) -> None:
    number = client.submit(inc, 1, key="n")
    array = client.submit(numpy.ones, 3, key="<a>")
    wrong = client.submit(inc, "x", key=("w", 1))
    waiting = client.submit(when_there, str(tmp_path / "go"), key="p")
    assert repr(waiting) == "<Future: pending, key: p>"
    wait([number, array, wrong])
    assert repr(number) == "<Future: finished, type: int, key: n>"
    assert repr(array) == "<Future: finished, type: numpy.ndarray, key: <a>>"
    assert repr(wrong) == "<Future: error, type: TypeError, key: ('w', 1)>"
    html = array._repr_html_()
    assert "numpy.ndarray" in html
    assert "&lt;a&gt;" in html
    assert "<a>" not in html
    waiting.cancel()
    assert repr(waiting) == "<Future: cancelled, key: p>"
    (tmp_path / "go").touch()


def test_futures_in_nested_data_are_found(client: Client) -> None:
    from redist.utils_comm import pack_data, unpack_remotedata

    one, two = client.submit(inc, 1), client.submit(inc, 2)
    data, found = unpack_remotedata({"a": [one, (two, 5)]})
    assert data == {"a": [one.key, (two.key, 5)]}
    assert found == {one, two}
    assert pack_data(data, {future.key: future.result() for future in found}) == {"a": [2, (3, 5)]}


# --- out of a dataset -----------------------------------------------------------------------------------------------


class Hidden:
    def __init__(self, future: Future[Any]) -> None:
        self.future = future


def fails() -> None:
    raise ValueError("on purpose")


def test_futures_of_a_dataset_say_at_once_how_they_stand(
    client: Client, new_client: Callable[..., Client], tmp_path: Path
) -> None:
    pending = client.submit(when_there, str(tmp_path / "go"))
    failed = client.submit(fails)
    ready = client.map(inc, range(20))
    wait([failed, *ready])
    for i, future in enumerate(ready):
        client.publish_dataset([future, Hidden(future)], name=f"d{i}")
    client.publish_dataset({"pending": pending, "failed": failed}, name="others")
    reader = new_client()
    for i in range(20):
        future, hidden = reader.get_dataset(f"d{i}")
        assert (future.status, hidden.future.status) == ("finished", "finished")
        assert repr(future).startswith("<Future: finished, type: int,")
        del future, hidden
        reader.unpublish_dataset(f"d{i}")
    others = reader.get_dataset("others")
    assert {name: future.status for name, future in others.items()} == {
        "pending": "pending",
        "failed": "error",
    }
    (tmp_path / "go").touch()
    assert others["pending"].result(timeout=20) == 7
    reader.unpublish_dataset("others")


def test_a_dataset_says_nothing_of_what_was_submitted_here(
    client: Client, new_client: Callable[..., Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is another function's: its value must not pass for that of ours before we are told."""
    theirs = client.submit(inc, 1, key="theirs")
    wait(theirs)
    client.publish_dataset(theirs, name="d")
    other = new_client()
    held: list[tuple[bytes, bytes]] = []
    on_message = other.session.on_message
    monkeypatch.setattr(other.session, "on_message", lambda *message: held.append(message))
    ours = other.submit(fails, key="theirs")
    there = other.get_dataset("d")
    assert (ours.status, there.status) == ("pending", "pending")
    monkeypatch.setattr(other.session, "on_message", on_message)
    with other.session.lock:
        for message in held:
            on_message(*message)
    wait([ours, there], timeout=20)
    other.unpublish_dataset("d")


def test_futures_of_a_large_dataset(client: Client, new_client: Callable[..., Client]) -> None:
    """Of very many only the first are asked for, in one call."""
    numbers = client.scatter(list(range(1200)), hash=False)
    client.publish_dataset(numbers, name="d")
    reader = new_client()
    there = reader.get_dataset("d")
    assert [future.status for future in there[:500]] == ["finished"] * 500
    wait_until(lambda: all(future.status == "finished" for future in there))
    assert reader.gather(there) == list(range(1200))
    reader.unpublish_dataset("d")


def test_futures_of_a_dataset_in_a_loop(cluster: LocalCluster, client: Client) -> None:
    ready = client.map(inc, range(20))
    wait(ready)
    for i, future in enumerate(ready):
        client.publish_dataset(future, name=f"d{i}")

    async def read() -> None:
        async with Client(cluster, asynchronous=True) as reader:
            for i in range(20):
                future = await reader.get_dataset(f"d{i}")
                assert future.status == "finished"
                await reader.unpublish_dataset(f"d{i}")

    asyncio.run(read())
