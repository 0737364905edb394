"""Running one task: its function, its arguments, its result or error."""

from __future__ import annotations

import asyncio
import contextvars
import struct
import threading
from collections.abc import Callable, Sequence
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from redist.actor_tasks import Raised
from redist.errors import (
    ConnectionLost,
    DeserializationError,
    RedistError,
    Reschedule,
    SegmentsFull,
    SerializationError,
    ServerRefused,
    TransferError,
)
from redist.inlining import inline_limit
from redist.protocol.arguments import unpack_arguments
from redist.protocol.functions import load_function, may_hold_futures
from redist.protocol.names import type_name
from redist.protocol.payload import Payload, dumps, name_in
from redist.protocol.specs import unpack_spec
from redist.protocol.task_errors import pack_error
from redist.store.calls import MOST_CONTAINED, Result
from redist.store.keys import decode_key
from redist.store.replies import HandOut
from redist_worker.values import Missing, Values

if TYPE_CHECKING:
    from redist.memory.broker_client import BrokerClient
    from redist.store.side import Side

__all__ = ["Tasks"]

_MOST_FUNCTIONS = 1000
_LAST_WORDS = 5.0  # s that coroutines have to end which a task left
_COUNT = struct.Struct("<I")
#: What would end the program, or silently the loop, of whoever asks for the result.
_MEANT_FOR_HERE = (
    SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, StopAsyncIteration, asyncio.CancelledError,
)  # fmt: skip


