"""Registering anew, or under a name of before: what a caller says again to the server, and what it takes up from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from redist.session.lane import Entry
from redist.session.lineage import in_turns, is_known_here, with_needs
from redist.session.states import FINISHED, PENDING, FutureState
from redist.session.submissions import SLICE
from redist.store import calls
from redist.store.coordination import quit_
from redist.store.copying import replicate
from redist.store.keys import BUNDLE
from redist.store.portions import portions

if TYPE_CHECKING:
    from redist.session.session import Session
    from redist.store.calls import Call, Task

__all__ = ["bring", "take_up", "tell_again"]

_BRINGS_COUNTS = ("submit", "commit", "cancel")


def bring(session: Session, kept: list[Entry]) -> None:
    """Put on the new lane what `session` holds, then the calls in `kept`, which the server may not have applied.

    In this order: what a face brings (files, running attempts), values that we have in hand with the keys that they
    contain, counts, tasks without a value; then values that contain such tasks, and so on; how many copies of them are to
    be kept. So all of them find what they
    name, and what the old index alone still names can be released at the end. What tasks of graphs need and nobody refers
    to is counted until all of them have left.
    """
    submissions, ledger = session.submissions, session.ledger
    submissions.forget_server()
    enqueue = session.lane.enqueue
    for call in session.on_lost() if session.on_lost is not None else ():
        enqueue(call)
    pending: list[FutureState] = []
    counts: list[tuple[str, int]] = []
    values: list[calls.Value] = []
    storing = any(entry.call.script.name == "commit" for entry in kept)
    for name, count in ledger.pairs():
        state = session.states.records[name]
        if state.task is not None and state.status in (PENDING, FINISHED):
            state.unfinished()
            pending.append(state)
        elif is_known_here(state):
            values.append(_value(session, state, count))
        elif state.status != PENDING or not storing:  # else it is said behind what may store it
            counts.append((name, count))
    every = with_needs([*pending, *submissions.unsent()], session.states.records)
    lent, tasks = _lend(session, every, values)
    for some, following in in_turns(values, tasks):
        for part in portions(some, SLICE, lambda value: 1 + len(value.contains)):
            enqueue(calls.commit(part))
        session.enqueue_counts(counts)
        counts = []
        submissions.send_again(following, known=True)
    for call in _copies(session):
        enqueue(call)
    for entry in kept:
        # Counts are said above, in their present form.
        if entry.call.script.name == "submit":
            submissions.send_entry_again(entry)
        elif entry.call.script.name == "drop_functions":
            submissions.let_go_later(entry)
        elif entry.call.script.name not in ("ledger", "registered", "noop"):
            enqueue(entry.call, entry.on_reply, entry.on_error)
    if any(entry.call.script.name in _BRINGS_COUNTS for entry in kept):
        # Those brought the counts of their time. What has not left yet has no count: said too early, it would be cancelled.
        unsent = submissions.names()
        session.enqueue_counts([pair for pair in ledger.pairs(lent) if pair[0] not in unsent])
    enqueue(calls.registered())
    if lent:
        session.dirty()


def tell_again(session: Session, state: FutureState) -> None:
    """Submit a task that the server has given up again, unless it has not left yet, with what it needs.

    Who told of it first has gone. As only he was heard, nothing kept there what we have let go of since.
    """
    if not session.submissions.again([state]):
        return
    values: list[calls.Value] = []
    lent, tasks = _lend(session, with_needs([state], session.states.records), values)
    for some, following in in_turns(values, tasks):
        for part in portions(some, SLICE, lambda value: 1 + len(value.contains)):
            session.lane.enqueue(calls.commit(part))
        session.submissions.send_again(following)
    if lent:
        session.dirty()


def _lend(
    session: Session, states: list[FutureState], values: list[calls.Value]
) -> tuple[list[FutureState], list[tuple[FutureState, Task]]]:
    """Return those of `states` that nobody refers to, which are counted for this moment, and the tasks among `states`.

    `values` gets the values that have come.
    """
    lent = [state for state in states if state.count <= 0 and is_known_here(state)]
    for state in lent:
        values.append(_value(session, state, 1))
        session.ledger.settled(state, 1)
    tasks = session.submissions.again(states)
    for state, _ in tasks:
        if state.count <= 0:
            state.unfinished()
            lent.append(state)
    return lent, tasks


def _copies(session: Session) -> Iterator[Call]:
    """Yield calls that say how many copies are to be kept of what."""
    groups: dict[tuple[int, int], list[str]] = {}
    for state, wanted in session.copies.items():
        if state.count > 0:
            groups.setdefault(wanted, []).append(state.name)
    for (n, branching), names in groups.items():
        for part in portions(names, SLICE, lambda _: 1):
            yield replicate(part, n, again=True, branching=branching)


def _value(session: Session, state: FutureState, count: int) -> calls.Value:
    value = state.value or b""
    inside = session.bundles.get(state)
    if inside is None:
        inside = session.contained(value) if session.contained is not None else ()
    return calls.Value(state.name, count, 0, 0, state.nbytes, state.type, value, contains=inside, again=True)


def take_up(session: Session, kept: list[Entry], on_done: Callable[[], object]) -> None:
    """Read what a session of our name held and hold it, one reference a key; only then is the index of before let go."""
    incarnation = session.incarnation
    names: dict[str, None] = {}  # a scan may say a name twice
    session.lane.enqueue(quit_(session.waits.prefix))

    def answered(reply: list[Any]) -> None:
        if session.incarnation != incarnation or session.closing:
            return  # a registration anew begins again
        names.update((name.decode(), None) for name in reply[2:])
        if reply[1]:
            read(int(reply[1]))
            return
        for name in names:
            # What was to contain a bundle of before contains it by now, or never will.
            if name not in session.states and not name.startswith(BUNDLE):
                session.strays.kept.append(session.ledger.up(name))
        bring(session, kept)
        on_done()

    def read(cursor: int) -> None:
        session.lane.enqueue(calls.held(cursor), answered, session.fail)

    read(0)
