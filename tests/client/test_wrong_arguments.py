"""Arguments of the wrong kind are refused at the call, in words."""

from __future__ import annotations

import asyncio
import gc
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from redist import (
    CancelledError,
    Client,
    Future,
    LocalCluster,
    Lock,
    Queue,
    Semaphore,
    Variable,
    as_completed,
    progress,
    wait,
)  # fmt: skip
from redist.errors import ClientClosed, InvalidKey, NotOffered
from redist.missing import NEVER, NOT_YET


def test_addresses() -> None:
    for address in (5, 1.5, [], b"redis://localhost"):
        with pytest.raises(TypeError, match="URL of a server"):
            Client(address)


def test_an_empty_address() -> None:
    for address in ("", "  "):
        with pytest.raises(ValueError, match=r"the address is empty; use redis://"):
            Client(address)
    with pytest.raises(ValueError, match="unknown scheme"):
        Client("http://h")


def test_an_argument_that_a_client_has_not(cluster: LocalCluster) -> None:
    with pytest.raises(TypeError, match=r"Client has no argument 'n_wrkrs'; did you mean 'n_workers'\?"):
        Client(n_wrkrs=2)
    with pytest.raises(
        TypeError, match=r"Client has no argument 'memory_limits'; did you mean 'memory_limit'\?"
    ):
        Client(cluster, memory_limits=2)
    with pytest.raises(TypeError, match="Client has no argument 'xyzzy'; there are: address, n_workers, "):
        Client(xyzzy=1)
    with pytest.raises(TypeError, match=r"memory_limit.*options of a local cluster"):
        Client(cluster, memory_limit=2)


def test_methods_of_dask_that_are_not_there_yet(client: Client) -> None:
    with pytest.raises(
        AttributeError, match=r"redist's Client has no `recreate_error_locally` yet \(docs/dask-api"
    ):
        client.recreate_error_locally(None)
    for name in ("amm", "loop", "scheduler", "sync"):
        with pytest.raises(AttributeError, match=f"redist's Client has no `{name}`: there is no "):
            getattr(client, name)
    for name in {*NOT_YET, *NEVER}:
        assert not hasattr(client, name)
        assert name not in dir(client)
    for call, words in (
        (client.get_worker_logs, "forward_logging"),
        (client.get_task_stream, "WorkerPlugin"),
        (client.profile, "call_stack"),
    ):
        with pytest.raises(NotOffered, match=words):
            call()
    with pytest.raises(AttributeError, match="'Client' object has no attribute 'sumbit'"):
        client.sumbit(len, "abc")
    unborn = Client(asynchronous=True)
    with pytest.raises(AttributeError, match="'_endpoint'"):
        _ = unborn.url