class Tasks:
    """Runs tasks, in the thread that asks for it.

    Parameters
    ----------
    side : Side
        For reading functions.
    values : Values
        Loads dependencies.
    broker : BrokerClient
        Takes results that are not inline.
    """

    def __init__(self, side: Side, values: Values, broker: BrokerClient) -> None:
        self._side = side
        self._values = values
        self._broker = broker
        self._inline_limit = inline_limit()
        self._functions: dict[str, Callable[..., Any]] = {}
        # functions that hold Futures are loaded for each task, for as long as they are known the values would stay
        self._pickles: dict[str, bytes] = {}
        self._of_actors: set[str] = set()  # functions that call actors
        self._loops = threading.local()

    def execute(self, task: HandOut) -> tuple[Result, object]:
        """Run `task`; return what came of it, and what holds the keys inside, to be kept until the result is handed in."""
        name, attempt = task.name, task.attempt
        try:
            function = self._functions.get(task.fn) or self._fetch(task.fn)
            data = unpack_spec(task.fn, task.spec).args
            values = self._dependencies(task, data) if task.deps or task.more_deps else ()
            args, kwargs = unpack_arguments(data, values)
            values = ()
        except Missing as missing:
            return Result(name, attempt, "missing", value=missing.lines()), None
        except (TransferError, ConnectionLost):
            # Also of the server, when it stays away for long: that is no error of the task.
            return Result(name, attempt, "retry"), None
        except BaseException as error:
            if isinstance(error, ServerRefused) and error.passing:
                return Result(name, attempt, "retry"), None
            return self._failed(task, error), None
        try:
            value = function(*args, **kwargs)
            if isinstance(value, CoroutineType):
                value = self._complete(value)
        except BaseException as error:
            if isinstance(error, Reschedule) and task.fn not in self._of_actors:
                return Result(name, attempt, "elsewhere"), None
            # args must not live in the frames that the traceback holds once it is packed
            return self._failed(task, error), None
        finally:
            args = kwargs = function = ()  # type: ignore[assignment]
        try:
            try:
                payload: Payload = dumps(value, inline_limit=self._inline_limit, name_of=_name_of)
            except SerializationError as error:
                name_in(error, f"the result of the task {decode_key(name)!r}", value)
                raise
            contains: Sequence[str] = payload.contains
            kept: object = value
            if len(contains) > MOST_CONTAINED:
                contains, futures = _bundled(contains)
                kept = value, futures
            inline = payload.inline
            if inline is None:
                try:
                    self._broker.put([(name, attempt, payload)])
                except SegmentsFull as error:
                    error.args = (f"{error}; it is for the result of the task {decode_key(name)!r:.80}",)
                    raise
                except TransferError:
                    # Its worker has died, and this process is about to: no error of the task. A call of an actor runs once.
                    if task.fn in self._of_actors:
                        raise
                    return Result(name, attempt, "retry"), None
                inline = b""
            return Result(name, attempt, "memory", payload.nbytes, payload.type, inline, contains), kept
        except BaseException as error:
            value = kept = None  # the error may stay for a while, and its traceback holds this frame
            return self._failed(task, error), None

    def _failed(self, task: HandOut, error: BaseException) -> Result:
        """Return what came of a task that raised; of a call of an actor that is its value."""
        erred = _erred(task, error)
        if task.fn not in self._of_actors:
            return erred
        try:
            payload = dumps(Raised(erred.value))
            if payload.inline is None:
                self._broker.put([(task.name, task.attempt, payload)])
        except Exception:  # there is no room
            return erred
        return Result(task.name, task.attempt, "memory", payload.nbytes, erred.type, payload.inline or b"")

    def forget_functions(self) -> None:
        """Load functions anew: modules that they come from are other ones now."""
        self._functions.clear()
        self._pickles.clear()

    def _dependencies(self, task: HandOut, data: bytes | memoryview) -> Sequence[Any]:
        """Return the values of the dependencies in the order of their names; None for those that no argument wants."""
        deps = self._values.of(task)
        deps.sort()
        if data[:1] == b"i":
            wanted = set(struct.unpack_from(f"<{_COUNT.unpack_from(data, 1)[0]}I", data, 5))
            loaded = self._values.load([dep for number, dep in enumerate(deps) if number in wanted])
        else:
            loaded = self._values.load(deps)
        return [loaded.get(dep[0]) for dep in deps]

    def _fetch(self, fn: str) -> Callable[..., Any]:
        data = self._pickles.get(fn)
        if data is None:
            data = self._side.command("GET", f"{self._side.endpoint.prefix}fn:{fn}")
            if data is None:
                raise DeserializationError(f"the function {fn} of this task is not stored any more")
        function = load_function(data, fn)
        if hasattr(function, "raises_as_value"):
            self._of_actors.add(fn)
        known: dict[str, Any] = self._pickles if may_hold_futures(data) else self._functions
        if len(known) >= _MOST_FUNCTIONS:
            known.clear()
        known[fn] = data if known is self._pickles else function
        return function

    def _complete(self, coroutine: Any) -> Any:
        """Run a coroutine to its end in this thread's loop, which later ones share; what it left there is cancelled."""
        runner: asyncio.Runner | None = getattr(self._loops, "runner", None)
        if runner is None:
            runner = self._loops.runner = asyncio.Runner()
        try:
            return runner.run(coroutine, context=contextvars.copy_context())
        finally:
            if left := asyncio.all_tasks(runner.get_loop()):
                runner.run(_cancelled(left))


async def _cancelled(tasks: set[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=_LAST_WORDS)


def _name_of(future: Any) -> str:
    # Where there is a Future, a client is imported already; the value keeps the Future until the result was handed in.
    from redist.belonging import Borrowing
    from redist.current import default_client

    return Borrowing(default_client()).name_of(future)


def _bundled(names: Sequence[str]) -> tuple[Sequence[str], object]:
    """Return the bundles of `names`, and what holds them. They leave on this executor's lane, ahead of the result."""
    from redist.bundling import Bundles
    from redist.current import default_client

    client = default_client()
    bundles = Bundles(client)
    try:
        return client._run(bundles.of(names)), bundles.futures
    except BaseException:
        bundles.release()  # not only when the traceback goes
        raise


def _erred(task: HandOut, error: BaseException) -> Result:
    traceback = error.__traceback__
    # the first frame is ours
    if traceback is not None and traceback.tb_next is not None and not isinstance(error, RedistError):
        traceback = traceback.tb_next
    if isinstance(error, _MEANT_FOR_HERE):
        cause = error.with_traceback(traceback)
        error = RuntimeError(f"the task raised {type_name(type(cause))}: {cause}".removesuffix(": "))
        error.__cause__ = cause
    packed = pack_error(error, traceback, task.name)
    return Result(task.name, task.attempt, "erred", len(packed), type_name(type(error)), packed)
