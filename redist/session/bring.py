"""Registering anew: what a caller says again when the server does not know it any more, or lost writes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redist.session.lane import Entry
from redist.session.states import FINISHED, PENDING, FutureState
from redist.session.submissions import SLICE
from redist.store import calls

if TYPE_CHECKING:
    from redist.session.session import Session

__all__ = ["bring"]

_BRINGS_COUNTS = ("submit", "commit", "cancel")


def bring(session: Session, kept: list[Entry]) -> None:
    """Put on the new lane what `session` holds, then the calls in `kept`, which the server may not have applied.

    In this order: what a face brings (files, running attempts), values that we have in hand, counts, tasks without a
    result. So tasks find their dependencies, and what the old index alone still names can be released at the end.
    """
    submissions, ledger = session.submissions, session.ledger
    submissions.forget_server()
    enqueue = session.lane.enqueue
    for call in session.on_lost() if session.on_lost is not None else ():
        enqueue(call)
    pending: list[FutureState] = []
    counts: list[tuple[str, int]] = []
    values: list[calls.Value] = []
    for name, count in ledger.pairs():
        state = session.states.records[name]
        if state.status == PENDING and state.task is not None:
            pending.append(state)
        elif state.status == FINISHED and state.value and not state.where:
            values.append(calls.Value(name, count, 0, 0, state.nbytes, state.type, state.value))
        else:
            counts.append((name, count))
    for i in range(0, len(values), SLICE):
        enqueue(calls.commit(values[i : i + SLICE]))
    session.enqueue_counts(counts)
    again = submissions.again(pending)
    if session.bring_functions is not None:
        session.bring_functions({task.fn for _, task in again})
    submissions.send_again(again)
    for entry in kept:
        # Counts are said above, in their present form.
        if entry.call.script.name == "submit":
            submissions.send_entry_again(entry)
        elif entry.call.script.name not in ("ledger", "registered", "noop"):
            enqueue(entry.call, entry.on_reply, entry.on_error)
    if any(entry.call.script.name in _BRINGS_COUNTS for entry in kept):
        # Those brought the counts of their time. What has not left yet has no count: said too early, it would be cancelled.
        unsent = submissions.names()
        session.enqueue_counts([pair for pair in ledger.pairs() if pair[0] not in unsent])
    enqueue(calls.registered())
