"""The key schema of a namespace, and the wire names of users' keys.

All Redis keys of a namespace begin with ``redist:{NAMESPACE}:``; the braces are a hash tag, so that a Redis Cluster keeps a
namespace in one slot. What each key holds is drawn in ``docs/redis-schema.md``; the scripts derive the keys in
``scripts/include/names.lua``.

A user's key is a str, a tuple, a number or bytes, and travels as a *wire name*, a str without control characters: a str
as itself, a tuple as its ``repr``, numbers and bytes as theirs in parentheses: ``(5)``, where the tuple is ``(5,)``. The
key 5.0 is the key 5, as it is in a dict. Three first characters are taken (``(`` what is no str, ``@`` a record of redist's
own, ``\\`` an escape), so a str that begins with one of them, or has a control character or backslash anywhere, is escaped.
Names of other things than keys are strs and tuples only.
"""

from __future__ import annotations

import ast
import math
import re
from typing import Protocol, TypeAlias, TypeGuard

from redist.errors import InvalidKey

__all__ = [
    "BUNDLE",
    "MAX_KEY_BYTES",
    "SCHEMA",
    "Key",
    "check_namespace",
    "dataset_record",
    "decode_key",
    "encode_key",
    "prefix_of",
]

Key: TypeAlias = "str | bytes | int | float | tuple[object, ...]"

SCHEMA = 1
"""Version of the key schema, compared with ``meta`` at every registration."""

BUNDLE = "@@bundle@"
"""What the names of bundles (`redist.bundling`) begin with."""

MAX_KEY_BYTES = 16 * 1024
"""Longest wire name of a key, in bytes of UTF-8."""

_NEEDS_ESCAPE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029\\]")
_TAKEN_FIRST = "(@\\"
_ESCAPED = re.compile(r"\\(x[0-9a-f]{2}|u[0-9a-f]{4}|.)")
_DECODED = (tuple, int, float, bytes)
_NAMESPACE = re.compile(r"[A-Za-z0-9_.\-]{1,64}")
_KEY = "key"
_PLAIN = (str, int, float, bytes, bool, type(None))


def check_namespace(namespace: str) -> str:
    """Return `namespace` if it is 1 to 64 letters, digits, ``_``, ``.`` or ``-``.

    Raises
    ------
    ValueError
        Otherwise: braces or spaces would break the hash tag or an ACL rule.
    """
    if not isinstance(namespace, str) or not _NAMESPACE.fullmatch(namespace):
        raise ValueError(f"namespace {namespace!r}: use 1 to 64 letters, digits, '_', '.' or '-'")
    return namespace


def prefix_of(namespace: str) -> str:
    """Return the prefix of all Redis keys and channels of `namespace`."""
    return f"redist:{{{check_namespace(namespace)}}}:"


def encode_key(key: Key, what: str = _KEY) -> str:
    """Return the wire name of a user's key, or of what else is named by a str or tuple; errors say `what` it is.

    Raises
    ------
    InvalidKey
        If `key` is neither a str nor a tuple of plain values (nested tuples are fine), nor, as a key, a number or bytes; or
        if it is longer than `MAX_KEY_BYTES`.
    """
    if type(key) is str or isinstance(key, str):
        name = str(key)
        if not name:
            raise InvalidKey(f"a {what} cannot be the empty string")
        if _NEEDS_ESCAPE.search(name):
            name = _NEEDS_ESCAPE.sub(_escape, name)
        if name[0] in _TAKEN_FIRST and name[:2] not in ("\\x", "\\u", "\\\\"):
            name = "\\" + name
    elif isinstance(key, tuple):
        name = _literal(_plain_tuple(key, what), what)
        if _NEEDS_ESCAPE.search(name.replace("\\", "")):
            name = ascii(_plain_tuple(key, what))
    elif what is _KEY and (plain := _scalar(key)) is not None:
        name = f"({_literal(plain, what)})"
    else:
        kinds = "a str, a number, bytes, or a tuple" if what is _KEY else "a str or a tuple"
        raise InvalidKey(f"a {what} is {kinds} of plain values, not {type(key).__name__}: {key!r:.80}")
    if len(name) > MAX_KEY_BYTES or len(name.encode()) > MAX_KEY_BYTES:
        raise InvalidKey(
            f"the {what} {name[:40]!r}... is longer than {MAX_KEY_BYTES} bytes; use a shorter one"
        )
    return name


def decode_key(name: str) -> Key:
    """Return the user's key of a wire name; the inverse of `encode_key`."""
    first = name[:1]
    if first == "(":
        try:
            value = ast.literal_eval(name)
        except (ValueError, SyntaxError):  # no key that `encode_key` made
            return name
        return value if type(value) in _DECODED else name
    if "\\" in name:
        return _ESCAPED.sub(_unescape, name)
    return name


def dataset_record(name: str, version: int) -> str:
    """Return the wire name of the record that holds version `version` of the dataset with wire name `name`."""
    return f"@{name}@{version}"


def _escape(match: re.Match[str]) -> str:
    char = match[0]
    if char == "\\":
        return "\\\\"
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _unescape(match: re.Match[str]) -> str:
    text = match[1]
    return chr(int(text[1:], 16)) if len(text) > 1 else text


def _scalar(key: object) -> int | float | bytes | None:
    """Return `key` if it is a number or bytes, and its equal that is an int where there is one."""
    item = key.item() if _is_numpy_scalar(key) else key
    if type(item) is float:
        return int(item) if item.is_integer() else item if math.isfinite(item) else None
    return item if type(item) in (int, bytes) else None  # type: ignore[return-value]


def _literal(key: object, what: str) -> str:
    try:
        return repr(key)
    except ValueError as error:  # Python writes no number of so many digits
        raise InvalidKey(f"the {what} cannot be written: {error}") from None


def _plain_tuple(key: tuple[object, ...], what: str) -> tuple[object, ...]:
    items: list[object] = []
    for given in key:
        item = given.item() if _is_numpy_scalar(given) else given
        if isinstance(item, tuple):
            items.append(_plain_tuple(item, what))
        elif type(item) in _PLAIN:
            if type(item) is float and not math.isfinite(item):
                raise InvalidKey(
                    f"a tuple as a {what} cannot hold {item!r}, which is no literal: {key!r:.80}"
                )
            items.append(item)
        elif isinstance(item, str):
            items.append(str(item))
        else:
            raise InvalidKey(
                f"a tuple as a {what} holds plain values only, not {type(given).__name__}: {key!r:.80}"
            )
    return tuple(items)


def _is_numpy_scalar(item: object) -> TypeGuard[_Scalar]:
    return type(item).__module__ == "numpy" and hasattr(item, "item") and getattr(item, "ndim", 1) == 0


class _Scalar(Protocol):
    def item(self) -> object: ...
