"""A name that goes and comes again: what is said of one life of a key is no news of the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from redist.session.states import FutureState
from redist.store import calls
from redist.store.connect import Endpoint
from servers import Server, wait_until


def record(endpoint: Endpoint, name: str) -> dict[str, str]:
    wire = endpoint.open()
    flat = wire.call("HGETALL", f"{endpoint.prefix}key:{name}")
    wire.close()
    return {field.decode(): value.decode(errors="replace") for field, value in zip(flat[::2], flat[1::2])}


class Held:
    """States that are pushed to a caller, held back as on a slow connection until `deliver`."""

    def __init__(self, caller: Any) -> None:
        self.caller = caller
        self.messages: list[tuple[bytes, bytes]] = []
        self._apply = caller.session.on_message
        caller.session.on_message = self._take

    def _take(self, channel: bytes, data: bytes) -> None:
        if msgpack.unpackb(data, raw=True)[0] == b"s":
            self.messages.append((channel, data))
        else:
            self._apply(channel, data)

    def wait_for(self, name: str, word: str) -> None:
        """Wait until a state of a key is among what is held back."""
        what = (name.encode(), word.encode())

        def there() -> bool:
            messages = [msgpack.unpackb(data, raw=True) for _, data in list(self.messages)]
            return any(what in zip(message[3::7], message[4::7]) for message in messages)

        wait_until(there, what=f"{name} is told to be {word}")

    def deliver(self) -> None:
        with self.caller.session.lock:
            messages, self.messages = self.messages, []
            for message in messages:
                self._apply(*message)

    def end(self) -> None:
        self.caller.session.on_message = self._apply
        self.deliver()


def commit(caller: Any, name: str, value: bytes, count: int = 1) -> FutureState:
    """Make a value known as `scatter` does: the reply tells, and a push."""
    session = caller.session
    with session.lock:
        state: FutureState = session.states.obtain(name, session.generation)
        state.count += 1
        session.ledger.settled(state, state.count)
    caller.driver.call(calls.commit([calls.Value(name, count, 0, 0, len(value), "bytes", value)]))
    with session.lock:
        state.finish(len(value), "bytes", "", value)
    return state


def release(caller: Any, endpoint: Endpoint, *states: FutureState) -> None:
    caller.release(*states)
    wait_until(lambda: not any(record(endpoint, state.name) for state in states), what="the record goes")


def first_life(caller: Any, endpoint: Endpoint, spec: bytes, word: str) -> Held:
    """Let the key k live and go; return what holds back the news of it, `word` among them."""
    held = Held(caller)
    state = caller.submit("k", spec)
    held.wait_for("k", word)
    release(caller, endpoint, state)
    return held


def began(caller: Any, endpoint: Endpoint, name: str) -> None:
    """Wait until a submission was applied, and answered."""
    assert caller.driver.wait(lambda: not caller.session.lane.unanswered, 10, replies=True)
    assert record(endpoint, name)


def test_a_late_result(caller: Any, executor: Any, endpoint: Endpoint) -> None:
    held = first_life(caller, endpoint, b"old", "memory")
    executor.gate.clear()
    new = caller.submit("k", b"new")
    began(caller, endpoint, "k")
    held.deliver()
    assert new.status == "pending"
    executor.gate.set()
    held.wait_for("k", "memory")
    held.end()
    assert new.value == b"new"


def test_a_late_result_and_a_name_that_has_not_left(caller: Any, executor: Any, endpoint: Endpoint) -> None:
    """Its submission waits for those before it to be answered."""
    held = first_life(caller, endpoint, b"old", "memory")
    with caller.session.lock:
        caller.session.submissions.unanswered += 1000
    new = caller.submit("k", b"new")
    assert not new.sent
    held.deliver()
    assert new.status == "pending"
    with caller.session.lock:
        caller.session.submissions.recount()
        caller.driver.push_out()
    held.end()
    assert caller.wait(new)
    assert new.value == b"new"


def test_a_late_error(caller: Any, executor: Any, endpoint: Endpoint) -> None:
    held = first_life(caller, endpoint, b"boom", "erred")
    new = caller.submit("k", b"new")
    began(caller, endpoint, "k")
    held.end()
    assert caller.wait(new)
    assert (new.status, new.value) == ("finished", b"new")


def test_a_late_word_of_a_commit(caller: Any, executor: Any, endpoint: Endpoint) -> None:
    """What is stored is told by the reply, so that nobody waits for the push."""
    held = Held(caller)
    old = commit(caller, "k", b"old")
    assert old.status == "finished"
    release(caller, endpoint, old)
    executor.gate.clear()
    new = caller.submit("k", b"new")
    began(caller, endpoint, "k")
    held.wait_for("k", "memory")
    held.deliver()
    assert new.status == "pending"
    executor.gate.set()
    held.end()
    assert caller.wait(new)
    assert new.value == b"new"


def test_a_late_cancellation_by_somebody_else(
    caller: Any, new_caller: Callable[..., Any], executor: Any, endpoint: Endpoint
) -> None:
    """We cancel the key, too, before we hear of it."""
    executor.gate.clear()
    other = new_caller()
    held = Held(caller)
    old = caller.submit("k", b"old")
    began(caller, endpoint, "k")
    other.driver.call(calls.cancel(["k"], force=True, reason="by force"))
    held.wait_for("k", "cancelled")
    with caller.session.lock:
        caller.session.ledger.forfeit(old)
        old.cancel("by the user")
    caller.driver.call(calls.cancel(["k"], reason="by the user"))
    new = caller.submit("k", b"new")
    assert new is not old
    began(caller, endpoint, "k")
    held.end()
    assert new.status == "pending"
    executor.gate.set()
    assert caller.wait(new)
    assert new.value == b"new"


def test_a_late_word_of_an_unknown_key(caller: Any, executor: Any, endpoint: Endpoint) -> None:
    held = Held(caller)
    with caller.session.lock:
        old = caller.session.ledger.up("k")
        caller.session.flush(everything=True)
        caller.driver.push_out()
    held.wait_for("k", "cancelled")
    caller.release(old)
    wait_until(lambda: "k" not in caller.session.states)
    new = caller.submit("k", b"new")
    began(caller, endpoint, "k")
    held.end()
    assert caller.wait(new)
    assert (new.status, new.value) == ("finished", b"new")


def test_a_late_word_of_a_key_that_was_not_known_yet(caller: Any, endpoint: Endpoint) -> None:
    """Its value is stored, in the same life of the record, before that is heard."""
    held = Held(caller)
    with caller.session.lock:
        state = caller.session.ledger.up("k")
        caller.session.flush(everything=True)
        caller.driver.push_out()
    held.wait_for("k", "cancelled")
    assert commit(caller, "k", b"v", count=2) is state
    held.end()
    assert (state.status, state.sent) == ("finished", 2)
    assert record(endpoint, "k")[f"refs:{caller.session.ordinal}"] == "2"


def test_a_key_that_somebody_else_made(
    caller: Any, new_caller: Callable[..., Any], executor: Any, endpoint: Endpoint
) -> None:
    """Only our reference ends and begins: the second time its value is told again."""
    other = new_caller()
    theirs = other.submit("k", b"theirs")
    assert other.wait(theirs)
    held = Held(caller)
    for times in (1, 2):
        with caller.session.lock:
            mine = caller.session.ledger.up("k")
            caller.session.flush(everything=True)
            caller.driver.push_out()
        began(caller, endpoint, "k")
        wait_until(lambda: len(held.messages) == times)  # noqa: B023
        if times == 1:
            caller.release(mine)
            wait_until(lambda: "k" not in caller.session.states)
    first, second = held.messages
    held.messages = [first]
    held.deliver()
    assert mine.status == "pending"
    held.messages = [second]
    held.end()
    assert mine.value == b"theirs"


def test_news_that_comes_before_the_answer(caller: Any, executor: Any, endpoint: Endpoint) -> None:
    """A quick task: its result is here while the answer to its submission is still on its way."""
    old = caller.submit("k", b"old")
    assert caller.wait(old)
    release(caller, endpoint, old)
    session = caller.session
    assert caller.driver.wait(lambda: not session.lane.unanswered, 10, replies=True)
    answers: list[Any] = []
    on_reply = session.on_reply
    session.on_reply = answers.append
    new = caller.submit("k", b"new")
    wait_until(lambda: new.status == "finished")
    assert new.value == b"new"
    assert session.lane.unanswered
    with session.lock:
        session.on_reply = on_reply
        for answer in answers:
            on_reply(answer)
        caller.driver.push_out()


@pytest.mark.parametrize("forgets", [False, True])
def test_over_a_registration_anew(
    caller: Any, executor: Any, endpoint: Endpoint, valkey: Server, forgets: bool
) -> None:
    """Numbers go on: what was said under the registration before is old, however few calls there were since."""
    session = caller.session
    for i in range(20):
        assert caller.driver.call(calls.noop()), i
    held = first_life(caller, endpoint, b"old", "memory")
    incarnation = session.incarnation
    if forgets:
        valkey.forget(endpoint.namespace)
        for other in (executor.session, executor.worker.session):
            other.heart.at = 0.0
        executor.worker._kick()
        executor.driver._kick()
    else:
        wire = endpoint.open()
        wire.call("HSET", f"{endpoint.prefix}caller:{session.ordinal}", "inc", "another")
        wire.close()
    with session.lock:
        session.heart.beat()
        caller.driver.push_out()
    wait_until(lambda: session.incarnation != incarnation and session.ready)
    executor.gate.clear()
    new = caller.submit("k", b"new")
    began(caller, endpoint, "k")
    held.deliver()
    assert new.status == "pending"
    executor.gate.set()
    held.end()
    assert caller.wait(new)
    assert new.value == b"new"
