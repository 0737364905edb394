"""Exit codes that workers and whoever starts them agree on."""

from __future__ import annotations

__all__ = ["RETIRED"]

RETIRED = 79
"""Of a worker that was retired: it is not started again."""
