"""docs/memory.md: every block is run, in order, on a living cluster."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from textwrap import dedent
from typing import Any

import pytest

from docs.documents import DOCS, Block, run_python
from redist.diagnostics.doctor import examine

GUIDE = DOCS / "memory.md"
_FENCE = re.compile(r"^( *)```python\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[Block]:
    """Return the blocks of the guide, those in lists too."""
    text = GUIDE.read_text()
    return [
        Block("python", text.count("\n", 0, match.start(2)) + 1, dedent(match[2]))
        for match in _FENCE.finditer(text)
    ]


@pytest.fixture
def namespace() -> Iterator[dict[str, Any]]:
    """What the blocks share; whatever happens, client and cluster are closed."""
    found: dict[str, Any] = {"__name__": "guide"}
    yield found
    for name in ("client", "cluster"):
        if name in found:
            found[name].close()
    found.clear()
    gc.collect()


@pytest.mark.timeout(180)
def test_the_guide_is_true(namespace: dict[str, Any]) -> None:
    todo = blocks()
    assert len(todo) > 20
    for block in todo[:-1]:
        run_python(GUIDE, block, namespace)
    report = examine(namespace["cluster"].endpoint)
    assert report.healthy, str(report)
    run_python(GUIDE, todo[-1], namespace)


def test_every_link_leads_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)", page.read_text()):
            assert (DOCS / target).exists(), (page, target)
