"""docs/redis-schema.md: every command is run, and what it prints is what the document shows."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from docs.documents import DOCS, UPDATE, Command, blocks_of, check_outputs, run_python, run_shell
from redist import config
from redist.diagnostics import invariants
from redist.diagnostics.doctor import examine
from redist.diagnostics.reading import KINDS
from servers import wait_until

SCHEMA = DOCS / "redis-schema.md"

#: What differs from run to run, and what stands for it.
_VARIES = (
    (r"\b1\d{12}\b", "MS"),
    (r"/dev/shm/redist-\d+/[0-9a-f]+", "SEGMENTS"),
    (r"tcp://[\d.]+:\d+", "ADDRESS"),
    (r"\b[0-9a-f]{16,}\b", "HEX"),
    (r'(\\?"(?:rss|pid|managed|unmanaged|running)\\?"):\d+', r"\1:N"),
    (r"^(used_memory_human|maxmemory_human):.*$", r"\1:N"),
    (r"^\(integer\) [1-9]\d\d$", "(integer) HUNDREDS"),
)
#: Of an unordered reply: the number of a line.
_NUMBERED = re.compile(r"^ *\d+([#~]) ", re.MULTILINE)


def normalise(command: Command, output: str) -> str:
    """Replace what differs from run to run; order what has no order."""
    for pattern, stand_in in _VARIES:
        output = re.sub(pattern, stand_in, output, flags=re.MULTILINE)
    if "host pid seen" in command.source:
        output = re.sub(r"(?m)^([34])\) .*$", r"\1) ...", output)
    if _NUMBERED.search(output):
        output = "".join(sorted(_NUMBERED.sub(r"\1 ", output).splitlines(keepends=True)))
    if "SCAN " in command.source:
        output = "".join(sorted(re.sub(r"(?m)^[ \d)]+", "", output).splitlines(keepends=True)))
    return output


@pytest.fixture(scope="module")
def scenario() -> Iterator[dict[str, object]]:
    """The program of the document, at the moment that it describes."""
    (block,) = blocks_of(SCHEMA, "python")
    namespace: dict[str, object] = {"__name__": "scenario"}
    with config.set({"worker.memory.ready": 0}):  # it comes after a second
        run_python(SCHEMA, block, namespace)
    ada, bob, cluster = namespace["ada"], namespace["bob"], namespace["cluster"]
    endpoint = cluster.endpoint  # type: ignore[attr-defined]
    wire = endpoint.open()
    P = endpoint.prefix
    wait_until(lambda: wire.call("HGET", f"{P}key:slow-2", "state").startswith(b"processing"))
    wait_until(lambda: wire.call("HGET", f"{P}key:later", "state") == b"waiting")
    wait_until(lambda: wire.call("HGET", f"{P}key:fired", "refs:5") is None, what="fired has no Future")
    wait_until(
        lambda: b'"running":1' in wire.call("HGET", f"{P}caller:1", "metrics"),
        what="a heartbeat of the worker",
    )
    wait_until(lambda: wire.call("ZCARD", f"{P}handoffs") == 0)
    wait_until(lambda: wire.call("ZCARD", f"{P}lock:door") == 2)
    yield namespace
    wire.close()
    for client in (ada, bob):
        client.close()  # type: ignore[attr-defined]
    cluster.close()  # type: ignore[attr-defined]


@pytest.mark.skipif(
    shutil.which("redis-cli") is None, reason="redis-cli (Debian's redis-tools) is not installed"
)
@pytest.mark.timeout(120)
def test_every_command_prints_what_the_document_shows(scenario: dict[str, object]) -> None:
    endpoint = scenario["cluster"].endpoint  # type: ignore[attr-defined]
    environment = {"SOCKET": endpoint.url.removeprefix("unix://"), "P": endpoint.prefix}
    outputs = []
    for block in blocks_of(SCHEMA, "console"):
        for command in block.commands():
            if command.source.startswith("export "):
                name, value = command.source.removeprefix("export ").strip().split("=", 1)
                assert name == "SOCKET" or value.strip("'") == environment[name]
                assert not command.output
                continue
            assert "redis-cli" in command.source
            printed = run_shell(command.source, environment)
            assert not re.search(
                r"^\(error\)|ERR |could not connect|not found", printed, re.IGNORECASE | re.MULTILINE
            ), (
                command.source,
                printed,
            )
            outputs.append((command, printed))
    assert len(outputs) > 25
    check_outputs(SCHEMA, outputs, normalise)
    if UPDATE:
        SCHEMA.write_text(
            re.sub(r"(?m)^(\$ export SOCKET=).*$", rf"\g<1>{environment['SOCKET']}", SCHEMA.read_text())
        )
    assert examine(endpoint).healthy


def test_the_document_names_every_key_of_the_schema() -> None:
    text = SCHEMA.read_text()
    for family in KINDS:
        assert re.search(rf"`(?:[^`|]*, )?{family}(?::[A-Z `][^`]*)?`", text), family


def test_the_document_names_every_field_of_a_record() -> None:
    section = SCHEMA.read_text().partition("Fields of `key:NAME`")[2].partition("### States")[0]
    named = set(re.findall(r"`([a-z]+(?::(?:ORD|\w))?)`", section))
    for field in ("state", "refs:ORD", "refs:0", "refs:d", "refs:h", "refs:c", "w:ORD"):
        assert field in named
    for field in invariants._FIELD.pattern.split("|"):
        if re.fullmatch("[a-z]+", field) and field not in ("h", "c)", "d"):
            assert field in named or field == "since", field


def test_the_document_names_every_state() -> None:
    section = SCHEMA.read_text().partition("### States of a key")[2].partition("### Work")[0]
    named = {state.split(" ")[0] for state in re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)} - {
        "state"
    }
    assert named == {
        state.split(" ")[0].split("\\")[0].strip() for state in invariants._STATE.pattern.split("|")
    }
