"""Calls for what is kept beside keys: metadata, events and plugins. See `redist.store.calls`."""

from __future__ import annotations

from collections.abc import Sequence

from redist.store.calls import Call
from redist.store.scripts import load

__all__ = ["MOST_EVENTS", "drop_plugin", "events", "log_event", "put_plugin", "set_metadata"]

MOST_EVENTS = 1000
"""How many events a topic keeps."""


def set_metadata(name: str, value: bytes, *, seen: bytes | None = None) -> Call:
    """Set metadata, if they are still as they were `seen`, empty for none; ``NO changed`` otherwise."""
    return Call(load("set_metadata"), [name, int(seen is not None), seen or b"", value], grows=True)


def log_event(event: bytes, topics: Sequence[str]) -> Call:
    """Log an event under topics."""
    return Call(load("log_event"), [MOST_EVENTS, event, *topics], grows=True, ageless=True)


def events(topic: str, after: int) -> Call:
    """Read the events of a topic behind the first `after`, none for -1: ``OK`` how many there ever were, ``MS EVENT``."""
    return Call(load("events"), [topic, after], numbered=False)


def put_plugin(name: str, plugin: bytes, *, once: bool) -> Call:
    """Keep a plugin: ``OK`` 0 and its number, 0 if with `once` there was one already."""
    return Call(load("put_plugin"), [name, int(once), plugin], grows=True, ageless=True)


def drop_plugin(name: str) -> Call:
    """Keep a plugin no more. ``NO unknown`` if there is none."""
    return Call(load("drop_plugin"), [name], ageless=True)
