"""Dask graphs turned into tasks.

A graph goes in slices of about 500 tasks in the order of `dask.order`. A task that nobody asked for is not counted at all:
it lives as long as tasks need it. One that a task of a later slice needs is counted until that slice is in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from redist.actor_tasks import NodeActor
from redist.annotations import Annotations
from redist.belonging import Borrowing, borrowed_by_graph
from redist.current import living_clients
from redist.errors import DependencyUnknown, GraphCycle
from redist.future import Future
from redist.protocol import Function, Payload, function_of, pack_spec
from redist.protocol.nodes import NodePacker, NodeRunner, PackedNode, pack_node_arguments
from redist.protocol.signing import on_change
from redist.session.states import CANCELLED, FutureState
from redist.session.submissions import BULK, LINKS, SLICE
from redist.store import calls
from redist.store.calls import AHEAD, SPREAD
from redist.store.keys import encode_key
from redist.store.replies import parse_states
from redist.submitting import Options, renumbered, user_site

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["submit_graph", "with_futures"]

#: Longest pickle of a literal that travels in each task that refers to it; what is longer is a value of its own.
_LITERAL = 512


def submit_graph(
    client: Client,
    graph: Mapping[Any, Any],
    keys: Iterable[Any],
    annotations: Annotations,
    actors: frozenset[Any] = frozenset(),
) -> dict[Any, Future[Any]]:
    """Submit what `keys` of a graph need, as far as it is not known already, and return a Future for each.

    The tasks of the keys `actors` make actors.

    Raises
    ------
    DependencyUnknown
        If a key is neither in the graph nor known to the server.
    GraphCycle
        If tasks wait for each other.
    InvalidKey
        If a key cannot be one.
    ValueError
        If one of `actors` is no task of the graph.
    """
    from dask._task_spec import convert_legacy_graph

    client._check_alive()
    kept = borrowed_by_graph(client, graph.values())
    try:
        nodes = convert_legacy_graph(graph)
        return _Submission(client, nodes, list(dict.fromkeys(keys)), annotations, actors).run()
    finally:
        del kept


@lru_cache(1000)
def _runner(label: str) -> Function:
    return function_of(NodeRunner(label))


@lru_cache(1000)
def _maker(label: str) -> Function:
    return function_of(NodeActor(label))


on_change.append(_runner.cache_clear)
on_change.append(_maker.cache_clear)


def _runner_of(key: Any, runner: Callable[[str], Function]) -> Function:
    """Return the function of a key's task: the same in every graph, and one for keys that begin alike."""
    from dask.utils import key_split

    name = key[0] if type(key) is tuple and key else key
    # Names that tell nothing of themselves from what they are part of would each be a function.
    return runner(key_split(name) if type(name) is str and "-" in name else "task")


class _Ready(NamedTuple):
    """A task that is ready to be submitted."""

    key: Any
    name: str
    function: Function
    spec: bytes
    needs: Sequence[str]
    options: Options | None
    borrowed: Sequence[Future[Any]]


