"""Loading values from where they lie: what is wrong with one names its key and its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from redist.errors import DeserializationError, SegmentError, SegmentGone
from redist.protocol.payload import Loader, loads, loads_inline
from redist.store.keys import decode_key

if TYPE_CHECKING:
    from redist.memory.reader import Mapping
    from redist.memory.receive import Received

__all__ = ["load_inline", "load_payload", "load_received", "load_small"]


def load_inline(data: bytes | memoryview, name: str) -> Any:
    """Return the value of an inline payload.

    Parameters
    ----------
    data : bytes
        The payload.
    name : str
        Wire name of its key.

    Raises
    ------
    DeserializationError
        If it is damaged, not signed, or cannot be loaded here; names the key.
    """
    try:
        return loads_inline(data)
    except DeserializationError as error:
        _raise(error, name, "an inline value")


def load_payload(
    segments: str, name: str, attempt: int, *, copy: bool = False, writable: bool = False, nbytes: int = 0
) -> Any:
    """Return the value of a payload of this host.

    Parameters
    ----------
    segments : str
        The segment directory.
    name : str
        Wire name of the key.
    attempt : int
        The attempt that made the payload.
    copy : bool
        Return a private, writable copy.
    writable : bool
        Map privately: what is written stays in this process.
    nbytes : int
        Its size, if it is known.

    Raises
    ------
    SegmentGone
        If it was evicted meanwhile.
    SegmentError, DeserializationError
        If the file cannot be read, is damaged, not signed, or cannot be loaded here; names key and file.
    """
    mapping = None
    try:
        mapping = (_open_payload or _opener())(segments, name, attempt, writable=writable, nbytes=nbytes)
        return loads(mapping.view, copy=copy, writable=writable)
    except SegmentGone:
        raise
    except (DeserializationError, SegmentError) as error:
        _raise(error, name, segments if mapping is None else mapping.path)


def load_small(
    segments: str, wanted: Sequence[tuple[str, int]], *, copy: bool = False, writable: bool = False
) -> list[tuple[bool, Any] | None]:
    """Return the values of many small payloads of this host: for each (True, value), None if it has to be loaded alone.

    Parameters
    ----------
    segments : str
        The segment directory.
    wanted : sequence of (str, int)
        Wire name of each key, and attempt.
    copy, writable : bool
        As for `load_payload`.

    Raises
    ------
    DeserializationError
        If one is damaged, not signed, or cannot be loaded here; names key and directory.
    """
    from redist.memory.payloads import read_small

    values: list[tuple[bool, Any] | None] = []
    try:
        Loader(copy=copy, writable=writable).load_all(read_small(segments, wanted), values)
    except DeserializationError as error:
        _raise(error, wanted[len(values)][0], segments)
    return values


def _opener() -> Callable[..., Mapping]:
    """Import what opens payloads, when the first is opened."""
    global _open_payload
    from redist.memory.payloads import open_payload

    _open_payload = open_payload
    return open_payload


_open_payload: Callable[..., Mapping] | None = None


def load_received(received: Received, *, writable: bool = False) -> Any:
    """Return the value of a payload that came from another host into memory of this process.

    Raises
    ------
    DeserializationError
        If it is damaged, not signed, or cannot be loaded here; names the key.
    """
    assert received.view is not None
    try:
        return loads(received.view, writable=writable)
    except DeserializationError as error:
        _raise(error, received.header.name, "fetched from another host")


def _raise(error: DeserializationError | SegmentError, name: str, where: str) -> NoReturn:
    text = str(error)
    place = "" if where in text else f" ({where})"
    raise type(error)(f"key {decode_key(name)!r:.200}{place}: {text}") from error.__cause__ or error
