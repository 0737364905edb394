"""What a user of Dask may look for and not find: methods that are not there yet, and arguments that there are not."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["NOT_YET", "check_options", "not_yet"]

NOT_YET = frozenset(
    {
        "benchmark_hardware", "recreate_error_locally", "recreate_task_locally", "register_worker_plugin",
    }
)  # fmt: skip
"""Methods of Dask's client that this one lacks. What only a scheduler process could do is not among them."""


def not_yet(name: str) -> str:
    """Return what an `AttributeError` says of one of `NOT_YET`."""
    return f"redist's Client has no `{name}` yet (docs/dask-api.md has all names)"


def check_options(client: type, given: Iterable[str]) -> None:
    """Refuse keywords of a client that neither it nor a local cluster takes.

    Raises
    ------
    TypeError
        If there is one; it names the nearest that there is.
    """
    from difflib import get_close_matches
    from inspect import signature

    from redist.cluster import LocalCluster

    known = {
        name: None
        for kind in (client, LocalCluster)
        for name in signature(kind).parameters
        if name != "kwargs"
    }
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            raise TypeError(
                f"{client.__name__} has no argument {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}")
            )
