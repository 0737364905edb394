"""The calls by which callers coordinate: locks, events, queues, variables, topics.

A request has a *token* that its caller made, and stays known to the server until the caller leaves it. So a call may be made
again, on another lane too: it changes nothing then, and is answered as the request stands.
"""

from __future__ import annotations

from collections.abc import Sequence

from redist.store.calls import Call
from redist.store.scripts import load

__all__ = [
    "LOCK", "MAY_OPEN", "OPEN", "acquire", "announce", "await_event", "close_queue", "delete_variable", "get",
    "get_variable", "hark", "leave", "open_queue", "put", "quit_", "set_event", "set_variable", "shut", "standing",
]  # fmt: skip

OPEN, MAY_OPEN, LOCK = 0, 1, 2
"""How `acquire` takes a name: the semaphore is open already, it is to be opened, or it is known while it is in use only."""


def acquire(
    token: str,
    names: Sequence[str],
    *,
    leases: int = 1,
    how: int = LOCK,
    wait: bool = True,
    need: int | None = None,
) -> Call:
    """Ask for `need` of the names, for all by default: answers how many are missing, 0: granted, -1: not without waiting."""
    count = len(names) if need is None else need
    return Call(load("acquire"), [token, leases, how, int(wait), count, *names], grows=True, ageless=True)


def leave(tokens: Sequence[str], *, taken: bool = False) -> Call:
    """End requests: what was given is given back, unless it is `taken`. Answers how many there were, and how many stay."""
    return Call(load("leave"), [int(taken), *tokens], ageless=True)


def shut(name: str) -> Call:
    """Close a semaphore; answers how many hold or want a lease."""
    return Call(load("shut"), [name], ageless=True)


def quit_(keep: str) -> Call:
    """End all requests of this caller whose tokens do not begin with `keep`."""
    return Call(load("quit"), [keep], ageless=True)


def standing(kind: str, name: str) -> Call:
    """Read leases that are held (``lock``), whether it is set (``event``), items (``queue``) or subscribers (``topic``)."""
    return Call(load("standing"), [kind, name], numbered=False)


# --- events ---------------------------------------------------------------------------------------------------------


def set_event(name: str, value: bool) -> Call:
    """Set or clear an event."""
    return Call(load("set_event"), [name, int(value)], ageless=True)


def await_event(token: str, name: str, *, wait: bool = True) -> Call:
    """Wait for an event: answers 1: it is set, or was since; 0: not yet; -1: not, and we do not wait."""
    return Call(load("await_event"), [token, name, int(wait)], grows=True, ageless=True)


# --- variables ------------------------------------------------------------------------------------------------------


def set_variable(name: str, value: bytes, contains: Sequence[str] = ()) -> Call:
    """Give a variable a value."""
    return Call(load("set_variable"), [name, value, *contains], grows=True)


def get_variable(token: str, name: str, *, wait: bool = True) -> Call:
    """Read a variable: answers its record and value, kept until the request is left; nothing while it has none."""
    return Call(load("get_variable"), [token, name, int(wait)])


def delete_variable(name: str) -> Call:
    """Take a variable's value away."""
    return Call(load("delete_variable"), [name])


# --- queues ---------------------------------------------------------------------------------------------------------


def open_queue(name: str, maxsize: int) -> Call:
    """Note that this client uses a queue; the first one's `maxsize` counts."""
    return Call(load("open_queue"), [name, maxsize], grows=True, ageless=True)


def close_queue(name: str) -> Call:
    """Use a queue no more; the last who does so empties it."""
    return Call(load("close_queue"), [name], ageless=True)


def put(
    token: str, name: str, value: bytes, contains: Sequence[str] = (), *, maxsize: int = 0, wait: bool = True
) -> Call:
    """Put an item into a queue: answers 1: it is in, 0: not yet, -1: it is full, and we do not wait."""
    return Call(load("put"), [token, name, maxsize, int(wait), value, *contains], grows=True)


def get(token: str, name: str, *, most: int = 1, maxsize: int = 0, wait: bool = True) -> Call:
    """Get up to `most` items: answers their values, none while there are none. They are ours once we `leave` them taken."""
    return Call(load("get"), [token, name, maxsize, most, int(wait)])


# --- topics ---------------------------------------------------------------------------------------------------------


def announce(name: str, value: bytes, contains: Sequence[str] = ()) -> Call:
    """Publish a message under a topic; answers how many are subscribed."""
    return Call(load("announce"), [name, value, *contains], grows=True)


def hark(token: str, name: str, last: int = 0, *, more: bool = True) -> Call:
    """Subscribe, or read on behind message number `last`: answers the number to go on from, and values.

    Without `more` it only says what was read.
    """
    return Call(load("hark"), [token, name, last, int(more)], ageless=True)
