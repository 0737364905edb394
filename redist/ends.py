"""Exit codes that workers, the commands and whoever starts them agree on."""

from __future__ import annotations

__all__ = ["HOPELESS", "REFUSED", "RETIRED", "UNAVAILABLE", "USAGE"]

USAGE = 2
"""Wrong arguments."""

UNAVAILABLE = 69
"""The server cannot be reached: trying again may help. As in sysexits.h, which service managers know."""

REFUSED = 78
"""The server refuses it, or it is set up wrongly: trying again will not help. As in sysexits.h."""

RETIRED = 79
"""Of a worker that was retired: it is not to be started again."""

HOPELESS = frozenset({USAGE, REFUSED})
"""Those of a worker that would only fail again."""
