"""What the invariants are checked on: everything of a namespace, read and sorted by kind."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from redist.diagnostics.reading import Reader

__all__ = ["Namespace", "Violation"]


class Violation(NamedTuple):
    """One broken invariant: the rule's name, the key or caller that breaks it, and what was found."""

    rule: str
    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.subject!r} {self.message}"


class Namespace:
    """What was read, by kind.

    Parameters
    ----------
    read : Reader
        What reads the namespace.

    Attributes
    ----------
    keys : dict
        What follows the colon in the names of Redis keys, by family.
    known : dict
        Record of each key, by name.
    caller : dict
        Record of each caller, by ordinal.
    living : dict
        Registered callers by kind: ordinal -> name.
    meta : dict
        The namespace's own record.
    wiping, recovering : bool
        Whether a restart is being carried out; whether callers may still bring what the server lost.
    """

    def __init__(self, read: Reader) -> None:
        self.read = read
        self.keys: dict[str, list[str]] = defaultdict(list)
        for key in read.keys():  # noqa: SIM118
            family, colon, rest = key.partition(":")
            self.keys[family + colon].append(rest)
        self.known = {name: read.hgetall(f"key:{name}") for name in self.keys["key:"]}
        self.meta = read.hgetall("meta")
        self.caller = {ordinal: read.hgetall(f"caller:{ordinal}") for ordinal in self.keys["caller:"]}
        self.living = {kind: read.hgetall(f"{kind}s") for kind in ("client", "worker", "executor")}
        self.wiping = "wiping" in self.meta
        self.recovering = "recovering" in self.meta

    def sets(self, family: str) -> dict[str, set[str]]:
        """Return the sets of one family by what follows the colon."""
        return {name: self.read.smembers(f"{family}:{name}") for name in self.keys[f"{family}:"]}