class _Submission:
    """One graph on its way."""

    def __init__(
        self,
        client: Client,
        nodes: Mapping[Any, Any],
        keys: list[Any],
        annotations: Annotations,
        actors: frozenset[Any],
    ) -> None:
        self._client = client
        self._session = client.session
        self._graph = nodes
        self._asked = keys
        self._annotations = annotations
        self._actors: Set[Any] = actors
        self._borrowing = Borrowing(client)
        self._packer = NodePacker(self._borrowing.name_of)
        self._site = user_site()
        #: what is to be submitted
        self._nodes: dict[Any, Any] = {}
        #: wire names by key; of one that stands for another, that one's
        self._names: dict[Any, str] = {}
        self._futures: dict[Any, Future[Any]] = {}
        #: literals that travel in the tasks, and those that are values of their own, until they are stored
        self._literals: dict[Any, Any] = {}
        self._data: dict[Any, Payload] = {}
        #: references that last until the last slice is in: to what was known, and to literals
        self._kept: list[Future[Any]] = []
        #: to large objects that were taken out of nodes, by their identity; the graph keeps the objects
        self._taken: dict[int, Future[Any]] = {}
        #: records of the tasks that have been collected
        self._collected: dict[str, FutureState] = {}
        #: references that last until the task of this number is in
        self._until: dict[int, list[FutureState]] = {}

    def run(self) -> dict[Any, Future[Any]]:
        """Submit it."""
        try:
            self._find()
            self._check_actors()
            if self._nodes:
                order = self._ordered()
                self._resolve()
                self._send([key for key in order if key in self._nodes])
        except BaseException:
            for future in self._futures.values():
                future.release()  # not only when the traceback goes, which holds this frame
            raise
        finally:
            for future in [*self._kept, *self._taken.values()]:
                future.release()
            for states in self._until.values():
                for state in states:
                    self._session.ledger.release(state)
        return self._futures

    # --- what is needed ---------------------------------------------------------------------------------------------

    def _find(self) -> None:
        """Find the nodes that are needed and not known, and refer to those that are."""
        graph, names, nodes = self._graph, self._names, self._nodes
        todo: list[Any] = list(self._asked)
        asked = set(todo)
        outside: list[Any] = []
        while todo:
            found = [key for key in dict.fromkeys(todo) if key not in names]
            names.update([(key, encode_key(key)) for key in found])
            known = self._known([names[key] for key in found])
            todo = []
            for key in found:
                future = known.get(names[key])
                if future is not None:
                    self._keep(key, future, key in asked)
                elif (node := graph.get(key)) is not None:
                    nodes[key] = node
                    todo += node.dependencies
                else:
                    outside.append(key)
        if outside:
            for key, future in self._from_outside(outside).items():
                self._keep(key, future, key in asked)

    def _check_actors(self) -> None:
        """See to it that the keys of actors are those of tasks, not other names of them."""
        from dask._task_spec import Alias, Task

        actors: set[Any] = set()
        for key in self._actors:
            while isinstance(node := self._graph.get(key), Alias):
                key = node.target
            actors.add(key)
            if not isinstance(node, Task):
                raise ValueError(
                    f"the actor {key!r} is no task of the graph: it may have become a part of another task by optimization, "
                    "which optimize_graph=False leaves out"
                )
        self._actors = actors

    def _keep(self, key: Any, future: Future[Any], asked: bool) -> None:
        if asked:
            self._futures[key] = future
        else:
            self._kept.append(future)

    def _known(self, names: Sequence[str]) -> dict[str, Future[Any]]:
        """Return Futures of those of `names` that this client refers to."""
        client, session = self._client, self._session
        known: dict[str, Future[Any]] = {}
        records = session.states.records
        if not records:
            return known
        with session.lock:
            client._check_alive()
            session.ledger.drain()
            if any(name in records and records[name].count <= 0 for name in names):
                session.flush(everything=True)  # in a graph to come, what was let go may mean something else
            for name in names:
                state = records.get(name)
                if state is not None and state.status != CANCELLED:
                    session.ledger.bind(state)
                    state.bound(self._site)
                    known[name] = Future._of(state, client)
        client._wake_releases()
        return known

    def _from_outside(self, keys: list[Any]) -> dict[Any, Future[Any]]:
        """Return Futures of keys that are not in the graph and that other clients refer to."""
        client = self._client
        names = [self._names[key] for key in keys]
        for other in living_clients():
            if other is client or other.closed or other.namespace != client.namespace:
                continue
            if any(name in other.session.states for name in names):
                other._settle()  # what it has collected leaves first
        unknown: set[str] = set()
        for i in range(0, len(names), SLICE):
            for read in parse_states(client._driver.call_now(calls.states(names[i : i + SLICE]))):
                if read.state == "forgotten":
                    unknown.add(read.name)
        for key, name in zip(keys, names):
            if name in unknown:
                raise DependencyUnknown(
                    key, "it is neither in the graph nor known to the cluster: released, or never computed"
                )
        found = {key: Future._of(client._bind(name), client) for key, name in zip(keys, names)}
        client._settle()  # the references are counted before anybody can let go
        return found

    def _ordered(self) -> list[Any]:
        """Return the keys of all nodes in the order in which they are best run."""
        from dask.core import getcycle
        from dask.order import order

        nodes = self._nodes
        if len(nodes) == 1 and not next(iter(nodes.values())).dependencies:
            return list(nodes)
        try:
            places = order(nodes)
        except RuntimeError:
            places = {}
        cycle = () if places else getcycle(nodes, list(nodes))
        if not places or cycle:
            raise GraphCycle("these tasks of the graph wait for each other: " + " -> ".join(map(repr, cycle)))
        return sorted(nodes, key=places.__getitem__)

    def _resolve(self) -> None:
        """Take out of the nodes what needs no task of its own: aliases, and literals."""
        from dask._task_spec import Alias, DataNode

        nodes, asked = self._nodes, self._futures.keys() | set(self._asked)
        aliases = [key for key, node in nodes.items() if type(node) is Alias]
        if aliases:
            users: dict[Any, int] = {}
            for node in nodes.values():
                for dep in node.dependencies:
                    users[dep] = users.get(dep, 0) + 1
            for key in aliases:
                # What one asks for under another name, and nobody needs else, is computed under that name.
                while key in asked and type(node := nodes[key]) is Alias:
                    target = node.target
                    if target in asked or target not in nodes or users[target] > 1 or target in self._actors:
                        break
                    nodes[key] = nodes.pop(target)
        others: dict[Any, Any] = {
            key: node.target for key, node in nodes.items() if type(node) is Alias and key not in asked
        }
        for key in others:
            del nodes[key]
        for key, node in list(nodes.items()):
            if type(node) is DataNode:
                self._take_literal(key, node.value, key in asked)
        for key, target in others.items():
            while target in others:
                target = others[target]
            if target in self._literals:
                self._literals[key] = self._literals[target]
            elif target in self._data:
                self._data[key] = self._data[target]
            self._names[key] = self._names[target]

    def _take_literal(self, key: Any, value: Any, asked: bool) -> None:
        payload = self._packer.dumps(value)
        if payload.contains:
            return  # the values of its Futures come in their stead, as in any task
        del self._nodes[key]
        if not asked and payload.inline is not None and len(payload.inline) <= _LITERAL:
            self._literals[key] = value
        else:
            self._data[key] = payload

    # --- sending ----------------------------------------------------------------------------------------------------

    def _send(self, order: list[Any]) -> None:
        """Submit the nodes in `order`."""
        for key in self._asked:
            if key in self._data:
                self._store_data([key])
        names, nodes = self._names, self._nodes
        last: dict[str, int] = {}
        place: dict[str, int] = {names[key]: i for i, key in enumerate(order)}
        for i, key in enumerate(order):
            for dep in nodes[key].dependencies:
                name = names[dep]
                if place.get(name, -1) >= i:
                    raise GraphCycle(f"the task {key!r} is before {dep!r}, for which it waits")
                last[name] = i
        start = 0
        while start < len(order):
            for part in _parts(self._made(order[start : start + SLICE])):
                self._collect(part, start, last)
                start += len(part)

    def _collect(self, made: list[_Ready], start: int, last: Mapping[str, int]) -> None:
        """Have tasks leave; the first is at `start` in the order, and `last` says which one needs each the last."""
        session, client = self._session, self._client
        asked, end = set(self._asked), start + len(made)
        states: list[FutureState | None] = []
        with session.lock:
            client._check_alive()
            records, submissions, collected = session.states.records, session.submissions, self._collected
            generation = session.lane.generation
            for key, name, function, spec, needs, options, borrowed in made:
                until = last.get(name, end - 1)
                counted = key in asked or until >= end
                state = records.get(name) if counted else None
                if state is None or state.status == CANCELLED:
                    state = FutureState(name, generation, function.hash)
                    flags = AHEAD if needs else SPREAD if key in self._actors else 0
                    task = client._submitter.task(name, function, spec, needs, options, flags)
                    state.count = int(counted)  # told with the submission
                    state.needs = [it for dep in needs if (it := collected.get(dep) or records.get(dep))]
                    collected[name] = state
                    states.append(state)
                    if borrowed:
                        submissions.kept[state] = borrowed
                    if counted:
                        state.sites = (self._site,)
                        records[name] = state
                    session.submit(state, task)
                else:  # another thread was faster
                    states.append(None)
                    session.ledger.bind(state)
                    state.bound(self._site)
                if key in asked:
                    self._futures[key] = Future._of(state, client)
                elif counted:
                    self._until.setdefault(until, []).append(state)
            for state, ready in zip(states, made):
                if state is not None and not state.count:
                    follower = states[last[ready.name] - start]
                    if follower is not None:
                        submissions.followed[state] = follower
            client._driver.submitted()
        for until in [until for until in self._until if until < end]:
            for state in self._until.pop(until):
                session.ledger.release(state)

    def _made(self, keys: list[Any]) -> list[_Ready]:
        """Make the tasks of `keys`, once what is large in them and the literals that they need are stored."""
        nodes, borrowing, taken = self._nodes, self._borrowing, self._taken
        packed: list[tuple[Any, list[Any], PackedNode, Sequence[Future[Any]]]] = []
        needed: dict[Any, None] = {}
        large: dict[int, Any] = {}
        for key in keys:
            node = nodes[key]
            deps = list(node.dependencies)
            literals: dict[Any, Any] = {}
            if self._literals:
                literals = {dep: self._literals[dep] for dep in deps if dep in self._literals}
                deps = [dep for dep in deps if dep not in literals]
            if self._data:
                needed.update((dep, None) for dep in deps if dep in self._data)
            made = self._packer.pack(key, node, tuple(deps), literals)
            packed.append((key, deps, made, tuple(borrowing.kept)))
            borrowing.kept.clear()
            if type(made.data) is Payload:
                large[id(made.data)] = made.data
            for obj in made.given:
                if type(obj) is not Future and id(obj) not in taken:
                    large[id(obj)] = obj
        if needed:
            self._store_data(list(needed))
        stored: dict[int, str] = {}
        if large:
            for i, future in zip(large, self._client._store(list(large.values()))):
                stored[i] = future.name
                if type(large[i]) is Payload:
                    self._kept.append(future)
                else:
                    taken[i] = future
        return [
            self._ready(key, deps, made, stored.get(id(made.data), ""), borrowed)
            for key, deps, made, borrowed in packed
        ]

    def _store_data(self, keys: list[Any]) -> None:
        """Store literals under their keys, each once."""
        by_name = {self._names[key]: self._data[key] for key in keys}
        futures = dict(zip(by_name, self._client._store(list(by_name.values()), list(by_name))))
        for key in [key for key in self._data if self._names[key] in futures]:
            del self._data[key]
        asked = {self._names[key]: key for key in self._asked}
        for name, future in futures.items():
            self._keep(asked.get(name), future, name in asked)

    def _ready(
        self, key: Any, deps: list[Any], made: PackedNode, stored: str, borrowed: Sequence[Future[Any]]
    ) -> _Ready:
        values = [stored] if stored else []
        values += [self._names[dep] for dep in deps]
        for obj in made.given:
            values.append((obj if type(obj) is Future else self._taken[id(obj)]).name)
        data = None if isinstance(made.data, Payload) else made.data
        arguments = pack_node_arguments(data, len(values) - (data is None))
        needs: Sequence[str] = ()
        if values or made.hidden:
            needs = sorted({*values, *made.hidden})
            arguments = renumbered(arguments, values, needs)
        function = _runner_of(key, _maker if key in self._actors else _runner)
        return _Ready(
            key,
            self._names[key],
            function,
            pack_spec(function.hash, arguments),
            needs,
            self._annotations.of(key),
            borrowed,
        )


