"""The part of `Client` that deals with Dask collections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from redist import gathering
from redist.client_base import ClientBase
from redist.dask_options import check_fifo_timeout, check_flags
from redist.future import Future
from redist.session.operations import Operation

__all__ = ["ClientGraphs"]


class ClientGraphs(ClientBase):
    """Computes collections; see `Client`."""

    def get(
        self,
        dsk: Any,
        keys: Any,
        workers: str | Iterable[str] | None = None,
        allow_other_workers: bool | None = None,
        resources: Mapping[str, float] | None = None,
        sync: bool = True,
        asynchronous: bool | None = None,
        direct: bool | None = None,
        retries: int | None = None,
        priority: float = 0,
        fifo_timeout: float | str = "60s",
        actors: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Compute `keys` of a Dask graph.

        Parameters
        ----------
        dsk : dict, HighLevelGraph or expression
            The graph.
        keys : key, or nested lists of keys
            What to compute; a key is a str, a tuple, a number, or bytes.
        sync : bool
            Whether to wait for the values; otherwise Futures are returned.
        workers, allow_other_workers, resources, retries, priority
            For every task that has no such annotation of its own; see `submit`.
        asynchronous : bool, optional
            Whether to return a coroutine; default: as the client is.
        direct, fifo_timeout
            Accepted for Dask's sake.
        actors : bool, key, collection, or collection of them, optional
            Which tasks make actors, as in ``submit(..., actor=True)``: True for those that are asked for. Tasks that depend
            on one are given the `redist.actor.Actor`.

        Returns
        -------
        Values or Futures in the shape of `keys`; values that come in payloads are private copies, pages of them being
        copied when they are written to.

        Raises
        ------
        DependencyUnknown
            If a key is neither in the graph nor known to the cluster.
        GraphCycle
            If tasks wait for each other.
        """
        from dask._expr import HLGExpr
        from dask.core import flatten
        from dask.highlevelgraph import HighLevelGraph

        if isinstance(dsk, HighLevelGraph):
            dsk = HLGExpr(dsk)
        check_flags(direct=direct, asynchronous=asynchronous)
        common = _common(workers, allow_other_workers, resources, retries, priority, fifo_timeout)
        futures = self._submit_graph(dsk, flatten([keys]), common, actors)
        packed = _in_shape(keys, futures)
        if not sync:
            return packed
        return self._run(self._values(packed, list(futures.values())), asynchronous)

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: str | Iterable[str] | None = None,
        allow_other_workers: bool = False,
        resources: Mapping[str, float] | None = None,
        retries: int = 0,
        priority: float = 0,
        fifo_timeout: float | str = "60s",
        actors: Any = None,
        traverse: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Compute Dask collections: a Future of the value of each.

        Parameters
        ----------
        collections : collection, or list, tuple or set of them
            What to compute; anything else is returned as it is.
        sync : bool
            Whether to wait for the values and return them.
        optimize_graph : bool
            Whether the collections' own optimizations are applied.
        traverse : bool
            Whether to look for collections in lists, tuples, dicts, sets and iterators among `collections`.
        workers, allow_other_workers, resources, retries, priority
            For every task that has no such annotation of its own; see `submit`.
        fifo_timeout
            Accepted for Dask's sake.
        actors : bool, key, collection, or collection of them, optional
            Which tasks make actors, as in ``submit(..., actor=True)``: True for those that are asked for. Tasks that depend
            on one are given the `redist.actor.Actor`.

        Returns
        -------
        A list of Futures, or for a single collection one Future; values with `sync`.
        """
        from dask.base import collections_to_expr, is_dask_collection
        from dask.core import flatten
        from dask.delayed import delayed

        if kwargs:
            raise TypeError(f"compute() got an unexpected keyword argument {next(iter(kwargs))!r}")
        several = isinstance(collections, list | tuple | set | frozenset)
        given = list(collections) if several else [collections]
        if traverse:
            given = [
                delayed(one) if isinstance(one, list | set | tuple | dict | Iterator) else one
                for one in given
            ]
        wanted = [one for one in given if is_dask_collection(one)]
        futures: list[Future[Any]] = []
        if wanted:
            from dask._expr import FinalizeCompute

            expr = FinalizeCompute(collections_to_expr(wanted, optimize_graph)).optimize()
            keys = list(flatten(expr.__dask_keys__()))
            common = _common(workers, allow_other_workers, resources, retries, priority, fifo_timeout)
            by_key = self._submit_graph(expr, keys, common, actors)
            futures = [by_key[key] for key in keys]
        ordered = iter(futures)
        packed: Any = [next(ordered) if is_dask_collection(one) else one for one in given]
        if not several:
            packed = packed[0]
        return self._run(self._values(packed, futures)) if sync else packed

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: str | Iterable[str] | None = None,
        allow_other_workers: bool | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | None = None,
        priority: float = 0,
        fifo_timeout: float | str = "60s",
        actors: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Start the computation of Dask collections, and return collections of what becomes of it.

        Parameters
        ----------
        collections : collection, or list, tuple or set of them
            What to compute.
        optimize_graph : bool
            Whether the collections' own optimizations are applied.
        workers, allow_other_workers, resources, retries, priority
            For every task that has no such annotation of its own; see `submit`.
        fifo_timeout
            Accepted for Dask's sake.
        actors : bool, key, collection, or collection of them, optional
            Which tasks make actors, as in ``submit(..., actor=True)``: True for those that are asked for. Tasks that depend
            on one are given the `redist.actor.Actor`.

        Returns
        -------
        A list of collections, or one for one; each holds Futures of its parts. It returns before they are computed.
        """
        from dask.base import collections_to_expr, is_dask_collection
        from dask.core import flatten

        several = isinstance(collections, list | tuple | set | frozenset)
        given = list(collections) if several else [collections]
        for one in given:
            if not is_dask_collection(one):
                raise TypeError(f"persist takes Dask collections, not {type(one).__name__}: {one!r:.80}")
        if not given:
            return []
        expr = collections_to_expr(given, optimize_graph).optimize()
        keys = expr.__dask_keys__()
        common = _common(workers, allow_other_workers, resources, retries, priority, fifo_timeout)
        futures = self._submit_graph(expr, flatten(keys), common, actors)
        persisted = []
        for one, its_keys in zip(given, keys, strict=True):
            rebuild, args = one.__dask_postpersist__()
            persisted.append(rebuild({key: futures[key] for key in flatten(its_keys)}, *args))
        return persisted if several else persisted[0]

    def normalize_collection(self, collection: Any) -> Any:
        """Return `collection` with Futures in place of the tasks of its graph that this client refers to already."""
        from redist.graphs import with_futures

        graph = with_futures(self._me, collection.__dask_graph__(), collection.__dask_keys__())
        if graph is None:
            return collection
        rebuild, args = collection.__dask_postpersist__()
        return rebuild(graph, *args)

    def _submit_graph(
        self, dsk: Any, keys: Iterable[Any], common: dict[str, Any], actors: Any
    ) -> dict[Any, Future[Any]]:
        from dask.base import get_annotations

        from redist.annotations import Annotations
        from redist.graphs import submit_graph

        graph, by_key = (
            (dsk, {}) if isinstance(dsk, Mapping) else (dsk.__dask_graph__(), dsk.__dask_annotations__())
        )
        asked = list(keys)
        makes = frozenset(asked if actors is True else _expanded(actors))
        annotations = Annotations({**get_annotations(), **common}, by_key)
        return submit_graph(self._me, graph, asked, annotations, makes)

    def _values(self, packed: Any, futures: list[Future[Any]]) -> Operation[Any]:
        """Return `packed` with values in the place of `futures`, which are let go."""
        try:
            return (yield from gathering.gather(self._me, packed, "raise", False, True))
        finally:
            for future in futures:
                future.release()


