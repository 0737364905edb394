"""Metadata: plain data under names, for all clients."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from redist import Client, LocalCluster
from redist.store.wire import Wire
from servers import wait_until


def test_what_one_sets_all_get(client: Client, new_client: Callable[..., Client]) -> None:
    other = new_client(set_as_default=False)
    assert client.set_metadata("x", [1, None, {"a": (2.5, b"b", True)}]) is None
    assert other.get_metadata("x") == (1, None, {"a": (2.5, b"b", True)})
    other.set_metadata("x", None)
    assert client.get_metadata("x") is None


def test_nested_keys(client: Client) -> None:
    client.set_metadata(["tree", "a", 5], "leaf")
    client.set_metadata(["tree", "w", "z"], 456)
    assert client.get_metadata("tree") == {"a": {5: "leaf"}, "w": {"z": 456}}
    assert client.get_metadata(["tree", "w"]) == {"z": 456}
    assert client.get_metadata(("tree", "a", 5)) == "leaf"
    client.set_metadata(["tree", "a", 5, "deeper"], 1)  # a leaf makes way
    assert client.get_metadata(["tree", "a"]) == {5: {"deeper": 1}}
    client.set_metadata("flat", 3)
    client.set_metadata(["flat", "a"], 1)
    assert client.get_metadata("flat") == {"a": 1}


def test_keys_of_all_kinds(client: Client) -> None:
    for key in (("t", 1), 7, None, 1.5, "(t", "@7"):
        client.set_metadata(key, repr(key))
    for key in (("t", 1), 7, None, 1.5, "(t", "@7"):
        assert client.get_metadata([key]) == repr(key)
        assert client.get_metadata([])[key] == repr(key)


def test_what_is_not_there(client: Client) -> None:
    with pytest.raises(KeyError, match="nothing"):
        client.get_metadata("nothing")
    assert client.get_metadata("nothing", default=4) == 4
    assert client.get_metadata("nothing", None) is None
    client.set_metadata("there", {"a": 1})
    with pytest.raises(KeyError, match="b"):
        client.get_metadata(["there", "b"])
    assert client.get_metadata(["there", "b", "c"], default=()) == ()
    with pytest.raises(IndexError):
        client.set_metadata([], 1)


@pytest.mark.parametrize("value", [object(), {1, 2}, 2**70, [print]])
def test_what_is_no_plain_data(client: Client, value: object) -> None:
    with pytest.raises(TypeError, match="plain data"):
        client.set_metadata("x", value)
    with pytest.raises(TypeError, match="plain data"):
        client.set_metadata(["x", "y"], value)


def test_clients_that_set_at_once_lose_nothing(client: Client, new_client: Callable[..., Client]) -> None:
    clients = [client, new_client(set_as_default=False), new_client(set_as_default=False)]

    def put(number: int) -> None:
        for i in range(20):
            clients[number].set_metadata(["shared", f"{number}-{i}"], i)

    threads = [threading.Thread(target=put, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert client.get_metadata("shared") == {f"{n}-{i}": i for n in range(3) for i in range(20)}


def test_it_goes_with_its_key(client: Client) -> None:
    future = client.submit(abs, -1, key="mine")
    future.result()
    client.set_metadata(["mine", "since"], 1)
    client.set_metadata("others", 2)
    assert client.get_metadata("mine") == {"since": 1}
    future.release()
    wait_until(lambda: client.get_metadata("mine", default=None) is None)
    assert client.get_metadata("others") == 2


def test_inside_a_task(client: Client) -> None:
    def note(x: int) -> object:
        from redist import get_client

        get_client().set_metadata(["task", x], "was here")
        return get_client().get_metadata(["task", x])

    assert client.gather(client.map(note, range(3))) == ["was here"] * 3
    assert client.get_metadata("task") == dict.fromkeys(range(3), "was here")


def test_asynchronous(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True) as client:
            await asyncio.gather(*(client.set_metadata(["loop", i], i) for i in range(20)))
            assert await client.get_metadata("loop") == {i: i for i in range(20)}
            with pytest.raises(KeyError):
                await client.get_metadata(["loop", 20])

    asyncio.run(main())


def test_a_restart_forgets_it() -> None:
    with LocalCluster(n_workers=1) as cluster, Client(cluster) as client:
        client.set_metadata("x", 1)
        client.restart()
        assert client.get_metadata("x", default=None) is None
        assert client.get_metadata([]) == {}


def test_interrupted_while_it_is_read(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one that is read is not answered with this one."""
    client.set_metadata("x", 1)
    client.set_metadata("y", 2)
    assert client.get_metadata("y") == 2
    receive = Wire.receive

    def interrupted(self: Wire, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            monkeypatch.undo()
            raise KeyboardInterrupt
        return receive(self, timeout)

    monkeypatch.setattr(Wire, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        client.get_metadata("x")
    assert [client.get_metadata("y") for _ in range(3)] == [2, 2, 2]
