"""Receiving payloads, without I/O: bytes come in by ``get_buffer`` and ``buffer_updated`` (as in asyncio).

An answer to GET is, for each payload in the order of the request, one frame ``[None, name, attempt, nbytes, type, contains,
zeros]`` followed by exactly ``nbytes`` raw bytes, which the zeros have begin at a multiple of 64 of the answer; or one frame
``[[error, text]]``. Where the bytes go is the sink's affair; one that refuses a payload (no space) has its bytes skipped,
and the others of the request arrive all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from redist.errors import RedistError, SegmentCorrupt, SegmentError, SegmentsFull, TransferError
from redist.memory.arena import is_small
from redist.memory.directory import SegmentDirectory
from redist.memory.frames import LENGTH_BYTES, MAX_FRAME, error_of, frame_length, unpack_body
from redist.memory.headers import Header, header_of
from redist.memory.private import BLOCK, allocate
from redist.memory.writer import SegmentWriter

__all__ = [
    "PIECE",
    "STRAIGHT",
    "FrameReceiver",
    "PayloadReceiver",
    "PrivateSink",
    "Received",
    "SegmentSink",
    "Sink",
    "Target",
]

PIECE = 256 * 1024
"""Most bytes that one receive asks for which are stored elsewhere: they stay in the processor's cache until then."""

STRAIGHT = 96 * 1024
"""The same of those that come straight to where they belong. The receiver keeps the socket locked during a call, and what
the sender brings then queues up: 200 MiB came at 3.3 GB/s in pieces of 1 MiB, at 3.7 in pieces of 128 KiB, at 4.0 in pieces
of 96 KiB, and no faster in pieces of 64 KiB. In a send less is slower: see `redist.memory.data_messages.SEND_STRAIGHT`."""

#: Largest payload, in bytes, that shares a block of private memory with others.
MOST_SHARED = 256 << 10
ALIGNMENT = 64  # of buffers in payloads, and of payloads in an answer


@dataclass(frozen=True, slots=True)
class Received:
    """A payload that arrived.

    Parameters
    ----------
    header : Header
        What it is.
    view : memoryview or None
        Its bytes in private memory, which may be written to if no other payload shares it; None if they went into a
        segment.
    """

    header: Header
    view: memoryview | None


class Target(Protocol):
    """Takes the bytes of one payload."""

    @property
    def view(self) -> memoryview | None:
        """Memory to receive straight into; None: call `write` instead."""

    def write(self, piece: memoryview) -> None:
        """Store the next bytes; may raise `SegmentError`."""

    def finish(self) -> Received:
        """All bytes are there."""

    def abort(self) -> None:
        """No more will come; forget what came."""


class Sink(Protocol):
    """Gives each payload a target."""

    def start(self, header: Header) -> Target:
        """Return the target of a payload; may raise `SegmentError`, as when there is no space."""


