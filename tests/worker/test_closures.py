"""Functions that hold Futures."""

import gc
import time

import pytest

from redist import Client, Future, LocalCluster
from servers import wait_until


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client:
        yield client
        wait_until(lambda: client.usage().keys == 0, what="every key is gone")


def adding(x, ballast=b""):
    """Return a function that holds `x`."""
    return lambda i: x.result() + i + 0 * len(ballast)


def test_future_in_a_closure(client):
    x = client.scatter(1)
    assert client.submit(lambda: x.result() + 1).result() == 2


def test_future_let_go_right_after_the_submission(client):
    """The tasks keep it, though they start long after its last Future of the client has gone."""
    busy = client.submit(time.sleep, 0.3)
    x = client.scatter(1)
    futures = client.map(adding(x), range(5))
    del x
    assert client.gather(futures) == [1, 2, 3, 4, 5]
    del busy


def test_executor_that_knows_the_function_does_not_keep_the_value(client):
    x = client.scatter(10_000)
    assert client.submit(adding(x), 1).result() == 10_001
    del x  # and the fixture sees that nothing is left


def test_large_function_that_holds_a_future(client):
    ballast = b"x" * 100_000
    busy = client.submit(time.sleep, 0.3)
    x = client.scatter(1)
    future = client.submit(adding(x, ballast), 1)
    del x
    assert future.result() == 2
    del busy


def test_future_in_a_closure_that_fails(client):
    def fail():
        raise KeyError("not there")

    x = client.submit(fail)
    with pytest.raises(KeyError, match="not there"):
        client.submit(adding(x), 1).result()


def test_error_that_was_raised_keeps_nothing(client):
    """Not even until the next garbage collection."""

    def fail():
        raise KeyError("not there")

    gc.collect()
    gc.disable()
    try:
        x = client.submit(fail)
        for get in Future.result, client.gather:
            try:
                get(x)
            except KeyError:
                pass
        del x
        assert wait_until(lambda: not client.futures)
    finally:
        gc.enable()
