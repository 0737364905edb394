"""Helpers under the names of `distributed.utils_comm`.

`pack_data` and `unpack_remotedata`: Futures out of nested data, values into it. `gather_from_workers` and
`scatter_to_workers`: values by key, where there are keys and addresses in the place of Futures.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from redist import describing, gathering, scattering
from redist.current import default_client
from redist.future import Future
from redist.imported import imported
from redist.protocol.plain import is_named
from redist.session.operations import Operation, Run
from redist.store.keys import Key, encode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["gather_from_workers", "pack_data", "scatter_to_workers", "unpack_remotedata"]


def pack_data(o: Any, d: Mapping[Any, Any], key_types: type | tuple[type, ...] = object) -> Any:
    """Return nested data with values in the place of keys.

    Parameters
    ----------
    o : object
        Tuples, lists, sets and dicts of keys and of anything else.
    d : mapping
        Values by key.
    key_types : type or tuple of types
        What a key can be.

    Examples
    --------
    >>> pack_data({"a": ["x"], "b": "y"}, {"x": 1})
    {'a': [1], 'b': 'y'}
    """
    kind = type(o)
    if isinstance(o, key_types):
        try:
            if o in d:
                return d[o]
        except TypeError:  # not hashable: no key
            pass
    if kind in (tuple, list, set, frozenset):
        return kind(pack_data(item, d, key_types) for item in o)
    if is_named(o):
        return tuple.__new__(kind, [pack_data(item, d, key_types) for item in o])
    if kind is dict:
        return {key: pack_data(item, d, key_types) for key, item in o.items()}
    return o


def unpack_remotedata(o: Any, byte_keys: bool = False) -> tuple[Any, set[Any]]:
    """Return nested data with keys in the place of Futures, and the Futures.

    Parameters
    ----------
    o : object
        Tuples, lists, sets and dicts of Futures, of Dask's ``TaskRef``, and of anything else.
    byte_keys : bool
        Put the text of a key in its place if it is none.

    Returns
    -------
    data, futures
        The data, and the set of what was found in it.
    """
    spec: Any = imported("dask._task_spec")
    kinds = (Future,) if spec is None else (Future, spec.TaskRef)
    found: set[Any] = set()

    def unpack(item: Any) -> Any:
        if isinstance(item, kinds):
            found.add(item)
            return str(item.key) if byte_keys else item.key
        kind = type(item)
        if kind in (tuple, list, set, frozenset):
            return kind([unpack(each) for each in item])
        if is_named(item):
            return tuple.__new__(kind, [unpack(each) for each in item])
        if kind is dict:
            return {key: unpack(each) for key, each in item.items()}
        return item

    return unpack(o), found


def gather_from_workers(who_has: Mapping[Key, Collection[str]], client: Client | None = None) -> Any:
    """Return values by key, as `Client.who_has` names keys; a coroutine with an asynchronous client.

    Parameters
    ----------
    who_has : mapping
        Addresses of workers by key. A value is read wherever it is by now; one that is not there is not waited for.
    client : Client, optional
        Who reads; default: the current one.

    Returns
    -------
    values, missing, failed, lost
        The values by key; a list of the keys whose value is nowhere; one of those whose value could not be read; and one of
        the addresses that are no workers.

    Examples
    --------
    >>> gather_from_workers(client.who_has(futures))  # doctest: +SKIP
    ({'inc-1': 2}, [], [], [])
    """
    client = client or default_client()
    return client._run(_gather(client, dict(who_has)))


def _gather(
    client: Client, who_has: dict[Key, Collection[str]]
) -> Operation[tuple[dict[Key, Any], list[Key], list[Key], list[str]]]:
    keys = {encode_key(key): key for key in who_has}
    states = yield from describing.read_states(list(keys))
    there = {state.name for state in states if state.state == "memory"}
    futures: dict[Key, Future[Any]] = {
        key: Future(key, client) for name, key in keys.items() if name in there
    }
    missing = [key for name, key in keys.items() if name not in there]
    failed: list[Key] = []
    values: dict[Key, Any] = {}
    try:
        values = yield from gathering.gather(client, futures, "raise", False, False)
    except Exception:  # one by one, to tell which
        for key, future in futures.items():
            try:
                values[key] = yield from gathering.gather(client, future, "raise", False, False)
            except Exception:
                (missing if future.cancelled() else failed).append(key)
    known = yield Run(lambda: {name for peer in client._peers.workers() for name in peer.names})
    named = {address for addresses in who_has.values() for address in addresses}
    return values, missing, failed, sorted(named - known)


def scatter_to_workers(
    workers: Collection[str], data: Mapping[Key, Any], client: Client | None = None
) -> Any:
    """Store values by key on workers in turn; a coroutine with an asynchronous client.

    Parameters
    ----------
    workers : collection of str
        Addresses or names of workers.
    data : mapping
        Values by key.
    client : Client, optional
        Who stores; default: the current one.

    Returns
    -------
    futures, who_has, nbytes
        Futures by key, which keep the values; the addresses that have each, none for one so small that the server keeps it;
        and their sizes.

    Raises
    ------
    NoWorkers
        If one of the workers is not there.
    """
    if not isinstance(data, Mapping):
        raise TypeError(f"data is a mapping of keys to values, not {type(data).__name__}: {data!r:.80}")
    if isinstance(workers, str) or not workers:
        raise TypeError(f"workers is a collection of addresses or names, not {workers!r:.80}")
    client = client or default_client()
    return client._run(_scatter(client, sorted(workers), dict(data)))


def _scatter(
    client: Client, workers: list[str], data: dict[Key, Any]
) -> Operation[tuple[dict[Key, Future[Any]], dict[Key, tuple[str, ...]], dict[Key, int]]]:
    keys = list(data)
    futures: dict[Key, Future[Any]] = {}
    for i, worker in enumerate(workers):
        if part := {key: data[key] for key in keys[i :: len(workers)]}:
            futures.update((yield from scattering.scatter(client, part, worker, False, True, None)))
    whose = yield from describing.who_has(client, [futures[key] for key in keys])
    nbytes = {key: futures[key]._state.nbytes for key in keys}
    return {key: futures[key] for key in keys}, whose, nbytes