def _parts(made: list[_Ready]) -> Iterator[list[_Ready]]:
    """Divide tasks into such as leave with one call, so that what only they need is not counted."""
    start = size = links = 0
    for i, ready in enumerate(made):
        if i > start and (size > BULK or links + len(ready.needs) > LINKS):
            yield made[start:i]
            start, size, links = i, 0, 0
        size += len(ready.spec)
        links += len(ready.needs)
    yield made[start:]


def with_futures(client: Client, graph: Mapping[Any, Any], keys: Any) -> dict[Any, Any] | None:
    """Return what `keys` need of a graph, with Futures of what `client` refers to; None if that is nothing."""
    from dask._task_spec import convert_legacy_graph
    from dask.core import flatten

    known = client.futures
    nodes = dict(graph)
    found = [key for key in nodes if key in known and not isinstance(nodes[key], Future)]
    if not found:
        return None
    dependencies = convert_legacy_graph(nodes)
    futures: dict[Any, Future[Any]] = {key: Future(key, client) for key in found}
    needed: dict[Any, Any] = {}
    todo = list(flatten(keys))
    while todo:
        key = todo.pop()
        if key in needed or key not in nodes:
            continue
        if key in futures:
            needed[key] = futures[key]
        else:
            needed[key] = nodes[key]
            if key in dependencies:
                todo += dependencies[key].dependencies
    return needed
