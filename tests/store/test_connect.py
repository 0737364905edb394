from __future__ import annotations

import pickle
import re
import shutil
import socket
import subprocess
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import hiredis
import pytest

import servers
from redist.errors import ConnectionLost, SchemaMismatch, ServerRefused
from redist.store.connect import endpoint
from redist.store.wire import pack_command
from servers import SentinelServer, Server, wait_until


def check(server: Server | str, namespace: str | None = None, **options: object) -> object:
    url = server if isinstance(server, str) else server.url
    point = endpoint(url, namespace or servers.fresh_namespace(), **options)
    wire = point.open()
    try:
        return point.check(wire)
    finally:
        wire.close()


# --- servers that are fit -------------------------------------------------------------------------------------------


def test_valkey(valkey: Server) -> None:
    info = check(valkey)
    assert info.product == "valkey"
    assert info.version >= (8,)
    assert (info.policy, info.appendonly, info.schema) == ("noeviction", False, None)
    assert info.maxmemory > 0
    assert str(info).startswith("valkey ")


def test_redis7(redis7: Server) -> None:
    info = check(redis7)
    assert info.product == "redis"
    assert info.version >= (7,)


def test_the_database_of_the_url(valkey: Server) -> None:
    wire = endpoint(f"{valkey.url}?db=3").open()
    wire.call("SET", "in-three", "x")
    assert wire.call("DEL", "in-three") == 1
    other = endpoint(valkey.url).open()
    assert b"db=3" in other.call("CLIENT", "LIST")
    assert b"name=redist" in other.call("CLIENT", "LIST")
    with pytest.raises(ServerRefused, match="database"):
        endpoint(f"{valkey.url}?db=999").open()
    wire.close()
    other.close()


def test_volatile_policy_is_fine() -> None:
    with servers.running(settings={"maxmemory-policy": "volatile-lru"}) as server:
        assert check(server).policy == "volatile-lru"


def test_an_endpoint_can_be_pickled(valkey: Server) -> None:
    point = pickle.loads(pickle.dumps(endpoint(valkey.url, "a-b")))
    assert (point.url, point.prefix) == (f"{valkey.url}?namespace=a-b", "redist:{a-b}:")
    point.open().close()


def test_over_tcp_with_a_password() -> None:
    with servers.running(bind="127.0.0.1", password="s3cr@t") as server:
        assert check(server).product == "valkey"
        port = server.embedded.port
        point = endpoint(server.url)
        assert "s3cr" not in repr(point)
        assert "s3cr" not in point.url
        assert point.secrets() == {"REDIST_PASSWORD": "s3cr@t"}
        with pytest.raises(ServerRefused, match=r"wants a password.*REDIST_PASSWORD"):
            endpoint(f"redis://127.0.0.1:{port}").open()
        with pytest.raises(ServerRefused, match="does not accept this user and password"):
            endpoint(f"redis://:wrong@127.0.0.1:{port}").open()
        with pytest.raises(ServerRefused, match="does not accept this user and password"):
            endpoint(f"redis://nobody:wrong@127.0.0.1:{port}").open()


def test_a_password_where_none_is_wanted(valkey: Server) -> None:
    assert check(valkey.url.replace("unix://", "unix://:needless@")).product == "valkey"


# --- nobody there ---------------------------------------------------------------------------------------------------


def test_nothing_answers(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match=r"nothing answers at unix://.*No such file.*redist server"):
        endpoint(f"unix://{tmp_path}/none.sock").open()
    with pytest.raises(ConnectionLost, match=r"nothing answers at redis://127\.0\.0\.1:1 .*refused"):
        endpoint("redis://127.0.0.1:1").open()


def test_unknown_host() -> None:
    with pytest.raises(ConnectionLost, match=r"host name 'no\.such\.host\.invalid' is not known"):
        endpoint("redis://no.such.host.invalid").open()


