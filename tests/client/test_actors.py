"""Actors: objects that stay in an executor, and are called from anywhere."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dask import delayed

from redist import Client, LocalCluster, as_completed, get_client, get_worker, wait
from redist.actor import Actor, ActorFuture, BaseActorFuture
from redist.errors import ActorLost, CancelledError, DataLost, RedistError
from redist.memory.headers import path_of
from servers import keys_of, wait_until


class Counter:
    """What Dask's documentation counts with, and some more."""

    n = 0

    def __init__(self, start: int = 0, trace: str = "") -> None:
        self.n = start
        self.seen: list[Any] = []
        self.trace = trace

    def __del__(self) -> None:
        if getattr(self, "trace", ""):
            Path(self.trace).unlink(missing_ok=True)

    def increment(self, by: int = 1) -> int:
        self.n += by
        return self.n

    def where(self) -> tuple[int, str]:
        return os.getpid(), get_worker().name

    def note(self, what: Any) -> Any:
        before = len(self.seen)
        time.sleep(0)  # another thread would show
        self.seen.append(what)
        assert len(self.seen) == before + 1
        return what

    def fail(self, text: str) -> None:
        raise ZeroDivisionError(text)

    def twice(self, actor: Actor) -> int:
        first: int = actor.increment().result()
        return first + actor.increment().result()  # type: ignore[no-any-return]

    def submitted(self, x: int) -> int:
        return get_client().submit(pow, x, 2).result()  # type: ignore[no-any-return]

    def until(self, path: str) -> str:
        while not Path(path).exists():
            time.sleep(0.005)
        return path

    def zeros(self, n: int) -> np.ndarray[Any, Any]:
        return np.zeros(n)

    def counted_zeros(self, n: int) -> np.ndarray[Any, Any]:
        self.n += 1
        return np.zeros(n)

    def leave(self) -> None:
        raise SystemExit(3)

    async def leave_loop(self) -> None:
        raise SystemExit(4)

    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def waits_for_itself(self, me: Actor) -> Any:
        mine = [me.increment(), me.increment()]  # run at once
        theirs = get_client().submit(pow, 2, 3)
        assert wait([*mine, theirs]).done == {*mine, theirs}
        assert wait(mine[0]).done == {mine[0]}
        assert wait([*mine, get_client().submit(pow, 3, 3)], return_when="FIRST_COMPLETED").done >= set(mine)
        return [result for _, result in as_completed(mine, with_results=True)]

    async def sleeps(self, x: int) -> int:
        await asyncio.sleep(0.001)
        return x

    async def await_flag(self) -> bool:
        while not hasattr(self, "flag"):
            await asyncio.sleep(0.001)
        return True

    async def raise_flag(self) -> None:
        self.flag = True


def counter(client: Client, *args: Any, **kwargs: Any) -> Any:
    return client.submit(Counter, *args, actor=True, **kwargs).result(10)


def add(actor: Any, by: int) -> int:
    return actor.increment(by).result()  # type: ignore[no-any-return]


@pytest.fixture
def own_cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster:
        yield cluster


def test_simple(client: Client) -> None:
    future = client.submit(Counter, 5, actor=True)
    actor = future.result(10)
    assert isinstance(actor, Actor)
    assert actor.key == future.key
    assert future.key.startswith("Counter-")  # type: ignore[union-attr]
    assert repr(actor) == f"<Actor: Counter, key={future.key}>"
    called = actor.increment()
    assert isinstance(called, ActorFuture)
    assert issubclass(ActorFuture, BaseActorFuture)
    assert called.result() == 6
    assert called.done()
    assert actor.increment(by=3).result(timeout="10s") == 9
    assert actor.n == 9
    assert {"increment", "n", "key"} <= set(dir(actor))
    assert "trace" not in dir(actor)  # of the object, not of the class
    assert actor.trace == ""
    assert client.submit(Counter, 5, actor=True).result().n == 5  # another one


