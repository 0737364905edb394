"""What the server's error replies to scripts come to."""

from __future__ import annotations

from redist.errors import ProtocolError, QuotaExceeded, ServerFull, ServerRefused, StoreError
from redist.store.calls import Call
from redist.store.keys import decode_key

__all__ = ["error_of", "quota_error"]

_FORBIDDEN = frozenset(["NOPERM", "NOAUTH", "WRONGPASS"])


def error_of(code: str, message: str, call: Call) -> StoreError:
    """Return the error of a call that the server will never take; `code` is the first word of its `message`."""
    if code == "OOM":
        return ServerFull(
            f"the server is at maxmemory and refused {call.script.name!r}: release something, or give it more memory"
        )
    if code in _FORBIDDEN:
        return ServerRefused(
            f"the server's user may not do this: {message}; `redist acl USER` prints the rights that it needs"
        )
    return ProtocolError(f"the script {call.script.name!r} failed: {message}")


def quota_error(text: str) -> QuotaExceeded:
    """Return the error of a call that a quota forbids: ``SCOPE NEED USED LIMIT``, and the largest holders a line each."""
    first, *lines = text.split("\n")
    scope, *numbers = first.split(" ")
    need, used, limit = map(int, numbers)
    pairs = [line.partition(" ")[::2] for line in lines]
    client = scope == "client"
    holders = tuple((str(decode_key(name)) if client else name, int(size)) for size, name in pairs)
    largest = ", ".join(f"{name!r:.80} ({_size(size)})" for name, size in holders)
    error = QuotaExceeded(
        f"this {scope} may hold {_size(limit)} and holds {_size(used)}"
        + (f", {_size(need)} more is too much" if need else ", so that nothing more is taken")
        + (f"; the largest {'values' if client else 'holders'}: {largest}" if largest else "")
        + f". Release something, or give it more by the setting quota.{scope}"
    )
    error.need, error.used, error.limit, error.holders = need, used, limit, holders
    return error


def _size(nbytes: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"
