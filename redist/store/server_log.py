"""What an embedded server says: where it goes, and what of it a person needs.

A server begins with a banner and with advice about the host, whether it starts or not. Neither says why it did not.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import deque
from threading import Thread
from typing import IO, Any, Protocol

__all__ = ["KeptLog", "RelayedLog", "ServerLog", "causes", "is_worth_saying"]

#: ``PID:ROLE DATE TIME LEVEL TEXT``, where `#` is a warning and `*` a notice.
_LINE = re.compile(r"\d+:[\w-]+ (?:.*?\d\d:\d\d:\d\d\.\d+|\([\d.]+\)) ([.\-*#]) (.*)")
#: Said at every start: who it is, and advice about the host that is nobody's trouble here.
_NOISE = re.compile(
    r"overcommit_memory|Transparent Huge Page|TCP backlog setting|oO0OoO0|is starting|(?:Redis|Valkey) version="
    r"|Configuration loaded|Server initialized|monotonic clock|Running mode=|Ready to accept connections"
    r"|Static Module '\w+' successfully loaded"
)
_TAIL = 4000
_LINES = 200
#: Time to read what a server that has ended said last, s.
_LAST_WORDS = 1.0


def causes(text: str) -> str:
    """Return in one line what a log says of a failure: its warnings without the noise, else its last lines."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    parsed = [(match[1], match[2]) if (match := _LINE.fullmatch(line)) else ("", line) for line in lines]
    grave = [said for level, said in parsed if level in ("", "#") and not _NOISE.search(said)]
    chosen = grave or [said for _, said in parsed if not _NOISE.search(said)]
    return "; ".join(said.removeprefix("Warning: ").rstrip(".") for said in chosen[-6:]) or "it said nothing"


def is_worth_saying(line: str) -> bool:
    """Return whether a line that came before the server was ready is to be seen although it did start."""
    match = _LINE.fullmatch(line.strip())
    return match is not None and match[1] == "#" and not _NOISE.search(match[2])


class ServerLog(Protocol):
    """Takes what one life of a server says."""

    level: str

    @property
    def output(self) -> IO[Any]:
        """The file to which the server writes."""

    def spawned(self) -> None:
        """Hear that the server has the file now."""

    def ready(self) -> None:
        """Hear that the server has started."""

    def tail(self, *, ended: bool = False) -> str:
        """Return the end of what it said."""

    def close(self) -> None:
        """Let go of it."""


class KeptLog:
    """Keeps warnings in a file that has no name."""

    level = "warning"

    def __init__(self) -> None:
        self.output: IO[Any] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the server

    def spawned(self) -> None:
        """Do nothing."""

    def ready(self) -> None:
        """Do nothing."""

    def tail(self, *, ended: bool = False) -> str:
        """Return the end of what it said."""
        end = self.output.seek(0, os.SEEK_END)
        self.output.seek(max(0, end - _TAIL))
        return str(self.output.read().decode(errors="replace").strip())

    def close(self) -> None:
        """Let go of it."""
        self.output.close()


class RelayedLog:
    """Hands lines on to a file of text, those of the start only if they matter.

    Parameters
    ----------
    to : file
        Where they go.
    """

    level = "notice"

    def __init__(self, to: IO[Any]) -> None:
        self._to = to
        self._held: list[str] | None = []
        self._last: deque[str] = deque(maxlen=_LINES)
        reader, writer = os.pipe()
        self.output: IO[Any] = os.fdopen(writer, "wb", buffering=0)
        self._thread = Thread(target=self._read, args=(reader,), name="redist-server-log", daemon=True)

    def spawned(self) -> None:
        """Begin to read; the end of the server is the end of the log."""
        self.output.close()
        self._thread.start()

    def ready(self) -> None:
        """Hand on from now on."""
        held, self._held = self._held, None
        for line in held or ():
            if is_worth_saying(line):
                self._say(line)

    def tail(self, *, ended: bool = False) -> str:
        """Return the end of what it said."""
        if ended and self._thread.ident is not None:
            self._thread.join(_LAST_WORDS)
        return "".join(list(self._last))[-_TAIL:].strip()

    def close(self) -> None:
        """Say what is left."""
        self.output.close()
        if self._thread.ident is not None:
            self._thread.join(_LAST_WORDS)

    def _read(self, reader: int) -> None:
        # A server whose log nobody reads would stand still once the pipe is full: whatever comes, read on.
        with os.fdopen(reader, "r", errors="replace") as lines:
            for line in lines:
                self._last.append(line)
                held = self._held
                if held is not None:
                    held.append(line)
                elif not _NOISE.search(line):
                    self._say(line)

    def _say(self, line: str) -> None:
        try:
            self._to.write(line)
            self._to.flush()
        except (OSError, ValueError):
            pass  # who read it has gone
