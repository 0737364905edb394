"""How the two ends of a data connection prove to each other that they know the namespace's token.

The token itself never travels. Server: ``[magic, version, nonce]``; client: ``[magic, version, nonce, proof]``; server:
``[proof]``, or it closes the connection. A proof is HMAC-SHA256 of role and both nonces under the token. The server has
to prove itself too, since what it sends may be unpickled.
"""

from __future__ import annotations

import hmac
import secrets
from typing import Any

from redist.errors import TransferError

__all__ = [
    "HELLO_LIMIT",
    "check_client",
    "check_server",
    "client_hello",
    "new_nonce",
    "server_hello",
    "server_proof",
]

MAGIC = "redist-data"
VERSION = 2
HELLO_LIMIT = 1024
"""Largest frame accepted from a peer that has proved nothing yet."""


def new_nonce() -> bytes:
    """Return fresh random bytes."""
    return secrets.token_bytes(16)


def server_hello(nonce: bytes) -> list[Any]:
    """Return the server's first frame."""
    return [MAGIC, VERSION, nonce]


def client_hello(items: list[Any], nonce: bytes, token: str, address: str) -> list[Any]:
    """Return the client's answer to the server's first frame `items`.

    Raises
    ------
    TransferError
        If the server is no data server, or of another version.
    """
    if len(items) != 3 or items[0] != MAGIC or not isinstance(items[2], bytes):
        raise TransferError(f"{address}: not a data server of redist")
    if items[1] != VERSION:
        raise TransferError(
            f"{address}: speaks version {items[1]!r:.20} of the data protocol, here is {VERSION}"
        )
    return [MAGIC, VERSION, nonce, _proof(token, b"client", items[2], nonce)]


def check_client(items: list[Any], server_nonce: bytes, token: str) -> bytes:
    """Check the client's frame on the server, and return the client's nonce.

    Raises
    ------
    TransferError
        If the client does not know the token.
    """
    if len(items) != 4 or items[:2] != [MAGIC, VERSION]:
        raise TransferError("not a data client of this version of redist")
    nonce, proof = items[2:]
    if not isinstance(nonce, bytes) or not isinstance(proof, bytes) or len(nonce) > 64:
        raise TransferError("not a data client of redist")
    if not hmac.compare_digest(proof, _proof(token, b"client", server_nonce, nonce)):
        raise TransferError("the token of the namespace is wrong")
    return nonce


def server_proof(server_nonce: bytes, nonce: bytes, token: str) -> list[Any]:
    """Return the server's last frame of the hello."""
    return [_proof(token, b"server", server_nonce, nonce)]


def check_server(items: list[Any], server_nonce: bytes, nonce: bytes, token: str, address: str) -> None:
    """Check the server's last frame on the client.

    Raises
    ------
    TransferError
        If the server does not know the token.
    """
    proof = items[0]
    if not isinstance(proof, bytes) or not hmac.compare_digest(
        proof, _proof(token, b"server", server_nonce, nonce)
    ):
        raise TransferError(f"{address}: the data server does not know the token of the namespace")


def _proof(token: str, role: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return hmac.digest(token.encode(), role + b"\0" + server_nonce + b"\0" + client_nonce, "sha256")
