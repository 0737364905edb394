"""Receiving many small payloads, most of which stay where they came; without I/O.

They come into blocks, with the frames between them, and each is where buffers may begin, as its frame was filled up with
zeros. So nothing is copied but what lies across the end of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

from redist.errors import SegmentError, SegmentsFull
from redist.memory.headers import Header
from redist.memory.private import BLOCK, allocate
from redist.memory.receive import ALIGNMENT, MOST_SHARED, PayloadReceiver, PrivateSink

__all__ = ["AdoptingReceiver"]

#: Least room of a block, in bytes, that is worth a receive.
_LEAST = 128 << 10
#: Most bytes that one receive asks for: as many as there are, since what comes of a server was sent in small pieces.
_A_RECEIVE = 1 << 20


class AdoptingReceiver(PayloadReceiver):
    """Receives the answer to a GET into private memory; see `PayloadReceiver`.

    The first payloads are copied out of `scratch`, as many as fill a block: few ones do not keep a block.
    """

    def __init__(self, wanted: Sequence[tuple[str, int]], sink: PrivateSink, scratch: bytearray) -> None:
        super().__init__(wanted, sink, scratch)
        self._private = sink
        self._adopting = False
        #: bytes of the answer so far
        self._total = 0

    def get_buffer(self) -> memoryview:
        """Return where the next received bytes go."""
        if not self._adopting and self._private.shared < BLOCK:
            return super().get_buffer()
        view = self._target_view()
        if view is not None:
            return view
        if self._adopting and self._start == self._end:
            self._start = self._end = self._end + (self._total - self._end) % ALIGNMENT
        if not self._adopting or len(self._scratch) - self._end < _LEAST:
            self._turn_over(0)
        return memoryview(self._scratch)[self._end : self._end + _A_RECEIVE]

    def buffer_updated(self, nbytes: int) -> None:
        """Say that `nbytes` were received; see `PayloadReceiver`."""
        self._total += nbytes
        super().buffer_updated(nbytes)

    def _begin(self, header: Header) -> None:
        if not self._adopting or not 0 < header.nbytes <= MOST_SHARED:
            super()._begin(header)

    def _take_bytes(self, header: Header) -> bool:
        if self._target is not None or self._refused is not None:
            return super()._take_bytes(header)
        start, end = self._start, self._start + header.nbytes
        if self._end < end:
            if end > len(self._scratch):
                self._turn_over(header.nbytes)
            return False
        view = memoryview(self._scratch)[start:end]
        self._start = end
        try:
            if start % ALIGNMENT:  # of a server that does not fill up frames
                target = self._sink.start(header)
                assert target.view is not None
                target.view[:] = view
                self._settle(target.finish())
            else:
                self._settle(self._private.adopt(header, view))
        except SegmentError as error:
            self._settle(error)
        return True

    def _make_room(self, need: int) -> None:
        if not self._adopting:
            super()._make_room(need)
        elif self._start + need > len(self._scratch):
            self._turn_over(need)

    def _turn_over(self, need: int) -> None:
        """Go on in a new block, with what is left of this one, and with room for `need` bytes from there on."""
        left = memoryview(self._scratch)[self._start : self._end]
        start = (self._total - len(left)) % ALIGNMENT
        size = max(BLOCK, start + max(need, len(left)) + _LEAST)
        try:
            block = allocate(size)
        except (MemoryError, OSError, ValueError) as error:
            raise SegmentsFull(f"no memory for {size} bytes of payloads: {error}") from None
        block[start : start + len(left)] = left
        self._scratch, self._start, self._end = block, start, start + len(left)
        self._adopting = True
