"""docs/glossary.md: the words that `redist why` prints for a key's state are in it."""

from __future__ import annotations

import re

import pytest

from docs.documents import DOCS

GLOSSARY = (DOCS / "glossary.md").read_text()


def states() -> list[str]:
    """The states that docs/redis-schema.md lists."""
    _, _, table = (DOCS / "redis-schema.md").read_text().partition("| `state` | meaning | goes on to |\n")
    rows = table.partition("\n\n")[0].splitlines()[1:]
    return [word for row in rows for word in re.findall(r"`([a-z]+)", row.split("|")[1])]


@pytest.mark.parametrize("state", states())
def test_a_state_is_explained(state: str) -> None:
    assert f"`{state}`" in GLOSSARY


def test_a_running_task_is_explained() -> None:
    assert re.search(r"\| `processing e\d+\.\d+` \|", GLOSSARY)
