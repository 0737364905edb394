"""docs/memory.md: every block is run, in order, on a living cluster."""

from __future__ import annotations

import gc
import re
from textwrap import dedent

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


@pytest.mark.timeout(180)
def test_the_guide_is_true() -> None:
    namespace: dict[str, object] = {"__name__": "guide"}
    todo = blocks()
    assert len(todo) > 20
    healthy = True
    for block in todo:
        if block is todo[-1]:
            report = examine(namespace["cluster"].endpoint)  # type: ignore[attr-defined]
            healthy = report.healthy
            assert healthy, str(report)
        run_python(GUIDE, block, namespace)
    gc.collect()


def test_every_link_leads_somewhere() -> None:
    for page in DOCS.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)", page.read_text()):
            assert (DOCS / target).exists(), (page, target)
