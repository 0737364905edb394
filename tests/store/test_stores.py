"""The tests' own stores agree with each other."""

from __future__ import annotations

import hiredis
import msgpack
import pytest

from redist.store import calls
from redist.store.calls import Header
from redist.store.replies import parse_register
from servers import Store, run_call


def test_commands(store: Store) -> None:
    key = f"{store.prefix}x"
    assert store.command("RPUSH", key, "a", b"\x00\xff") == 2
    assert store.command("LRANGE", key, 0, -1) == [b"a", b"\x00\xff"]
    assert store.keys() == ["x"]
    with pytest.raises(hiredis.ReplyError, match="WRONGTYPE"):
        store.command("HGET", key, "f")


@pytest.mark.parametrize(
    "value",
    [0, 1, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**53 - 1, -1, -32, -33, -129, -40000, True, "", "a" * 31,
     "a" * 32, "a" * 300, "a" * 70000, b"\x00\xff\x80", [], [1, "a", [2]], list(range(20)), ["x"] * 70000],
)  # fmt: skip
def test_msgpack(store: Store, value: object) -> None:
    data = msgpack.packb(value, use_bin_type=False)
    expected = msgpack.unpackb(data, raw=True)
    script = "return cmsgpack.pack(cmsgpack.unpack(ARGV[1]))"
    assert msgpack.unpackb(store.command("EVAL", script, 0, data), raw=True) == expected


def test_a_call(store: Store) -> None:
    subscription = store.subscribe("all")
    header = Header(store.prefix, 0, "incarnation", 0, 0, 0)
    reply = run_call(store, calls.register("client", "someone"), header)
    registered = parse_register(reply)
    assert registered.ordinal == 1
    assert registered.generation == 1
    messages = [
        msgpack.unpackb(message, raw=True) for channel, message in subscription.messages() if channel == "all"
    ]
    assert messages[-1] == [b"w", b"1"]
    assert subscription.messages() == []
    assert store.command("HGET", f"{store.prefix}clients", "1") == b"someone"
