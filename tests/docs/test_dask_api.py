"""docs/dask-api.md: nothing public of dask.distributed is missing in it, and what it says of ours is so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

import redist
from docs.documents import DOCS

distributed = pytest.importorskip(
    "distributed", reason="the table is compared with the installed dask.distributed"
)

PAGE = DOCS / "dask-api.md"
STATES = ("same", "better", "different", "not there")
CLASSES = (
    "Client", "Future", "LocalCluster", "as_completed", "Lock", "MultiLock", "Event", "Semaphore", "Queue", "Variable",
    "Actor", "ActorFuture",
)  # fmt: skip
MODULE = "Module"
_HEADING = re.compile(r"^## `?(\w+)`?")
_ROW = re.compile(r"^\| `(\w+)` \| ([a-z ]+) \| (.*) \|$")
_NOT_GIVEN = "not given"
ABSENT, ATTRIBUTE = object(), object()


class Row(NamedTuple):
    """What the table says of one name."""

    section: str
    name: str
    state: str
    note: str


def rows() -> Iterator[Row]:
    section = ""
    for line in PAGE.read_text().splitlines():
        if heading := _HEADING.match(line):
            section = heading[1]
        elif row := _ROW.match(line):
            yield Row(section, row[1], row[2], row[3].strip())


ROWS = list(rows())


def public(owner: Any) -> set[str]:
    return {name for name in dir(owner) if not name.startswith("_")} | {"__init__"}


def look_up(module: Any, row: Row) -> Any:
    """What a row is about in a module, `ABSENT` where it is not there; of properties and attributes only that they are."""
    if row.section == MODULE:
        return getattr(module, row.name, ABSENT)
    owner = getattr(module, row.section, ABSENT)
    if owner is ABSENT or row.name == "__init__":
        return owner
    found = inspect.getattr_static(owner, row.name, ABSENT)
    if found is ABSENT:
        annotated = any(row.name in vars(base).get("__annotations__", ()) for base in owner.__mro__)
        return ATTRIBUTE if annotated else ABSENT
    found = getattr(owner, row.name, found)
    return found if callable(found) else ATTRIBUTE


def parameters(function: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of each parameter; a default that only marks what was not given is the same everywhere."""
    simple = (str, int, float, bool, type(None))
    return [
        (
            p.name,
            p.kind,
            p.default
            if p.default is p.empty
            or isinstance(p.default, simple)
            or p.default in ({}, [])
            or (isinstance(p.default, tuple) and all(isinstance(one, simple) for one in p.default))
            else _NOT_GIVEN,
        )
        for p in inspect.signature(function).parameters.values()
        if p.name != "self"
    ]


def test_the_table_is_whole() -> None:
    said = {(row.section, row.name) for row in ROWS}
    assert len(said) == len(ROWS), "a name stands there twice"
    expected = {(MODULE, name) for name in distributed.__all__}
    for section in CLASSES:
        expected |= {(section, name) for name in public(getattr(distributed, section))}
    assert expected - said == set()
    assert {row.section for row in ROWS} == {*CLASSES, MODULE}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.section}.{row.name}")
def test_what_the_table_says_is_so(row: Row) -> None:
    theirs, ours = look_up(distributed, row), look_up(redist, row)
    assert row.state in STATES
    if row.state == "not there":
        assert ours is ABSENT
        assert row.note, "say why"
        return
    assert ours is not ABSENT
    if row.state == "different":
        assert row.note, "say how"
        return
    if theirs is ABSENT:  # an older or newer distributed
        return
    assert (ours is ATTRIBUTE) == (theirs is ATTRIBUTE)
    assert inspect.isclass(ours) == inspect.isclass(theirs)
    if theirs is ATTRIBUTE or inspect.ismodule(theirs):
        return
    if inspect.isclass(theirs) and issubclass(theirs, BaseException):
        assert issubclass(ours, BaseException)
    elif row.state == "same":
        assert parameters(ours) == parameters(theirs)
    else:
        assert row.note, "say how"
        taken = parameters(ours)
        assert [p for p in parameters(theirs) if p not in taken] == []
