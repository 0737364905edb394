"""Servers and stores for tests: real ones, started here, and a fake one in this process.

A *store* is what a script test needs and nothing else: commands, calls, and what was published. `WireStore` is one of a real
server, `FakeStore` one of fakeredis; the same test bodies run on both.
"""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hiredis
import psutil
import pytest

from redist import LocalCluster
from redist.store.calls import Call, Header, pack, pack_eval
from redist.store.connect import Endpoint, endpoint
from redist.store.guard import Guard
from redist.store.server import EmbeddedServer, _free_port
from redist.store.wire import Wire

REDIS_SERVER = shutil.which("redis-server")
REDIS_SENTINEL = shutil.which("redis-sentinel")
LUA = Path(__file__).parent / "lua"

_namespaces = itertools.count(1)


def fresh_namespace() -> str:
    """Return a namespace that no test of this run had before."""
    return f"t{os.getpid()}-{next(_namespaces)}"


def wait_until(condition: Callable[[], Any], timeout: float = 30.0, what: str = "") -> Any:
    """Return the first true value of `condition`, looked at again and again; fail when `timeout` seconds have passed."""
    began = time.monotonic()
    while not (value := condition()):
        elapsed = time.monotonic() - began
        if elapsed > timeout:
            pytest.fail(f"not within {timeout:g} s: {what or condition}")
        time.sleep(0.003 + min(elapsed / 20, 0.02))  # a look takes time from those who are waited for
    return value


