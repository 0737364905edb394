"""What the tests of redist.memory share."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Container, Coroutine, Iterable
from types import FrameType
from typing import Any

from redist.memory.directory import SegmentDirectory
from redist.memory.headers import Header
from redist.memory.writer import SegmentWriter

TOKEN = "00ff" * 8


class Bytes:
    """A payload of plain bytes."""

    def __init__(self, data: bytes, contains: tuple[str, ...] = (), pieces: int = 1) -> None:
        self.data = data
        self.nbytes = len(data)
        self.type = "bytes"
        self.contains = contains
        self.pieces = pieces

    def chunks(self) -> Iterable[bytes]:
        step = max(1, -(-len(self.data) // self.pieces))
        for start in range(0, len(self.data), step):
            yield self.data[start : start + step]


def store(
    directory: SegmentDirectory,
    name: str,
    attempt: int,
    data: bytes,
    contains: tuple[str, ...] = (),
    writer: int = 1,
) -> str:
    """Put a payload of the process `writer` into a directory, as its worker would; return its path."""
    header = Header(name, attempt, len(data), "bytes", contains)
    ((grant, reserved),) = directory.grants.grant([header.file_size], writer)
    path = directory.path_of(name, attempt)
    with SegmentWriter(grant, header) as segment:
        segment.write([data])
        segment.publish(path)
    assert directory.add(name, attempt, reserved, writer)
    return path


def forked(work: Callable[[], object], *, kill_at: int = 0, files: Container[str] = ()) -> int:
    """Run `work` in a forked child, killed before the line number `kill_at` that it runs in `files`; return its pid."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if kill_at:
            sys.settrace(killer(kill_at, files))
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def killer(kill_at: int, files: Container[str]) -> Callable[..., Any]:
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code.co_filename not in files:
            return None
        if event == "line" and next(lines) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


class Loop:
    """An event loop in a thread: the worker's side of a test whose other side blocks."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def settle(self) -> None:
        async def nothing() -> None:
            for _ in range(5):
                await asyncio.sleep(0.005)

        self.run(nothing())

    def close(self) -> None:
        self.settle()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
