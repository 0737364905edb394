"""Values that the server keeps under a name: datasets, variables, items of queues.

What is kept is one pickle, of a pair: whether what follows is the value itself or a Future of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from redist.belonging import Borrowing
from redist.bundling import Bundles
from redist.current import as_current
from redist.errors import RedistError, SerializationError
from redist.future import BROUGHT, Future
from redist.gathering import result_of
from redist.protocol import Payload, dumps, loads_inline
from redist.protocol.payload import name_in
from redist.scattering import prepare, store
from redist.session.lane import Refused
from redist.session.operations import Ask, AskAll, Operation
from redist.session.states import PENDING
from redist.session.submissions import SLICE
from redist.store import calls
from redist.store.calls import MOST_CONTAINED
from redist.store.replies import parse_states

if TYPE_CHECKING:
    from redist.client import Client
    from redist.session.states import FutureState

__all__ = ["DIRECT", "Enclosed", "dump_pair", "enclose", "load", "open_up"]

#: Bytes of a value that is kept with the name itself.
DIRECT = 64 * 1024
#: Bytes of a value that holds Futures, which is always kept with the name.
_ANY = 1 << 29


class Enclosed(NamedTuple):
    """What is sent: the pickle, what it contains (`names`, or bundles of them), and what keeps that until the answer."""

    data: bytes
    contains: Sequence[str]
    kept: object
    bundles: Bundles
    names: Sequence[str]

    def __enter__(self) -> Enclosed:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.bundles.release()


def dump_pair(value: Any, what: str, inline_limit: int, borrowing: Borrowing) -> Payload:
    """Write the pair of a value itself.

    Raises
    ------
    SerializationError
        If it cannot be serialized: `what` is, not the pair.
    """
    try:
        return dumps((False, value), inline_limit=inline_limit, name_of=borrowing.name_of)
    except SerializationError as error:
        name_in(error, what, value)
        raise


def enclose(client: Client, value: Any, what: str) -> Operation[Enclosed]:
    """Write a value, `what` for users; a large one becomes a payload like any other, and what is kept refers to it.

    Raises
    ------
    SerializationError
        If it cannot be serialized.
    Refused
        If it holds very many Futures, and the server does not know one; where they are few the call is refused.
    """
    borrowing = Borrowing(client)
    payload = dump_pair(value, what, DIRECT, borrowing)
    if payload.inline is None and payload.contains:
        payload = dump_pair(value, what, _ANY, borrowing)
    future = None
    if payload.inline is None:
        stored = prepare(client, [value], [None], unique=True, borrowing=borrowing)
        future = Future._of(stored[0].state, client)
        try:
            yield from store(client, stored, places_ahead=True)
        except BaseException:
            future.release()  # not only when the traceback goes
            raise
        payload = dumps((True, future))
    assert payload.inline is not None
    contains: Sequence[str] = payload.contains
    bundles = Bundles(client)
    if len(contains) > MOST_CONTAINED:
        try:
            contains = yield from bundles.of(contains)
            yield from _check_known(payload.contains)
        except BaseException:
            bundles.release()
            raise
    return Enclosed(payload.inline, contains, (borrowing, future), bundles, payload.contains)


def _check_known(names: Sequence[str]) -> Operation[None]:
    """Refuse keys that the server does not know. Bundles hold the others."""
    parts = [names[at : at + MOST_CONTAINED] for at in range(0, len(names), MOST_CONTAINED)]
    for reply in (yield AskAll([calls.states(part) for part in parts])):
        for read in parse_states(reply):
            if read.state == "forgotten":
                raise Refused("unknown", read.name)


def load(client: Client, data: bytes) -> tuple[bool, Any]:
    """Read a pair, and count references to the Futures in it; a large value is still to be fetched."""
    with as_current(client):
        pair: tuple[bool, Any] = loads_inline(data)
    return pair


def open_up(client: Client, data: bytes) -> Operation[Any]:
    """Read a value. The Futures in it are counted on the lane by then, and say how their keys stand.

    Of many only the first `SLICE` say so at once, the others when the server has told it.
    """
    brought: list[FutureState] = []
    token = BROUGHT.set(brought)
    try:
        stored, value = load(client, data)
    finally:
        BROUGHT.reset(token)
    if stored:
        return (yield from result_of(client, value._state, None, False, False))
    yield from _look(client, brought)
    return value


def _look(client: Client, states: Sequence[FutureState]) -> Operation[None]:
    """Note of what is pending here whether it is done, without waiting for the push that says so; in one call."""
    unknown = {state.name: state for state in states if state.status == PENDING}
    if not unknown:
        return
    with suppress(RedistError):  # the push comes all the same
        reply = yield Ask(calls.states(list(unknown)[:SLICE]))
        with client.session.lock:
            for read in parse_states(reply):
                state = unknown[read.name]
                # Somebody waits for it by now: the push calls him.
                fresh = state.status == PENDING and state.waiters is None
                if (
                    fresh
                    and client.session.states.get(read.name) is state
                    and read.state in ("memory", "erred")
                ):
                    client.session.notifications.read(read)