@contextmanager
def full(command: Callable[..., Any]) -> Iterator[None]:
    """Make the server behind `command` refuse what grows; its limit is what it was before once this ends."""
    _, limit = command("CONFIG", "GET", "maxmemory")
    command("CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        command("CONFIG", "SET", "maxmemory", limit)


def keys_of(cluster: LocalCluster) -> list[str]:
    """The keys that the cluster knows."""
    prefix = f"{cluster.endpoint.prefix}key:"
    wire = cluster.endpoint.open()
    try:
        return sorted(key.decode()[len(prefix) :] for key in wire.call("KEYS", f"{prefix}*"))
    finally:
        wire.close()


def ordinals(cluster: LocalCluster) -> dict[str, int]:
    """Ordinals of the workers by name."""
    wire = cluster.endpoint.open()
    flat = wire.call("HGETALL", f"{cluster.endpoint.prefix}workers")
    wire.close()
    return {name.decode(): int(ordinal) for ordinal, name in zip(flat[::2], flat[1::2])}


def set_apart(cluster: LocalCluster, hosts: Sequence[str] | None = None) -> None:
    """Have nobody believe to be on the host of a worker, and each worker on one of its own, or on these."""
    wire, prefix = cluster.endpoint.open(), cluster.endpoint.prefix
    by_name = ordinals(cluster)
    for i, name in enumerate(cluster.workers):
        ordinal = by_name[name]
        host = hosts[i] if hosts else f"host-{ordinal}"
        wire.call("HSET", f"{prefix}caller:{ordinal}", "hostid", host, "memory", host)
        wire.call("HSET", f"{prefix}hosts", ordinal, host)
    wire.close()


def alive(pid: int) -> bool:
    """Whether a process lives; one that is dead and waits for its parent does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# --- stores ---------------------------------------------------------------------------------------------------------


class WireStore:
    """The store behind an endpoint."""

    def __init__(self, endpoint: Endpoint, kind: str) -> None:
        self.endpoint = endpoint
        self.kind = kind
        self.prefix = endpoint.prefix
        self.wire = endpoint.open()
        self._wires = [self.wire]

    def command(self, *args: str | bytes | int) -> Any:
        """Run a command; keys are given in full. Error replies are raised as `hiredis.ReplyError`."""
        return self.wire.call(*args)

    def run(self, call: Call, header: Header) -> Any:
        """Run a call as a lane would: by its SHA, and by its text where the server does not know it yet."""
        return run_call(self.wire, call, header)

    def subscribe(self, *channels: str) -> WireSubscription:
        """Subscribe to channels of the namespace, as ``to:3``."""
        wire = self.endpoint.open()
        self._wires.append(wire)
        return WireSubscription(wire, self.endpoint, channels)

    def keys(self) -> list[str]:
        """Return the namespace's Redis keys, without the prefix, sorted."""
        found: list[bytes] = []
        cursor = b"0"
        while True:
            cursor, some = self.command("SCAN", cursor, "MATCH", f"{self.prefix}*", "COUNT", 1000)
            found += some
            if cursor == b"0":
                return sorted({key.decode()[len(self.prefix) :] for key in found})

    def close(self) -> None:
        for wire in self._wires:
            wire.close()


class WireSubscription:
    """What was published to some channels since the last look."""

    def __init__(self, wire: Wire, endpoint: Endpoint, channels: tuple[str, ...]) -> None:
        self.wire = wire
        self.prefix = endpoint.prefix
        wire.send(
            hiredis.pack_command((endpoint.subscribe, *(f"{self.prefix}{channel}" for channel in channels)))
        )
        for _ in channels:
            wire.read_reply()

    def messages(self) -> list[tuple[str, bytes]]:
        """Return (channel, message) of all that was published before this call."""
        self.wire.send(hiredis.pack_command(("PING", "so-far")))
        found = []
        while True:
            reply = self.wire.read_reply()
            if reply[0] == b"pong":
                return found
            found.append((reply[1].decode()[len(self.prefix) :], reply[2]))


class FakeStore:
    """A store of fakeredis, with a cmsgpack for its Lua."""

    kind = "fake"

    def __init__(self, namespace: str) -> None:
        import fakeredis

        os.environ["LUA_PATH"] = f"{LUA}/?.lua"
        self.prefix = f"redist:{{{namespace}}}:"
        self._redis = fakeredis.FakeRedis(lua_modules={"cmsgpack"}, version=(6, 2), protocol=2)
        self._connection = self._redis.connection_pool.get_connection()
        self._subscriptions: list[Any] = []

    def command(self, *args: str | bytes | int) -> Any:
        import redis

        self._connection.send_command(*args)
        try:
            return self._connection.read_response()
        except redis.exceptions.ResponseError as error:
            raise hiredis.ReplyError(str(error)) from error

    def run(self, call: Call, header: Header) -> Any:
        command = hiredis.Reader()
        command.feed(pack_eval(call, header))
        return self.command(*command.gets())

    def subscribe(self, *channels: str) -> FakeSubscription:
        pubsub = self._redis.pubsub()
        self._subscriptions.append(pubsub)
        return FakeSubscription(pubsub, self.prefix, channels)

    def keys(self) -> list[str]:
        return sorted(
            key.decode()[len(self.prefix) :]
            for key in self._redis.keys()  # noqa: SIM118
            if key.startswith(self.prefix.encode())
        )

    def close(self) -> None:
        for pubsub in self._subscriptions:
            pubsub.close()
        self._connection.disconnect()
        self._redis.close()


class FakeSubscription:
    def __init__(self, pubsub: Any, prefix: str, channels: tuple[str, ...]) -> None:
        self._pubsub, self.prefix = pubsub, prefix
        pubsub.subscribe(*(f"{prefix}{channel}" for channel in channels))
        self.messages()

    def messages(self) -> list[tuple[str, bytes]]:
        found = []
        while (message := self._pubsub.get_message(timeout=0)) is not None:
            if message["type"] == "message":
                found.append((message["channel"].decode()[len(self.prefix) :], message["data"]))
        return found


Store = WireStore | FakeStore


def run_call(target: Wire | Store, call: Call, header: Header) -> Any:
    """Run a call on a wire or store and return its reply; error replies are raised as `hiredis.ReplyError`."""
    if not isinstance(target, Wire):
        return target.run(call, header)
    target.send(pack(call, header))
    reply = target.read_reply()
    if isinstance(reply, hiredis.ReplyError) and str(reply).startswith("NOSCRIPT"):
        target.send(pack_eval(call, header))
        reply = target.read_reply()
    if isinstance(reply, hiredis.ReplyError):
        raise reply
    return reply


# --- real servers ---------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running server: its address, and the processes behind it."""

    kind: str
    url: str
    nodes: list[EmbeddedServer] = field(default_factory=list)

    @property
    def embedded(self) -> EmbeddedServer:
        return self.nodes[0]

    def endpoint(self, namespace: str | None = None, **options: Any) -> Endpoint:
        return endpoint(self.url, namespace or fresh_namespace(), **options)

    def admin(self, *args: str | bytes | int) -> Any:
        """Run one command as the default user, over the socket of the (first) server."""
        wire = endpoint(self.embedded.local_url).open()
        try:
            return wire.call(*args)
        finally:
            wire.close()

    def forget(self, namespace: str) -> None:
        """Remove what a test left behind."""
        for node in self.nodes:
            wire = endpoint(node.local_url).open()
            cursor: Any = b"0"
            while True:
                cursor, keys = wire.call("SCAN", cursor, "MATCH", f"redist:{{{namespace}}}:*", "COUNT", 1000)
                if keys:
                    wire.call("UNLINK", *keys)
                if cursor == b"0":
                    break
            wire.close()


@contextmanager
def running(kind: str = "valkey", **options: Any) -> Iterator[Server]:
    """Run one server of this kind ('valkey' or 'redis7') with the options of `EmbeddedServer`."""
    if kind == "redis7":
        if REDIS_SERVER is None:
            pytest.skip("redis-server is not installed")
        options["program"] = REDIS_SERVER
    with EmbeddedServer(**options) as server:
        yield Server(kind, server.url, [server])


SLOTS = 16384


@contextmanager
def running_cluster(kind: str = "valkey", nodes: int = 3) -> Iterator[Server]:
    """Run a Redis Cluster of masters, ready to serve every slot."""
    if kind == "redis7" and REDIS_SERVER is None:
        pytest.skip("redis-server is not installed")
    with ExitStack() as stack:
        started = []
        for _ in range(nodes):
            settings: dict[str, object] = {
                "cluster-enabled": "yes",
                "cluster-node-timeout": 2000,
                "cluster-port": _free_port("127.0.0.1"),
            }
            program = REDIS_SERVER if kind == "redis7" else None
            started.append(
                stack.enter_context(EmbeddedServer(bind="127.0.0.1", settings=settings, program=program))
            )
        wires = [endpoint(server.local_url).open() for server in started]
        try:
            for i, wire in enumerate(wires):
                wire.call("CLUSTER", "ADDSLOTSRANGE", i * SLOTS // nodes, (i + 1) * SLOTS // nodes - 1)
                wire.call("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            for server in started[1:]:
                bus = server._settings["cluster-port"]
                wires[0].call("CLUSTER", "MEET", "127.0.0.1", server.port, str(bus))
            for wire in wires:
                wait_until(lambda wire=wire: _is_ready(wire, nodes), 30, "the cluster is ok")
        finally:
            for wire in wires:
                wire.close()
        yield Server(
            "cluster3", "redis+cluster://" + ",".join(f"127.0.0.1:{s.port}" for s in started), started
        )


def _is_ready(wire: Wire, nodes: int) -> bool:
    facts = wire.call("CLUSTER", "INFO").decode().splitlines()
    return (
        "cluster_state:ok" in facts
        and f"cluster_known_nodes:{nodes}" in facts
        and f"cluster_size:{nodes}" in facts
    )


@dataclass
class SentinelServer(Server):
    """A master with one replica and one Sentinel that watches it; `nodes` are master and replica."""

    service: str = "main"
    sentinel: tuple[str, int] = ("127.0.0.1", 0)

    def ask(self, *args: str | int) -> Any:
        """Run a command at the Sentinel."""
        wire = endpoint(f"redis://{self.sentinel[0]}:{self.sentinel[1]}").open()
        try:
            return wire.call(*args)
        finally:
            wire.close()


@contextmanager
def running_sentinel() -> Iterator[SentinelServer]:
    """Run a master, a replica and a Sentinel (Debian's, which Valkey's server can stand in for)."""
    with ExitStack() as stack:
        master = stack.enter_context(
            EmbeddedServer(bind="127.0.0.1", settings={"repl-diskless-sync-delay": 0})
        )
        replica = stack.enter_context(
            EmbeddedServer(
                bind="127.0.0.1",
                settings={"replicaof": f"127.0.0.1 {master.port}", "repl-diskless-sync-delay": 0},
            )
        )
        port = _free_port("127.0.0.1")
        directory = tempfile.mkdtemp(prefix="redist-")
        conf = Path(directory, "sentinel.conf")
        conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {directory}\nsentinel monitor main 127.0.0.1 {master.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 3000\n"
        )
        if REDIS_SENTINEL is None:
            pytest.skip("redis-sentinel is not installed")
        log = stack.enter_context(tempfile.TemporaryFile())
        guard = Guard([REDIS_SENTINEL, str(conf)], directory, output=log)
        stack.callback(guard.release)
        server = SentinelServer(
            "sentinel",
            f"redis+sentinel://127.0.0.1:{port}/main",
            [master, replica],
            sentinel=("127.0.0.1", port),
        )
        endpoint(f"redis://127.0.0.1:{port}").open(10, retry=True).close()
        wait_until(
            lambda: b"connected_slaves:1" in server.admin("INFO", "replication"),
            20,
            "the replica is connected",
        )
        wait_until(
            lambda: len(server.ask("SENTINEL", "REPLICAS", "main")) == 1, 20, "the Sentinel knows the replica"
        )
        yield server
