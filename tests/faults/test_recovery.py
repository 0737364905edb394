"""A server that lost its memory under living processes, and what they bring back."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import cloudpickle
import pytest

from faults import programs
from faults.rig import PATIENCE, Rig, crash, line
from redist import Client, scattering, wait
from redist.bundling import Bundles
from redist.store.keys import BUNDLE
from servers import wait_until

pytestmark = pytest.mark.timeout(120)

cloudpickle.register_pickle_by_value(programs)


@pytest.mark.parametrize("size", [1, 100_000], ids=["inline", "segment"])
def test_what_only_a_container_holds_survives_the_server(own_server: Any, size: int) -> None:
    rig, server = own_server(False)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    box = client.submit(programs.boxed, size, pure=False)
    wait(box)
    (inner,) = [name for name in rig.names() if name != box.key]
    wait_until(lambda: not any(field.startswith("refs:") for field in rig.hash(f"key:{inner}")))
    kind = rig.hash(f"key:{inner}")["type"]
    crash(server)
    wait_until(lambda: rig.hash(f"key:{inner}").get("pins") == "1", PATIENCE)
    wait_until(lambda: "recovering" not in rig.hash("meta"), PATIENCE)
    assert rig.hash(f"key:{inner}")["type"] == kind
    assert rig.hash(f"key:{inner}")["nbytes"] > "50000"
    content, filler = box.result(PATIENCE)
    assert content.result(PATIENCE) == programs.large(7)
    assert len(filler) == size
    del content, box
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_wanted_copies_survive_the_server(own_server: Any) -> None:
    rig, server = own_server(False)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    scattered = client.scatter(bytes(100_000), replicas=2)
    made, no_more, gone = client.map(bytes, [100_001, 100_002, 100_003])
    client.replicate([made, no_more, gone], 2)
    client.replicate(no_more, 1)
    gone_key = gone.key
    del gone
    wait_until(lambda: gone_key not in rig.names())
    crash(server)
    for future in (scattered, made):
        wait_until(lambda key=future.key: rig.hash(f"key:{key}").get("copies") == "2", PATIENCE)
    wait_until(lambda: "recovering" not in rig.hash("meta"), PATIENCE)
    assert "copies" not in rig.hash(f"key:{no_more.key}")
    assert gone_key not in rig.names()
    for future in (scattered, made):
        wait_until(lambda key=future.key: sum(f[:2] == "w:" for f in rig.hash(f"key:{key}")) == 2, PATIENCE)
    assert [len(value) for value in client.gather([scattered, made, no_more])] == [100_000, 100_001, 100_002]
    del scattered, made, no_more, future
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


@pytest.mark.parametrize("persistent", [True, False])
def test_server_that_dies_while_an_announced_task_waits_for_its_argument(
    own_server: Any, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    """Another client refers to it already: it is announced again, and completed once."""
    rig, server = own_server(persistent)
    rig.worker("w1", lease=5.0)
    rig.ready(1)
    other = rig.client()
    opened = threading.Event()
    real = scattering._put

    def put(*args: Any) -> None:
        assert opened.wait(PATIENCE)
        real(*args)

    monkeypatch.setattr(scattering, "_put", put)

    async def main() -> None:
        async with Client(
            rig.endpoint, asynchronous=True, heartbeat_interval=0.2, timeout=PATIENCE
        ) as client:
            future = client.submit(len, bytes(200_000), pure=False)
            mine = await asyncio.to_thread(lambda: other.submit(abs, future, pure=False))
            secret = client.session.incarnation
            await asyncio.to_thread(crash, server)
            while client._driver.links.since is not None or not client._driver.links.up:
                await asyncio.sleep(0.01)
            if not persistent:
                while client.session.incarnation == secret or not client.session.ready:
                    await asyncio.sleep(0.01)
            opened.set()
            assert await asyncio.wait_for(future, PATIENCE) == 200_000
            assert await asyncio.to_thread(mine.result, PATIENCE) == 200_000
            mine.release()

    asyncio.run(main())
    rig.finish()


@pytest.mark.parametrize("how", ["scatter", "result"])
def test_what_only_bundles_hold_survives_the_server(own_server: Any, how: str) -> None:
    """The file of the value lists the keys themselves; the bundles went with the server."""
    many = 1_200
    rig, server = own_server(False)
    rig.worker("w1")
    rig.worker("w2")
    rig.ready(2)
    client = rig.client()
    if how == "scatter":
        box = client.scatter([programs.boxed_many(many)])[0]
    else:
        box = client.submit(programs.boxed_many, many, pure=False)
        wait(box)
    wait_until(lambda: sum(name.startswith(BUNDLE) for name in rig.names()) == 3, PATIENCE)
    inner = [name for name in rig.names() if not name.startswith(BUNDLE) and name != box.key]
    assert len(inner) == many
    wait_until(lambda: not any(field.startswith("refs:") for field in rig.hash(f"key:{inner[0]}")), PATIENCE)
    crash(server)
    wait_until(lambda: all(rig.hash(f"key:{name}").get("pins") == "1" for name in inner[::100]), PATIENCE)
    wait_until(lambda: "recovering" not in rig.hash("meta"), PATIENCE)
    assert sorted(rig.names()) == sorted([*inner, box.key])
    rig.healthy()
    content = box.result(PATIENCE)
    assert [value[0] for value in client.gather(content)] == [i % 256 for i in range(many)]
    del content, box
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_bundles_whose_value_is_not_known_yet_survive_the_server(own_server: Any) -> None:
    many = 1_200
    rig, server = own_server(False)
    rig.worker("w1")
    rig.ready(1)
    client = rig.client()
    leaves = client.scatter([b"x" * 5_000] * many, hash=False)
    names = [leaf.key for leaf in leaves]
    bundles = Bundles(client)
    client._run(bundles.of(names))
    del leaves
    wait_until(lambda: not any(name in client.futures for name in names))
    crash(server)
    wait_until(lambda: all(rig.hash(f"key:{name}").get("pins") == "1" for name in names[::100]), PATIENCE)
    wait_until(lambda: "recovering" not in rig.hash("meta"), PATIENCE)
    assert {rig.hash(f"key:{name}")["state"] for name in names[::100]} == {"memory"}
    rig.healthy()
    bundles.release()
    wait_until(lambda: not rig.names(), PATIENCE)
    rig.finish()


def test_who_makes_bundles_dies(rig: Rig) -> None:
    victim = rig.program("bundler", "1200")
    word, ordinal = line(victim)
    assert word == "ready"
    assert any(name.startswith(BUNDLE) for name in rig.names())
    victim.kill()
    client = rig.client()
    wait_until(lambda: ordinal not in rig.hash("clients"), PATIENCE, "the client is gone")
    wait_until(lambda: not rig.names(), PATIENCE, "what it made is gone")
    assert client.list_datasets() == ()
    rig.finish()
