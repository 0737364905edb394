"""What tasks print, on its way to the clients."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from redist.printing import STDERR, STDOUT

__all__ = ["Output", "Tee"]

_FLUSH_AT = 16 * 1024


class Output:
    """Collects text written to stdout and stderr, and sends it in small batches.

    `flush` is called before results are handed in, so that output arrives ahead of the result that it belongs to. What a
    long task prints is sent by whoever watches `fileno`, which becomes readable when there is something to send.

    Parameters
    ----------
    send : callable
        Called with a stream, as `redist.printing` has them, and encoded text or what else is sent there. If it raises
        `OSError`, that is dropped.
    echo : bool
        Whether text also goes where it went before; not if a client prints it to the same terminal.
    """

    def __init__(self, send: Callable[[int, bytes], None], *, echo: bool = True) -> None:
        self._send = send
        self._echo = echo
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._thread = threading.local()
        self._parts: list[tuple[int, str]] = []
        self._size = 0
        self._readable, self._writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        """Return the descriptor that is readable when there is something to send."""
        return self._readable

    @property
    def waiting(self) -> bool:
        """Whether there is something to send."""
        return bool(self._parts)

    @contextlib.contextmanager
    def here_only(self) -> Iterator[None]:
        """Send nothing of what the calling thread writes meanwhile."""
        self._thread.silent = True
        try:
            yield
        finally:
            self._thread.silent = False

    def add(self, stream: int, text: str) -> None:
        """Take text that was written to `stream`."""
        if getattr(self._thread, "silent", False):
            return
        with self._lock:
            first = not self._parts
            self._parts.append((stream, text))
            self._size += len(text)
            full = self._size >= _FLUSH_AT
        if first:
            try:
                os.write(self._writable, b"x")
            except BlockingIOError:
                pass
        if full:
            self.flush()

    def flush(self) -> None:
        """Send what was collected."""
        with self._sending:
            with self._lock:
                parts, self._parts, self._size = self._parts, [], 0
                try:
                    os.read(self._readable, 4096)
                except BlockingIOError:
                    pass
            at = 0
            while at < len(parts):
                stream = parts[at][0]
                until = at
                while until < len(parts) and parts[until][0] == stream:
                    until += 1
                text = "".join(part for _, part in parts[at:until])
                at = until
                with contextlib.suppress(OSError):
                    self._send(stream, text.encode(errors="backslashreplace"))

    def send(self, stream: int, data: bytes) -> None:
        """Send something else, behind what was written before."""
        self.flush()
        with self._sending, contextlib.suppress(OSError):
            self._send(stream, data)

    def install(self) -> None:
        """Put `Tee` streams in place of ``sys.stdout`` and ``sys.stderr``."""
        sys.stdout = Tee(sys.stdout, STDOUT, self, echo=self._echo)
        sys.stderr = Tee(sys.stderr, STDERR, self, echo=self._echo)


class Tee(io.TextIOBase):
    """A text stream that also hands to an `Output` what is written.

    Parameters
    ----------
    original : text stream
        Where the text goes as before.
    stream : int
        1 for stdout, 2 for stderr.
    output : Output
        Where it goes too.
    echo : bool
        False: it goes to `output` only.
    """

    def __init__(self, original: TextIO, stream: int, output: Output, *, echo: bool = True) -> None:
        self._echo = echo
        self._original = original
        self._stream = stream
        self._output = output

    def write(self, text: str) -> int:
        """Take `text`."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._echo:
            try:
                self._original.write(text)
            except (OSError, ValueError):  # the terminal that the worker was started from is gone
                pass
        if text:
            self._output.add(self._stream, text)
        return len(text)

    def flush(self) -> None:
        """Flush the original."""
        try:
            self._original.flush()
        except (OSError, ValueError):
            pass

    def fileno(self) -> int:
        """Return the original's descriptor."""
        return self._original.fileno()

    def isatty(self) -> bool:
        """Return whether the original is a terminal."""
        return self._original.isatty()

    def writable(self) -> bool:
        """Return True."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The original's encoding."""
        return self._original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The original's handling of encoding errors."""
        return self._original.errors

    @property
    def buffer(self) -> Any:
        """The original's binary buffer; what is written there is not forwarded."""
        return self._original.buffer
