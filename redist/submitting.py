"""Calls turned into tasks: their keys, functions, arguments and dependencies."""

from __future__ import annotations

import struct
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

from redist.belonging import Borrowing
from redist.errors import KeyTaken
from redist.future import Future
from redist.protocol import INLINE_LIMIT, Function, function_of, key_of_call, pack_arguments, pack_spec
from redist.session.states import CANCELLED, FutureState, Site
from redist.session.submissions import LINKS
from redist.store.calls import FRESH, EligibilityClass, Task
from redist.store.keys import Key, decode_key, encode_key

if TYPE_CHECKING:
    from redist.client import Client

__all__ = [
    "How", "Options", "Submitter", "apply", "call_site", "integer", "priority_of", "renumbered", "user_site",
    "worker_names", "zipped",
]  # fmt: skip

_HERE = __file__.rpartition("/")[0]
_COUNT = struct.Struct("<I")


def apply(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call `function`; what a task runs whose function is so large that it travels as a payload."""
    return function(*args, **kwargs)


def call_site(depth: int = 2) -> Site:
    """Return file and line of the user's call that led here, and the time."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno, time.time()


def user_site() -> Site:
    """Return what `call_site` does where the user may have called Dask, and Dask us."""
    import dask

    libraries = (_HERE, dask.__file__.rpartition("/")[0])
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(libraries):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno, time.time()


class Options:
    """How tasks are to be run; the same for all tasks of a call.

    Parameters
    ----------
    workers : str or iterable of str, optional
        Names, addresses or hosts.
    resources : mapping, optional
        Amounts by name.
    retries : int
        As `Client.submit` takes them.
    priority : number
        As `Client.submit` takes it; a whole one is kept as an int.
    allow_other_workers : bool
        Whether others may run it when none of `workers` is idle.
    """

    __slots__ = ("eligibility", "priority", "retries")

    def __init__(
        self,
        workers: str | Iterable[str] | None = None,
        resources: Mapping[str, float] | None = None,
        retries: int | float | None = None,
        priority: float | None = 0,
        allow_other_workers: bool | None = False,
    ) -> None:
        if isinstance(retries, float) and not retries.is_integer():
            raise TypeError(f"retries is an integer, not {retries!r}")
        self.retries = integer("retries", retries or 0, 0)
        self.priority = priority_of(priority)
        if allow_other_workers not in (True, False, None):
            raise TypeError(f"allow_other_workers is True or False, not {allow_other_workers!r:.80}")
        if allow_other_workers and workers is None:
            raise ValueError("allow_other_workers=True means nothing without workers=")
        self.eligibility: EligibilityClass | None = None
        if resources is not None and not isinstance(resources, Mapping):
            raise TypeError(f"resources is a mapping such as {{'GPU': 1}}, not {resources!r:.80}")
        if workers is not None or resources:
            named = "\n".join(sorted(set(worker_names(workers))))
            amounts = ",".join(
                f"{name}={_amount(name, value)}" for name, value in sorted((resources or {}).items())
            )
            what = f"{named}\0{amounts}\0{int(not allow_other_workers)}"
            hash_ = blake2b(what.encode(), digest_size=8).hexdigest()
            self.eligibility = EligibilityClass(hash_, named, amounts, not allow_other_workers)

    def of(self, name: str) -> Options:
        """Return what holds for the task of a wire name: this."""
        return self


class How(Protocol):
    """How each of some tasks is to be run."""

    def of(self, name: str) -> Options | None:
        """Return what holds for the task of a wire name."""


def priority_of(value: Any) -> float:
    """Return a priority: any real number, numpy's too; None is 0, and a whole one an int.

    Raises
    ------
    TypeError, ValueError
        If it is none.
    """
    if value is None:
        return 0
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"priority is a number, not {value!r:.80}")
    number = float(value)
    if number != number:
        raise ValueError("priority is a number, not nan, which is neither above nor below any other")
    return int(number) if abs(number) < 1 << 53 and number.is_integer() else number


def worker_names(workers: Any) -> list[str]:
    """Return what ``workers=`` names, as a list.

    Raises
    ------
    TypeError
        If it is neither None, a str, nor a collection.
    """
    if isinstance(workers, str):
        return [workers]
    if workers is not None and not isinstance(workers, Iterable):
        raise TypeError(
            f"workers is a worker's name, address or host, or a collection of them, not {workers!r:.80}"
        )
    return list(map(str, workers or ()))


def integer(what: str, value: Any, least: int | None = None) -> int:
    """Return the argument `what` as an int; Dask takes numbers of any kind, numpy's too.

    Raises
    ------
    TypeError, ValueError
        If it is no number, or less than `least`.
    """
    if isinstance(value, str | bytes) or not hasattr(value, "__int__"):
        raise TypeError(f"{what} is an integer, not {value!r:.80}")
    number = int(value)
    if least is not None and number < least:
        raise ValueError(f"{what} cannot be {'negative' if least == 0 else f'less than {least}'}: {value}")
    return number


