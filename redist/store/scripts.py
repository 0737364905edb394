"""Load the Lua scripts and resolve what they include.

One operation is one file ``scripts/NAME.lua``; a line ``-- @include PART`` brings in ``scripts/include/PART.lua`` once,
after whatever that part includes itself. A script pays for every closure that it creates, at every call. So a part with a
line ``-- @lazy`` becomes a function that runs when an operation of ``S`` is first missed, and what an operation does above
a line ``-- @general`` runs ahead of all parts but those marked ``-- @first``: the plain cases end there.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cache

__all__ = ["Script", "load", "names", "sharded"]

_FOLDER = os.path.join(os.path.dirname(__file__), "scripts")
_INCLUDE = re.compile(r"^--\s*@include\s+([a-z_]+)\s*$", re.MULTILINE)
_LAZY = re.compile(r"^--\s*@lazy\s*$", re.MULTILINE)
_FIRST = re.compile(r"^--\s*@first\s*$", re.MULTILINE)
_GENERAL = re.compile(r"^--\s*@general\s*$", re.MULTILINE)
_OPERATION = re.compile(r"^function S\.([a-z_]+)\(", re.MULTILINE)
_COMMENT = re.compile(r"^\s*--.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script as the server knows it.

    Attributes
    ----------
    name : str
        The operation, which is also the name of its file.
    text : str
        The whole text, includes resolved and comments dropped.
    sha : str
        SHA-1 of `text`, the name under which ``EVALSHA`` finds it.
    """

    name: str
    text: str
    sha: str


def names() -> list[str]:
    """Return the names of all scripts, sorted."""
    return sorted(name[:-4] for name in os.listdir(_FOLDER) if name.endswith(".lua"))


@cache
def load(name: str) -> Script:
    """Return the script `name` with its includes resolved.

    Raises
    ------
    FileNotFoundError
        If there is no such script or a part that it includes is missing.
    ValueError
        If parts include each other in a circle.
    """
    parts: dict[str, str] = {}
    body = _resolve(_read(f"{name}.lua"), parts, ())
    plain, general = _GENERAL.split(body) if _GENERAL.search(body) else ("", body)
    first = [text for text in parts.values() if _FIRST.search(text)]
    lazy = {part: text for part, text in parts.items() if _LAZY.search(text)}
    others = [text for part, text in parts.items() if part not in lazy and text not in first]
    declarations = [f"lazy.{part} = function()\n{text}\nend" for part, text in lazy.items()]
    declare = ["declare = function()", *declarations, "end"] if lazy else []
    text = "\n".join([*first, plain, *others, *declare, general])
    owners = (
        f" {operation}={part} " for part, text in lazy.items() for operation in _OPERATION.findall(text)
    )
    text = text.replace("--[[OWNERS]]", "".join(owners))
    text = re.sub(r"\n{2,}", "\n", _COMMENT.sub("", text)).strip() + "\n"
    return _script(name, text)


@cache
def sharded(script: Script) -> Script:
    """Return `script` as a Cluster runs it: what it publishes stays in the shard of the namespace."""
    return _script(script.name, script.text.replace("call('PUBLISH'", "call('SPUBLISH'"))


def _script(name: str, text: str) -> Script:
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _resolve(text: str, parts: dict[str, str], path: tuple[str, ...]) -> str:
    """Return `text` without its include lines, after adding to `parts`, in order, whatever it includes."""
    for part in _INCLUDE.findall(text):
        if part in path:
            raise ValueError(f"scripts include each other in a circle: {' -> '.join((*path, part))}")
        if part not in parts:
            resolved = _resolve(_read(f"include/{part}.lua"), parts, (*path, part))
            parts[part] = resolved
    return _INCLUDE.sub("", text)


def _read(path: str) -> str:
    # importlib.resources would take 15 ms to import
    with open(os.path.join(_FOLDER, path), encoding="utf-8") as file:
        return file.read()
