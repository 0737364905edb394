"""A server that lost its memory under living processes, and what they bring back."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import cloudpickle
import pytest

from faults import programs
from faults.rig import PATIENCE, crash
from redist import Client, scattering, wait
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
