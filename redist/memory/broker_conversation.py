"""One connection to a worker's local socket, without I/O: which request an answer belongs to, and what nobody waits for.

`redist.memory.broker_client` moves the bytes. Who gave up waiting is answered all the same; grants in such an answer go
back.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from redist.errors import TransferError
from redist.memory.broker_messages import ABORT, ARENA, COMMIT, LEAVE, RESERVE, Grant
from redist.memory.frames import FrameParser, error_of

__all__ = ["Answer", "Conversation", "GrantHolder"]


class GrantHolder:
    """Says what became of grants, each on the connection of its own; nobody answers that."""

    def commit(self, grants: Sequence[Grant]) -> None:
        """Say that the payloads of `grants` are published; waits for nothing."""
        _tell(COMMIT, grants)

    def abort(self, grants: Sequence[Grant]) -> None:
        """Give grants back; waits for nothing."""
        _tell(ABORT, grants)


def _tell(kind: int, grants: Sequence[Grant]) -> None:
    numbers: dict[Any, list[int]] = {}
    for grant in grants:
        numbers.setdefault(grant.connection, []).append(grant.id)
    for connection, ids in numbers.items():
        connection.send([kind, 0, *ids])


class Answer(NamedTuple):
    """The answer to one request: its number and kind, and what came: None or the fields of an error first."""

    number: int
    kind: int
    fields: list[Any]

    def get(self) -> list[Any]:
        """Return what was asked for; raise the error that came instead."""
        error = error_of(self.fields[0])
        if error is not None:
            try:
                raise error
            finally:
                del (
                    error
                )  # or its traceback refers to it, and keeps the caller's values until they are collected
        return self.fields[1:]

    def undoing(self) -> list[Any] | None:
        """Return the message to be sent if nobody waits for the answer any more, None if there is nothing to undo."""
        if self.kind == RESERVE and self.fields[0] is None:
            return [ABORT, 0, *self.fields[1::2]]
        if self.kind == ARENA and self.fields[0] is None:
            return [LEAVE, 0, *self.fields[2:]]
        return None


class Conversation:
    """The requests and answers of one connection.

    Parameters
    ----------
    address : str
        Path of the local socket, for messages.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._numbers = itertools.count(1)
        self._unanswered: dict[int, int] = {}
        self._parser = FrameParser()

    def request(self, kind: int, items: Sequence[Any]) -> tuple[int, list[Any]]:
        """Return number and message of a new request."""
        number = next(self._numbers)
        self._unanswered[number] = kind
        return number, [kind, number, *items]

    def received(self, data: bytes) -> None:
        """Take received bytes."""
        self._parser.feed(data)

    def next_answer(self) -> Answer | None:
        """Return the next whole answer, None if more bytes are needed.

        Raises
        ------
        TransferError, SegmentCorrupt
            If what came is no answer to a request of ours; the connection is of no further use.
        """
        items = self._parser.next()
        if items is None:
            return None
        kind = self._unanswered.pop(items[0], None)
        if kind is None:
            raise TransferError(f"{self._address}: answer {items[0]!r:.20} to no request of ours")
        return Answer(items[0], kind, items[1:])
