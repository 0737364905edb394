"""Worker and executor processes: what tasks can do."""

import os
import time
import traceback
from types import SimpleNamespace

import pytest

from redist import errors
from redist.errors import ClientClosed
from redist.store.copying import not_copied
from redist_worker.worker import Worker
from worker.harness import until

pytestmark = pytest.mark.timeout(60)


def test_results_errors_and_dependencies(start, client):
    start(executors=2)
    one = client.submit(lambda: 1)
    two = client.submit(lambda a, b: a + b, one, 1)
    assert client.result(two) == 2

    def fail(x):
        return [1][x]

    bad = client.submit(fail, 3)
    with pytest.raises(IndexError) as info:
        client.result(bad)
    assert "return [1][x]" in "".join(traceback.format_exception(info.value))
    after = client.submit(lambda x: x, bad)
    with pytest.raises(IndexError):
        client.result(after)


def test_many_tasks_on_several_threads(start, client):
    start("--threads", "3", executors=2)
    keys = [client.submit(lambda i=i: i * i) for i in range(300)]
    assert [client.result(key) for key in keys] == [i * i for i in range(300)]


def test_exits_and_odd_results_are_errors_of_the_task(start, client):
    start()

    def leave():
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit: 3"):
        client.result(client.submit(leave))

    def lock():
        import threading

        return threading.Lock()

    with pytest.raises(errors.SerializationError):
        client.result(client.submit(lock))
    assert client.result(client.submit(lambda: "still here")) == "still here"


def test_coroutine_functions_run_to_completion(start, client):
    start()

    def make():
        async def add(a, b):
            import asyncio

            await asyncio.sleep(0.01)
            return a + b

        return add

    assert client.result(client.submit(make(), 1, 2)) == 3
    assert client.result(client.submit(make(), 3, 4)) == 7


def test_retries_and_reschedule(start, client, tmp_path):
    start()
    marker = str(tmp_path / "ran")

    def flaky(path, error):
        import os

        count = len(os.listdir(os.path.dirname(path)))
        with open(f"{path}{count}", "w"):
            pass
        ran = sum(name.startswith("ran") for name in os.listdir(os.path.dirname(path)))
        if ran < 3:
            raise error("again")
        return ran

    assert client.result(client.submit(flaky, marker, errors.Reschedule)) == 3
    for name in os.listdir(tmp_path):
        if name.startswith("ran"):
            os.unlink(tmp_path / name)
    assert client.result(client.submit(flaky, marker, ValueError, retries=5)) == 3


def test_payloads_go_through_segments_and_leave_with_their_key(start, client, tmp_path):
    start(executors=2)

    def make(n):
        import numpy

        return numpy.arange(n)

    a = client.submit(make, 200_000)
    total = client.submit(lambda x: int(x.sum()), a)
    assert client.result(total) == 199_999 * 100_000
    value = client.result(a)
    assert value[-1] == 199_999
    del value
    (directory,) = (tmp_path / "segments").iterdir()

    def payloads():
        return [name for name in os.listdir(directory) if len(name) > 32 and "." in name]

    assert len(payloads()) == 1
    client.release(a, total)
    until(lambda: not payloads())
    assert client.state(a).state == "forgotten"


def test_payloads_travel_between_workers(start, client):
    start("--resources", "A=1", name="w1")
    start("--resources", "B=1", name="w2")

    def make():
        return b"x" * 1_000_000

    a = client.submit(make, resources="A=1")

    def where(x):
        from redist_worker.local import get_worker

        return get_worker().name, len(x)

    b = client.submit(where, a, resources="B=1")
    assert client.result(b) == ("w2", 1_000_000)
    assert client.result(client.submit(where, a, resources="A=1")) == ("w1", 1_000_000)


def test_a_copy_that_vanished_is_computed_again(start, client, tmp_path):
    start()
    a = client.submit(lambda: b"y" * 100_000)
    client.wait(a)
    (directory,) = (tmp_path / "segments").iterdir()
    for name in os.listdir(directory):
        if len(name) > 32 and "." in name:
            os.unlink(directory / name)
    assert client.result(client.submit(len, a)) == 100_000


def test_more_dependencies_than_a_hand_out_lists(start, client):
    start()
    parts = [client.submit(lambda i=i: i, key=f"part-{i:03}") for i in range(150)]
    assert client.result(client.submit(lambda *xs: sum(xs), *parts)) == sum(range(150))


def test_get_worker_and_local_directory(start, client):
    worker = start("--threads", "2")

    def look():
        import os

        from redist_worker.local import get_worker

        local = get_worker()
        with open(os.path.join(local.local_directory, "file"), "w") as file:
            file.write("x")
        return local.name, local.address, local.nthreads, local.local_directory, os.getppid()

    name, address, threads, directory, parent = client.result(client.submit(look))
    assert (name, threads) == ("w", 2)
    assert address.startswith("tcp://")
    assert parent != worker.pid
    assert os.path.isdir(directory)
    assert worker.stop() == 0
    assert not os.path.exists(directory)


def test_what_tasks_print_reaches_clients_before_their_result(start, client):
    start()

    def talk():
        import sys
        import warnings

        print("hello", 1)
        print("oops", file=sys.stderr)
        warnings.warn("careful", stacklevel=1)
        return 5

    assert client.result(client.submit(talk)) == 5
    until(lambda: len(client.output) >= 2)
    assert client.output[0] == (1, "w", "hello 1\n")
    assert client.output[1][0] == 2
    assert client.output[1][2].startswith("oops\n")
    assert "careful" in client.output[1][2]