def test_what_is_not_there(client: Client) -> None:
    actor = counter(client)
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        actor.nothing_of_that_name
    assert not hasattr(actor, "_repr_html_")
    assert not hasattr(actor, "__len__")
    with pytest.raises(AttributeError, match="method"):
        actor.n = 3
    with pytest.raises(TypeError, match="increment"):
        actor.increment(1, 2, 3).result()


def test_a_call_that_raises(client: Client) -> None:
    actor = counter(client)
    failed = actor.fail("by zero")
    after = actor.increment()  # which the failure does not concern
    with pytest.raises(ZeroDivisionError, match="by zero") as caught:
        failed.result()
    assert caught.traceback[-1].name == "fail"
    assert "raise ZeroDivisionError(text)" in str(caught.traceback[-1].statement)
    assert after.result() == 1
    with pytest.raises(ValueError, match="invalid literal"):
        client.submit(int, "x", actor=True).result()


def test_what_would_end_a_program_ends_nothing(client: Client) -> None:
    actor = counter(client)
    for call, code in ((actor.leave, 3), (actor.leave_loop, 4)):
        with pytest.raises(RuntimeError, match=f"SystemExit: {code}"):
            call().result(10)
    assert actor.increment().result() == 1
    assert actor.sleeps(2).result(10) == 2


def test_builtin_types_and_functions(client: Client) -> None:
    items = client.submit(list, [3, 1, 2], actor=True).result()
    items.sort()
    items.append(4)
    assert items.pop().result() == 4
    assert items.copy().result() == [1, 2, 3]
    made = client.submit(lambda: Counter(7), actor=True).result()
    assert made.increment().result() == 8


def test_map(client: Client) -> None:
    futures = client.map(Counter, range(5), actors=True)
    wait(futures)
    actors = client.gather(futures)
    assert [actor.increment().result() for actor in actors] == [1, 2, 3, 4, 5]
    named = client.map(Counter, [7, 8], key=["a", "b"], actor=True)
    assert [future.key for future in named] == ["a", "b"]
    assert [actor.n for actor in client.gather(named)] == [7, 8]


def test_it_stays_in_one_process(client: Client) -> None:
    names = sorted(w["name"] for w in client.scheduler_info()["workers"].values())
    actor = counter(client, workers=names[1])
    assert {call.result()[1] for call in [actor.where() for _ in range(20)]} == {names[1]}


def test_idle_workers_take_turns(client: Client) -> None:
    assert len({counter(client).where().result()[1] for _ in range(8)}) == 2


def test_calls_run_in_order(client: Client) -> None:
    actor = counter(client)
    calls = [actor.note(i) for i in range(1000)]
    assert calls[-1].result(60) == 999
    assert actor.seen == list(range(1000))
    assert [call.result() for call in calls] == list(range(1000))


def test_calls_run_though_nobody_keeps_what_comes(client: Client) -> None:
    future = client.submit(Counter, actor=True)
    for i in range(100):
        future.result().note(i)  # another proxy each time
    wait_until(lambda: len(future.result().seen) == 100)
    assert future.result().seen == list(range(100))


