"""What the server answers and pushes, and how it is read.

Replies are lists; the first item says what became of the call:

========== ====================================================================================================
``OK``     applied. The second item is 1 when slices of work are left: send `continue_` until it answers 0.
``REPEAT`` n was applied before. Layout as ``OK``, content as far as state or a stored answer can give it.
``GAP``    n is too large; the second item is the last n applied. Send again from there.
``UNKNOWN`` the incarnation is not registered: register anew.
``OLD``    the call is of an older generation (second item: the present one): acknowledged, never applied.
``WAIT``   a restart is being carried out; n is not used. Send `continue_`, then the same call again.
``NO``     refused: code and message follow; n is used up.
========== ====================================================================================================

Error replies of the server (``NOSCRIPT``, ``OOM``, ``BUSY``, ``LOADING`` ...) leave n unanswered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = [
    "Beat", "HandOut", "Registered", "State", "Turn", "parse_commit", "parse_dataset", "parse_heartbeat", "parse_place",
    "parse_push", "parse_register", "parse_states", "parse_tasks", "parse_turn",
]  # fmt: skip


class Registered(NamedTuple):
    """What `register` answers; `adopted` says whether a named session's holdings are there to be taken up."""

    ordinal: int
    generation: int
    attempt: int
    adopted: bool
    secret: str


def parse_register(reply: Sequence[Any]) -> Registered:
    """Return what a `register` reply says."""
    return Registered(int(reply[2]), int(reply[3]), int(reply[4]), bool(int(reply[5])), reply[6].decode())


class HandOut(NamedTuple):
    """One task given to an executor.

    `deps` are (name, where, value): `where` is empty for an inline value, else ``WORKER.ATTEMPT ...`` and `value` is the
    size in bytes as text. `more_deps` counts dependencies that were too many to list; ask `dependencies` and `states`.
    """

    batch: int
    attempt: int
    name: str
    fn: str
    spec: bytes
    deps: list[tuple[str, str, bytes]]
    more_deps: int


class Turn(NamedTuple):
    """The answer of `turn`."""

    more: bool
    tasks: list[HandOut]


def parse_turn(reply: Sequence[Any]) -> Turn:
    """Return what a `turn` reply brings."""
    return Turn(bool(reply[1]), parse_tasks(reply, 2))


def parse_tasks(items: Sequence[Any], start: int) -> list[HandOut]:
    """Return the hand-outs of a flat list, from index `start`; of a ``turn`` reply or a ``t`` push."""
    tasks = []
    i, end = start, len(items)
    while i < end:
        n = int(items[i + 5])
        deps: list[tuple[str, str, bytes]] = []
        attempt = int(items[i + 1])
        head = (int(items[i]), attempt, items[i + 2].decode(), items[i + 3].decode(), items[i + 4])
        i += 6
        if n > 0:
            for _ in range(n):
                deps.append((items[i].decode(), items[i + 1].decode(), items[i + 2]))
                i += 3
        tasks.append(HandOut(*head, deps, -n if n < 0 else 0))
    return tasks


def parse_place(reply: Sequence[Any]) -> list[tuple[int, int]]:
    """Return (attempt, worker ordinal) for each value."""
    first = int(reply[2])
    return [(first + i, int(worker)) for i, worker in enumerate(reply[3:])]


def parse_commit(reply: Sequence[Any]) -> list[str]:
    """Return the names whose payload was not taken: the key is in memory already, the worker drops the new file."""
    return [name.decode() for name in reply[2:]]


def parse_dataset(reply: Sequence[Any]) -> tuple[str, bytes]:
    """Return the name of the version's record and its pickle."""
    return reply[2].decode(), reply[3]


class Beat(NamedTuple):
    """What a heartbeat answers: `pushed` and `n` are the server's last ones, `agree` whether the counts do."""

    generation: int
    pushed: int
    n: int
    more: bool
    agree: bool


def parse_heartbeat(reply: Sequence[Any]) -> Beat:
    """Return what a heartbeat reply says."""
    return Beat(int(reply[2]), int(reply[3]), int(reply[4]), bool(reply[1]), bool(int(reply[5])))


class State(NamedTuple):
    """What is known of one key; an absent key has state ``forgotten``.

    The attempt of an ``erred`` one is 1 if it was never wholly told of: who has the task submits it again.
    """

    name: str
    state: str
    attempt: int
    nbytes: int
    type: str
    where: str
    value: bytes


def parse_states(reply: Sequence[Any]) -> list[State]:
    """Return the states in a `states` reply."""
    return parse_push(reply, 2)


def parse_push(items: Sequence[Any], start: int = 2) -> list[State]:
    """Return the states of a flat list, from index `start`; of a ``states`` reply or an ``s`` push."""
    return [
        State(
            items[i].decode(),
            items[i + 1].decode(),
            int(items[i + 2] or 0),
            int(items[i + 3] or 0),
            items[i + 4].decode(),
            items[i + 5].decode(),
            items[i + 6],
        )
        for i in range(start, len(items), 7)
    ]
