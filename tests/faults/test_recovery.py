"""A server that lost its memory under living processes, and what they bring back."""

from __future__ import annotations

from typing import Any

import cloudpickle
import pytest

from faults import programs
from faults.rig import PATIENCE, crash
from redist import wait
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
