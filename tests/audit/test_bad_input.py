"""Bad input: each a clear error of its own type in time, or simply served; and then the cluster goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

import servers
from redist import (
    Client,
    Future,
    LocalCluster,
    Pub,
    Queue,
    Variable,
    as_completed,
    fire_and_forget,
    get_client,
    wait,
)
from redist.errors import (
    ClientClosed,
    ConnectionLost,
    DatasetNotFound,
    DeserializationError,
    ForeignFutureError,
    ForkedClientError,
    InvalidKey,
    KeyTaken,
    NoWorkers,
    SerializationError,
    ServerFull,
    ServerRefused,
)

LOCK = threading.Lock()


def inc(x: int) -> int:
    return x + 1


def add(x: int, y: int) -> int:
    return x + y


def same(x: Any) -> Any:
    return x


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("not to be pickled")


class Unloadable:
    """Pickled here, and cannot be loaded anywhere."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


@pytest.fixture(autouse=True)
def goes_on(cluster: LocalCluster) -> Iterator[None]:
    """Whatever was asked, the next who asks is served."""
    yield
    with Client(cluster, set_as_default=False) as client:
        assert client.submit(inc, 1, pure=False).result(10) == 2


@pytest.fixture
def other(cluster: LocalCluster) -> Iterator[Client]:
    with Client(cluster, set_as_default=False) as client:
        yield client


# --- what cannot be serialized --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [LOCK, Unpicklable(), [1, {"x": LOCK}], (i for i in "abc")])
def test_arguments_that_cannot_be_pickled(client: Client, bad: Any) -> None:
    for attempt in (
        lambda: client.submit(same, bad),
        lambda: client.submit(same, x=bad),
        lambda: client.map(same, [1, bad]),
        lambda: client.scatter([1, bad]),
        lambda: client.scatter({"k": bad}),
        lambda: client.publish_dataset(x=bad),
        lambda: client.submit(lambda: bad),
    ):
        with pytest.raises(SerializationError):
            attempt()
    assert client.list_datasets() == ()


def test_the_error_names_what_cannot_be_serialized(client: Client) -> None:
    lock = (
        r", of the type _thread\.lock, cannot be serialized: TypeError: cannot pickle '_thread\.lock' object$"
    )
    attempts: dict[str, Callable[[], Any]] = {
        "the value of the key 'lk'": lambda: client.scatter({"a": 1, "lk": LOCK}),
        "the value at index 57": lambda: client.scatter([*range(57), LOCK, *range(42)]),
        "the dataset 'x'": lambda: client.publish_dataset(x=LOCK),
        "the value of <Variable: v>": lambda: Variable("v", client).set(LOCK),
        "the item for <Queue: q>": lambda: Queue("q", client).put(LOCK),
        "the message of <Pub: p>": lambda: Pub("p", client=client).put(LOCK),
        "the result of the task 'rl'": lambda: client.submit(threading.Lock, key="rl").result(10),
    }
    for what, attempt in attempts.items():
        with pytest.raises(SerializationError, match=f"^{what}{lock}"):
            attempt()
    with pytest.raises(
        SerializationError, match=r"^the function abs with its arguments cannot be serialized: TypeError"
    ):
        client.run(abs, LOCK)
    with pytest.raises(SerializationError, match=r"^a value of the type _thread\.lock cannot"):
        client.scatter(LOCK)
    with pytest.raises(
        SerializationError, match=r"^the task 't' of the graph cannot be sent: cannot pickle '_thread"
    ):
        client.get({"t": (same, LOCK)}, "t")


@pytest.mark.parametrize(
    "make", [threading.Lock, Unpicklable, lambda: [Unpicklable()], lambda: (i for i in "abc")]
)
def test_results_that_cannot_be_pickled(client: Client, make: Callable[[], Any]) -> None:
    future = client.submit(make, pure=False)
    with pytest.raises(SerializationError):
        future.result(10)
    with pytest.raises(SerializationError):
        client.submit(same, future).result(10)


def test_what_cannot_be_loaded(client: Client) -> None:
    with pytest.raises(DeserializationError):
        client.submit(same, Unloadable()).result(10)
    with pytest.raises(DeserializationError):
        client.submit(Unloadable).result(10)
    (scattered,) = client.scatter([Unloadable()])
    with pytest.raises(DeserializationError):
        scattered.result(10)


