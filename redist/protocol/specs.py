"""Run specs: what Redis keeps of a task to run it, and to run it again.

One byte of flags, then the arguments as `pack_arguments` made them; with ``REDIST_SECRET`` the signature between them,
which also covers the function's hash. The function itself is stored apart.
"""

from __future__ import annotations

from typing import NamedTuple

from redist.errors import DeserializationError
from redist.protocol.signing import SIGNATURE_BYTES, check, is_signed, sign

__all__ = ["Spec", "pack_spec", "unpack_spec"]

_SIGNED = 0x80
_FLAGS = [bytes([flags]) for flags in range(_SIGNED)]


class Spec(NamedTuple):
    """An unpacked run spec."""

    args: bytes | memoryview
    flags: int


def pack_spec(fn_hash: str, args: bytes, flags: int = 0) -> bytes:
    """Return the run spec of a call.

    Parameters
    ----------
    fn_hash : str
        `Function.hash`.
    args : bytes
        `Arguments.data`.
    flags : int
        0 to 127; the protocol does not look at them.
    """
    if not is_signed():
        return _FLAGS[flags] + args
    head = _FLAGS[flags]
    signature = sign(b"spec", (fn_hash.encode(), head, args))
    assert signature is not None
    return bytes([flags | _SIGNED]) + signature + args


def unpack_spec(fn_hash: str, spec: bytes | memoryview) -> Spec:
    """Return arguments and flags of a run spec.

    Parameters
    ----------
    fn_hash : str
        Hash of the function that the task names.
    spec : bytes
        As it was stored.

    Raises
    ------
    UnsignedPayload
        If a secret is in force and the spec is not signed with it for this function.
    DeserializationError
        If it is no run spec.
    """
    if not spec:
        raise DeserializationError("the task's run spec is empty")
    flags = spec[0]
    if flags < _SIGNED:
        if is_signed():
            check(b"spec", b"", ())
        return Spec(spec[1:], flags)
    flags -= _SIGNED
    args = spec[1 + SIGNATURE_BYTES :]
    if is_signed():
        check(b"spec", spec[1 : 1 + SIGNATURE_BYTES], (fn_hash.encode(), _FLAGS[flags], args))
    return Spec(args, flags)
