"""How large a value may be that lies in the server itself."""

from __future__ import annotations

import warnings

from redist import config
from redist.memory.amounts import parse_bytes
from redist.protocol import INLINE_LIMIT

__all__ = ["inline_limit"]

#: What arguments and functions may have counts on the least; values in messages on the most.
_LEAST, _MOST = INLINE_LIMIT, 64 << 10


def inline_limit() -> int:
    """Return the setting ``inline-limit`` in bytes.

    It is for whoever writes a value to know: who reads it sees where it lies. So it may differ between processes.
    """
    given = config.get("inline-limit")
    try:
        limit = given if isinstance(given, int) else parse_bytes(str(given))
    except ValueError as error:
        warnings.warn(f"the setting inline-limit: {error}; 4 KiB is taken", stacklevel=2)
        return _LEAST
    if not _LEAST <= limit <= _MOST:
        limit = max(_LEAST, min(_MOST, limit))
        warnings.warn(
            f"the setting inline-limit is 4 KiB to 64 KiB, not {given!r}; {limit} bytes are taken",
            stacklevel=2,
        )
    return limit