# --- keys -----------------------------------------------------------------------------------------------------------

KEYS = [
    "a b", " ", "ключ ☃ 😀", "nul\0in", "\n\t\\", "../x", "/etc/passwd", "{x}", "*?[a]", "%s %d", "(1, 2)", "@x@1",
    "x" * 3000, ("t", 1, 2.5), ("n", ("m", None)), ("ü\0", b"b"), (),
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS, ids=lambda key: ascii(key)[:20])
def test_odd_keys(client: Client, other: Client, key: Any, tmp_path: Any) -> None:
    future = client.submit(inc, 1, key=key)
    assert (future.key, future.result(10)) == (key, 2)
    assert client.submit(add, future, y=future).result(10) == 4
    assert [f.key for f in client.map(inc, [1], key=[key])] == [key]
    assert pickle.loads(pickle.dumps(future)).result(10) == 2
    assert key in client.futures
    assert set(client.who_has(future)) == {key}
    assert client.why(key)
    with pytest.raises(KeyTaken):
        client.submit(add, 1, 2, key=key)
    theirs = other.submit(add, 1, 2, key=key)
    with pytest.raises(KeyTaken):
        theirs.result(10)
    del theirs
    gc.collect()
    servers.wait_until(lambda: not other.futures)
    assert Future(key, other).result(10) == 2
    client.publish_dataset(kept=[future])
    assert other.get_dataset("kept")[0].key == key
    client.unpublish_dataset("kept")
    client.cancel(key or future, force=True)  # () is an empty collection
    with pytest.raises(Exception, match="cancelled"):
        future.result(10)
    del future
    gc.collect()

    large = client.scatter({key: bytes(100_000)})[key]
    assert (large.key, client.submit(len, large).result(10)) == (key, 100_000)
    del large
    gc.collect()

    def mark(path: str) -> None:
        open(path, "w").close()

    fired = client.submit(
        mark, str(tmp_path / "mark"), key=("fired", key) if isinstance(key, tuple) else "fired " + key
    )
    fire_and_forget(fired)
    del fired
    servers.wait_until((tmp_path / "mark").exists)


@pytest.mark.parametrize("name", [*KEYS[:13], "kept"], ids=lambda key: ascii(key)[:20])
def test_odd_names_of_datasets(client: Client, other: Client, name: str) -> None:
    client.publish_dataset({"value": 1}, name=name)
    assert other.get_dataset(name) == {"value": 1}
    assert other.list_datasets() == (name,)
    client.publish_dataset([client.submit(inc, 1)], name=name, override=True)
    assert other.get_dataset(name)[0].result(10) == 2
    other.unpublish_dataset(name)
    assert client.list_datasets() == ()


@pytest.mark.parametrize(
    "key", [True, 1j, "", ["list"], {"a": 1}, ("a", object()), ("x", float("nan")), "x" * 20_000]
)
def test_what_is_no_key(client: Client, key: Any) -> None:
    with pytest.raises(InvalidKey):
        client.submit(inc, 1, key=key)
    if not isinstance(key, list | dict):
        with pytest.raises(InvalidKey):
            client.scatter({key: 1})
        with pytest.raises(InvalidKey):
            client.why(key)


# --- datasets -------------------------------------------------------------------------------------------------------


def test_unknown_datasets(cluster: LocalCluster, client: Client) -> None:
    for name in ("nothing", "../x", "nul\0", ("t", 1)):
        with pytest.raises(DatasetNotFound, match=r"nothing|\.\./x|nul|\('t', 1\)"):
            client.get_dataset(name)
        assert client.get_dataset(name, default=5) == 5
    with pytest.raises(KeyError):  # as Dask raises it
        client.get_dataset("nothing")

    def inside() -> Any:
        return get_client().get_dataset("nothing")

    with pytest.raises(DatasetNotFound):
        client.submit(inside).result(10)

    async def asynchronously() -> None:
        async with Client(cluster, asynchronous=True) as other:
            with pytest.raises(DatasetNotFound):
                await other.get_dataset("nothing")

    asyncio.run(asynchronously())


# --- Futures of others ----------------------------------------------------------------------------------------------


