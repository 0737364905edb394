"""Arguments of the wrong kind are refused at the call, in words."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from redist import Client, Future, LocalCluster, wait
from redist.errors import ClientClosed


def test_addresses() -> None:
    for address in (5, 1.5, [], b"redis://localhost"):
        with pytest.raises(TypeError, match="URL of a server"):
            Client(address)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resources": "GPU"}, "resources is a mapping"),
        ({"resources": {"GPU": "x"}}, "amount of 'GPU'"),
        ({"resources": {1: 1}}, "name of a resource"),
        ({"priority": "x"}, "priority is an integer"),
        ({"retries": "x"}, "retries is an integer"),
        ({"retries": [1]}, "retries is an integer"),
        ({"workers": 3}, "workers is a worker's name"),
    ],
)
def test_options(client: Client, options: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        client.submit(len, "abc", **options)
    with pytest.raises(TypeError, match=words):
        client.map(len, ["abc"], **options)
    if "workers" in options:
        with pytest.raises(TypeError, match=words):
            client.scatter(1, **options)


def test_numbers(client: Client) -> None:
    for wrong in ("x", "5", [1], b"1"):
        with pytest.raises(TypeError, match="batch_size is an integer"):
            client.map(len, ["abc"], batch_size=wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="n_workers is an integer"):
            client.wait_for_workers(wrong)  # type: ignore[arg-type]
    for number in (0, -1):
        with pytest.raises(ValueError, match="batch_size cannot be less than 1"):
            client.map(len, ["abc"], batch_size=number)
    with pytest.raises(ValueError, match="n_workers cannot be negative"):
        client.wait_for_workers(-1)
    assert client.gather(client.map(len, ["abc", "de"], batch_size=1)) == [3, 2]


def test_grace_without_a_name(cluster: LocalCluster) -> None:
    with pytest.raises(ValueError, match="give it a name="):
        Client(cluster, grace="1h")


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
    with pytest.raises(ValueError, match="return_when"):
        wait([future], return_when="FOO")
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
