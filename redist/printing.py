"""`print` and `warn`: what a task says is said by its clients, too."""

from __future__ import annotations

import builtins
import logging
import sys
import warnings
from typing import Any, TextIO

from redist.imported import imported
from redist.protocol.whole import dump_whole, load_whole

__all__ = ["STDERR", "STDOUT", "WARNING", "print", "say", "warn"]

#: What a process that runs tasks sends to clients: text of its standard streams, or a pickled warning and its category.
STDOUT, STDERR, WARNING = 1, 2, 3

logger = logging.getLogger("redist.client")


def print(  # noqa: A001  # as in Dask
    *args: Any,
    sep: str | None = " ",
    end: str | None = "\n",
    file: TextIO | None = None,
    flush: bool = False,
) -> None:
    """Print as the built-in `print`; in a task to the same stream of each client too, as the built-in one does there.

    Parameters
    ----------
    *args, sep, end, flush
        As of the built-in one.
    file : text stream, optional
        In a task ``sys.stdout`` or ``sys.stderr``.

    Raises
    ------
    TypeError
        In a task, if `file` is another one.
    """
    if _worker() is not None and file not in (None, sys.stdout, sys.stderr):
        raise TypeError(
            f"in a task, file is sys.stdout or sys.stderr, which clients have, too, not {file!r:.80}; the built-in print "
            "writes into files of the worker"
        )
    builtins.print(*args, sep=sep, end=end, file=file, flush=flush)


def warn(
    message: str | Warning,
    category: type[Warning] | None = UserWarning,
    stacklevel: int = 1,
    source: Any = None,
) -> None:
    """Warn as `warnings.warn`; in a task each client warns, too, by its own filters.

    Parameters
    ----------
    message, category
        As of `warnings.warn`.
    stacklevel, source
        As of `warnings.warn`, for the worker: to a client they mean nothing.
    """
    worker = _worker()
    if worker is None:
        warnings.warn(message, category, stacklevel + 1, source)
        return
    if isinstance(message, Warning) or category is None or issubclass(category, Warning):
        worker.output.send(WARNING, dump_whole((message, category)))
    with worker.output.here_only():
        warnings.warn(message, category, stacklevel + 1, source)


def say(stream: int, worker: str, data: bytes) -> None:
    """Print what a task printed, or warn as it did. Called back by the session."""
    if stream != WARNING:
        file = sys.stderr if stream == STDERR else sys.stdout
        builtins.print(data.decode(errors="replace"), end="", file=file, flush=True)
        return
    try:
        message, category = load_whole(data)
        warnings.warn(message, category, stacklevel=2)
    except Exception:  # a filter may make it one
        logger.exception("a warning of a task on the worker %s could not be given", worker)


def _worker() -> Any:
    """Return the worker of this process if it runs tasks."""
    local = imported("redist_worker.local")
    return None if local is None else local.get_local()
