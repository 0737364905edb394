"""Functions of Dask's that need records which nobody keeps here, and `span`, whose labels nobody collects."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from redist.errors import NotOffered

__all__ = ["get_task_metadata", "get_task_stream", "performance_report", "span"]

_INSTEAD = (
    "when each task ran is not recorded: a WorkerPlugin's transition() hears of every task in the process that runs it, and "
    "worker.log_event() there with client.subscribe_topic() brings what it notes to the client"
)


def get_task_stream(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise `NotOffered`: when tasks ran is not recorded."""
    raise NotOffered(_INSTEAD)


def get_task_metadata() -> NoReturn:
    """Raise `NotOffered`: when tasks ran is not recorded."""
    raise NotOffered(_INSTEAD)


def performance_report(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise `NotOffered`: there is nothing of which a report could be made."""
    raise NotOffered(f"there is no report of what ran: {_INSTEAD}")


@contextmanager
def span(*tags: str) -> Iterator[str]:
    """Annotate the tasks of graphs that are made in this context, and give the id of the span.

    Parameters
    ----------
    *tags : str
        Names; spans may be nested. ``dask.get_annotations()["span"]`` has all names and ids.

    Notes
    -----
    There is no scheduler that would collect figures by span.
    """
    import dask

    if not tags:
        raise ValueError("a span has one tag at least")
    outer = dask.get_annotations().get("span") or {"name": (), "ids": ()}
    ids = tuple(str(uuid.uuid4()) for _ in tags)
    with dask.annotate(span={"name": (*outer["name"], *tags), "ids": (*outer["ids"], *ids)}):
        yield ids[-1]
