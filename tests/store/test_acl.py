from __future__ import annotations

import re
from pathlib import Path

import hiredis
import msgpack
import pytest

import servers
from redist.store import calls
from redist.store.acl import acl_line, commands
from redist.store.calls import Header
from redist.store.connect import endpoint
from redist.store.scripts import load, names
from servers import Server, WireStore, run_call


def test_the_line() -> None:
    line = acl_line("bob", "team-a", password="pw")
    assert line.startswith(
        "ACL SETUSER bob reset on >pw ~redist:{team-a}:* &redist:{team-a}:* +client|setname +eval "
    )
    assert "+spublish" in acl_line("bob", password="pw", cluster=True)
    assert "+publish" not in acl_line("bob", password="pw", cluster=True)
    assert not {"config", "scan", "info", "keys", "script", "flushdb"} & set(commands())
    for bad in ("", "a b"):
        with pytest.raises(ValueError, match="user's name"):
            acl_line(bad, password="pw")
    with pytest.raises(ValueError, match="namespace"):
        acl_line("bob", "a}b", password="pw")


@pytest.mark.parametrize("server", ["valkey", "redis7"])
def test_no_command_of_a_script_is_missing(request: pytest.FixtureRequest, server: str) -> None:
    """Every word in the scripts that the server knows as a command is granted, but for words that are options here."""
    known = {row[0].decode().upper() for row in request.getfixturevalue(server).admin("COMMAND")}
    words = {word for name in names() for word in re.findall(r"'([A-Z]{3,})'", load(name).text)}
    granted = {command.upper() for command in commands()} | {
        command.upper() for command in commands(cluster=True)
    }
    assert (words & known) - granted <= {"WAIT"}
    assert {command.split("|")[0].upper() for command in commands()} <= known


@pytest.mark.parametrize("server", ["valkey", "redis7", "cluster3"])
def test_the_line_is_taken_and_is_enough(request: pytest.FixtureRequest, server: str, namespace: str) -> None:
    real: Server = request.getfixturevalue(server)
    cluster = server == "cluster3"
    for node in real.nodes:
        wire = endpoint(node.local_url).open()
        wire.call(*acl_line("only", namespace, password="pw", cluster=cluster).split(" "))
        wire.close()
    url = re.sub("://", "://only:pw@", real.url, count=1)
    store = WireStore(endpoint(url, namespace), server)
    try:
        subscription = store.subscribe("all", "to:1")
        header = Header(store.prefix, 0, "inc", 0, 0, 0, sharded=cluster)
        assert run_call(store, calls.register("client", "me"), header)[0] == b"OK"
        header = Header(store.prefix, 1, "inc", 1, 1, 0, sharded=cluster)
        task = calls.Task("x-1", "fn", b"spec")
        assert run_call(store, calls.submit([task], [("fn", b"pickle")]), header)[0] == b"OK"
        header = header._replace(n=2)
        assert run_call(store, calls.ledger([("x-1", 0)]), header)[0] == b"OK"
        assert any(msgpack.unpackb(message, raw=True)[0] == b"w" for _, message in subscription.messages())
        for command in (
            ["CONFIG", "GET", "*"],
            ["SCAN", "0"],
            ["INFO"],
            ["HGET", "other", "x"],
            ["KEYS", "*"],
        ):
            with pytest.raises(hiredis.ReplyError, match="NOPERM"):
                store.command(*command)
        with pytest.raises(hiredis.ReplyError, match="NOPERM"):
            store.command("SPUBLISH" if cluster else "PUBLISH", "redist:{another}:all", "x")
    finally:
        store.close()
        for node in real.nodes:
            wire = endpoint(node.local_url).open()
            wire.call("ACL", "DELUSER", "only")
            wire.close()
        real.forget(namespace)


def test_the_fixture(acl_server: Server, namespace: str) -> None:
    wire = acl_server.endpoint(namespace).open()
    assert wire.call("HGET", f"redist:{{{namespace}}}:meta", "schema") is None
    with pytest.raises(hiredis.ReplyError, match="NOPERM"):
        wire.call("HGET", f"redist:{{{servers.fresh_namespace()}}}:meta", "schema")
    wire.close()


#: Asked of the server at connect, and done without where they are forbidden; CLIENT SETNAME is granted as a subcommand; the
#: rest are words of other meaning, SCAN is the doctor's, who walks the indices where it is forbidden, and SCRIPT is asked
#: only of a server that was started by who asks.
NOT_NEEDED = {
    "INFO",
    "SENTINEL",
    "CLIENT",
    "AUTH",
    "SCAN",
    "SCRIPT",
    "WAIT",
    "DEBUG",
    "TYPE",
    "OBJECT",
    "MEMORY",
    "READONLY",
}


def test_no_command_of_the_programs_is_missing(valkey: Server) -> None:
    known = {row[0].decode().upper() for row in valkey.admin("COMMAND")}
    granted = {command.partition("|")[0].upper() for command in [*commands(), *commands(cluster=True)]}
    root = Path(__file__).parent.parent.parent
    missing = {}
    for file in [*root.glob("redist/**/*.py"), *root.glob("workers/**/*.py")]:
        if "tests" not in file.parts and file.name != "acl.py":
            words = set(re.findall(r"""["']([A-Z]{3,})["']""", file.read_text())) & known
            if words - granted - NOT_NEEDED:
                missing[file.name] = words - granted - NOT_NEEDED
    assert missing == {}
