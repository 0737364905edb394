"""Actors: objects that live in one executor and are called from anywhere, with Dask's names.

An actor is made by a task, whose small value says where it lives: that is what `Future.result` turns into an `Actor`. A
call is a task for that one executor. It needs the actor's key, so that the actor outlives it, and the call before it of the
same client, so that calls run in their order; what it raises is its value, so that it does not fail those behind it.
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import lru_cache
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

from redist.actor_tasks import Raised, Unready, call, host, make, read
from redist.belonging import Borrowing
from redist.current import default_client
from redist.errors import ActorLost, KilledWorker, SerializationError
from redist.future import Future
from redist.gathering import result_of
from redist.protocol import INLINE_LIMIT, function_of, key_of_call, pack_arguments, pack_spec, unpack_error
from redist.raising import raise_told, without_way
from redist.session.states import FutureState, Waiter
from redist.store.calls import FRESH, SPREAD, EligibilityClass
from redist.store.keys import Key, decode_key, encode_key
from redist.submitting import How, Options, call_site, renumbered
from redist.timeouts import seconds

if TYPE_CHECKING:
    from redist.client import Client
    from redist.session.operations import Operation

__all__ = ["Actor", "ActorFuture", "BaseActorFuture", "create", "create_many", "described"]

T = TypeVar("T")

#: Calls go before tasks, as who calls an actor does not queue for its worker.
_PRIORITY = 1_000_000
#: Bytes of the names of a class's attributes.
_MOST_NAMES = INLINE_LIMIT - 1024
_NO_VALUES = b"i\0\0\0\0"  # of a call's dependencies, unless they are arguments


# --- making -----------------------------------------------------------------------------------------------------------


def create(
    client: Client,
    cls: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: Key | None,
    how: How | None,
) -> Future[Any]:
    """Submit the making of an actor."""
    if key is None:
        borrowing = Borrowing(client)
        function = function_of(cls, borrowing.name_of)
        key = decode_key(key_of_call(function, args, kwargs, False, dependency_of=borrowing.name_of))
    return client._submitter.submit(make, (encode_key(key), cls, *args), kwargs, key, how, False, SPREAD)


def create_many(
    client: Client,
    cls: Callable[..., Any],
    rows: Iterable[tuple[Any, ...]],
    kwargs: dict[str, Any],
    keys: list[str] | None,
    how: How | None,
) -> list[Future[Any]]:
    """Submit the making of an actor for each row of arguments."""
    return [
        create(client, cls, row, kwargs, None if keys is None else decode_key(keys[i]), how)
        for i, row in enumerate(rows)
    ]


def described(name: str, token: str, executor: int, cls: type) -> Actor:
    """Return what an executor gives out of an actor of `cls` that it has made."""
    kinds = []
    for attribute in dir(cls):
        if not attribute.startswith("__"):
            value = getattr(cls, attribute, None)
            kind = "-" if not callable(value) else "a" if inspect.iscoroutinefunction(value) else "m"
            kinds.append(kind + attribute)
    packed = zlib.compress("\n".join(kinds).encode())
    if len(packed) > _MOST_NAMES:  # what is not inline could be lost with a worker, and be made again
        raise SerializationError(f"{cls.__name__} has too many attributes for an actor: {len(kinds)}")
    return Actor(name, token, executor, cls.__name__, packed, None)


def _meet(name: str, token: str, executor: int, label: str, kinds: bytes) -> Actor:
    """Return an actor of the current client."""
    client = default_client()
    future: Future[Any] = Future._of(client._bind(name), client)
    return Actor(name, token, executor, label, kinds, future)


def _again(future: Future[Any], token: str, executor: int, label: str, kinds: bytes) -> Actor:
    return Actor(future.name, token, executor, label, kinds, future)


# --- calling ----------------------------------------------------------------------------------------------------------


class Actor:
    """An object that lives in an executor, as others see it.

    ``actor.method(...)`` calls a method there and returns an `ActorFuture` at once; ``actor.attribute`` reads an attribute
    and waits for it (with an asynchronous client it is to be awaited), whatever the actor does then. Methods run one at a
    time in a thread of the actor's, those that one client called in the order of its calls. ``async def`` methods run in an
    event loop, beside these and each other. A call needs no thread of those that run tasks. Methods of two actors that wait
    for each other's calls wait for ever: give `ActorFuture.result` a timeout, or make one a coroutine. The actor lives as
    long as there is an `Actor` or a Future of it, and ends with its process.

    Made by ``client.submit(cls, ..., actor=True).result()``.
    """

    __slots__ = (
        "__weakref__",
        "_executor",
        "_future",
        "_kinds",
        "_label",
        "_line",
        "_name",
        "_packed",
        "_token",
    )

    _name: str
    _token: str
    _executor: int
    _label: str
    _packed: bytes
    _future: Future[Any] | None
    _kinds: Mapping[str, str] | None
    _line: _Line | None

    def __init__(
        self, name: str, token: str, executor: int, label: str, packed: bytes, future: Future[Any] | None
    ) -> None:
        put = object.__setattr__
        put(self, "_name", name)
        put(self, "_token", token)
        put(self, "_executor", executor)
        put(self, "_label", label)
        put(self, "_packed", packed)
        put(self, "_future", future)
        put(self, "_kinds", None)
        put(self, "_line", None)

    @property
    def key(self) -> Key:
        """The actor's key."""
        return decode_key(self._name)

    @property
    def client(self) -> Client:
        """The client that this calls through."""
        return self._reference().client

    def __repr__(self) -> str:
        return f"<Actor: {self._label}, key={self.key!s}>"

    def __dir__(self) -> list[str]:
        public = (name for name in self._known() if not name.startswith("_"))
        return sorted({*object.__dir__(self), *public})

    def __reduce__(self) -> tuple[Any, ...]:
        how = (self._token, self._executor, self._label, self._packed)
        return (_meet, (self._name, *how)) if self._future is None else (_again, (self._future, *how))

    def __dask_tokenize__(self) -> tuple[str, str, str]:
        return "redist.Actor", self._name, self._token

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"{self!r} is set from inside only: give {self._label} a method that sets {name!r}",
            name=name,
            obj=self,
        )

    def __getattr__(self, name: str) -> Any:
        # not `_name` and its kin: of an object that is just being made, or not ours at all
        kind = None if name.startswith("__") or name in Actor.__slots__ else self._known().get(name)
        if kind is None and name.startswith("_"):
            raise AttributeError(f"{self._label!r} has no attribute {name!r}", name=name, obj=self)
        keeper = host()
        if keeper is not None and kind == "m":
            own = keeper.own_method(self._name, self._token, name)
            if own is not None:
                return _Own(own)
        if kind in ("m", "a"):
            return _Method(self, name, ordered=kind == "m")
        reading = self._submit(read, name, (), {}, ordered=False)
        return reading.client._fetch(_outcome(self, reading, None))

    def _known(self) -> Mapping[str, str]:
        """Return the attributes of the class: ``m`` for a method, ``a`` for a coroutine function, ``-`` for others."""
        if self._kinds is None:
            lines = zlib.decompress(self._packed).decode().split("\n")
            object.__setattr__(self, "_kinds", {line[1:]: line[0] for line in lines if line})
        return self._kinds or {}

    def _reference(self) -> Future[Any]:
        if self._future is None:
            object.__setattr__(self, "_future", Future(self.key))
        assert self._future is not None
        return self._future

    def _submit(
        self,
        what: Callable[..., Any],
        attribute: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        ordered: bool,
    ) -> Future[Any]:
        """Submit a call or a read; an ordered one behind those of this client that are ordered and not done."""
        reference = self._reference()
        client = reference.client
        client._check_alive()
        session = client.session
        line = self._line
        if line is None or line.client is not client:
            line = _line(client, self._name)
            object.__setattr__(self, "_line", line)
        borrowing = Borrowing(client)
        function = function_of(what)
        key = encode_key(
            f"{self._label}.{attribute}{key_of_call(function, (), {}, False)[len(function.stem) - 1 :]}"
        )
        head = (
            (self._name, self._token, attribute)
            if what is read
            else (self._name, self._token, attribute, key)
        )
        stored: list[Future[Any]] = []
        packed = pack_arguments(
            (*head, *args), kwargs, dependency_of=borrowing.name_of, label=f"{self._label}.{attribute}"
        )
        if packed.dependencies or packed.hidden:
            stored = client._store([Unready(args, kwargs)])
            packed = pack_arguments((*head, *stored), {}, dependency_of=borrowing.name_of)
        values = list(packed.dependencies)
        if packed.large:
            stored = client._store(packed.large)
            values += [future.name for future in stored]
        actor = borrowing.name_of(reference)
        with session.lock:
            client._check_alive()
            before = line.last if ordered else None
            deps = sorted({*values, actor, *([] if before is None else [before.name])})
            data = renumbered(packed.data, values, deps) if values else _NO_VALUES + packed.data
            spec = pack_spec(function.hash, data)
            task = client._submitter.task(key, function, spec, deps, _options(self._executor), FRESH)
            state = FutureState(key, session.lane.generation, function.hash)
            state.sites = (call_site(),)
            state.count = 1  # told with the submission
            future: Future[Any] = Future._of(state, client)
            state.add_waiter(_Done(line, future))
            if ordered:
                line.last = future
            if borrowing.kept:
                session.submissions.kept[state] = borrowing.kept
            session.submit(state, task)
            session.states.records[key] = state
            client._driver.submitted()
        return future


