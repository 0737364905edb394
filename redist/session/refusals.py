"""What the server's error replies to scripts come to."""

from __future__ import annotations

from redist.errors import ProtocolError, ServerFull, ServerRefused, StoreError
from redist.store.calls import Call

__all__ = ["error_of"]

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
