"""How something that waits is written once, for threads and for event loops.

An operation is a generator. It yields what it needs and is sent the outcome; a driver runs it: the thread driver blocks,
the asyncio driver awaits. What it does between two yields happens in the caller's thread or loop without any lock: it takes
`Session.lock` (nothing, in a loop) to touch records or counts, and what may block belongs into a `Run`.

=========== ==========================================================================================================
yielded     outcome
=========== ==========================================================================================================
`Ask`       the reply of one call; its error is raised at the yield
`AskAll`    the replies of several calls, in order; the first error is raised
`Send`      a `Sent` at once: the calls leave
`Collect`   the replies to what was sent, in order, errors among them
`Post`      None at once: the call leaves, nobody waits for it
`Until`     True when the waiter is ready, False if the timeout came first
`Run`       what a blocking function returns; an event loop runs it in a thread
=========== ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from redist.session.states import Waiter
from redist.store.calls import Call

if TYPE_CHECKING:
    from redist.session.lane import Entry
    from redist.session.outcome import Outcome

__all__ = [
    "Ask",
    "AskAll",
    "Collect",
    "Operation",
    "Post",
    "Request",
    "Run",
    "Send",
    "Sendable",
    "Sent",
    "Until",
    "carry_out",
]

T = TypeVar("T")

Sendable: TypeAlias = "Call | Callable[[], Call]"
"""A call, or what makes it under the lock, as it goes onto the lane: what it says of counts nobody says before it."""


# Plain classes: five dataclasses would take a millisecond of every start.


class Ask:
    """Send one call and have its reply within `timeout` seconds; see `AskAll`."""

    __slots__ = ("call", "stays", "timeout")

    def __init__(self, call: Sendable, timeout: float | None = None, *, stays: bool = False) -> None:
        self.call = call
        self.timeout = timeout
        self.stays = stays


class AskAll:
    """Send several calls and have all replies within `timeout` seconds.

    None is the driver's `reply_timeout`, counted from the last call that the server answered; `math.inf` waits for ever.
    What is not answered in time raises `ConnectionLost` or `ServerRefused`, whose `pending` says whether some of it may yet
    be applied. What never left is taken off the lane, unless it `stays`: then it is applied when the server takes calls.
    """

    __slots__ = ("calls", "stays", "timeout")

    def __init__(
        self, calls: Sequence[Sendable], timeout: float | None = None, *, stays: bool = False
    ) -> None:
        self.calls = calls
        self.timeout = timeout
        self.stays = stays


class Send:
    """Send several calls and go on; `Collect` has their replies."""

    __slots__ = ("calls",)

    def __init__(self, calls: Sequence[Sendable]) -> None:
        self.calls = calls


class Sent:
    """Calls that left: what collects their replies, what stands for them on the lane, and how far the server was then."""

    __slots__ = ("entries", "outcome", "seen")

    def __init__(self, outcome: Outcome, entries: list[Entry], seen: tuple[int, int]) -> None:
        self.outcome = outcome
        self.entries = entries
        self.seen = seen


class Collect:
    """Have the replies to what was sent within `timeout` seconds, as `AskAll` counts them.

    What the server refused stands as an error in the place of its reply. What is not answered in time raises as there.
    """

    __slots__ = ("sent", "timeout")

    def __init__(self, sent: Sent, timeout: float | None = None) -> None:
        self.sent = sent
        self.timeout = timeout


class Post:
    """Send a call and go on."""

    __slots__ = ("call",)

    def __init__(self, call: Call) -> None:
        self.call = call


class Until:
    """Wait for `waiter`, at most `timeout` seconds."""

    __slots__ = ("timeout", "waiter")

    def __init__(self, waiter: Waiter, timeout: float | None = None) -> None:
        self.waiter = waiter
        self.timeout = timeout


class Run:
    """Call a function that may block."""

    __slots__ = ("args", "function")

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...] = ()) -> None:
        self.function = function
        self.args = args


Request: TypeAlias = Ask | AskAll | Send | Collect | Post | Until | Run
Operation: TypeAlias = Generator[Request, Any, T]


async def carry_out(operation: Operation[T], perform: Callable[[Request], Awaitable[Any]]) -> T:
    """Run an operation to its end, in a loop where `perform` does what it asks for, and return what it returns."""
    request: Request | None = None
    value: Any = None
    error: BaseException | None = None
    try:
        while True:
            request = operation.send(value) if error is None else operation.throw(error)
            value = error = None
            try:
                value = await perform(request)
            except BaseException as raised:
                error = raised
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        # or their tracebacks refer to this frame, and keep the caller's values until they are collected
        request = value = error = None
