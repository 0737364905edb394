"""How tasks are to be run: what a call says, what `dask.annotate` says around it, and annotations of single keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from redist.dask_options import check_fifo_timeout
from redist.imported import imported
from redist.store.keys import decode_key
from redist.submitting import How, Options

__all__ = ["Annotations", "how_to_run"]


def how_to_run(
    workers: str | Iterable[str] | None = None,
    resources: Mapping[str, float] | None = None,
    retries: int | None = None,
    priority: float | None = 0,
    allow_other_workers: bool | None = False,
    fifo_timeout: float | str = 0,
) -> How | None:
    """Return how the tasks of a call are to be run: as it says, else as the annotations do that it is made in.

    Raises
    ------
    TypeError, ValueError
        If something is wrong with it.
    """
    if fifo_timeout != "100 ms":
        check_fifo_timeout(fifo_timeout)
    options = None
    if workers is not None or resources or retries or priority or allow_other_workers:
        options = Options(workers, resources, retries, priority, allow_other_workers)
    dask: Any = imported("dask")  # who annotates has imported it
    if dask is None or not (annotations := dask.get_annotations()):
        return options
    said = {
        "workers": workers,
        "resources": resources,
        "retries": retries,
        "priority": priority,
        "allow_other_workers": allow_other_workers,
    }
    return _ByName(Annotations({**annotations, **{word: value for word, value in said.items() if value}}, {}))


class _ByName:
    """Annotations of tasks by their wire names."""

    def __init__(self, annotations: Annotations) -> None:
        self._annotations = annotations

    def of(self, name: str) -> Options | None:
        """Return what holds for the task of a wire name."""
        return self._annotations.of(decode_key(name))


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