class PrivateSink:
    """Keeps the payloads of one request in memory of this process.

    Small ones share blocks, which live as long as one of them does. A block is never larger than what came before it, so
    that a payload that is asked for alone has memory of its own, nor than `BLOCK`.

    Parameters
    ----------
    on_received : callable, optional
        Called with each payload when all of it is there, while the next ones are on their way; must not raise.

    Attributes
    ----------
    shared : int
        Bytes of payloads that shared blocks so far.
    """

    def __init__(self, on_received: Callable[[Received], None] | None = None) -> None:
        self._on_received = on_received
        self._block = memoryview(b"")
        self.shared = 0

    def start(self, header: Header) -> Target:
        """Allocate memory for the payload."""
        try:
            return _PrivateTarget(header, self._take(header.nbytes), self._on_received)
        except (MemoryError, OSError, ValueError, OverflowError) as error:
            raise SegmentsFull(
                f"no memory for {header.nbytes} bytes of {header.name!r:.80}: {error}"
            ) from None

    def adopt(self, header: Header, view: memoryview) -> Received:
        """Keep a payload where it came."""
        return _PrivateTarget(header, view, self._on_received).finish()

    def _take(self, nbytes: int) -> memoryview:
        if nbytes > MOST_SHARED:
            return allocate(nbytes)
        if nbytes > len(self._block):
            self._block = allocate(max(nbytes, min(self.shared, BLOCK)))
        view = self._block[:nbytes]
        self._block = self._block[-(-nbytes // ALIGNMENT) * ALIGNMENT :]
        self.shared += nbytes
        return view


class _PrivateTarget:
    view: memoryview | None

    def __init__(
        self, header: Header, view: memoryview, on_received: Callable[[Received], None] | None
    ) -> None:
        self._header = header
        self._on_received = on_received
        self.view = view

    def write(self, piece: memoryview) -> None:
        raise NotImplementedError

    def finish(self) -> Received:
        assert self.view is not None
        view = self.view if self._header.nbytes > MOST_SHARED else self.view.toreadonly()
        received = Received(self._header, view)
        if self._on_received is not None:
            self._on_received(received)
        return received

    def abort(self) -> None:
        self.view = None


class SegmentSink:
    """Keeps payloads in a worker's segments: reserves, writes, publishes and records them.

    Parameters
    ----------
    directory : SegmentDirectory
        Where they go.
    """

    directory: SegmentDirectory
    #: sizes of the payloads for which there was no space
    refused: list[int]

    def __init__(self, directory: SegmentDirectory) -> None:
        self.refused = []
        self.directory = directory

    def start(self, header: Header) -> Target:
        """Reserve space for the payload and make its file; a small one is gathered first."""
        if is_small(header.nbytes, len(header.footer())):
            return _SmallTarget(self, header)
        return self.start_file(header)

    def start_file(self, header: Header) -> Target:
        """Reserve space for the payload and make its file."""
        try:
            return _SegmentTarget(self.directory, header)
        except SegmentsFull:
            self.refused.append(header.file_size)
            raise


class _SmallTarget:
    view: memoryview | None

    def __init__(self, sink: SegmentSink, header: Header) -> None:
        self._sink = sink
        self._header = header
        self.view = memoryview(bytearray(header.nbytes))

    def write(self, piece: memoryview) -> None:
        raise NotImplementedError

    def finish(self) -> Received:
        assert self.view is not None
        if not self._sink.directory.put_small(self._header, self.view):
            target = self._sink.start_file(self._header)
            try:
                target.write(self.view)
                target.finish()
            except BaseException:
                target.abort()
                raise
        return Received(self._header, None)

    def abort(self) -> None:
        self.view = None


class _SegmentTarget:
    def __init__(self, directory: SegmentDirectory, header: Header) -> None:
        self._directory = directory
        self._header = header
        ((self._path, self._reserved),) = directory.grants.grant([header.file_size], os.getpid())
        try:
            self._writer = SegmentWriter(self._path, header)
        except BaseException:
            directory.grants.cancel(self._path, self._reserved)
            raise
        directory.grants.writing(self._reserved)

    @property
    def view(self) -> memoryview | None:
        return self._writer.view

    def write(self, piece: memoryview) -> None:
        self._writer.write([piece])

    def finish(self) -> Received:
        header = self._header
        if self._writer.view is not None:
            self._writer.filled()
        self._writer.publish(self._directory.path_of(header.name, header.attempt))
        self._directory.add(header.name, header.attempt, self._reserved, os.getpid())
        self._directory.grants.writing(-self._reserved)
        return Received(header, None)

    def abort(self) -> None:
        self._writer.discard()
        self._directory.grants.cancel(self._path, self._reserved)
        self._directory.grants.writing(-self._reserved)


class FrameReceiver:
    """Receives one frame.

    Parameters
    ----------
    scratch : bytearray
        Memory to receive into; belongs to the connection.
    limit : int
        Largest frame that is accepted.
    """

    done: bool
    items: list[Any]

    def __init__(self, scratch: bytearray, limit: int = MAX_FRAME) -> None:
        self.done = False
        self.items = []
        self._limit = limit
        self._scratch: bytearray | memoryview = scratch
        self._start = 0
        self._end = 0

    def get_buffer(self) -> memoryview:
        """Return where the next received bytes go."""
        return memoryview(self._scratch)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Say that `nbytes` were received; raises `TransferError` or `SegmentCorrupt` if they are not ours."""
        self._end += nbytes
        items = self._next_frame()
        if items is not None:
            if self._start != self._end:
                raise TransferError(f"{self._end - self._start} bytes follow an answer")
            self.items = items
            self.done = True

    def abort(self) -> None:
        """Say that no more will come."""

    def _next_frame(self) -> list[Any] | None:
        have = self._end - self._start
        if have < LENGTH_BYTES:
            self._make_room(LENGTH_BYTES)
            return None
        length = LENGTH_BYTES + frame_length(memoryview(self._scratch)[self._start : self._end], self._limit)
        if have < length:
            self._make_room(length)
            return None
        body = memoryview(self._scratch)[self._start + LENGTH_BYTES : self._start + length]
        self._start += length
        return unpack_body(body)

    def _make_room(self, need: int) -> None:
        """Move what is left to the front; a frame that does not fit gets memory as it arrives, not as it claims."""
        have = self._end - self._start
        if self._start:
            self._scratch[:have] = self._scratch[self._start : self._end]
            self._start, self._end = 0, have
        if need > len(self._scratch) and have == len(self._scratch):
            self._scratch = bytearray(self._scratch) + bytes(
                min(need, 2 * len(self._scratch)) - len(self._scratch)
            )


class PayloadReceiver(FrameReceiver):
    """Receives the answer to a GET.

    Parameters
    ----------
    wanted : sequence of (name, attempt)
        The payloads of the request, in its order.
    sink : Sink
        Where they go.
    scratch : bytearray
        Memory to receive into; belongs to the connection.
    """

    #: one a payload, as far as the answer has come: what arrived, or what went wrong with it alone
    outcomes: list[Received | RedistError]

    def __init__(self, wanted: Sequence[tuple[str, int]], sink: Sink, scratch: bytearray) -> None:
        super().__init__(scratch)
        self.outcomes = []
        self._wanted = wanted
        self._sink = sink
        self._header: Header | None = None
        self._target: Target | None = None
        self._refused: RedistError | None = None
        self._position = 0
        self._direct = False
        self.done = not wanted

    def get_buffer(self) -> memoryview:
        """Return where the next received bytes go."""
        view = self._target_view()
        if view is not None:
            return view
        if self._start == self._end:
            self._start = self._end = 0
        return memoryview(self._scratch)[self._end :]

    def _target_view(self) -> memoryview | None:
        """Return where the next bytes of a payload go straight, None if they cannot."""
        view = self._target.view if self._target is not None and self._start == self._end else None
        self._direct = view is not None
        return None if view is None else view[self._position : self._position + STRAIGHT]

    def buffer_updated(self, nbytes: int) -> None:
        """Say that `nbytes` were received.

        Raises
        ------
        TransferError, SegmentCorrupt
            If the stream is not what was asked for; the connection is of no further use.
        """
        if self._direct:
            self._position += nbytes
            self._finish_if_whole()
            return
        self._end += nbytes
        while not self.done:
            if self._header is not None:
                if self._start == self._end or not self._take_bytes(self._header):
                    return
            else:
                items = self._next_frame()
                if items is None:
                    return
                self._take_frame(items)
        if self._start != self._end:
            raise TransferError(f"{self._end - self._start} bytes follow an answer")

    def abort(self) -> None:
        """Say that no more will come: the payload on its way is forgotten."""
        target, self._target = self._target, None
        self._header = None
        if target is not None:
            target.abort()

    def _take_frame(self, items: list[Any]) -> None:
        name, attempt = self._wanted[len(self.outcomes)]
        if items[0] is not None:
            error = error_of(items[0])
            assert error is not None
            self._settle(error)
            return
        padded = len(items) == 7 and type(items[6]) is bytes
        header = header_of(items[1:6] if padded else items[1:], "an answer")
        if (header.name, header.attempt) != (name, attempt):
            raise SegmentCorrupt(
                f"asked for {name!r:.80} attempt {attempt}, got {header.name!r:.80} {header.attempt}"
            )
        self._header = header
        self._position = 0
        self._refused = None
        self._begin(header)

    def _begin(self, header: Header) -> None:
        """Find out where the bytes of a payload go."""
        try:
            self._target = self._sink.start(header)
        except SegmentError as error:
            self._refused = error
        self._finish_if_whole()

    def _take_bytes(self, header: Header) -> bool:
        """Store what has come of a payload; return False if nothing can be done before more comes."""
        count = min(self._end - self._start, header.nbytes - self._position)
        piece = memoryview(self._scratch)[self._start : self._start + count]
        target = self._target
        if target is not None:
            if target.view is not None:
                target.view[self._position : self._position + count] = piece
            else:
                try:
                    target.write(piece)
                except SegmentError as error:
                    self._refuse(target, error)
        self._start += count
        self._position += count
        self._finish_if_whole()
        return True

    def _refuse(self, target: Target, error: RedistError) -> None:
        self._refused = error
        self._target = None
        target.abort()

    def _finish_if_whole(self) -> None:
        if self._header is None or self._position < self._header.nbytes:
            return
        target, self._target = self._target, None
        outcome: Received | RedistError | None = self._refused
        if target is not None:
            try:
                outcome = target.finish()
            except SegmentError as error:
                target.abort()
                outcome = error
        assert outcome is not None
        self._settle(outcome)

    def _settle(self, outcome: Received | RedistError) -> None:
        self._header = None
        self.outcomes.append(outcome)
        self.done = len(self.outcomes) == len(self._wanted)