def test_what_a_long_task_prints_comes_while_it_runs(start, client, tmp_path):
    start()
    go = str(tmp_path / "go")

    def talk(path):
        import os

        print("working")
        while not os.path.exists(path):
            time.sleep(0.01)

    key = client.submit(talk, go)
    until(lambda: client.output)
    assert client.output == [(1, "w", "working\n")]
    open(go, "w").close()
    assert client.result(key) is None


# --- tasks that wait for tasks --------------------------------------------------------------------------------------


def descend():
    """Return a function that submits itself with less depth, and waits for it."""

    def inner(inner, depth):

        from redist.protocol.arguments import pack_arguments
        from redist.protocol.functions import function_of
        from redist.protocol.payload import loads_inline
        from redist.protocol.specs import pack_spec
        from redist.store import calls
        from redist.store.replies import parse_states
        from redist_worker.local import get_worker

        if depth == 0:
            return 0
        worker = get_worker()
        driver = worker.driver
        packed = function_of(inner)
        spec = pack_spec(packed.hash, pack_arguments((inner, depth - 1), {}).data)
        name = f"depth-{depth - 1}"
        driver.call(calls.submit([calls.Task(name, packed.hash, spec)], [(packed.hash, packed.data)]))
        driver.on_block()
        try:
            deadline = time.monotonic() + 30
            while True:
                (state,) = parse_states(driver.call(calls.states([name])))
                if state.state == "memory":
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(state)
                time.sleep(0.005)
        finally:
            driver.on_unblock()
        return 1 + loads_inline(state.value)

    return inner


@pytest.mark.parametrize("threads", ["1", "2"])
def test_tasks_that_wait_for_tasks_to_depth_20(start, client, threads):
    start("--threads", threads)
    function = descend()
    assert client.result(client.submit(function, function, 20), timeout=40) == 20
    assert client.result(client.submit(lambda: "free again")) == "free again"


def test_secede_and_rejoin(start, client, tmp_path):
    start()
    go = str(tmp_path / "go")

    def outside(path):
        import os

        from redist_worker.local import rejoin, secede

        secede()
        while not os.path.exists(path):
            time.sleep(0.005)
        rejoin()
        return "back"

    long = client.submit(outside, go)
    assert client.result(client.submit(lambda: "beside")) == "beside"
    assert not os.path.exists(go)
    open(go, "w").close()
    assert client.result(long) == "back"


def test_a_slow_task_does_not_hold_up_those_taken_with_it(start, client, tmp_path):
    start(executors=2)
    for _ in range(3):
        for key in [client.submit(lambda i=i: i) for i in range(50)]:
            client.result(key)
    go = str(tmp_path / "go")

    def wait(path, blocks):
        import os

        while blocks and not os.path.exists(path):
            time.sleep(0.005)

    keys = [client.submit(wait, go, i == 0) for i in range(200)]
    client.wait(*keys[1:])
    open(go, "w").close()
    assert client.result(keys[0]) is None


# --- the real client ------------------------------------------------------------------------------------------------


@pytest.fixture
def user(endpoint):
    from redist import Client
    from redist.diagnostics.doctor import examine

    with Client(endpoint, set_as_default=False) as user:
        yield user
        report = examine(endpoint)
        assert not report.violations, report


def test_tasks_have_a_client(start, user):
    start()

    def parent(n):
        from redist import get_client

        client = get_client()
        futures = client.map(lambda x: x + 1, range(n))
        return sum(client.gather(futures))

    assert user.submit(parent, 10).result(timeout=20) == 55

    def deep(deep, n):
        from redist import get_client

        return 0 if n == 0 else 1 + get_client().submit(deep, deep, n - 1).result()

    assert user.submit(deep, deep, 20).result(timeout=30) == 20


def test_a_task_may_return_futures_of_its_own(start, user):
    start()

    def make():
        from redist import get_client

        return [get_client().submit(lambda n=n: b"v" * n) for n in (10, 100_000)]

    small, large = user.submit(make).result(timeout=20)
    assert small.result(timeout=20) == b"v" * 10
    assert large.result(timeout=20) == b"v" * 100_000


def test_large_functions_and_arguments_are_payloads(start, user):
    start()
    big = b"q" * 50_000
    assert user.submit(lambda: len(big)).result(timeout=20) == 50_000
    assert user.submit(lambda a, b: (len(a), b), big, 3).result(timeout=20) == (50_000, 3)


def test_a_restart_replaces_the_executors(start, user, client):
    worker = start(executors=2)
    before = set(worker.descendants())
    assert user.submit(lambda: 1).result(timeout=20) == 1
    user.restart(timeout=30)
    until(lambda: len(set(worker.descendants()) & before) == 1 and len(worker.descendants()) == 3)
    assert user.submit(lambda: 2).result(timeout=20) == 2


def test_what_a_worker_still_has_to_say_when_it_has_ended():
    """As that a copy could not be made, which it was at when it was told to end."""

    def closed(call):
        raise ClientClosed("the client is closed")

    worker = object.__new__(Worker)
    worker.driver = SimpleNamespace(post=closed)
    worker.post(not_copied(["a"]))
