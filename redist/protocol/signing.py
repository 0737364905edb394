"""Signatures of everything that will be unpickled, when ``REDIST_SECRET`` is set.

The variable is read when this module is imported; `use_secret` changes it later. With a secret in force an unsigned or
altered pickle is refused before it is loaded. The signature is HMAC-SHA256 over a word for what it is (so that a value
cannot be passed off as a function), the bytes, and the sizes of buffers outside of them; buffers are not signed.

A signed blob is ``\\x01R`` + 32 bytes of signature + the blob. No pickle begins with that.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Iterable

from redist.errors import UnsignedPayload

__all__ = ["SIGNATURE_BYTES", "check", "is_signed", "open_signed", "sign", "sign_blob", "use_secret"]

SIGNATURE_BYTES = 32
_MARK = b"\x01R"
_HEAD = len(_MARK) + SIGNATURE_BYTES
_secret: bytes | None = (os.environ.get("REDIST_SECRET") or "").encode() or None


#: Called when the secret changes: what was signed before must not be kept.
on_change: list[Callable[[], object]] = []


def use_secret(secret: str | bytes | None) -> None:
    """Sign with, and demand, `secret` from now on; None turns signing off.

    Parameters
    ----------
    secret : str, bytes or None
        The same in every process of the cluster.
    """
    global _secret
    _secret = (secret.encode() if isinstance(secret, str) else secret) or None
    for forget in on_change:
        forget()


def is_signed() -> bool:
    """Return whether a secret is in force."""
    return _secret is not None


def sign(kind: bytes, parts: Iterable[bytes | memoryview], sizes: Iterable[int] = ()) -> bytes | None:
    """Return the signature of `parts`, or None when there is no secret.

    Parameters
    ----------
    kind : bytes
        A word for what is signed.
    parts : iterable of bytes
        The signed bytes, in order.
    sizes : iterable of int
        Sizes of the buffers that travel beside them.
    """
    if _secret is None:
        return None
    mac = hmac.new(_secret, kind + b"\0" + ",".join(map(str, sizes)).encode() + b"\0", hashlib.sha256)
    for part in parts:
        mac.update(part)
    return mac.digest()


def check(
    kind: bytes, signature: bytes | memoryview, parts: Iterable[bytes | memoryview], sizes: Iterable[int] = ()
) -> None:
    """Raise unless `signature` is that of `parts`; do nothing when there is no secret.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the signature is missing or wrong.
    """
    expected = sign(kind, parts, sizes)
    if expected is not None and not hmac.compare_digest(expected, bytes(signature)):
        raise UnsignedPayload(
            f"this {kind.decode()} carries no valid signature and was not loaded: REDIST_SECRET is set here, "
            "and must be the same in every process"
        )


def sign_blob(kind: bytes, blob: bytes) -> bytes:
    """Return `blob` with its signature in front, or `blob` itself when there is no secret."""
    if _secret is None:
        return blob
    signature = sign(kind, (blob,))
    assert signature is not None
    return _MARK + signature + blob


def open_signed(kind: bytes, blob: bytes | memoryview) -> bytes | memoryview:
    """Return the blob inside of a signed one, after checking it; a blob that is not signed is returned as it is.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the signature is missing or wrong.
    """
    if blob[:2] == _MARK:
        inner = blob[_HEAD:]
        if _secret is not None:
            check(kind, blob[len(_MARK) : _HEAD], (inner,))
        return inner
    if _secret is not None:
        check(kind, b"", (blob,))
    return blob
