"""Documents whose blocks are run: what the tests of docs/ share.

A ``python`` block is run; a ``console`` block is a shell session, whose outputs are compared with those of the document.
With ``REDIST_UPDATE_DOCS=1`` outputs that differ are written into the document instead.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
UPDATE = os.environ.get("REDIST_UPDATE_DOCS") == "1"

_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass
class Command:
    """One command of a session: its line, or lines, and what the document says it prints."""

    line: int
    source: str
    output: str
    text: str = field(repr=False)
    """The command as it stands in the document, with prompts."""


@dataclass
class Block:
    """A fenced block: its language, the line of its first line, and what is in it."""

    language: str
    line: int
    text: str

    def commands(self) -> Iterator[Command]:
        """Take a session apart: ``$`` begins a command, ``>`` continues it, the rest is output."""
        current: Command | None = None
        for i, line in enumerate(self.text.splitlines(keepends=True)):
            if line.startswith("$ "):
                if current is not None:
                    yield current
                current = Command(self.line + i, line[2:], "", line)
            elif line.startswith("> ") and current is not None and not current.output:
                current.source += line[2:]
                current.text += line
            else:
                assert current is not None, f"line {self.line + i}: output without a command"
                current.output += line
        if current is not None:
            yield current


def blocks_of(path: Path, language: str) -> list[Block]:
    """Return the blocks of one language in a document."""
    text = path.read_text()
    return [
        Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2])
        for match in _FENCE.finditer(text)
        if match[1] == language
    ]


def run_python(path: Path, block: Block, namespace: dict[str, object]) -> None:
    """Run a block so that tracebacks show the document's own lines."""
    source = "\n" * (block.line - 1) + block.text
    exec(compile(source, str(path), "exec"), namespace)


def run_shell(source: str, environment: dict[str, str], timeout: float = 30.0) -> str:
    """Run a command in bash on a terminal, as a person does, and return what it printed."""
    ours, theirs = pty.openpty()
    printed: list[bytes] = []

    def read() -> None:
        try:
            while data := os.read(ours, 65536):
                printed.append(data)
        except OSError:
            pass  # the terminal's other end was closed

    reader = threading.Thread(target=read)
    reader.start()
    try:
        subprocess.run(
            ["bash", "-c", source],
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "TERM": "dumb", "LC_ALL": "C", **environment},
            timeout=timeout,
            check=False,
        )
    finally:
        os.close(theirs)
        reader.join(timeout)
        os.close(ours)
    return b"".join(printed).decode().replace("\r", "")


def update(path: Path, outputs: list[tuple[Command, str]]) -> None:
    """Put outputs in the place of those that the document has."""
    text = path.read_text()
    for command, output in outputs:
        before = command.text + command.output
        lines = text.splitlines(keepends=True)
        start = sum(map(len, lines[: command.line - 1]))
        assert text.startswith(before, start), command
        text = text[:start] + command.text + output + text[start + len(before) :]
    path.write_text(text)


def check_outputs(
    path: Path, outputs: list[tuple[Command, str]], normalise: Callable[[Command, str], str]
) -> None:
    """Compare outputs with the document's, or update it."""
    changed = [(c, output) for c, output in outputs if normalise(c, output) != normalise(c, c.output)]
    if UPDATE:
        update(
            path, outputs[::-1]
        )  # from the end, so that lines keep their numbers; all, so that they are of one run
        return
    assert not changed, "\n".join(
        f"{path}:{c.line}: {c.source}--- the document says\n{normalise(c, c.output)}--- it prints\n{normalise(c, o)}"
        for c, o in changed
    )
