"""Chains in an executor: what is ahead in the batch gives its value to what follows."""

from __future__ import annotations

import pytest

from redist.store.calls import Result
from redist.store.replies import HandOut
from redist_worker.chains import Chain
from redist_worker.runner import Runner
from redist_worker.threads import TaskThread

FIRST = HandOut(7, 7, "a", "f", b"spec", [], 0)


def following(*deps: tuple[str, str, bytes]) -> HandOut:
    return HandOut(7, 8, "b", "f", b"spec", list(deps), 0)


def test_a_value_goes_along() -> None:
    chain = Chain()
    assert chain.link(FIRST) is FIRST
    chain.note(Result("a", 7, "memory", 5, "int", b"value"))
    task = following(("a", "+", b""), ("c", "", b"here"), ("d", "3.4", b"100"))
    assert chain.link(task) == following(("a", "", b"value"), ("c", "", b"here"), ("d", "3.4", b"100"))


@pytest.mark.parametrize(
    "result",
    [
        Result("a", 7, "erred", 1, "ValueError", b"E"),
        Result("a", 7, "memory", 10_000, "bytes", b""),
        Result("a", 7, "retry"),
        Result("other", 7, "memory", 5, "int", b"value"),
    ],
)
def test_without_it_the_rest_goes_back(result: Result) -> None:
    chain = Chain()
    chain.note(result)
    assert chain.link(following(("a", "+", b""))) is None


def test_a_tail_that_another_thread_took_goes_back() -> None:
    thread = TaskThread()
    Runner.__new__(Runner)._run(thread, [following(("a", "+", b""))])
    ((result, batch, _),) = thread.results
    assert (result.name, result.status, batch) == ("b", "back", 7)
