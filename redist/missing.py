"""What a user of Dask may look for and not find: methods that are not there yet, and arguments that there are not."""

from __future__ import annotations

from collections.abc import Iterable

from redist.errors import UnknownArgument

__all__ = ["NEVER", "NOT_YET", "check_options", "why_not"]

NOT_YET = frozenset(
    {
        "recreate_error_locally", "recreate_task_locally", "register_worker_plugin",
    }
)  # fmt: skip
"""Methods of Dask's client that this one lacks. What only a scheduler process could do is not among them."""


_NO_LOOP = (
    "there is no loop in another thread: an asynchronous client runs in the caller's, another one in none"
)

NEVER = {
    "benchmark_hardware": "nothing here goes by such figures: `python -m bench` of the source measures them, run() whatever "
    "else",
    "amm": "there is no active memory manager: replicate() and replicas= keep copies, nothing else is copied",
    "loop": _NO_LOOP,
    "io_loop": _NO_LOOP,
    "scheduler": "there is no scheduler process: scheduler_info() tells of the cluster, `url` is the server's address",
    "start": "a client starts as it is made; `await client` if it is asynchronous",
    "sync": _NO_LOOP,
}
"""Attributes of Dask's client that this one will never have, and why."""


def why_not(name: str) -> str:
    """Return what an `AttributeError` says of one of `NOT_YET` or `NEVER`, the empty string for any other."""
    if name in NOT_YET:
        return f"redist's Client has no `{name}` yet (docs/dask-api.md has all names)"
    return f"redist's Client has no `{name}`: {NEVER[name]}" if name in NEVER else ""


def check_options(client: type, given: Iterable[str]) -> None:
    """Refuse keywords of a client that neither it nor a local cluster takes.

    Raises
    ------
    UnknownArgument
        If there is one: a TypeError, and a ValueError as Dask's; it names the nearest that there is.
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
            raise UnknownArgument(
                f"{client.__name__} has no argument {name!r}"
                + (f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}")
            )
