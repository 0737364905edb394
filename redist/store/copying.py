"""The calls that concern copies of values: how many there should be, where they should be, and which may go."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

from redist.store.calls import Call
from redist.store.scripts import load

__all__ = [
    "Copies", "Order", "Sole", "copies", "drop_surplus", "move", "not_copied", "parse_copies", "parse_order",
    "parse_surplus", "replicate", "retire", "sole",
]  # fmt: skip

Plan = Literal["", "workers", "hosts"]


def replicate(
    names: Sequence[str],
    wanted: int = 0,
    *,
    at_least: bool = False,
    again: bool = False,
    branching: int = 2,
    plan: Plan = "",
    most: int = 0,
    workers: Sequence[str] = (),
) -> Call:
    """Say how many copies there should be, or which workers should have one.

    Parameters
    ----------
    names : sequence of str
        Keys; those that are not in memory on workers are passed over.
    wanted : int
        So many copies are kept from now on, whatever becomes of workers; 0: as many as before.
    at_least : bool
        Whether a larger number of before stays.
    again : bool
        Whether it is said once more to a server that lost its memory: one that has not knows better. Goes with `at_least`.
    branching : int
        How many copies are made of one at a time.
    plan : {'', 'workers', 'hosts'}
        Which copies are made now beyond that: on `most` of the workers, or one a host on `most` hosts.
    most : int
        See `plan`.
    workers : sequence of str
        Names, addresses, hosts or ordinals of those that `plan` is about; all by default. ``NO workers`` if none runs.
    """
    body = [wanted, 2 if again else int(at_least), branching, plan, most, len(workers), *workers, *names]
    return Call(load("replicate"), body, grows=True)


class Copies(NamedTuple):
    """What there is of one value: `holders` are the running workers that have it, `coming` counts copies on their way."""

    there: bool
    holders: tuple[int, ...]
    coming: int
    wanted: int


def copies(names: Sequence[str]) -> Call:
    """Read how many copies of values there are and will be."""
    return Call(load("copies"), list(names), numbered=False)


def parse_copies(reply: Sequence[Any]) -> list[Copies]:
    """Return what a `copies` reply says, in the order of the keys."""
    return [
        Copies(bool(reply[i]), tuple(map(int, reply[i + 1].split())), int(reply[i + 2]), int(reply[i + 3]))
        for i in range(2, len(reply), 4)
    ]


class Order(NamedTuple):
    """A copy that a worker is asked for, with the data servers that have it, the best first."""

    name: str
    attempt: int
    nbytes: int
    addresses: list[str]


def parse_order(items: Sequence[Any]) -> list[Order]:
    """Return what a control message ``copy`` asks for, without its first word."""
    return [
        Order(items[i], int(items[i + 1]), int(items[i + 2]), items[i + 3].split())
        for i in range(0, len(items), 4)
    ]


def not_copied(names: Iterable[str]) -> Call:
    """Report copies that this worker was asked for and cannot make."""
    return Call(load("not_copied"), list(names), ageless=True)


def drop_surplus(replicas: Iterable[tuple[str, int]]) -> Call:
    """Ask which of this worker's copies (name, attempt) may go, since there are enough others; those are its no more."""
    body: list[Any] = []
    for replica in replicas:
        body += replica
    return Call(load("drop_surplus"), body, ageless=True)


def parse_surplus(reply: Sequence[Any], replicas: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return those of the `replicas` that a `drop_surplus` asked about that are to be unlinked."""
    return [replica for replica, goes in zip(replicas, reply[2:]) if goes]


def move(moves: Iterable[tuple[str, int, int]]) -> Call:
    """Have copies move: (name, ordinal of the sender, ordinal of the receiver)."""
    body: list[Any] = []
    for each in moves:
        body += each
    return Call(load("move"), body, grows=True)


def retire(workers: Sequence[int], *, close: bool = True) -> Call:
    """Have workers get no more tasks, and others copy what only they have; with `close` they end when all is done."""
    return Call(load("retire"), [int(close), *workers], ageless=True)


def sole(worker: int, cursor: int = 0) -> Call:
    """Read what of a closing worker's values others have too few copies of, or none, a slice at a time; see `Sole`."""
    return Call(load("sole"), [worker, cursor], numbered=False)


class Sole(NamedTuple):
    """What slices of a closing worker's values come to, so far.

    Attributes
    ----------
    cursor : int
        Of the next slice; 0: it is all.
    running : int
        Workers that run.
    left : int
        Values of which they have too few copies.
    values, nbytes : int
        Those of which they have none, and their bytes.
    lost : int
        Those of them that nothing can compute again.
    names : tuple of str
        Some of these.
    """

    cursor: int
    running: int
    left: int
    values: int
    nbytes: int
    lost: int
    names: tuple[str, ...]

    @classmethod
    def nothing(cls) -> Sole:
        """Return what no slice comes to."""
        return cls(0, 0, 0, 0, 0, 0, ())

    def add(self, reply: Sequence[Any]) -> Sole:
        """Return what it comes to with one slice more."""
        cursor, running, left, count, nbytes, lost = map(int, reply[2:8])
        names = self.names + tuple(name.decode() for name in reply[8:])
        return Sole(
            cursor, running, self.left + left, self.values + count, self.nbytes + nbytes, self.lost + lost, names[:3]
        )  # fmt: skip
