"""What a Future has for client and record where it was unpickled without any client."""

from __future__ import annotations

from typing import Any, NoReturn

from redist.errors import NoClientError
from redist.store.keys import decode_key

__all__ = ["Unbound"]


class Unbound:
    """Says what the Future is called, and refuses everything else; holds nothing.

    An error while it is unpickled would end a worker of `multiprocessing.Pool`, and whoever waits for its result would wait
    for ever.

    Parameters
    ----------
    name : str
        Wire name of the key.
    token, namespace, server : str
        The hand-off, and where it was made; it goes on with the Future.
    """

    __slots__ = ("name", "namespace", "server", "token")

    nbytes: Any = 0  # a Client has a method of this name
    type = ""

    def __init__(self, name: str, token: str, namespace: str, server: str) -> None:
        self.name = name
        self.token = token
        self.namespace = namespace
        self.server = server

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        raise NoClientError(
            f"the Future {decode_key(self.name)!r} was unpickled where there was no client: make one with redist.Client() "
            "before (with a pool of processes, in its initializer), or call `future.bind_client(client)`"
        )

    def _release(self, state: object) -> None:
        """Let nothing go: nothing is held."""
