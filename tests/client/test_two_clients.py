"""Futures of one client used by another of the same cluster, whose calls go to the server on a lane of its own."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from redist import Client, Future, LocalCluster, wait
from redist.store import calls
from servers import keys_of, wait_until

MANY = 4000


class Box:
    """Hides what it holds from whoever looks into containers only."""

    def __init__(self, content: Any) -> None:
        self.content = content


def same(x: Any) -> Any:
    return x


def content(box: Box) -> Any:
    return box.content.result()


USES: dict[str, Callable[[Client, Future[int]], Any]] = {
    "argument": lambda c, f: c.submit(same, f),
    "hidden": lambda c, f: c.submit(content, Box(f)),
    "closure": lambda c, f: c.submit(lambda: f.result()),
    "map": lambda c, f: c.map(same, [f])[0],
    "hidden in a large argument": lambda c, f: c.submit(lambda x: x[0].content.result(), [Box(f), *[b"x" * 9999] * 9]),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_futures_that_have_just_been_made(use: str, new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    for _ in range(4):
        futures = two.map(abs, range(MANY), pure=False)
        assert USES[use](one, futures[-1]).result(timeout=30) == MANY - 1


def test_a_hidden_one_is_named_without_a_hand_off(client: Client) -> None:
    x = client.submit(abs, -1)
    one, two = client.submit(content, Box(x)), client.submit(content, Box(x))
    assert one.key == two.key
    assert one.result(timeout=10) == 1
    assert "hand-off" not in [holder.kind for holder in client.why(x).holders]


def test_values_that_hold_them(new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    for i in range(4):
        futures = two.map(abs, range(MANY), pure=False)
        one.publish_dataset(**{f"d{i}": futures[-1]})
        (scattered,) = one.scatter([Box(futures[-2])])
        del futures
        assert one.get_dataset(f"d{i}").result(timeout=30) == MANY - 1
        assert scattered.result().content.result(timeout=30) == MANY - 2
        one.unpublish_dataset(f"d{i}")


def test_cancelled_by_the_other(new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    futures = two.map(abs, range(MANY), pure=False)
    last = two.submit(time.sleep, 60, pure=False)
    one.cancel(last, force=True)
    wait_until(last.cancelled)
    assert futures[-1].result(timeout=30) == MANY - 1


def test_released_right_after(new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    for i in range(100):
        x = two.submit(abs, -i, pure=False)
        y = one.submit(same, x)
        del x
        assert y.result(timeout=10) == i


def test_released_while_the_submission_is_collected(new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    for i in range(10):
        before = one.map(abs, range(MANY), pure=False)
        x = two.submit(abs, -i, pure=False)
        y = one.submit(same, x)
        del x
        assert y.result(timeout=30) == i
        del before
    assert not one.session.submissions.kept


def test_nothing_is_kept_beyond_the_answer(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    x = other.submit(abs, -1, key="x")
    y = client.submit(same, x)
    assert y.result(timeout=10) == 1
    del x
    wait_until(lambda: client.why("x").state in ("released", "forgotten"))


def test_both_at_each_other_from_two_threads(new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    wrong: list[Any] = []

    def crosswise(mine: Client, theirs: Client) -> None:
        for i in range(100):
            x = theirs.submit(abs, -i, pure=False)
            y = mine.submit(same, x)
            del x
            if y.result(timeout=20) != i:
                wrong.append(i)

    threads = [threading.Thread(target=crosswise, args=pair) for pair in ((one, two), (two, one))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.parametrize("others_are", ["asynchronous", "threaded"])
def test_with_an_asynchronous_client(others_are: str, cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as one:
            other = Client(cluster, asynchronous=others_are == "asynchronous", set_as_default=False)
            if others_are == "asynchronous":
                await other
            for _ in range(2):
                for use in USES.values():
                    future = other.map(abs, range(MANY), pure=False)[-1]
                    mine = use(one, future)
                    del future
                    assert await mine == MANY - 1
                future = other.map(abs, range(MANY), pure=False)[-1]
                (scattered,) = await one.scatter([Box(future)])
                await one.publish_dataset(d=future)
                del future
                assert await (await one.get_dataset("d")) == MANY - 1
                await one.unpublish_dataset("d")
                del scattered
            closing = other.close()
            if closing is not None:
                await closing

    asyncio.run(main())
    wait_until(lambda: not keys_of(cluster), what="every key is gone")


def test_of_a_loop_in_another_thread(client: Client, cluster: LocalCluster) -> None:
    made: list[Any] = []
    there, enough = threading.Event(), threading.Event()

    async def main() -> None:
        async with Client(cluster, asynchronous=True, set_as_default=False) as other:
            made.extend(other.map(abs, range(MANY), pure=False))
            there.set()
            await asyncio.to_thread(enough.wait, 60)
            made.clear()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert there.wait(20)
        assert client.submit(same, made[-1]).result(timeout=30) == MANY - 1
    finally:
        enough.set()
        thread.join(30)


def at_last(number: int, gate: str) -> int:
    while not os.path.exists(gate):
        time.sleep(0.01)
    return number


def is_being_told(cluster: LocalCluster, key: str) -> bool:
    """Whether the server knows a part of what a task needs."""
    with closing(cluster.endpoint.open()) as wire:
        return bool(wire.call("HEXISTS", f"{cluster.endpoint.prefix}key:{key}", "linking"))


@pytest.mark.parametrize("needs", ["values", "tasks", "tasks that are done"])
def test_a_task_of_many_parts_of_which_another_told_that_went(
    cluster: LocalCluster,
    new_client: Callable[..., Client],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    needs: str,
) -> None:
    """What only the second client brought and has let go of since comes again with the task."""
    first, second = new_client(set_as_default=False), new_client(set_as_default=False)
    count, gate = 1100, tmp_path / "gate"
    if needs == "values":
        made = list(second.scatter({f"d{i}": i for i in range(count)}).values())
    else:
        if needs == "tasks that are done":
            gate.touch()
        made = second.map(at_last, range(count), gate=str(gate), key=[f"d{i}" for i in range(count)])
        if needs == "tasks that are done":
            wait(made)
    wait_until(lambda: f"d{count - 1}" in keys_of(cluster), what="all are known")
    theirs = [Future(f"d{i}", first) for i in range(count)]
    with monkeypatch.context() as patch:  # what it would tell further does not come
        patch.setattr(calls, "link", lambda *args, **options: calls.noop())
        begun = first.submit(sum, theirs, key="all")
        wait_until(lambda: is_being_told(cluster, "all"))
    result = second.submit(sum, made, key="all")
    second.list_datasets()
    del made, theirs
    wait_until(lambda: len(keys_of(cluster)) < count, what="what was not told is gone")
    del begun
    first.close()
    gate.touch()
    assert result.result(30) == sum(range(count))