def test_a_silent_server(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/s")
        sock.listen()
        with pytest.raises(ConnectionLost, match="did not answer within"):
            endpoint(f"unix://{tmp_path}/s", timeout=0.1).open()


def test_retry_until_it_is_there(tmp_path: Path) -> None:
    point = endpoint(f"unix://{tmp_path}/redist.sock")
    opened = []
    thread = threading.Thread(target=lambda: opened.append(point.open(20, retry=True)))
    thread.start()
    with servers.running(directory=tmp_path):
        thread.join(20)
        assert opened[0].call("PING") == b"PONG"
        opened[0].close()


def test_retry_gives_up(tmp_path: Path) -> None:
    with pytest.raises(ConnectionLost, match="nothing answers"):
        endpoint(f"unix://{tmp_path}/none").open(0.05, retry=True)


# --- servers that are not fit ---------------------------------------------------------------------------------------

Answer = Callable[[list[bytes]], bytes]


@pytest.fixture
def pretend(tmp_path: Path) -> Iterator[Callable[[Answer], str]]:
    """Start a server that answers as a function says, and return its address."""
    sockets: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(listener: socket.socket, answer: Answer) -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            reader = hiredis.Reader()
            # Who is refused leaves before all its commands are answered.
            with peer, suppress(ConnectionError):
                while data := peer.recv(65536):
                    reader.feed(data)
                    while (command := reader.gets()) is not False:
                        peer.sendall(answer(command))

    def start(answer: Answer) -> str:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / str(len(sockets))))
        listener.listen()
        sockets.append(listener)
        threads.append(threading.Thread(target=serve, args=(listener, answer), daemon=True))
        threads[-1].start()
        return f"unix://{tmp_path}/{len(sockets) - 1}"

    yield start
    for listener in sockets:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def answers(info: str = "", **replies: bytes) -> Answer:
    def answer(command: list[bytes]) -> bytes:
        name = command[0].decode()
        if name in replies:
            return replies[name]
        if name == "INFO":
            return pack_bulk(info)
        return {"SREM": b":0\r\n", "HGET": b"$-1\r\n", "PING": b"+PONG\r\n"}.get(name, b"+OK\r\n")

    return answer


def pack_bulk(text: str) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(text), text.encode())


@pytest.mark.parametrize(
    ("info", "match"),
    [
        ("redis_version:6.0.16", r"Redis 6\.0\.16, and redist needs 6\.2 or later\. Upgrade"),
        ("redis_version:5.0.3\r\nvalkey_version:x", r"Redis 5\.0\.3"),
        (
            "redis_version:7.0.0\r\nmaxmemory_policy:allkeys-lru",
            "allkeys-lru.*CONFIG SET maxmemory-policy noeviction",
        ),
        ("redis_version:7.0.0\r\nmaxmemory_policy:allkeys-lfu", "allkeys-lfu"),
        ("redis_version:7.0.0\r\nredis_mode:cluster", r"use redis\+cluster://"),
        ("redis_version:7.0.0\r\nredis_mode:sentinel", r"use redis\+sentinel://"),
    ],
)
def test_unfit(pretend: Callable[[Answer], str], info: str, match: str) -> None:
    with pytest.raises(ServerRefused, match=match):
        check(pretend(answers(info)))


def test_what_valkey_calls_itself(pretend: Callable[[Answer], str]) -> None:
    info = check(pretend(answers("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.0")))
    assert (info.product, info.version) == ("valkey", (8, 1, 0))


