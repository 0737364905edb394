"""Datasets: values under names, versioned, for any client of the namespace.

The Futures in a version are pinned as long as it lives; a reader's request keeps the version until it has bound them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from redist.coordination.base import Request
from redist.errors import DatasetExists, DatasetNotFound, DependencyUnknown
from redist.named_values import enclose, open_up
from redist.replicating import keep
from redist.session.lane import Refused
from redist.session.operations import Ask, Operation, Run
from redist.store import calls
from redist.store.keys import Key, decode_key, encode_key
from redist.store.replies import parse_dataset

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Datasets", "get", "names", "publish", "unpublish", "wire_name"]

_ABSENT: Any = object()


def wire_name(name: Key) -> str:
    """Return the wire name of a dataset.

    Raises
    ------
    InvalidKey
        If it cannot be one.
    """
    return encode_key(name, "dataset's name")


def publish(client: Client, items: dict[Key, Any], override: bool, replicas: int = 1) -> Operation[None]:
    """Publish values under names."""
    for name, value in items.items():
        try:
            with (yield from enclose(client, value, f"the dataset {name!r}")) as enclosed:
                if replicas > 1:
                    yield from keep(client, enclosed.names, replicas)
                try:
                    yield Ask(
                        calls.publish(wire_name(name), enclosed.data, enclosed.contains, override=override)
                    )
                except Refused as refused:
                    raise (yield from enclosed.bundles.explain(refused)) from None
        except Refused as refused:
            if refused.code == "exists":
                raise DatasetExists(
                    f"a dataset {name!r} is published already; publish it with override=True to replace it"
                ) from None
            raise DependencyUnknown(
                decode_key(refused.message), "it is not known any more and cannot be published"
            ) from None


def get(client: Client, name: Key, default: Any = _ABSENT) -> Operation[Any]:
    """Return the value that is published under `name`."""
    request = Request(client, None)
    with request.leaving():
        try:
            reply = yield Ask(calls.get_dataset(wire_name(name), request.token))
        except Refused:
            if default is not _ABSENT:
                return default
            raise DatasetNotFound(
                f"no dataset {name!r} is published; list_datasets() names those that are"
            ) from None
        _, data = parse_dataset(reply)
        value = yield from open_up(client, data)
        request.leave()  # what the version holds is counted by now, on the same lane
        return value


def unpublish(client: Client, name: Key) -> Operation[None]:
    """Withdraw a dataset; there need be none."""
    with contextlib.suppress(Refused):
        yield Ask(calls.unpublish(wire_name(name)))


def names(client: Client) -> Operation[tuple[Key, ...]]:
    """Return the names of all datasets."""
    fields = yield Run(client._peers.fields, ("datasets",))
    return tuple(decode_key(name) for name in sorted(fields))


class Datasets(MutableMapping[Key, Any]):
    """The published datasets as a mapping; see `Client.datasets`.

    With an asynchronous client ``datasets[name]`` is to be awaited, ``async for`` goes over names, and the rest raises
    TypeError, which names the method to use.

    Parameters
    ----------
    client : Client
        Whose.
    """

    __slots__ = ("_client",)

    def __init__(self, client: Client) -> None:
        self._client = client

    def _refuse(self, what: str, instead: str) -> None:
        if self._client.asynchronous:
            raise TypeError(f"{what} cannot be awaited: with an asynchronous client use {instead}")

    def __getitem__(self, name: Key) -> Any:
        return self._client.get_dataset(name)

    def __setitem__(self, name: Key, value: Any) -> None:
        self._refuse("client.datasets[name] = value", "`await client.publish_dataset(value, name=name)`")
        self._client.publish_dataset(value, name=name)

    def __delitem__(self, name: Key) -> None:
        self._refuse("del client.datasets[name]", "`await client.unpublish_dataset(name)`")
        self._client.unpublish_dataset(name)

    def __contains__(self, name: object) -> bool:
        self._refuse("name in client.datasets", "`name in await client.list_datasets()`")
        return name in self._client.list_datasets()

    def __iter__(self) -> Iterator[Key]:
        self._refuse("iteration", "`async for name in client.datasets`")
        yield from self._client.list_datasets()

    async def __aiter__(self) -> AsyncIterator[Key]:
        if not self._client.asynchronous:
            raise TypeError("with a synchronous client use `for name in client.datasets`")
        for name in await self._client.list_datasets():
            yield name

    def __len__(self) -> int:
        self._refuse("len(client.datasets)", "`len(await client.list_datasets())`")
        return len(self._client.list_datasets())

    def __repr__(self) -> str:
        return f"<Datasets of {self._client!r}>"

    def _repr_html_(self) -> str:
        from redist.showing import datasets_html

        return datasets_html(self._client)