def test_futures_of_a_closed_client(cluster: LocalCluster, client: Client) -> None:
    gone = Client(cluster, set_as_default=False)
    done, pending = gone.submit(inc, 1), gone.submit(time.sleep, 0.5)
    assert done.result(10) == 2
    gone.close()
    uses: list[Callable[[Future[Any]], Any]] = [
        lambda f: f.result(1),
        lambda f: f.exception(1),
        lambda f: client.submit(same, f),
        lambda f: client.submit(same, [f]),
        lambda f: client.map(same, [f]),
        lambda f: client.gather([f]),
        lambda f: client.scatter([f]),
        lambda f: client.publish_dataset(x=[f]),
        lambda f: client.get({"x": (same, f)}, "x"),
        lambda f: pickle.dumps(f),
        lambda f: f.retry(),
    ]
    for future in (done, pending):
        for use in uses:
            began = time.monotonic()
            with pytest.raises(ClientClosed):
                use(future)
            assert time.monotonic() - began < 5
        future.release()
    with pytest.raises(ClientClosed):
        gone.submit(inc, 1)


def test_futures_of_another_cluster(client: Client) -> None:
    with servers.running() as server:
        with Client(server.url, set_as_default=False) as elsewhere:
            foreign = elsewhere.scatter({"k": 1})["k"]
            for use in (client.submit, lambda f, g: client.gather([g]), lambda f, g: client.scatter([g])):
                with pytest.raises(ForeignFutureError):
                    use(same, foreign)
            assert foreign.result() == 1


def test_futures_of_a_parent(client: Client) -> None:
    future, pending = client.submit(inc, 1), client.submit(time.sleep, 1)
    wait(future)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        for use in (
            lambda: future.result(5),
            lambda: client.submit(inc, 1),
            lambda: client.gather([future]),
            lambda: client.scatter(1),
            lambda: client.get_dataset("x"),
            lambda: client.publish_dataset(x=1),
            lambda: pickle.dumps(future),
            lambda: future.retry(),
            lambda: client.cancel(future),
            lambda: future.add_done_callback(print),
            lambda: pending.add_done_callback(print),
            lambda: pending.result(5),
            lambda: wait(future, 5),
            lambda: next(as_completed([pending], timeout=5)),
            lambda: client.who_has(future),
        ):
            try:
                use()
                said.append("served")
            except BaseException as error:
                said.append(type(error).__name__)
        os.write(writing, " ".join(said).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitpid(pid, 0)[1] == 0
    said = os.read(reading, 1000).decode().split()
    os.close(reading)
    assert said == [ForkedClientError.__name__] * 15
    assert future.result(10) == 2


# --- servers --------------------------------------------------------------------------------------------------------


def refused(address: str, error: type[Exception], match: str, within: float = 10.0) -> None:
    """Both kinds of client, and a worker's task too, say at once what is wrong."""

    async def asynchronous() -> None:
        await Client(address, asynchronous=True, timeout=3)

    for attempt in (lambda: Client(address, timeout=3), lambda: asyncio.run(asynchronous())):
        began = time.monotonic()
        with pytest.raises(error, match=match):
            attempt()
        assert time.monotonic() - began < within


def test_a_server_that_is_not_there(tmp_path: Any) -> None:
    refused("redis://127.0.0.1:1", ConnectionLost, "nothing answers at redis://127.0.0.1:1")
    refused(f"unix://{tmp_path}/none", ConnectionLost, "nothing answers")
    refused("redis://no.such.host.invalid", ConnectionLost, "host name 'no.such.host.invalid' is not known")


def test_a_server_that_hangs() -> None:
    import signal

    with servers.running() as server:
        os.kill(server.embedded.pid, signal.SIGSTOP)
        try:
            refused(server.url, ConnectionLost, "did not answer")
        finally:
            os.kill(server.embedded.pid, signal.SIGCONT)


def test_a_server_with_a_password() -> None:
    with servers.running(bind="127.0.0.1", password="s3cret") as server:
        address = f"127.0.0.1:{server.embedded.port}"
        refused(f"redis://{address}", ServerRefused, "wants a password: put it in the address")
        refused(f"redis://:wrong@{address}", ServerRefused, "does not accept this user and password")
        with Client(f"redis://:s3cret@{address}", set_as_default=False) as client:
            assert client.scatter(1).result() == 1


def test_a_replica() -> None:
    with servers.running(bind="127.0.0.1") as master:
        settings = {"replicaof": f"127.0.0.1 {master.embedded.port}", "repl-diskless-sync-delay": 0}
        with servers.running(settings=settings) as replica:
            refused(replica.url, ServerRefused, "read-only replica")


def test_a_full_server_at_the_start() -> None:
    with servers.running() as server:
        with servers.full(server.admin):
            refused(server.url, ServerFull, "maxmemory", within=20.0)


def test_a_full_server(cluster: LocalCluster, client: Client) -> None:
    held = client.submit(inc, 1)
    assert held.result(10) == 2
    with closing(cluster.endpoint.open()) as wire, servers.full(wire.call):
        assert isinstance(client.submit(inc, 100).exception(10), ServerFull)
        assert {type(f.exception(10)) for f in client.map(inc, range(200, 210))} == {ServerFull}
        for attempt in (
            lambda: client.scatter(b"x"),
            lambda: client.scatter(bytes(100_000)),
            lambda: client.publish_dataset(x=1),
        ):
            began = time.monotonic()
            with pytest.raises(ServerFull, match="maxmemory"):
                attempt()
            assert time.monotonic() - began < 10
        assert held.result() == 2
        client.cancel(held)  # what frees is taken
    assert client.submit(inc, 100).result(10) == 101


# --- nobody who may run it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"workers": "nobody"}, "nobody"),
        ({"workers": ["nobody", "nowhere"]}, "nobody"),
        ({"resources": {"TPU": 1}}, "TPU"),
        ({"resources": {"GPU": 100}}, "GPU"),
    ],
)
def test_restrictions_that_no_worker_meets(client: Client, options: dict[str, Any], word: str) -> None:
    future = client.submit(inc, 1, **options)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=word):
        future.result(0.3)
    assert time.monotonic() - began < 5
    assert word in str(client.why(future))
    assert future.status == "pending"
    future.cancel()


