"""What this process has imported already, of libraries that are not imported for a look at them."""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["imported"]


def imported(name: str) -> ModuleType | None:
    """Return a module that is imported, None if it is not, or if another thread is importing it right now."""
    module = sys.modules.get(name)
    if module is not None and getattr(getattr(module, "__spec__", None), "_initializing", False):
        return None
    return module