@lru_cache(256)
def _options(executor: int) -> Options:
    """Return how a call is run: in the executor of this ordinal, ahead of tasks."""
    options = Options(priority=_PRIORITY)
    options.eligibility = EligibilityClass(f"executor-{executor}", "", "", executor=executor)
    return options


class _Line:
    """The calls of one client to one actor.

    Attributes
    ----------
    client : Client
        The client.
    last : Future or None
        The last call that others have to wait for, until it is done.
    """

    __slots__ = ("__weakref__", "client", "last")

    def __init__(self, client: Client) -> None:
        self.client = client
        self.last: Future[Any] | None = None


_lines: WeakKeyDictionary[Client, WeakValueDictionary[str, _Line]] = WeakKeyDictionary()


def _line(client: Client, name: str) -> _Line:
    """Return the line of calls of `client` to the actor `name`."""
    with client.session.lock:
        lines = _lines.setdefault(client, WeakValueDictionary())
        line = lines.get(name)
        if line is None:
            line = lines[name] = _Line(client)
        return line


class _Done(Waiter):
    """Keeps a call and its line until the call is done, though nobody wants to know what came of it."""

    __slots__ = ("_future", "_line")

    def __init__(self, line: _Line, future: Future[Any]) -> None:
        super().__init__(1)
        self._line: _Line | None = line
        self._future: Future[Any] | None = future

    def hit(self, state: FutureState) -> None:
        """Let go."""
        self.remaining = 0
        if self._line is not None and self._line.last is self._future:
            self._line.last = None
        self._line = self._future = None


