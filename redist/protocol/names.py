"""Short names for people: of types, and of functions."""

from __future__ import annotations

import functools
import re
import sys
from typing import Any

__all__ = ["MAX_NAME", "function_label", "type_name"]

MAX_NAME = 48
_NOT_LABEL = re.compile(r"[^\w.\-]+")


def type_name(kind: type) -> str:
    """Return the name under which people know a class, in at most `MAX_NAME` characters: ``int``, ``pandas.DataFrame``.

    Parameters
    ----------
    kind : type
        The class.
    """
    module = kind.__module__
    name = kind.__qualname__
    if module == "builtins":
        return _cut(name)
    root = module.partition(".")[0]
    if root != module and getattr(sys.modules.get(root), name, None) is kind:
        module = root
    return _cut(f"{module}.{name}")


def function_label(function: Any) -> str:
    """Return a short label for a function, fit to begin a key: letters, digits, ``_``, ``.`` and ``-`` only.

    Parameters
    ----------
    function : callable
        The function; a partial has the label of what it calls, a method that of its class and itself.
    """
    while isinstance(function, functools.partial):
        function = function.func
    owner = getattr(function, "__self__", None)
    name = getattr(function, "__name__", None) or type(function).__name__
    if owner is not None and hasattr(function, "__func__"):
        kind = owner if isinstance(owner, type) else type(owner)
        name = f"{kind.__name__}.{name}"
    return _NOT_LABEL.sub("", str(name))[:MAX_NAME] or "task"


def _cut(name: str) -> str:
    if not name.isprintable():
        name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= MAX_NAME else "..." + name[3 - MAX_NAME :]