def test_info_forbidden(
    pretend: Callable[[Answer], str], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    caplog.set_level("INFO", "redist.store")
    info = check(pretend(answers(INFO=b"-NOPERM this user has no permissions to run the 'info' command\r\n")))
    (record,) = caplog.records
    assert re.search(r"does not allow INFO .*noeviction", record.getMessage())
    assert (record.name, record.levelname) == ("redist.store", "INFO")
    assert not recwarn.list
    assert str(info) == "server of unknown version"


def test_a_server_that_loads(pretend: Callable[[Answer], str]) -> None:
    replies = iter([b"-LOADING Redis is loading the dataset in memory\r\n"] * 3 + [b":0\r\n"] * 3)

    def answer(command: list[bytes]) -> bytes:
        return next(replies) if command[0] == b"SREM" else answers("redis_version:7.0.0")(command)

    assert check(pretend(answer)).version == (7, 0, 0)
    loading = answers("redis_version:7.0.0", SREM=b"-LOADING still\r\n")
    with pytest.raises(ConnectionLost, match=r"was not ready within 0\.05 s: LOADING"):
        check(pretend(loading), timeout=0.05)


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (b"-NOPERM No permissions to access a key\r\n", "lacks rights.*redist acl USER --namespace"),
        (b"-MISCONF Redis is configured to save RDB snapshots\r\n", "takes no writes: MISCONF"),
    ],
)
def test_no_writing(pretend: Callable[[Answer], str], reply: bytes, match: str) -> None:
    with pytest.raises(ServerRefused, match=match):
        check(pretend(answers("redis_version:7.0.0", SREM=reply)))