class _Method:
    """A method of an actor, to be called."""

    __slots__ = ("__name__", "_actor", "_ordered")

    def __init__(self, actor: Actor, name: str, *, ordered: bool) -> None:
        self.__name__ = name
        self._actor = actor
        self._ordered = ordered

    def __call__(self, /, *args: Any, **kwargs: Any) -> ActorFuture[Any]:
        actor = self._actor
        return ActorFuture(actor, actor._submit(call, self.__name__, args, kwargs, ordered=self._ordered))

    def __repr__(self) -> str:
        return f"<method {self.__name__} of {self._actor!r}>"


class _Own:
    """A method of the actor whose method calls it: it runs at once, as the actor is busy with its caller."""

    __slots__ = ("_method",)

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def __call__(self, /, *args: Any, **kwargs: Any) -> EagerActorFuture[Any]:
        try:
            return EagerActorFuture(self._method(*args, **kwargs), None)
        except Exception as error:
            return EagerActorFuture(None, error)


# --- what comes of it -------------------------------------------------------------------------------------------------


class BaseActorFuture(Generic[T]):
    """What comes of a call of an actor's method: `result`, `done`, and it can be awaited."""

    __slots__ = ("__weakref__",)

    def result(self, timeout: float | str | None = None) -> T:
        """Wait for what the method returned; a coroutine with an asynchronous client.

        Parameters
        ----------
        timeout : float or str, optional
            Seconds to wait, or text such as ``'2s'``.

        Raises
        ------
        TimeoutError
            If it is not there in time.
        ActorLost
            If the process of the actor is gone.
        CancelledError
            If the actor's key was cancelled or forgotten.
        Exception
            What the method raised.
        """
        raise NotImplementedError

    def done(self) -> bool:
        """Return whether it is there, or never will be."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, None, T]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return "<ActorFuture>"


class ActorFuture(BaseActorFuture[T]):
    """What comes of a call of an actor's method, in the actor's executor."""

    __slots__ = ("_actor", "_future")

    def __init__(self, actor: Actor, future: Future[Any]) -> None:
        self._actor = actor
        self._future = future

    def result(self, timeout: float | str | None = None) -> T:
        """Wait for what the method returned; see `BaseActorFuture.result`."""
        try:
            operation = _outcome(self._actor, self._future, seconds(timeout))
            return cast(T, self._future.client._fetch(operation))
        except BaseException as error:
            if not without_way(error):
                raise
            raise error

    def done(self) -> bool:
        """Return whether it is there, or never will be."""
        return self._future.done()

    # What `wait` and `as_completed` look at.

    @property
    def _state(self) -> FutureState:
        return self._future._state

    @property
    def _client(self) -> Client:
        return self._future._client

    @property
    def _cleared(self) -> bool:
        return self._future._cleared

    def _get(self, deadline: float | None) -> Operation[Any]:
        """Return what the method returned, or raise what it raised."""
        return (
            yield from _outcome(
                self._actor, self._future, None if deadline is None else deadline - monotonic()
            )
        )

    def __await__(self) -> Generator[Any, None, T]:
        return self._future.client._awaited(_outcome(self._actor, self._future, None)).__await__()


class EagerActorFuture(BaseActorFuture[T]):
    """What came of a call that an actor made of a method of its own."""

    __slots__ = ("_error", "_value")

    def __init__(self, value: T, error: Exception | None) -> None:
        self._value = value
        self._error = error

    def result(self, timeout: object = None) -> T:
        """Return what the method returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        return self._value

    def done(self) -> bool:
        """Return True."""
        return True

    def __await__(self) -> Generator[Any, None, T]:
        yield from ()
        return self.result()

    def _get(self, deadline: float | None) -> Operation[Any]:
        yield from ()
        return self.result()


def _outcome(actor: Actor, future: Future[Any], timeout: float | None) -> Operation[Any]:
    """Wait for a call; return what it returned, or raise what it raised."""
    client = future.client
    deadline = None if timeout is None else monotonic() + timeout
    try:
        value = yield from result_of(client, future._state, deadline, False, False)
    except KilledWorker as error:  # it may not have run a second time
        raise ActorLost(
            f"the actor {actor.key!r} was lost with the process that ran its call: {error}"
        ) from None
    if type(value) is not Raised:
        return value
    with client.as_current():
        error_, traceback = unpack_error(value.error)
    try:
        raise_told(error_, traceback)
    finally:
        del error_, traceback  # else it would keep this frame, and this frame it