def zipped(func: Any, iterables: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
    """Return the arguments of each call of a `map`.

    Raises
    ------
    TypeError
        If there is nothing to go over, or one of them cannot be gone over.
    """
    if not iterables:
        raise TypeError("map needs at least one iterable behind the function, whose items it goes over")
    iterators = []
    for number, given in enumerate(iterables, 1):
        try:
            iterators.append(iter(given))
        except TypeError as error:
            what = (
                "a Future, and its value is not here"
                if isinstance(given, Future)
                else f"no iterable: {given!r:.80}"
            )
            raise TypeError(
                f"map goes over the items of its arguments, and number {number} after the function is {what}; pass a list, "
                f"or use submit for one call of {getattr(func, '__name__', 'the function')}, or a keyword for what is the "
                "same in every call"
            ) from error
    return zip(*iterators)


def _amount(name: Any, value: Any) -> str:
    if not isinstance(name, str):
        raise TypeError(f"the name of a resource is a str, not {name!r:.80}")
    if set(name) & set("=,\n\0") or not name:
        raise ValueError(f"{name!r} cannot be the name of a resource")
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        raise TypeError(f"the amount of {name!r} has to be a positive number, not {value!r:.80}")
    amount = float(value)
    if not 0 < amount < 1e15:
        raise ValueError(f"the amount of {name!r} has to be a positive number, not {value!r}")
    return f"{amount:.6f}".rstrip("0").rstrip(".")


def _needs(deps: Sequence[str], records: Mapping[str, FutureState]) -> list[FutureState]:
    """Return what a task that is told of in parts needs: it has to come again if another tells of it first, and goes."""
    return [records[name] for name in deps if name in records]


class Submitter:
    """Makes tasks for one client.

    Parameters
    ----------
    client : Client
        Whose.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    # --- one --------------------------------------------------------------------------------------------------------

    def submit(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: Key | None,
        how: How | None,
        pure: bool,
        flags: int = 0,
    ) -> Future[Any]:
        """Submit one call; `flags` are a `Task`'s."""
        client = self._client
        borrowing = Borrowing(client)
        function = function_of(func, borrowing.name_of)
        name = (
            key_of_call(function, args, kwargs, pure, dependency_of=borrowing.name_of)
            if key is None
            else encode_key(key)
        )
        session = client.session
        function, args = self._large_function(function, func, args)
        known = session.states.records.get(name)
        if known is not None and known.status != CANCELLED:
            again = self._again(known, function.hash)
            if again is not None:
                return again
        spec, deps, _stored = self.pack(function, args, kwargs, borrowing)
        options = None if how is None else how.of(name)
        with session.lock:
            client._check_alive()
            fresh = FRESH if key is None and not pure else 0
            task = self.task(name, function, spec, deps, options, flags | fresh)
            known = session.states.records.get(name)
            if known is None or known.status == CANCELLED:
                state = FutureState(name, session.lane.generation, function.hash)
                state.sites = (call_site(),)
                state.count = 1  # told with the submission
                if len(deps) > LINKS:
                    state.needs = _needs(deps, session.states.records)
                if borrowing.kept:
                    session.submissions.kept[state] = borrowing.kept
                session.submit(state, task)
                # Last, so that a Ctrl-C leaves no record of a task that never left.
                session.states.records[name] = state
            else:
                state = known  # another thread was faster
                session.ledger.bind(state)
                state.bound(call_site())
            client._driver.submitted()
        return Future._of(state, client)

    def _again(self, state: FutureState, fn: str) -> Future[Any] | None:
        """Return a Future of a key that we refer to already."""
        client = self._client
        with client.session.lock:
            client._check_alive()
            if client.session.states.get(state.name) is not state or state.status == CANCELLED:
                return None
            if state.fn and state.fn != fn:
                raise KeyTaken(f"the key {decode_key(state.name)!r} is in use by another function")
            client.session.ledger.drain()  # lest `bound` takes what was released before for alive
            client.session.ledger.bind(state)
            state.bound(call_site())
        client._wake_releases()
        return Future._of(state, client)

    def _large_function(
        self, function: Function, func: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[Function, tuple[Any, ...]]:
        """Have a function above the inline limit travel as a payload, the first argument of `apply`."""
        if function.nbytes > INLINE_LIMIT and func is not apply:
            return function_of(apply), (func, *args)
        return function, args

    def task(
        self,
        name: str,
        function: Function,
        spec: bytes,
        deps: Sequence[str],
        options: Options | None,
        flags: int,
    ) -> Task:
        """Return a task, and have what it needs leave with it. Under the driver's lock."""
        submissions = self._client.session.submissions
        if function.hash not in submissions.functions:
            submissions.add_function(function.hash, function.data)
        if options is None:
            return Task(name, function.hash, spec, deps, flags=flags)
        class_ = ""
        if options.eligibility is not None:
            submissions.add_class(options.eligibility)
            class_ = options.eligibility.hash
        return Task(name, function.hash, spec, deps, 1, options.retries, options.priority, class_, flags)

    def pack(
        self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any], borrowing: Borrowing
    ) -> tuple[bytes, Sequence[str], Sequence[Future[Any]]]:
        """Return run spec and dependencies of a call, and Futures to be kept until the task is on its way.

        Large arguments are stored as values of their own.
        """
        packed = pack_arguments(args, kwargs, dependency_of=borrowing.name_of, label=function.label)
        data = packed.data
        deps: Sequence[str] = ()
        stored: Sequence[Future[Any]] = ()
        if packed.dependencies or packed.large or packed.hidden or function.contains:
            values = list(packed.dependencies)
            if packed.large:
                stored = self._client._store(packed.large)
                values += [future.name for future in stored]
            # The server keeps dependencies as a set: executors give their values in the order of the names.
            deps = sorted({*values, *packed.hidden, *function.contains})
            data = renumbered(data, values, deps)
        return pack_spec(function.hash, data), deps, stored

    # --- many -------------------------------------------------------------------------------------------------------

    def map(
        self,
        func: Callable[..., Any],
        calls: Iterable[tuple[Any, ...]],
        kwargs: dict[str, Any],
        keys: Sequence[str] | None,
        how: How | None,
        pure: bool,
        slice_: int,
    ) -> list[Future[Any]]:
        """Submit many calls of one function, a slice at a time."""
        client = self._client
        session = client.session
        borrowing = Borrowing(client)
        function = function_of(func, borrowing.name_of)
        called, extra = self._large_function(function, func, ())
        client._check_alive()
        if kwargs:
            kwargs = self._hoist(kwargs, borrowing)
        if extra:
            extra = tuple(client._store(extra))
        sites = (site := call_site(),)
        futures: list[Future[Any]] = []
        dependency_of, pack = borrowing.name_of, self.pack
        #: Futures of other clients: those of every call, then by the name of the call.
        borrowed, of_all = borrowing.kept, tuple(borrowing.kept)
        borrowed_by: dict[str, tuple[Future[Any], ...]] = {}
        of, records = Future._of, session.states.records
        made: list[tuple[str, bytes, Sequence[str], Sequence[Future[Any]]]] = []

        make, fn, flags = tuple.__new__, called.hash, FRESH if keys is None and not pure else 0

        def leave() -> None:
            each = [None if how is None else how.of(name) for name, *_ in made]
            with session.lock:
                client._check_alive()
                generation, bind = session.lane.generation, session.ledger.bind
                tasks = session.submissions.outbox
                options, tail = None, self.task("", called, b"", (), None, flags)[4:]
                for (name, spec, deps, _), its in zip(made, each, strict=True):
                    if its is not options:
                        options, tail = its, self.task("", called, b"", (), its, flags)[4:]
                    state = records.get(name)
                    if state is None or state.status == CANCELLED:
                        state = FutureState(name, generation, fn)
                        state.sites = sites
                        state.count = 1  # told with the submission
                        # A NamedTuple's own constructor costs twice as much.
                        state.task = task = make(Task, (name, fn, spec, deps, *tail))
                        if len(deps) > LINKS:
                            state.needs = _needs(deps, records)
                        if borrowed_by and name in borrowed_by:
                            session.submissions.kept[state] = borrowed_by.pop(name)
                        tasks.append((state, task))
                        records[name] = state
                    elif state.fn and state.fn != fn:
                        raise KeyTaken(f"the key {decode_key(name)!r} is in use by another function")
                    else:
                        bind(state)
                        state.bound(site)
                    futures.append(of(state, client))
                client._driver.submitted()
            made.clear()

        for i, args in enumerate(calls):
            name = (
                keys[i]
                if keys is not None
                else key_of_call(function, args, kwargs, pure, dependency_of=dependency_of)
            )
            made.append((name, *pack(called, extra + args if extra else args, kwargs, borrowing)))
            if borrowed or of_all:
                borrowed_by[name] = (*of_all, *borrowed)
                borrowed.clear()
            if len(made) >= slice_:
                leave()
        leave()
        return futures

    def _hoist(self, kwargs: dict[str, Any], borrowing: Borrowing) -> dict[str, Any]:
        """Store large keyword arguments once for all calls."""
        packed = pack_arguments((), kwargs, dependency_of=borrowing.name_of)
        large = {id(value) for value in packed.large}
        return {
            name: self._client._store([value])[0] if id(value) in large else value
            for name, value in kwargs.items()
        }


def renumbered(data: bytes, values: list[str], deps: Sequence[str]) -> bytes:
    """Return argument data whose placeholders are numbered by `deps` in stead of by `values`."""
    place = {name: number for number, name in enumerate(deps)}
    if data[:1] == b"i":
        (count,) = _COUNT.unpack_from(data, 1)
        numbers = struct.unpack_from(f"<{count}I", data, 5)
        data = data[5 + 4 * count :]
    else:
        numbers = tuple(range(len(values)))
    order = [place[values[number]] for number in numbers]
    if order == list(range(len(deps))):
        return data
    return b"i" + _COUNT.pack(len(order)) + struct.pack(f"<{len(order)}I", *order) + data
