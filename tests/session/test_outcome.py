"""What a wait for replies collects."""

from __future__ import annotations

import pytest

from redist.session.outcome import Outcome


def test_simple() -> None:
    outcome = Outcome(2)
    woken = []
    outcome.wake = lambda: woken.append(True)
    (first, _), (second, _) = outcome.of(0), outcome.of(1)
    second([b"OK", 2])
    assert not outcome.ready()
    first([b"OK", 1])
    assert outcome.ready()
    assert woken == [True]
    assert outcome.result() == [[b"OK", 1], [b"OK", 2]]


def test_what_is_said_twice_counts_once() -> None:
    """As after a Ctrl-C, which may come between the reply and the wake-up."""
    outcome = Outcome(2)
    first, refused = outcome.of(0)
    first([b"OK", 1])
    first([b"OK", 1])
    assert not outcome.ready()

    def struck() -> None:
        outcome.wake = lambda: woken.append(True)
        raise KeyboardInterrupt

    woken: list[bool] = []
    outcome.wake = struck
    _, refused = outcome.of(1)
    error = ValueError()
    with pytest.raises(KeyboardInterrupt):
        refused(error)
    refused(error)
    assert woken == [True]
    assert outcome.ready()
    with pytest.raises(ValueError):
        outcome.result()