def test_what_is_no_iterable(client: Client) -> None:
    with pytest.raises(TypeError, match=r"map .* number 1 after the function is no iterable: 5; pass a list"):
        client.map(str, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"number 2 after the function is no iterable: None"):
        client.map(divmod, [1], None)  # type: ignore[arg-type]
    future = client.submit(len, "abc")
    with pytest.raises(TypeError, match=r"number 1 after the function is a Future"):
        client.map(str, future)  # type: ignore[arg-type]
    with pytest.raises(
        TypeError, match=r"wait takes Futures in a list, not int 5; pass a list of Futures as fs"
    ):
        wait(5)
    with pytest.raises(TypeError, match=r"as_completed takes Futures in a list, not int 5; .* as futures"):
        as_completed(5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"as_completed takes Futures in a list, not Future <Future: "):
        as_completed(future)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"as_completed takes Futures, not int 5, which is number 1"):
        as_completed([future, 5])  # type: ignore[list-item]
    assert client.gather(client.map(divmod, iter([7, 8]), iter([2, 3]))) == [(3, 1), (2, 2)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (5, "a dataset's name is a str or a tuple"),
        ("", "a dataset's name cannot be the empty string"),
        ("n" * 20_000, "the dataset's name 'n*'... is longer"),
        (("x", [1]), "a tuple as a dataset's name holds plain values only"),
    ],
)
def test_names_of_datasets(client: Client, name: Any, words: str) -> None:
    with pytest.raises(InvalidKey, match=words):
        client.publish_dataset(1, name=name)
    for call in (client.get_dataset, client.unpublish_dataset):
        with pytest.raises(InvalidKey, match=words):
            call(name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resources": "GPU"}, "resources is a mapping"),
        ({"resources": {"GPU": "x"}}, "amount of 'GPU'"),
        ({"resources": {1: 1}}, "name of a resource"),
        ({"priority": "x"}, "priority is a number"),
        ({"priority": (1, 2)}, "priority is a number"),
        ({"priority": 1j}, "priority is a number"),
        ({"fifo_timeout": None}, "span of time, not None"),
        ({"retries": "x"}, "retries is an integer"),
        ({"retries": [1]}, "retries is an integer"),
        ({"retries": 1.5}, "retries is an integer"),
        ({"workers": "x", "allow_other_workers": "y"}, "allow_other_workers is True or False"),
        ({"fifo_timeout": [1]}, "span of time"),
        ({"workers": 3}, "workers is a worker's name"),
    ],
)
def test_options(client: Client, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        client.submit(len, "abc", **options)
    with pytest.raises(TypeError, match=words):
        client.map(len, ["abc"], **options)
    if list(options) == ["workers"]:
        with pytest.raises(TypeError, match=words):
            client.scatter(1, **options)


def test_numbers(client: Client) -> None:
    for wrong in ("x", "5", [1], b"1"):
        with pytest.raises(TypeError, match="batch_size is an integer"):
            client.map(len, ["abc"], batch_size=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="n_workers is a positive whole number"):
            client.wait_for_workers(wrong)  # type: ignore[arg-type]
    for number in (0, -1):
        with pytest.raises(ValueError, match="batch_size cannot be less than 1"):
            client.map(len, ["abc"], batch_size=number)
    for number in (-1, 0, 1.5):
        with pytest.raises(ValueError, match="n_workers is a positive whole number"):
            client.wait_for_workers(number)  # type: ignore[arg-type]
    assert client.gather(client.map(len, ["abc", "de"], batch_size=1)) == [3, 2]


def test_grace_without_a_name(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="give it a name="):
        Client(cluster, grace="1h")


def test_a_name_that_is_no_str(cluster: LocalCluster) -> None:
    with pytest.raises(TypeError, match="name of a client is a str, not int: 7"):
        Client(cluster, name=7)  # type: ignore[arg-type]


def test_a_client_cannot_be_pickled(client: Client) -> None:
    with pytest.raises(TypeError, match=r"cannot be pickled.*get_client\(\).*pass Futures"):
        pickle.dumps(client)
    with pytest.raises(TypeError, match=r"cannot be pickled.*get_client\(\).*pass Futures"):
        client.submit(lambda: client)
    with pytest.raises(TypeError, match=r"cannot be pickled.*get_client\(\).*pass Futures"):
        client.submit(str, client)


def test_what_is_no_future(client: Client) -> None:
    future = client.submit(len, "abc")
    for call in (client.cancel, client.retry, client.who_has):
        for wrong in (5, [5], [future, object()], 1.5):
            with pytest.raises(TypeError):
                call(wrong)
        call("foo")
        call(["foo", ("foo", 1)])
        call(("foo", 1))
        call([])
    with pytest.raises(TypeError, match="wait takes Futures"):
        wait([future, 5])
    with pytest.raises(NotImplementedError, match="return_when"):
        wait([future], return_when="FOO")
    with pytest.raises(TypeError, match=r"wait\(\[x, y, z\]\)"):
        wait(future, future)  # type: ignore[arg-type]
    assert future.result(10) == 3


def test_a_tuple_key_is_cancelled(client: Client) -> None:
    future = client.submit(len, "abc", key=("x", 1))
    client.cancel(("x", 1))
    assert future.cancelled()


def test_a_future_of_a_closed_client(new_client: Callable[..., Client]) -> None:
    one, two = new_client(), new_client()
    future: Future[int] = one.submit(len, "abc", key="abc")
    future.result(10)
    one.close()
    with pytest.raises(ClientClosed, match=r"'abc'.*closed"):
        two.submit(str, future)
    del future
    gc.collect()


def test_a_released_future(client: Client) -> None:
    future = client.submit(len, "abc")
    wait(future)
    future.release()
    with pytest.raises(CancelledError, match="its reference was released"):
        wait([future])
    [(same, error)] = as_completed([future], with_results=True)
    assert same is future
    assert isinstance(error, CancelledError)


def test_an_iterable_of_keys(client: Client) -> None:
    for keys in (["x", "y"], ("x", "y"), iter("xy"), {"x": 1, "y": 2}):
        assert [future.key for future in client.map(len, ["abc", "de"], key=keys)] == ["x", "y"]
        with pytest.raises(ValueError, match="1 keys were given for 2 calls"):
            client.map(len, ["abc", "de"], key=("x",))


def test_one_that_failed_is_skipped(client: Client) -> None:
    assert client.gather(client.submit(len, 5), errors="skip") is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"loop": "x"}, "loop is an event loop or None"),
        ({"security": "x"}, "security is a Security object"),
        ({"serializers": "pickle"}, "serializers is a list of names"),
        ({"deserializers": 5}, "deserializers is a list of names"),
        ({"extensions": [1]}, "extensions is a mapping"),
        ({"connection_limit": "x"}, "connection_limit is a number"),
        ({"direct_to_workers": "x"}, "direct_to_workers is True, False or None"),
        ({"set_as_default": "x"}, "set_as_default is True, False or None"),
        ({"asynchronous": "x"}, "asynchronous is True, False or None"),
    ],
)
def test_options_of_dasks_client(cluster: LocalCluster, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Client(cluster, **options)


def test_options_of_dasks_client_that_are_taken(cluster: LocalCluster) -> None:
    class Security:
        def get_connection_args(self, role: str) -> dict[str, Any]:
            return {}

    for options in (
        {
            "security": Security(),
            "serializers": ["dask", "pickle"],
            "extensions": {},
            "connection_limit": 512,
        },
        {"security": {"require_encryption": False}, "deserializers": ("pickle",), "direct_to_workers": True},
    ):
        with Client(cluster, **options) as client:  # type: ignore[arg-type]
            assert client.submit(len, "abc").result(10) == 3


def test_what_is_taken_and_means_nothing(client: Client) -> None:
    future = client.submit(len, "abc")
    for call, words in (
        (lambda: client.gather(future, direct="x"), "direct is True, False or None"),  # type: ignore[arg-type]
        (lambda: client.scatter([1], direct=2), "direct is True, False or None"),  # type: ignore[arg-type]
        (lambda: client.scatter([1], hash="x"), "hash is True, False or None"),  # type: ignore[arg-type]
        (lambda: client.get({"x": 1}, "x", direct="x"), "direct is True, False or None"),  # type: ignore[arg-type]
        (lambda: as_completed([future], loop=5), "loop is an event loop"),
        (lambda: Semaphore(2, "s", loop=5), "loop is an event loop"),
        (lambda: Lock("l", loop=5), "loop is an event loop"),
        (lambda: progress([future], notebook="x"), "notebook is True, False or None"),  # type: ignore[arg-type]
        (lambda: progress([future], loop=5), "loop is an event loop"),
    ):
        with pytest.raises(TypeError, match=words):
            call()  # type: ignore[no-untyped-call]
    loop = asyncio.new_event_loop()
    assert list(as_completed([future], loop=loop)) == [future]
    loop.close()


def test_keywords_that_nobody_knows(client: Client) -> None:
    import dask

    future = client.submit(len, "abc")
    client.publish_dataset(x=1)
    semaphore, queue, variable = Semaphore(2, "s"), Queue("q"), Variable("v")
    variable.set(1)
    queue.put(1)
    for call in (
        lambda **k: client.who_has(future, **k), client.has_what, client.nthreads, client.ncores, client.nbytes,
        client.list_datasets, lambda **k: client.get_dataset("x", **k), lambda **k: client.unpublish_dataset("x", **k),
        lambda **k: client.replicate([future], **k), client.rebalance,
        lambda **k: client.compute(dask.delayed(len)("x"), **k), future.exception, future.traceback,
        future.cancel, future.retry, lambda **k: queue.put(1, **k), queue.get, queue.qsize,
        lambda **k: variable.set(1, **k), variable.get, semaphore.register,
    ):  # fmt: skip
        with pytest.raises(TypeError, match="xyzzy"):
            call(xyzzy=1)  # type: ignore[operator]
    assert client.get_dataset("x") == 1
    client.unpublish_dataset("x")
    assert queue.get() == 1
    queue.close()
    variable.delete()
    semaphore.close()


def test_fifo_timeout_of_graphs(client: Client) -> None:
    import dask

    x = dask.delayed(len)("abc")
    for wrong, error in (("2 parsecs", ValueError), (object(), TypeError), (None, TypeError)):
        for call in (client.compute, client.persist, lambda x, **k: client.get({"x": 1}, "x", **k)):
            with pytest.raises(error, match="span of time"):
                call(x, fifo_timeout=wrong)  # type: ignore[operator]
    assert client.compute(x, fifo_timeout="1 minute", sync=True) == 3
