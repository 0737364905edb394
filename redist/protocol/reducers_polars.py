"""Reducers for polars: large frames and series inside other values go as Arrow's buffers, which polars itself would copy."""

from __future__ import annotations

from typing import Any

from redist.protocol.reducers import Reducer
from redist.protocol.sizes import OUT_OF_BAND

__all__ = ["reducers"]


def reducers() -> dict[type, Reducer]:
    """Return the reducers by class."""
    import polars

    return {polars.DataFrame: _reduce, polars.Series: _reduce}


def _reduce(obj: Any, _sink: Any) -> Any:
    if obj.estimated_size() < OUT_OF_BAND:
        return NotImplemented
    import polars
    import pyarrow as pa

    from redist.protocol.arrow import polars_table

    try:
        table = polars_table(obj)
    except (NotImplementedError, pa.ArrowException):
        return NotImplemented
    return _load, (table, isinstance(obj, polars.Series))


def _load(table: Any, series: bool) -> Any:
    from redist.protocol.arrow import polars_frame

    frame = polars_frame(table)
    return frame.to_series(0) if series else frame
