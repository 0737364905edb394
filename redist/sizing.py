"""How many workers of which size a local cluster has."""

from __future__ import annotations

import math
import warnings

from redist import config
from redist.memory.amounts import parse_bytes
from redist.memory.limits import configured_limits, small_limit_warning
from redist.memory.machine import cores, memory_of_machine

__all__ = ["check_limit", "limit", "server_limit", "shape"]


def shape(n_workers: int | None, threads: int | None, executors: int) -> tuple[int, int]:
    """Return the numbers of workers and of threads of each, as Dask chooses them."""
    for what, number, least in (
        ("n_workers", n_workers, 0),
        ("threads_per_worker", threads, 1),
        ("executors", executors, 1),
    ):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise TypeError(f"{what}={number!r:.80}: a whole number from {least}")
        if number is not None and number < least:
            raise ValueError(f"{what}={number!r}: a whole number from {least}")
    count = cores()
    if n_workers is None and threads is None:
        if count <= 4:
            return max(1, count // executors), 1
        n_workers = min(n for n in range(1, count + 1) if count % n == 0 and n >= math.sqrt(count))
    if n_workers is None:
        assert threads is not None
        n_workers = max(1, count // (threads * executors))
    if threads is None:
        threads = max(1, count // (n_workers * executors)) if n_workers else 1
    return n_workers, threads


def limit(memory_limit: int | float | str | None, threads: int) -> str:
    """Return a worker's limit as its command takes it: bytes, or ``0`` for none.

    Parameters
    ----------
    memory_limit : int, float, str or None
        Bytes, a fraction of the memory, or text. ``'auto'`` and None are the worker's share of it by its threads.
    threads : int
        Threads of all the worker's executors.
    """
    if memory_limit is None or memory_limit == "auto":
        return str(int(memory_of_machine() * min(1.0, threads / cores())))
    if isinstance(memory_limit, float) and 0 < memory_limit <= 1:
        return str(int(memory_limit * memory_of_machine()))
    if not isinstance(memory_limit, int | float | str):
        raise TypeError(f"memory_limit is a number of bytes or text such as '4GiB', not {memory_limit!r:.80}")
    # Refused here, not by workers that end at once.
    if isinstance(memory_limit, str):
        return str(parse_bytes(memory_limit))
    if not 0 <= memory_limit < 2**63:
        raise ValueError(f"{memory_limit!r} is no amount of memory")
    return str(int(memory_limit))


def check_limit(memory_limit: str, executors: int) -> None:
    """Warn of a limit that is less than a worker's processes need, and refuse what each worker would.

    Raises
    ------
    ConfigurationError
        If no value could be kept, or a setting of ``worker.memory`` is none.
    """
    warning = small_limit_warning(int(memory_limit), executors, configured_limits())
    if warning:
        warnings.warn(warning, stacklevel=3)


def server_limit(amount: int | float | str | None) -> int | None:
    """Return the bytes at which a server is full that is started here: `amount`, or the setting ``server.maxmemory``.

    Raises
    ------
    TypeError, ValueError
        If it is no amount of memory.
    """
    amount = config.get("server.maxmemory") if amount is None else amount
    if amount is None or (isinstance(amount, int) and not isinstance(amount, bool)):
        return amount
    if isinstance(amount, bool) or not isinstance(amount, float | str):
        raise TypeError(f"maxmemory is a number of bytes or text such as '2GiB', not {amount!r:.80}")
    return parse_bytes(str(amount))
