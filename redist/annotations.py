"""How the tasks of a Dask graph are to be run: what a call says, and what annotations say of single keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redist.submitting import Options

__all__ = ["Annotations"]


class Annotations:
    """How the tasks of a graph are to be run.

    Parameters
    ----------
    common : mapping
        What holds for all: ``workers``, ``allow_other_workers``, ``resources``, ``retries``, ``priority``, each maybe a
        function of the key. What else is in it concerns somebody else.
    by_key : mapping of mapping
        For each of these words what holds for some keys.
    """

    _WORDS = ("workers", "allow_other_workers", "resources", "retries", "priority")

    def __init__(self, common: Mapping[str, Any], by_key: Mapping[str, Mapping[Any, Any]]) -> None:
        self._common = {word: common[word] for word in self._WORDS if common.get(word)}
        self._by_key = {word: by_key[word] for word in self._WORDS if by_key.get(word)}
        self._known: dict[str, Options | None] = {}
        if not any(map(callable, self._common.values())):
            self._options(dict(self._common))  # what is wrong with it is said at the call

    def of(self, key: Any) -> Options | None:
        """Return the options of one task."""
        if not self._common and not self._by_key:
            return None
        how = {word: value(key) if callable(value) else value for word, value in self._common.items()}
        for word, values in self._by_key.items():
            value = values.get(key)
            if value is not None:
                how[word] = value
        return self._options(how)

    def _options(self, how: dict[str, Any]) -> Options | None:
        text = repr(how)
        if text not in self._known:
            if not how.get("workers"):
                how.pop("allow_other_workers", None)
                how.pop("workers", None)
            self._known[text] = Options(**how) if any(how.values()) else None
        return self._known[text]
