"""The actors of an executor: objects that stay here between calls, until nobody knows their keys any more.

Each has a thread, in which it is made, its methods run one at a time, and it ends: so it may hold what is bound to a
thread. Its coroutines run in the executor's loop. The thread of the task that asks waits, and soon gives its place up, so
that a long call keeps no other task from running.
"""

from __future__ import annotations

import inspect
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from redist.errors import ActorLost, DataLost, RedistError
from redist.store import calls
from redist.store.keys import decode_key
from redist.store.replies import parse_states

if TYPE_CHECKING:
    from redist.session.session import Session
    from redist.store.calls import Call
    from redist_worker.orders import Loop
    from redist_worker.places import Places

__all__ = ["Actors"]

logger = logging.getLogger("redist.worker")

_SHORT = 0.002  # s that a call may take before its task gives its place up
_LOOK_EVERY = 1.0  # s between looks at the keys
#: Calls of an actor that are remembered, lest one that a server which lost writes has queued again runs twice.
_REMEMBERED = 1000


async def _outcome(coroutine: Coroutine[Any, Any, Any]) -> tuple[Any, BaseException | None]:
    """Return what a coroutine returns and what it raises: some errors would end the loop."""
    try:
        return await coroutine, None
    except BaseException as error:
        return None, error


class _Actor:
    """One actor: its object and its thread."""

    def __init__(self, token: str, ordinal: int) -> None:
        self.token = token
        self.ordinal = ordinal  # of the executor when it was made
        self.instance: Any = None
        self.seen: dict[str, None] = {}
        self._todo: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._main, name="redist-actor", daemon=True)
        self.thread.start()

    def begin(self, function: Callable[[], Any]) -> Future[Any]:
        """Have the thread call a function."""
        future: Future[Any] = Future()
        self._todo.put((function, future))
        return future

    def end(self) -> None:
        """End the thread behind what it has to do, and the object with it."""
        self._todo.put(None)

    def _main(self) -> None:
        while (item := self._todo.get()) is not None:
            function, future = item
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del item, function, future
        self.instance = None


class Actors:
    """Makes and calls the actors of one executor.

    Parameters
    ----------
    session : Session
        The executor's.
    read : callable
        Sends a call and returns its reply.
    places : Places
        Where tasks give their places up.
    loop : Loop
        For coroutines.
    tell : callable
        Called with how many actors there are when that changes.
    """

    def __init__(
        self,
        session: Session,
        read: Callable[[Call], Any],
        places: Places,
        loop: Loop,
        tell: Callable[[int], object] = lambda count: None,
    ) -> None:
        self._session = session
        self._tell = tell
        self._read = read
        self._places = places
        self._loop = loop
        self._lock = threading.Lock()
        self._actors: dict[str, _Actor] = {}
        self._watching = False

    def __len__(self) -> int:
        return len(self._actors)

    # --- what tasks ask for (`redist.actor_tasks.Host`) -----------------------------------------------------------------

    def make(self, name: str, cls: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make an actor, and return what others know it by."""
        from redist.actor import described

        actor = _Actor(secrets.token_hex(8), self._session.ordinal)

        def begin() -> None:
            actor.instance = cls(*args, **kwargs)

        try:
            self._wait(actor.begin(begin))
        except BaseException:
            actor.end()
            raise
        with self._lock:
            before = self._actors.get(name)
            self._actors[name] = actor
            self._tell(len(self._actors))
            if not self._watching:
                self._watching = True
                threading.Thread(target=self._watch, name="redist-actors", daemon=True).start()
        if before is not None:
            before.end()  # of an attempt that came to nothing, or of a key that was forgotten since
        return described(name, actor.token, actor.ordinal, type(actor.instance))

    def call(
        self, name: str, token: str, method: str, call: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call a method."""
        actor = self._find(name, token)
        with self._lock:
            if call in actor.seen:
                raise DataLost(
                    f"the call {call} ran, and what came of it is lost: it does not run again, as it may have changed the "
                    f"actor {decode_key(name)!r}"
                )
            actor.seen[call] = None
            if len(actor.seen) > _REMEMBERED:
                del actor.seen[next(iter(actor.seen))]
        function = getattr(actor.instance, method)
        if inspect.iscoroutinefunction(function):
            value = function(*args, **kwargs)
        else:
            value = self._wait(actor.begin(lambda: function(*args, **kwargs)), for_good=True)
        if inspect.iscoroutine(value):
            value, error = self._wait(self._loop.begin(_outcome(value)), for_good=True)
            if error is not None:
                try:
                    raise error
                finally:
                    del error
        return value

    def read(self, name: str, token: str, attribute: str) -> Any:
        """Read an attribute, whatever the actor does now."""
        return getattr(self._find(name, token).instance, attribute)

    def task_name(self) -> str:
        """Return the wire name of the calling thread's task."""
        thread = self._places.current()
        assert thread is not None
        assert thread.task is not None
        return thread.task.name

    def own_method(self, name: str, token: str, method: str) -> Callable[..., Any] | None:
        """Return the actor's method if the calling thread runs a method of that very actor."""
        actor = self._actors.get(name)
        if actor is None or actor.token != token or actor.thread is not threading.current_thread():
            return None
        own: Callable[..., Any] = getattr(actor.instance, method)
        return own

    def _find(self, name: str, token: str) -> _Actor:
        actor = self._actors.get(name)
        # one of before a registration as another executor is not found by all of its calls any more
        if actor is None or actor.token != token or actor.ordinal != self._session.ordinal:
            raise ActorLost(
                f"Worker holding Actor was lost: the process of {decode_key(name)!r} ended; submit the actor again"
            )
        return actor

    def _wait(self, future: Future[Any], *, for_good: bool = False) -> Any:
        """Return what a Future gives; the task's place is given up if it takes long, maybe for good."""
        try:
            error = future.exception(_SHORT)
        except TimeoutError:
            if for_good and self._places.current() is not None:
                self._places.secede()  # a call that has ended waits for no place
                error = future.exception()
            else:
                self._places.block()
                try:
                    error = future.exception()
                finally:
                    self._places.unblock()
        if error is not None:
            try:
                raise error
            finally:
                del error, future
        return future.result()

    # --- their end ----------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Drop the actors whose keys are forgotten."""
        doubted: set[str] = set()
        while True:
            threading.Event().wait(_LOOK_EVERY)
            with self._lock:
                if not self._actors:
                    self._watching = False
                    return
                actors = dict(self._actors)
            try:
                gone = self._gone(actors)
            except RedistError:
                continue
            except Exception:
                logger.exception("the keys of actors could not be looked at")
                continue
            # a server that lost its memory does not know them until their clients have told it
            for name in gone & doubted:
                with self._lock:
                    if self._actors.get(name) is not actors[name]:
                        continue
                    del self._actors[name]
                    self._tell(len(self._actors))
                actors[name].end()
            doubted = gone
            actors.clear()

    def _gone(self, actors: dict[str, _Actor]) -> set[str]:
        """Return the names of actors that nobody can call any more."""
        gone = set()
        for state in parse_states(self._read(calls.states(list(actors), full=True))):
            actor = actors[state.name]
            if state.state == "forgotten" or actor.ordinal != self._session.ordinal:
                gone.add(state.name)
            elif state.state == "memory" and actor.token.encode() not in state.value:
                gone.add(state.name)  # it was made again elsewhere
        return gone
