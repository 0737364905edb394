"""`get_worker().data`: what a worker has in its files, as a mapping."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from redist.current import default_client
from redist.future import Future
from redist.store.keys import Key

__all__ = ["Held"]


class Held(Mapping[Key, Any]):
    """Keys and values of a worker's payloads, asked of the server each time.

    Parameters
    ----------
    address : str
        The worker's.
    """

    def __init__(self, address: str) -> None:
        self._address = address

    def __repr__(self) -> str:
        return f"<data of {self._address}: {list(self)!r}>"

    def _keys(self) -> tuple[Key, ...]:
        keys: tuple[Key, ...] = default_client().has_what(workers=self._address)[self._address]
        return keys

    def __iter__(self) -> Iterator[Key]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def __contains__(self, key: object) -> bool:
        return key in self._keys()

    def __getitem__(self, key: Key) -> Any:
        if key not in self._keys():
            raise KeyError(key)
        return Future(key, default_client()).result()
