"""What stays in a namespace, whoever leaves, because nobody has taken it away."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from redist.diagnostics.reading import Snapshot

__all__ = ["what_stays"]

#: Names that are told; of more only how many.
_MOST = 5


def what_stays(snapshot: Snapshot) -> Iterator[str]:
    """Say which variables, items of queues and events nobody waits for, or has open, and what ends them.

    Locks and leases are not among them: they end with who holds them.
    """
    keys = set(snapshot.keys())
    waits = {key.removeprefix("waits:") for key in keys if key.startswith("waits:")}
    variables = [name for name in snapshot.hgetall("variables") if f"variable {name}" not in waits]
    if variables:
        yield f"{_told('variable', variables)}: a value stays until delete() is called"
    queues = [key.removeprefix("items:") for key in keys if key.startswith("items:")]
    unused = [name for name in queues if f"openers:queue {name}" not in keys]
    if unused:
        items = sum(len(snapshot.zrange(f"items:{name}")) for name in unused)
        have = f"{'has' if len(unused) == 1 else 'have'} {items:,} item{'' if items == 1 else 's'}"
        yield f"{_told('queue', unused)} {have}, and no client is there that opened it: items stay until get() or close()"
    events = [name for name in snapshot.smembers("events") if f"event {name}" not in waits]
    if events:
        yield f"{_told('event', events)} {'is' if len(events) == 1 else 'are'} set: that stays until clear() is called"


def _told(what: str, names: Iterable[str]) -> str:
    from redist.store.keys import decode_key

    known = sorted(names)
    if len(known) == 1:
        return f"the {what} {decode_key(known[0])!r}"
    shown = ", ".join(repr(decode_key(name)) for name in known[:_MOST])
    more = f" and {len(known) - _MOST:,} others" if len(known) > _MOST else ""
    return f"{len(known):,} {what}s, {shown}{more}"
