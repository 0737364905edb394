"""What the two ends of a data connection say to each other after `redist.memory.hello`, as lists in frames.

======= ================================= ==========================================================================
request sent                              answered
======= ================================= ==========================================================================
GET     [1, name, attempt, ...]           for each: [None, header..., zeros] and the bytes, or [[error, text]]
PUT     [2, [header...], ...]             [None or [error, text]...]; then the client sends the bytes of the accepted
                                          ones one after the other; then [None or [error, text]...]
DROP    [3, name, attempt, ...]           [0]
======= ================================= ==========================================================================

A header is ``name, attempt, nbytes, type, contained names``. Bytes travel raw, outside of frames, exactly as many as the
header says.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

from redist.errors import TransferError
from redist.memory.writer import PayloadLike, header_for

__all__ = ["DROP", "GET", "PUT", "SEND_PIECE", "SEND_STRAIGHT", "pieces_of", "put_request", "send_all"]

GET, PUT, DROP = 1, 2, 3

SEND_PIECE = 512 * 1024
"""Bytes of small payloads that are sent together."""

SEND_STRAIGHT = 1024 * 1024
"""Most bytes of a large one that are given to one send. Between two processes that did nothing else 200 MiB went at 3.9 GB/s
in pieces of 1 MiB, at 2.7 in pieces of 256 KiB, and at 3.0 in pieces of 4 MiB."""

_WORTH_A_SEND = 64 * 1024


def put_request(items: Sequence[tuple[str, int, PayloadLike]]) -> list[Any]:
    """Return the PUT request for payloads (name, attempt, payload)."""
    headers = [header_for(name, attempt, payload) for name, attempt, payload in items]
    return [PUT, *(header.fields for header in headers)]


def send_all(sock: socket.socket, pieces: list[bytes | memoryview]) -> None:
    """Send pieces, joined only where they are encrypted; a timeout of the socket is for some progress, not for all."""
    if isinstance(sock, ssl.SSLSocket):
        sock.sendall(b"".join(pieces) if len(pieces) > 1 else pieces[0] if pieces else b"")
        return
    while pieces:
        sent = sock.sendmsg(pieces)
        done = 0
        while done < len(pieces) and sent >= len(pieces[done]):
            sent -= len(pieces[done])
            done += 1
        pieces = pieces[done:]
        if sent:
            pieces[0] = memoryview(pieces[0])[sent:]


def pieces_of(payload: PayloadLike) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a payload in pieces that are worth a send each."""
    gathered = bytearray()
    left = payload.nbytes
    for chunk in payload.chunks():
        view = memoryview(chunk)
        if not view.nbytes:
            continue
        view = view.cast("B")
        left -= view.nbytes
        if left < 0:
            break
        if view.nbytes < _WORTH_A_SEND:
            gathered += view
            if len(gathered) < SEND_PIECE:
                continue
            view = view[:0]
        if gathered:
            yield bytes(gathered)
            gathered.clear()
        for start in range(0, view.nbytes, SEND_STRAIGHT):
            yield view[start : start + SEND_STRAIGHT]
    if gathered:
        yield bytes(gathered)
    if left:
        raise TransferError(f"a payload announced {payload.nbytes} bytes and gave {payload.nbytes - left}")
