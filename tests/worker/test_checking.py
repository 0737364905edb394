"""What a worker tells the server of payloads that somebody could not read: only what it has seen itself."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from redist.errors import ConnectionLost, SegmentCorrupt, SegmentGone, TransferError
from redist.store.calls import Call
from redist_worker.checking import Checker
from worker.test_replicas import Rig, rig

__all__ = ["rig"]


def checker(rig: Rig) -> Checker:
    made = Checker(rig.directory)

    async def ask(call: Call) -> list[Any]:
        return rig.worker.ok(call)

    made.ask = ask
    return made


def test_simple(rig: Rig) -> None:
    for number, name in enumerate("abc", 1):
        rig.scatter(name, number)
    os.unlink(rig.directory.path_of("b", 2))
    os.truncate(rig.directory.path_of("c", 3), 100)
    outcomes = asyncio.run(checker(rig).check([("a", 1), ("b", 2), ("c", 3), ("a", 1)]))
    assert [type(outcome) for outcome in outcomes] == [type(None), SegmentGone, SegmentCorrupt, type(None)]
    assert rig.has() == {"a": "1"}
    assert list(rig.directory.files) == [("a", 1)]
    assert not os.path.exists(rig.directory.path_of("c", 3))
    rig.client.listen_up()
    assert {name: state.type for name, state in rig.client.told.items() if state.state == "erred"} == {
        "b": "DataLost",
        "c": "DataLost",
    }


def test_a_copy_that_went_as_it_should(rig: Rig) -> None:
    """Who asks has heard of an attempt before: the one that is there stays."""
    rig.scatter("a", 2)
    for copy in (("a", 1), ("none", 7)):
        (outcome,) = asyncio.run(checker(rig).check([copy]))
        assert isinstance(outcome, SegmentGone)
    assert rig.has() == {"a": "2"}


def test_nobody_waits(rig: Rig) -> None:
    rig.scatter("a", 1)
    os.unlink(rig.directory.path_of("a", 1))

    async def doubt() -> None:
        made = checker(rig)
        for _ in range(3):
            made.doubt("a", 1)
        await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})

    asyncio.run(doubt())
    assert rig.has() == {}


def test_a_server_that_is_away(rig: Rig) -> None:
    """Who asks is answered all the same: the call waits in the worker's lane."""
    rig.scatter("a", 1)
    os.unlink(rig.directory.path_of("a", 1))
    made = checker(rig)

    async def ask(call: Call) -> list[Any]:
        raise ConnectionLost("it is away")

    made.ask = ask
    (outcome,) = asyncio.run(made.check([("a", 1)]))
    assert isinstance(outcome, SegmentGone)
    made.ask = None
    with pytest.raises(TransferError, match="not ready yet"):
        asyncio.run(made.check([("a", 1)]))
