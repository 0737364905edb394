"""The functions of a `submit` that is made already: which it names, and which it brings."""

from __future__ import annotations

from collections.abc import Mapping

from redist.store.calls import Call

__all__ = ["brought", "named", "supply"]

_COUNT = 1  # index in the body: how many functions there are
_FIRST = 4  # index of the first one's hash, before its pickle


def named(call: Call) -> list[str]:
    """Return the hashes of the functions that the tasks of `call` name."""
    body = call.body
    return list(body[_FIRST : _FIRST + 2 * body[_COUNT] : 2])


def brought(call: Call) -> list[str]:
    """Return the hashes of the functions whose pickles `call` brings."""
    body = call.body
    return [body[i] for i in range(_FIRST, _FIRST + 2 * body[_COUNT], 2) if body[i + 1]]


def supply(call: Call, pickles: Mapping[str, bytes], sent: set[str]) -> None:
    """Have `call` bring the functions that are not among the `sent` ones, and note them there."""
    body = call.body
    for i in range(_FIRST, _FIRST + 2 * body[_COUNT], 2):
        fn = body[i]
        if fn not in sent:
            if not body[i + 1]:
                body[i + 1] = pickles.get(fn, b"")
            if body[i + 1]:
                sent.add(fn)