def _common(
    workers: str | Iterable[str] | None,
    allow_other_workers: bool | None,
    resources: Mapping[str, float] | None,
    retries: int | None,
    priority: float,
    fifo_timeout: float | str,
) -> dict[str, Any]:
    """Return what is said for all tasks of a call."""
    if allow_other_workers not in (True, False, None):
        raise TypeError(f"allow_other_workers is True, False or None, not {allow_other_workers!r:.80}")
    check_fifo_timeout(fifo_timeout)
    how = {
        "workers": workers,
        "allow_other_workers": allow_other_workers,
        "resources": resources,
        "retries": retries,
        "priority": priority,
    }
    return {word: value for word, value in how.items() if value}


def _expanded(actors: Any) -> Iterator[Any]:
    """Return the keys that `actors` names: a key, a collection, or several of either."""
    from dask.base import is_dask_collection
    from dask.core import flatten

    if actors is None or actors is False:
        return
    for one in actors if isinstance(actors, list | set | frozenset) else [actors]:
        if is_dask_collection(one):
            yield from flatten(one.__dask_keys__())
        elif isinstance(one, tuple) and any(map(is_dask_collection, one)):
            yield from _expanded(list(one))
        else:
            yield one


def _in_shape(keys: Any, futures: Mapping[Any, Future[Any]]) -> Any:
    if isinstance(keys, list):
        return [_in_shape(key, futures) for key in keys]
    return futures[keys]
