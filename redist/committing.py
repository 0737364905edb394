"""Keys made known: the calls that tell of values of this process, none of which does too much."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, cast

from redist.errors import RedistError, StoreError
from redist.protocol import Payload
from redist.session.operations import Collect, Operation, Send, Sent, Until
from redist.session.states import FINISHED, PENDING, Condition, FutureState
from redist.store import calls
from redist.store.calls import Call, Value
from redist.store.replies import parse_commit

if TYPE_CHECKING:
    from redist.client import Client

__all__ = ["Told", "Written", "commit", "give_up", "heed", "tell", "tell_on"]

#: Values, with the keys that they contain, and bytes of inline values of one call.
_SLICE = 500
_BULK = 1 << 20

#: A value, and where its payload is: attempt and worker, 0 for an inline one.
Written: TypeAlias = tuple[FutureState, Payload, int, int]


class Told(NamedTuple):
    """Values of which a call tells that is on its way."""

    part: list[Written]
    names: set[str]
    sent: Sent


def commit(
    client: Client,
    written: Sequence[Written],
    keep: bool,
    timeout: float | None,
    sent: set[str],
    bundled: Mapping[str, Sequence[str]] | None = None,
) -> Operation[None]:
    """Make keys known; `sent` gets the names of those whose commit may have left, or may be applied later.

    `bundled` has, by name, the bundles of those values that contain too many keys for one call.
    """
    told: list[Told] = []
    yield from tell(client, written, keep, told, sent, bundled)
    yield from heed(client, told, timeout, sent)


def tell(
    client: Client,
    written: Sequence[Written],
    keep: bool,
    told: list[Told],
    sent: set[str],
    bundled: Mapping[str, Sequence[str]] | None = None,
) -> Operation[None]:
    """Send what makes keys known, and do not wait for the replies: `heed` does that with what `told` gets."""
    bundled = bundled or {}
    session = client.session
    for part in _slices(written, bundled):
        contains = [bundled.get(state.name, payload.contains) for state, payload, _, _ in part]
        inside = {name for names in contains for name in names}
        if inside and session.submissions.holding.holds_any(inside):
            yield Until(Condition(partial(_left, client, inside)))
        names = {state.name for state, *_ in part}
        sent |= names
        before = session.lane.incarnation, session.lane.n
        try:
            handle = yield Send([partial(_call, client, part, contains, keep)])
        except BaseException:
            if (session.lane.incarnation, session.lane.n) == before:
                sent -= names
            raise
        told.append(Told(part, names, handle))


def tell_on(
    client: Client,
    written: Sequence[Written],
    keep: bool,
    told: list[Told],
    sent: set[str],
    bundled: Mapping[str, Sequence[str]],
    timeout: float | None,
) -> Operation[None]:
    """`tell`, and `heed` what was told before: more is to come, and one part at a time is on its way."""
    before = len(told)
    yield from tell(client, written, keep, told, sent, bundled)
    yield from heed(client, told, timeout, sent, leave=len(told) - before)


def heed(
    client: Client, told: list[Told], timeout: float | None, sent: set[str], leave: int = 0
) -> Operation[None]:
    """Wait for the replies to what was told, but for the last `leave`, and note what they say; done ones go from `told`.

    Raises
    ------
    RedistError
        What the server refused first; the others were noted all the same.
    StoreError
        What was not answered in time; what is behind it was not waited for.
    """
    refusal: BaseException | None = None
    while len(told) > leave:
        part, names, handle = told[0]
        try:
            (reply,) = yield Collect(handle, timeout)
        except StoreError as error:
            if _is_refusal(client, error):
                sent -= names
            raise
        del told[0]
        if isinstance(reply, BaseException):
            if _is_refusal(client, reply):
                sent -= names
            refusal = refusal or reply
        else:
            _note(client, part, reply)
    if refusal is not None:
        try:
            raise refusal
        finally:
            del (
                refusal,
                reply,
                handle,
            )  # else they would keep this frame, and this frame them, and both the Futures


def _is_refusal(client: Client, error: BaseException) -> bool:
    """Whether `error` says that a call is not applied; what the end of the session leaves unanswered may have been."""
    session = client.session
    over = session.closing or session.failure is not None
    return not over and not (isinstance(error, StoreError) and error.pending)


def _note(client: Client, part: Sequence[Written], reply: list[Any]) -> None:
    """Note that keys are known."""
    known = set(parse_commit(reply))
    with client.session.lock:
        for state, payload, attempt, worker in part:
            # What was in memory already is told with a push, like a refusal.
            if state.name in known:
                continue
            if state.status == PENDING:
                where = f"{worker}.{attempt}" if worker else ""
                state.finish(payload.nbytes, payload.type, where, payload.inline)
            elif state.status == FINISHED and not state.where and not state.value:
                # the push was faster, and brings no value of this size; a server that loses its memory needs it again
                state.value = payload.inline


def _call(client: Client, part: Sequence[Written], contains: Sequence[Sequence[str]], keep: bool) -> Call:
    """Make the call, with the counts of now: another thread may refer to the keys until then."""
    values = []
    for (state, payload, attempt, worker), names in zip(part, contains):
        count = max(state.count, 1)
        values.append(
            Value(
                state.name, count, attempt, worker, payload.nbytes, payload.type, payload.inline or b"", keep, names
            )
        )  # fmt: skip
        client.session.ledger.settled(state, count)
    return calls.commit(values)


def _left(client: Client, names: set[str]) -> bool:
    """Whether the tasks `names` do not wait for a value any more."""
    return not client.session.submissions.holding.holds_any(names)


def _slices(written: Sequence[Written], bundled: Mapping[str, Sequence[str]]) -> Iterator[list[Written]]:
    part: list[Written] = []
    weight = size = 0
    for item in written:
        state, payload, _, _ = item
        more = 1 + len(bundled.get(state.name, payload.contains))
        if part and (weight + more > _SLICE or size >= _BULK):
            yield part
            part, weight, size = [], 0, 0
        part.append(item)
        weight += more
        size += len(payload.inline or b"")
    if part:
        yield part


def give_up(
    client: Client, states: Sequence[FutureState], sent: Collection[str], error: BaseException
) -> None:
    """Have the keys of `states` fail, which `error` kept from becoming known.

    `sent` are the names of those that are known or may become so yet: the Futures that go release them.
    """
    # Without its frames, which hold the Futures of the very keys, and values of who called.
    if not isinstance(error, Exception):
        kept: BaseException = RedistError(f"storing the value was interrupted: {type(error).__name__}")
    else:
        kept = _without_frames(error)
    with client.session.lock:
        for state in states:
            if state.status == PENDING:
                if state.name not in sent:
                    client.session.ledger.forfeit(state)
                state.fail(kept)


def _without_frames(error: BaseException) -> BaseException:
    try:
        # Not by `copy`: tblib, where installed, would have it keep its frames.
        make, arguments, *_ = cast("tuple[Any, ...]", error.__reduce__())
        kept: BaseException = make(*arguments)
    except Exception:
        return error
    kept.__dict__.update(error.__dict__)
    kept.__cause__ = error.__cause__
    return kept
