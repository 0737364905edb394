"""The parts of scripts fit together."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from redist.store import scripts

PARTS = sorted((Path(scripts.__file__).parent / "scripts" / "include").glob("*.lua"))


def test_an_operation_belongs_to_one_part() -> None:
    """They share a table: of two of a name, the one that is loaded last would be called."""
    defined = Counter(
        name
        for part in PARTS
        for name in re.findall(r"^function S\.([a-z_]+)\(", part.read_text(), re.MULTILINE)
    )
    assert len(defined) > 100
    assert [name for name, count in defined.items() if count > 1] == []
