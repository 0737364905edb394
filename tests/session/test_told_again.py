"""A task of which another client told a part first, and went: who has it as well sends it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redist.session.states import FutureState
from redist.session.submissions import LINKS
from redist.store import calls
from redist.store.connect import Endpoint
from servers import wait_until


def values(caller: Any, count: int) -> list[str]:
    """Make values known that stay."""
    names = [f"v{i}" for i in range(count)]
    for name in names:
        with caller.session.lock:
            state: FutureState = caller.session.states.obtain(name, caller.session.generation)
            state.count += 1
            caller.session.ledger.settled(state, state.count)
    for at in range(0, count, 500):
        part = names[at : at + 500]
        caller.driver.call(calls.commit([calls.Value(name, 1, 0, 0, 1, "bytes", b"v") for name in part]))
    return names


def begin(caller: Any, name: str, deps: list[str]) -> None:
    """Tell of a task and some of its dependencies."""
    with caller.session.lock:
        state = caller.session.states.obtain(name, caller.session.generation)
        state.count += 1
        caller.session.ledger.settled(state, state.count)
    task = calls.Task(name, "f", name.encode(), deps, flags=calls.MORE)
    caller.driver.call(calls.submit([task], [("f", b"F")]))


def record(endpoint: Endpoint, name: str) -> dict[bytes, bytes]:
    wire = endpoint.open()
    flat = wire.call("HGETALL", f"{endpoint.prefix}key:{name}")
    wire.close()
    return dict(zip(flat[::2], flat[1::2]))


@pytest.mark.parametrize("how", ["goes", "lets go"])
@pytest.mark.parametrize("many", [3, LINKS + 700])
def test_it_goes_on(
    caller: Any, new_caller: Callable[..., Any], executor: Any, endpoint: Endpoint, many: int, how: str
) -> None:
    """And nobody hears of an error, of it or of what needs it."""
    first = new_caller()
    names = values(caller, many)
    begin(first, "all", names[:2])
    state = caller.submit("all", deps=tuple(names))
    last = caller.submit("last", deps=("all",))
    assert caller.driver.wait(lambda: not caller.session.lane.unanswered, 10, replies=True)
    linking = record(endpoint, "all").get(b"linking", b"").decode()
    assert linking == (
        str(first.session.ordinal) if many > LINKS else ""
    )  # what is told wholly waits for nobody
    if how == "goes":
        first.close()
    else:
        first.release(*first.session.states)
    assert caller.wait(state, last)
    assert (state.status, last.status) == ("finished", "finished")
    assert record(endpoint, "all")[b"state"] == b"memory"


def test_it_cannot_go_on(
    caller: Any, new_caller: Callable[..., Any], executor: Any, endpoint: Endpoint
) -> None:
    """What it needs is gone meanwhile: the task is cancelled, and what needs it says why it has failed."""
    first = new_caller()
    names = values(first, LINKS + 1)
    begin(first, "all", names[:2])
    state = caller.submit("all", deps=tuple(names))
    last = caller.submit("last", deps=("all",))
    assert caller.driver.wait(lambda: not caller.session.lane.unanswered, 10, replies=True)
    first.release(first.session.states.records["v2"])
    # the others go in any order, and maybe later than it is told again
    wait_until(lambda: not record(endpoint, "v2"))
    first.close()
    wait_until(lambda: state.status != "pending" and last.status != "pending")
    assert state.status == "cancelled"
    assert "v2" in str(state.cache)
    assert last.status in ("error", "cancelled")