def test_scatter_to_nobody(client: Client) -> None:
    with pytest.raises(NoWorkers, match="nobody"):
        client.scatter(bytes(100_000), workers="nobody", timeout=2)


def test_a_preference_that_no_worker_meets_is_none(client: Client) -> None:
    assert client.submit(inc, 1, workers="nobody", allow_other_workers=True).result(10) == 2


# --- what is no such thing ------------------------------------------------------------------------------------------


def test_wrong_types(client: Client) -> None:
    bad: list[Callable[[], Any]] = [
        lambda: client.submit(None),  # type: ignore[arg-type]
        lambda: client.submit("inc", 1),  # type: ignore[arg-type]
        lambda: client.map(3, [1]),  # type: ignore[arg-type]
        lambda: client.map(inc, 3),  # type: ignore[arg-type]
        lambda: client.submit(inc, 1, retries="many"),  # type: ignore[arg-type]
        lambda: client.submit(inc, 1, priority="high"),  # type: ignore[arg-type]
        lambda: client.submit(inc, 1, workers=3),  # type: ignore[arg-type]
        lambda: client.submit(inc, 1, resources=["GPU"]),  # type: ignore[arg-type]
        lambda: client.submit(inc, 1).result("soon"),
        lambda: client.submit(inc, 1).result([1]),  # type: ignore[arg-type]
        lambda: client.cancel(3),  # type: ignore[arg-type]
        lambda: client.retry(3),  # type: ignore[arg-type]
        lambda: wait(3),  # type: ignore[call-overload]
        lambda: client.publish_dataset(),
        lambda: client.get_dataset(3),  # type: ignore[arg-type]
        lambda: client.unpublish_dataset(3),  # type: ignore[arg-type]
        lambda: client.restart(timeout="soon"),
        lambda: Client(3),  # type: ignore[arg-type]
        lambda: Client("nonsense://x"),
        lambda: LocalCluster(n_workers="two"),  # type: ignore[arg-type]
        lambda: Future(3j, client),  # type: ignore[arg-type]
    ]
    for number, attempt in enumerate(bad):
        began = time.monotonic()
        with pytest.raises((TypeError, ValueError)) as caught:
            attempt()
        assert str(caught.value), number
        assert time.monotonic() - began < 5


def test_calls_that_do_not_fit_the_function(client: Client) -> None:
    for future in (
        client.submit(inc),
        client.submit(inc, 1, 2),
        client.submit(inc, y=1),
        client.submit(inc, "text"),
    ):
        assert isinstance(future.exception(10), TypeError)
