"""Reducers for pandas: frames and series that are loaded know that their memory is shared, so writing copies first.

A loaded block views the read-only payload. pandas' copy on write looks whether anything else refers to a block's values
before it writes into them; a weak reference to something that never dies makes it find that, for the block and all that is
later made from it.

Arrays of strings, and others that are Arrow's, are pickled by pandas as a copy in one chunk (10 ms for a million words); one
that is a chunk already goes as it is.
"""

from __future__ import annotations

import copyreg
import weakref
from typing import Any

from redist.protocol.reducers import Reducer

__all__ = ["reducers"]


class _Payload:
    """Stands for the other user of a loaded block's memory."""


_payload = _Payload()


def reducers() -> dict[type, Reducer]:
    """Return the reducers by class."""
    from pandas.arrays import ArrowExtensionArray, ArrowStringArray
    from pandas.core.internals.blocks import NumpyBlock
    from pandas.core.internals.managers import BlockManager, SingleBlockManager

    return {
        NumpyBlock: _reduce_block,
        BlockManager: _reduce_manager,
        SingleBlockManager: _reduce_manager,
        ArrowExtensionArray: _reduce_arrow,
        ArrowStringArray: _reduce_arrow,
    }


def _reduce_manager(manager: Any, _sink: Any) -> Any:
    reduced = manager.__reduce_ex__(5)
    return _shared, reduced[:3] if len(reduced) > 2 else (*reduced, None)


def _reduce_block(block: Any, _sink: Any) -> Any:
    return block.__reduce__()  # __reduce_ex__ would copy values that are not contiguous


def _shared(make: Any, args: tuple[Any, ...], state: Any) -> Any:
    manager = make(*args)
    if state is not None:
        manager.__setstate__(state)
    for block in manager.blocks:
        flags = getattr(block.values, "flags", None)
        references = getattr(getattr(block, "refs", None), "referenced_blocks", None)
        if references is not None and not getattr(flags, "writeable", False):
            references.append(weakref.ref(_payload))
    return manager


def _reduce_arrow(array: Any, _sink: Any) -> Any:
    state = dict(vars(array))
    data: Any = state.get("_pa_array")
    if getattr(data, "num_chunks", 0) != 1:
        return NotImplemented
    state["_pa_array"] = data.chunk(0)
    if "_cache" in state:
        state["_cache"] = {}
    return copyreg.__newobj__, (type(array),), state  # type: ignore[attr-defined]
