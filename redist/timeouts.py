"""Spans of time as users write them."""

from __future__ import annotations

import datetime
import re

from redist.errors import InvalidTimeSpan

__all__ = ["seconds"]

_TEXT = re.compile(r"\s*(\d*\.?\d+(?:e-?\d+)?)?\s*([a-zµ]*)\s*", re.IGNORECASE)
_UNITS = {
    "": 1.0, "s": 1.0, "sec": 1.0, "second": 1.0, "ms": 1e-3, "millisecond": 1e-3, "us": 1e-6, "µs": 1e-6,
    "microsecond": 1e-6, "m": 60.0, "min": 60.0, "minute": 60.0, "h": 3600.0, "hr": 3600.0, "hour": 3600.0, "d": 86400.0,
    "day": 86400.0, "w": 604800.0, "week": 604800.0,
}  # fmt: skip


def seconds(timeout: float | str | datetime.timedelta | None) -> float | None:
    """Return a span of time in seconds: a number, text such as ``'2s'`` or ``'100 ms'``, a `timedelta`, or None.

    Raises
    ------
    InvalidTimeSpan
        If the text is not understood: a ValueError, and a KeyError as Dask's.
    TypeError
        If it is none of these.
    """
    if timeout is None or isinstance(timeout, int | float):
        return timeout
    if isinstance(timeout, datetime.timedelta):
        return timeout.total_seconds()
    if not isinstance(timeout, str):
        raise TypeError(f"a span of time is a number of seconds or text such as '2s', not {timeout!r}")
    match = _TEXT.fullmatch(timeout)
    unit = match[2].lower() if match else ""
    factor = _UNITS.get(unit) or _UNITS.get(unit.removesuffix("s") or unit)
    if match is None or factor is None or not timeout.strip():
        raise InvalidTimeSpan(f"{timeout!r} is no span of time; write '2s', '100 ms', '5 minutes'")
    return float(match[1] or 1) * factor