@pytest.mark.parametrize(
    ("reply", "match"),
    [
        (b"-DENIED Redis is running in protected mode\r\n", "protected mode.*requirepass"),
        (b"-ERR max number of clients reached\r\n", "maxclients"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no Redis server, or speaks TLS.*rediss://"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "speaks TLS"),
    ],
)
def test_not_let_in(pretend: Callable[[Answer], str], reply: bytes, match: str) -> None:
    with pytest.raises(ServerRefused, match=match):
        endpoint(pretend(answers(CLIENT=reply, PING=reply))).open()


def test_no_right_to_ping_is_no_reason(pretend: Callable[[Answer], str]) -> None:
    endpoint(pretend(answers(CLIENT=b"-NOPERM x\r\n", PING=b"-NOPERM y\r\n"))).open().close()


def test_another_schema(valkey: Server, namespace: str) -> None:
    valkey.admin("HSET", f"redist:{{{namespace}}}:meta", "schema", "999")
    with pytest.raises(SchemaMismatch, match=rf"{namespace}.*schema 999.*another namespace"):
        check(valkey, namespace)
    valkey.admin("HSET", f"redist:{{{namespace}}}:meta", "schema", "1")
    assert check(valkey, namespace).schema == 1
    valkey.forget(namespace)


def test_a_real_allkeys_policy() -> None:
    with servers.running(settings={"maxmemory-policy": "allkeys-random"}) as server:
        with pytest.raises(ServerRefused, match="allkeys-random"):
            check(server)


def test_a_replica() -> None:
    with servers.running(bind="127.0.0.1") as master:
        with servers.running(settings={"replicaof": f"127.0.0.1 {master.embedded.port}"}) as replica:
            with pytest.raises(
                ServerRefused, match=r"read-only replica of 127\.0\.0\.1\. Connect to the master"
            ):
                check(replica)


# --- TLS ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
         "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tls(certificates: Path) -> Iterator[int]:
    """The port of a Redis that speaks TLS."""
    port = servers._free_port("127.0.0.1")
    settings = {
        "tls-port": port,
        "tls-cert-file": certificates / "cert.pem",
        "tls-key-file": certificates / "key.pem",
        "tls-auth-clients": "no",
        "bind": "127.0.0.1",
    }
    with servers.running("redis7", settings=settings):
        yield port


def test_tls(tls: int, certificates: Path) -> None:
    point = endpoint(f"rediss://localhost:{tls}", ssl_ca_certs=str(certificates / "cert.pem"))
    wire = point.open()
    assert point.check(wire).product == "redis"
    value = bytes(range(256)) * 20_000
    assert wire.call("ECHO", value) == value
    wire.send(b"".join(pack_command(("ECHO", str(i))) for i in range(3000)))
    replies: list[object] = []
    while len(replies) < 3000:
        assert wire.receive(10)
        replies += wire.replies()
    assert replies == [b"%d" % i for i in range(3000)]
    assert wire.receive(0.01) is False
    wire.call("DEL", "nothing")
    wire.close()


def test_tls_not_trusted(tls: int) -> None:
    with pytest.raises(ServerRefused, match="ssl_ca_certs"):
        endpoint(f"rediss://localhost:{tls}").open()
    endpoint(f"rediss://localhost:{tls}?ssl_cert_reqs=none").open().close()


def test_plain_to_tls_and_tls_to_plain(tls: int) -> None:
    with pytest.raises((ServerRefused, ConnectionLost)):
        endpoint(f"redis://localhost:{tls}", timeout=1).open()
    with servers.running(bind="127.0.0.1") as server:
        with pytest.raises(ConnectionLost, match="check that the port speaks TLS"):
            endpoint(f"rediss://127.0.0.1:{server.embedded.port}", timeout=1).open()


# --- several servers ------------------------------------------------------------------------------------------------


def test_cluster(cluster3: Server) -> None:
    owners: set[str] = set()
    for i in range(1000):
        if i >= 20 and len(owners) == 3:
            break  # which slot a name comes to is chance
        namespace = f"{servers.fresh_namespace()}-{i}"
        point = cluster3.endpoint(namespace)
        assert (point.cluster, point.publish, point.subscribe) == (True, "SPUBLISH", "SSUBSCRIBE")
        wire = point.open()
        assert point.check(wire).schema is None
        wire.call("HSET", f"{point.prefix}meta", "x", "1")
        wire.call("UNLINK", f"{point.prefix}meta")
        owners.add(wire.peer)
        wire.close()
        again = point.open()
        assert again.peer == wire.peer
        again.close()
    assert len(owners) == 3


def test_cluster_with_a_dead_seed(cluster3: Server) -> None:
    live = cluster3.nodes[2].port
    point = endpoint(f"redis+cluster://127.0.0.1:1,127.0.0.1:{live}", servers.fresh_namespace())
    point.open().close()
    with pytest.raises(ConnectionLost, match="no node of the Cluster"):
        endpoint("redis+cluster://127.0.0.1:1,127.0.0.1:2").open()


def test_a_node_of_a_cluster_as_a_single_server(cluster3: Server) -> None:
    with pytest.raises(ServerRefused, match=r"redis\+cluster://"):
        check(f"redis://127.0.0.1:{cluster3.nodes[0].port}")


def test_sentinel(sentinel: SentinelServer, namespace: str) -> None:
    master, replica = sentinel.nodes
    point = sentinel.endpoint(namespace)
    wire = point.open()
    assert wire.peer == f"redis://127.0.0.1:{master.port}"
    assert point.check(wire).product == "valkey"
    with pytest.raises(ServerRefused, match="knows a master named 'other'"):
        endpoint(sentinel.url.replace("/main", "/other")).open()
    with pytest.raises(ConnectionLost, match="no master 'main'"):
        endpoint("redis+sentinel://127.0.0.1:1/main").open()
    with pytest.raises(ServerRefused, match="is no Sentinel"):
        endpoint(f"redis+sentinel://127.0.0.1:{master.port}/main").open()

    master.stop()
    with pytest.raises(ConnectionLost):
        wire.call("PING")
    wait_until(
        lambda: sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1] == b"%d" % replica.port,
        40,
        "failover",
    )
    wire = point.open(20, retry=True)
    assert wire.peer == f"redis://127.0.0.1:{replica.port}"
    wire.close()


# --- rights ---------------------------------------------------------------------------------------------------------


def test_a_tenant(acl_server: Server, namespace: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(acl_server, namespace)
        with pytest.raises(
            ServerRefused, match=r"lacks rights.*redist acl USER --namespace other.* add \?namespace="
        ):
            check(acl_server, "other")