def test_two_clients(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    mine = counter(client)
    with other.as_current():
        theirs = pickle.loads(pickle.dumps(mine))
    assert theirs.client is other
    calls = [actor.note((id(actor), i)) for i in range(200) for actor in (mine, theirs)]
    key = mine.key
    for call in calls:
        call.result(60)
    seen = theirs.seen
    for actor in (mine, theirs):  # the calls of each in their order
        assert [i for who, i in seen if who == id(actor)] == list(range(200))
    del mine, calls, actor, call
    gc.collect()
    assert theirs.increment().result() == 1  # kept by the one that was pickled
    assert theirs.key == key


def test_in_tasks_and_in_other_actors(client: Client) -> None:
    actor, other = counter(client), counter(client)
    assert sorted(client.gather(client.map(add, [actor] * 10, [1] * 10, pure=False))) == list(range(1, 11))
    assert other.twice(actor).result() == 11 + 12
    assert actor.twice(actor).result() == 13 + 14  # at once, as it waits for itself
    assert other.submitted(3).result() == 9
    assert (
        client.submit(lambda future: future.increment().result(), client.submit(Counter, actor=True)).result()
        == 1
    )


def test_made_and_given_out_by_a_task(client: Client) -> None:
    def make() -> Any:
        return get_client().submit(Counter, 3, actor=True).result()

    made = client.submit(make)
    assert made.result().increment().result() == 4
    assert made.result().n == 4


def test_futures_as_arguments(client: Client) -> None:
    actor = counter(client)
    two = client.submit(pow, 2, 1)
    assert actor.increment(two).result() == 2
    assert actor.increment(by=two).result() == 4
    assert actor.note([{"x": two}]).result() == [{"x": 2}]
    bad = client.submit(divmod, 1, 0)
    refused, after = actor.increment(bad), actor.increment()
    with pytest.raises(ZeroDivisionError):
        refused.result()
    assert after.result() == 5
    late = client.submit(lambda: time.sleep(0.2) or 10)  # type: ignore[func-returns-value]
    first, second = actor.note(late), actor.note(11)
    del late
    assert second.result() == 11
    assert first.result() == 10
    assert actor.seen[1:] == [10, 11]  # it waits in its place


def test_a_method_may_return_a_future(client: Client) -> None:
    class Submits:
        def go(self, x: int) -> Any:
            return get_client().submit(pow, x, 2)

    actor = client.submit(Submits, actor=True).result()
    assert actor.go(5).result().result(10) == 25


def test_large_arguments_and_results(client: Client) -> None:
    actor = counter(client)
    array = np.arange(200_000.0)
    assert (actor.note(array).result() == array).all()
    calls = [actor.zeros(100_000) for _ in range(5)]
    assert [call.result().nbytes for call in calls] == [800_000] * 5


def test_coroutines_run_beside_each_other(client: Client) -> None:
    actor = counter(client)
    waiting = actor.await_flag()
    assert actor.raise_flag().result(10) is None
    assert waiting.result(10) is True
    assert [call.result() for call in [actor.sleeps(i) for i in range(20)]] == list(range(20))


def test_what_is_busy_can_be_read_and_keeps_nobody_waiting(own_cluster: LocalCluster, tmp_path: Path) -> None:
    """Not even the only thread of its worker."""
    with Client(own_cluster) as client:
        path = str(tmp_path / "go on")
        actor = counter(client, 4)
        pid, name = actor.where().result()
        busy = actor.until(path)
        behind = actor.increment()
        assert actor.n == 4
        assert client.submit(os.getpid, workers=name, pure=False).result(10) == pid
        assert not behind.done()
        with pytest.raises(TimeoutError):
            behind.result(timeout=0.05)
        Path(path).touch()
        assert busy.result(10) == path
        assert behind.result(10) == 5


def test_it_has_a_thread(client: Client) -> None:
    """SQLite's connections are for the thread that made them."""

    class Table:
        def __init__(self) -> None:
            self.db = sqlite3.connect(":memory:")
            self.db.execute("create table t (x integer)")

        def add(self, x: int) -> int:
            self.db.execute("insert into t values (?)", (x,))
            return self.db.execute("select sum(x) from t").fetchone()[0]  # type: ignore[no-any-return]

    table = client.submit(Table, actor=True).result()
    assert [call.result() for call in [table.add(1) for _ in range(50)]] == list(range(1, 51))


def test_asynchronous(cluster: LocalCluster, keys: Callable[[], list[str]]) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            actor = await client.submit(Counter, actor=True)
            assert await actor.increment() == 1
            assert await actor.increment(2).result(timeout=10) == 3
            assert await actor.n == 3
            assert await asyncio.gather(*[actor.increment() for _ in range(100)]) == list(range(4, 104))
            with pytest.raises(ZeroDivisionError, match="here"):
                await actor.fail("here")
            assert await actor.note(np.zeros(100_000)) is not None
            assert await actor.increment(client.submit(pow, 1, 1)) == 104
            assert await actor.sleeps(5) == 5
            late, next_ = actor.note(np.ones(100_000)), actor.note("next")  # the one is still being stored
            assert await next_ == "next"
            assert [type(item) for item in (await actor.seen)[-2:]] == [np.ndarray, str]
            assert (await late).sum() == 100_000

    asyncio.run(main())
    wait_until(lambda: not keys(), what="every key is gone")


def test_it_ends_with_its_last_future(client: Client, keys: Callable[[], list[str]], tmp_path: Path) -> None:
    trace = tmp_path / "alive"
    trace.touch()
    future = client.submit(Counter, 0, str(trace), actor=True)
    actor = future.result()
    actor.increment().result()
    del future
    gc.collect()
    time.sleep(2.5)  # as long as two looks at the keys take
    assert trace.exists()
    assert actor.increment().result() == 2
    del actor
    gc.collect()
    wait_until(lambda: not trace.exists(), what="the object is gone")
    wait_until(lambda: not keys(), what="every key is gone")


def test_cancelled(client: Client, tmp_path: Path) -> None:
    trace = tmp_path / "alive"
    trace.touch()
    future = client.submit(Counter, 0, str(trace), actor=True)
    actor = future.result()
    client.cancel(future)
    with pytest.raises(CancelledError):
        actor.increment().result()
    wait_until(lambda: not trace.exists(), what="the object is gone")


def test_restart(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        actor = counter(client)
        client.restart()
        with pytest.raises(CancelledError):
            actor.increment().result()
        assert counter(client).increment().result() == 1


def test_killed(own_cluster: LocalCluster, tmp_path: Path) -> None:
    with Client(own_cluster) as client, Client(own_cluster, set_as_default=False) as other:
        actor = counter(client, 3)
        with other.as_current():
            theirs = pickle.loads(pickle.dumps(actor))
        large = actor.zeros(100_000)
        assert large.result().nbytes == 800_000
        pid, _ = actor.where().result()
        calls = [
            actor.until(str(tmp_path / "never")),
            *(a.increment() for _ in range(50) for a in (actor, theirs)),
        ]
        waiting = actor.await_flag()
        os.kill(pid, signal.SIGKILL)
        for call in (*calls, waiting):
            with pytest.raises(ActorLost, match=r"Worker holding Actor was lost.*Counter-"):
                call.result(30)
        for again in (actor, theirs):
            with pytest.raises(ValueError, match="Worker holding Actor was lost") as lost:
                again.increment().result(30)
            assert isinstance(lost.value, RedistError)
        with pytest.raises(ActorLost):
            actor.n
        assert counter(client, 1).increment().result() == 2
        del actor, theirs, large, calls, waiting, again, call, lost
        gc.collect()
        wait_until(
            lambda: not [key for key in keys_of(own_cluster) if "Counter" in key], what="keys are gone"
        )


def test_a_call_that_kills(own_cluster: LocalCluster) -> None:
    with Client(own_cluster) as client:
        actor = counter(client)
        end, after = actor.end(), actor.increment()
        for call in (end, after):
            with pytest.raises(ActorLost):
                call.result(30)


def test_a_lost_result_is_not_computed_again(client: Client) -> None:
    actor = counter(client)
    call = actor.counted_zeros(100_000)
    wait(call._future)
    state = call._future._state
    worker, _, attempt = state.where.partition(".")
    segments = client._peers.fields(f"caller:{worker}")["segments"]
    os.unlink(path_of(segments, state.name, int(attempt)))
    with pytest.raises(DataLost, match=r"counted_zeros.* is lost"):
        client.submit(np.sum, call._future).result(30)
    with pytest.raises(DataLost, match=r"counted_zeros.* is lost"):
        call.result(30)
    assert actor.n == 1


# --- wait and as_completed ------------------------------------------------------------------------------------------


def test_calls_are_waited_for(client: Client, tmp_path: Path) -> None:
    actor, other = counter(client), counter(client)
    path = str(tmp_path / "go on")
    slow, quick = actor.until(path), other.increment()
    done, not_done = wait([slow, quick], return_when="FIRST_COMPLETED")
    assert (done, not_done) == ({quick}, {slow})
    with pytest.raises(TimeoutError):
        wait(slow, timeout=0.01)
    future = client.submit(sum, [1, 2])
    both = as_completed([slow, quick, future])
    assert {next(both), next(both)} == {quick, future}
    Path(path).touch()
    assert next(both) is slow
    assert both.is_empty()
    assert wait([slow, future]).done == {slow, future}
    with pytest.raises(TypeError, match="not Actor"):
        wait([actor])


def test_calls_with_results(client: Client) -> None:
    actor = counter(client)
    calls = [actor.increment(), actor.fail("why"), actor.increment()]
    found = dict(as_completed(calls, with_results=True, raise_errors=False))
    assert (found[calls[0]], found[calls[2]]) == (1, 2)
    kind, error, traceback = found[calls[1]]
    assert kind is ZeroDivisionError
    assert str(error) == "why"
    assert traceback is not None
    with pytest.raises(ZeroDivisionError, match="why"):
        list(as_completed(calls, with_results=True))


def test_calls_are_waited_for_in_a_loop(cluster: LocalCluster, keys: Callable[[], list[str]]) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            actor = await client.submit(Counter, actor=True)
            calls = [actor.increment() for _ in range(3)]
            assert (await wait(calls)).done == set(calls)
            assert [result async for _, result in as_completed(calls, with_results=True)] == [1, 2, 3]
            assert [await call async for call in as_completed(calls)] == [1, 2, 3]

    asyncio.run(main())
    wait_until(lambda: not keys())


def test_calls_are_waited_for_in_tasks(client: Client) -> None:
    def both(actor: Any, other: Any) -> list[int]:
        calls = [actor.increment(), other.increment(5)]
        assert wait(calls).done == set(calls)
        return sorted(call.result() for call in as_completed(calls))

    actor, other = counter(client), counter(client)
    assert client.submit(both, actor, other).result(10) == [1, 5]


def test_calls_of_an_actors_own_methods_are_there(client: Client) -> None:
    actor = counter(client)
    assert actor.waits_for_itself(actor).result(10) == [1, 2]


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_in_graphs(client: Client) -> None:
    @delayed
    def add_all(n: int, actor: Any) -> None:
        assert isinstance(actor, Actor)
        for _ in range(n):
            actor.increment().result()

    @delayed
    def check(actor: Any, nothing: list[None]) -> int:
        n: int = actor.n
        return n

    made = delayed(Counter)(5)
    final = check(made, [add_all(i, made) for i in range(5)])
    for actors in (made, [made], made.key, [made.key]):
        assert client.compute(final, actors=actors).result(20) == 15
    assert client.get(dict(final.__dask_graph__()), final.key, actors=[made.key]) == 15


def test_what_is_asked_for_is_an_actor(client: Client) -> None:
    actor = client.compute(delayed(Counter)(1), actors=True).result(10)
    assert isinstance(actor, Actor)
    assert actor.increment().result() == 2
    kept = client.persist(delayed(Counter)(2), actors=True)
    same = client.compute(kept).result(10)
    assert isinstance(same, Actor)
    assert same.increment().result() == 3
    assert client.compute(kept).result(10).increment().result() == 4
    plain = client.persist(delayed(Counter)(2), actors=False)
    assert isinstance(client.compute(plain, sync=True), Counter)


def test_what_is_no_task_is_no_actor(client: Client) -> None:
    made = delayed(Counter)(5)
    with pytest.raises(ValueError, match="the actor 'elsewhere' is no task of the graph"):
        client.compute(made, actors="elsewhere")
    with pytest.raises(ValueError, match="is no task of the graph"):
        client.compute(made, actors=delayed(5))


def test_in_graphs_in_a_loop(cluster: LocalCluster, keys: Callable[[], list[str]]) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            actor = await client.compute(delayed(Counter)(1), actors=True)
            assert await actor.increment() == 2
            (kept,) = client.persist([delayed(Counter)(2)], actors=True)
            assert await (await client.compute(kept)).increment() == 3
            del actor, kept

    asyncio.run(main())
    wait_until(lambda: not keys())


# --- calls and the slots of tasks -----------------------------------------------------------------------------------


def spin(path: str) -> str:
    """Keep the thread busy, without a wait that redist knows of."""
    while not Path(path).exists():
        time.sleep(0.005)
    return path


@pytest.fixture
def one_thread() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


def test_calls_need_no_slot(one_thread: LocalCluster, tmp_path: Path) -> None:
    with Client(one_thread) as client:
        actor, other = counter(client), counter(client)
        go, stop = str(tmp_path / "go"), str(tmp_path / "stop")
        busy = client.submit(spin, stop)
        wait_until(lambda: client.call_stack(keys=[busy.key]), what="the only thread is busy")
        assert actor.increment().result(10) == 1
        assert actor.n == 1
        assert [call.result(10) for call in [actor.increment() for _ in range(100)]] == list(range(2, 102))
        slow = actor.until(go)  # longer than a call may keep the slot for calls
        assert other.increment().result(10) == 1
        assert sorted(c.result(10) for c in [other.sleeps(i) for i in range(50)]) == list(range(50))
        with pytest.raises(ZeroDivisionError):
            other.fail("x").result(10)
        twice = other.twice(actor)
        assert not twice.done()  # it is behind what `actor` does
        queued = client.submit(pow, 2, 2)
        Path(go).touch()
        assert slow.result(10) == go
        assert twice.result(10) == 102 + 103
        assert not busy.done()
        assert queued.status == "pending"
        Path(stop).touch()
        assert (busy.result(10), queued.result(10)) == (stop, 4)
        assert client.gather(client.map(pow, range(50), [2] * 50)) == [i * i for i in range(50)]
        assert actor.increment().result(10) == 104


def test_a_task_that_waits_for_a_call_and_one_that_keeps_its_thread(
    one_thread: LocalCluster, tmp_path: Path
) -> None:
    with Client(one_thread) as client:
        actor, stop = counter(client), str(tmp_path / "stop")
        busy = client.submit(spin, stop)
        wait_until(lambda: client.call_stack(keys=[busy.key]))
        arguments = [client.scatter(i) for i in range(3)]
        assert [actor.increment(by).result(10) for by in arguments] == [0, 1, 3]
        assert actor.submitted(3).done() is False  # it submits a task, for which there is no thread
        Path(stop).touch()
        assert busy.result(10) == stop
        assert client.submit(add, actor, 4).result(10) == 7


def test_a_worker_is_stopped_while_calls_come(tmp_path: Path) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1) as cluster, Client(cluster) as client:
        last = list(cluster.workers)[-1]
        actor = counter(client, workers=last)
        calls = [actor.until(str(tmp_path / "never")), *(actor.increment() for _ in range(20))]
        cluster.scale(1)
        for call in calls:
            with pytest.raises((ActorLost, ValueError)):
                call.result(20)
        assert client.submit(pow, 2, 3).result(10) == 8


class Circle:
    def ask(self, other: Any, me: Any) -> int:
        return other.answer(me).result(1)  # type: ignore[no-any-return]

    def answer(self, other: Any) -> int:
        return other.number().result(0.3)  # type: ignore[no-any-return]

    async def answer_meanwhile(self, other: Any) -> int:
        return await other.number()  # type: ignore[no-any-return]

    def ask_meanwhile(self, other: Any) -> int:
        return other.number_meanwhile().result(10)  # type: ignore[no-any-return]

    def number(self) -> int:
        return 5

    async def number_meanwhile(self) -> int:
        return 6


def test_actors_that_wait_for_each_other(client: Client) -> None:
    """A timeout ends a circle; coroutines make none."""
    one, two = (client.submit(Circle, actor=True).result() for _ in range(2))
    with pytest.raises(TimeoutError):
        one.ask(two, one).result(20)
    assert two.number().result(10) == 5
    assert one.number().result(10) == 5
    assert one.ask_meanwhile(two).result(10) == 6
    assert one.answer_meanwhile(two).result(10) == 5
