"""Writing a segment: into a granted file, which gets the payload's name only when it is complete.

Bytes go into a fresh file by ``pwritev``: on a full file system that is ENOSPC, where a mapping would end in SIGBUS.
(Allocating first by ``posix_fallocate`` would say so earlier, but costs 4% of the rate, and space was reserved before.) For
large ones other threads help (`redist.memory.new_pages`). A recycled file has its memory, and is written through a mapping,
which the process keeps (`redist.memory.kept`).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType
from typing import Protocol

from redist.errors import SegmentError
from redist.memory.descriptors import Descriptor, open_owned
from redist.memory.headers import Header
from redist.memory.kept import Kept, keeper
from redist.memory.locks import try_lock
from redist.memory.new_pages import LEAST_SHARED, write_shared
from redist.memory.space import available, full_error

__all__ = ["PayloadLike", "SegmentWriter", "header_for"]

_OPEN = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_CHUNKS_A_CALL = 256
_BYTES_A_CALL = 64 << 20


class PayloadLike(Protocol):
    """What is written: an object of known size, as `redist.protocol` makes it."""

    @property
    def nbytes(self) -> int:
        """Exact size in bytes."""

    @property
    def type(self) -> str:
        """Short type name for people."""

    @property
    def contains(self) -> tuple[str, ...]:
        """Wire names of the keys whose Futures are inside."""

    def chunks(self) -> Iterable[memoryview | bytes]:
        """Return its bytes, in pieces."""


def header_for(name: str, attempt: int, payload: PayloadLike) -> Header:
    """Return the header of `payload` as attempt `attempt` of the key `name`."""
    return Header(name, attempt, payload.nbytes, payload.type, payload.contains)


class SegmentWriter:
    """Writes one payload into a file that was granted.

    As a context manager it discards the file unless it was published.

    Parameters
    ----------
    path : str
        The granted file; made if it is missing, overwritten if it is a recycled one.
    header : Header
        What is written; its ``nbytes`` must be met exactly.
    """

    path: str
    header: Header
    #: size of payload and footer; the file of a recycled one may be larger
    size: int

    def __init__(self, path: str, header: Header) -> None:
        self.path = path
        self.header = header
        self._footer = header.footer()
        self.size = header.file_size
        self._offset = 0
        self._file: Descriptor | None = None
        self._recycled = False
        self._kept: Kept | None = None
        try:
            self._open()
        except BaseException as error:
            self.discard()
            if isinstance(error, OSError):
                raise self._failed(error) from error
            raise

    def _open(self) -> None:
        try:
            self._kept = keeper.make(self.path, self.size)
            if self._kept is None:
                self._file = open_owned(self.path, _OPEN | os.O_CREAT | os.O_EXCL)
            return
        except FileExistsError:
            pass
        self._kept = keeper.open(self.path)
        if self._kept is not None and self._kept.size < self.size:
            self._kept.close()
            self._kept = None
        if self._kept is None:
            self._file = open_owned(self.path, _OPEN)
            self._recycled = try_lock(self._file.fileno())
            if self._recycled:
                fcntl.flock(self._file, fcntl.LOCK_UN)
            else:  # somebody reads it still: it is theirs
                self._file.close()
                self._file = None
                os.unlink(self.path)
                self._file = open_owned(self.path, _OPEN | os.O_CREAT | os.O_EXCL)

    @property
    def view(self) -> memoryview | None:
        """Memory for the whole payload, to be written instead of calling `write`, before `filled`; None: there is none."""
        return None if self._kept is None else self._kept.view[: self.header.nbytes]

    def filled(self) -> None:
        """Say that all of `view` was written."""
        self._offset = self.header.nbytes

    def write(self, chunks: Iterable[memoryview | bytes]) -> None:
        """Append `chunks`; may be called several times.

        Raises
        ------
        SegmentsFull
            If the file system is full.
        SegmentError
            If there are more bytes than announced.
        """
        batch: list[memoryview | bytes] = []
        waiting = 0
        for chunk in chunks:
            view = memoryview(chunk)
            if not view.nbytes:
                continue
            if view.format != "B" or view.ndim != 1:
                view = view.cast("B")
            if self._kept is not None:
                self._check(view.nbytes)
                self._kept.copy(self._offset, view)
                self._offset += view.nbytes
                continue
            if not self._recycled and view.nbytes >= LEAST_SHARED:
                self._flush(batch, waiting)
                batch, waiting = [], 0
                self._write_shared(view)
                continue
            batch.append(view)
            waiting += view.nbytes
            if len(batch) >= _CHUNKS_A_CALL or waiting >= _BYTES_A_CALL:
                self._flush(batch, waiting)
                batch, waiting = [], 0
        if self._kept is None and self._offset + waiting == self.header.nbytes:
            # the footer rides along with the last chunks
            batch.append(self._footer)
            waiting += len(self._footer)
        if batch:
            self._flush(batch, waiting)

    def publish(self, path: str) -> None:
        """Give the complete file its name; it becomes visible to readers whole.

        Raises
        ------
        SegmentError
            If fewer bytes were written than announced.
        """
        if self._kept is not None and self._offset == self.header.nbytes:
            self._kept.view[-len(self._footer) :] = self._footer
            self._offset = self.size
        elif self._offset != self.size:
            if self.header.nbytes or self._offset:
                raise SegmentError(
                    f"{self.path}: payload of {self.header.name!r:.80} announced {self.header.nbytes} bytes,"
                    f" wrote {self._offset}"
                )
            self._flush([self._footer], len(self._footer))
        try:
            if self._file is not None and self._recycled:
                os.ftruncate(self._file.fileno(), self.size)
            if self._kept is not None:
                self._kept.unlock()  # a reader that finds it locked takes it for evicted
            os.rename(self.path, path)
        except OSError as error:
            raise self._failed(error) from error
        # In this order: an interrupt between the two must not have what is kept closed.
        kept, self._kept = self._kept, None
        if kept is not None:
            keeper.keep(kept)
        elif self._file is not None:
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Remove the unpublished file; nothing happens after `publish`."""
        if self._file is not None or self._kept is not None:
            file, self._file = self._file, None
            kept, self._kept = self._kept, None
            if file is not None:
                file.close()
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            if kept is not None:
                kept.discard()

    def __enter__(self) -> SegmentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.discard()

    def _check(self, nbytes: int) -> None:
        if self._offset + nbytes > (self.size if self._kept is None else self.header.nbytes):
            raise SegmentError(
                f"{self.path}: payload of {self.header.name!r:.80} announced {self.header.nbytes} bytes and is larger"
            )

    def _flush(self, batch: list[memoryview | bytes], nbytes: int) -> None:
        if not nbytes:
            return
        self._check(nbytes)
        assert self._file is not None
        fd = self._file.fileno()
        try:
            while True:
                written = os.pwritev(fd, batch, self._offset)
                self._offset += written
                nbytes -= written
                if not nbytes:
                    return
                batch = _rest_of(batch, written)
        except OSError as error:
            raise self._failed(error) from error

    def _write_shared(self, view: memoryview) -> None:
        self._check(view.nbytes)
        assert self._file is not None
        try:
            write_shared(self._file.fileno(), view, self._offset, self.size)
        except OSError as error:
            raise self._failed(error) from error
        self._offset += view.nbytes

    def _failed(self, error: OSError) -> SegmentError:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EFBIG):
            directory = os.path.dirname(self.path)
            with suppress(FileNotFoundError):  # its worker ended meanwhile
                return full_error(directory, self.size, 0, available(directory))
        return SegmentError(f"{self.path}: cannot be written: {error.strerror}")


def _rest_of(batch: list[memoryview | bytes], written: int) -> list[memoryview | bytes]:
    """Return what a short write left of `batch`."""
    for index, chunk in enumerate(batch):
        if written < len(chunk):
            return [memoryview(chunk)[written:], *batch[index + 1 :]]
        written -= len(chunk)
    return []
